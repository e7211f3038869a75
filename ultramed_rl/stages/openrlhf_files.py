"""Data that OpenRLHF reads, and its checkpoints made ones that transformers, vLLM and the rest of this project read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ultramed_rl.config.models import Model
from ultramed_rl.config.stages import BradleyTerry, PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.models.reading import READ_AT
from ultramed_rl.records import Conversation, RankedAnswers
from ultramed_rl.store.atomic import write_json, write_whole

# OpenRLHF switches these for training and saves them so.
_RESTORED = {"use_cache": True, "output_router_logits": False}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

# -- data --------------------------------------------------------------------------------------------------


def write_openrlhf_data(
    path: Path,
    records: Iterable[Conversation] | Iterable[RankedAnswers],
    config: SftConfig | RewardConfig | PreferenceConfig,
) -> int:
    """Write samples as JSON lines, one at a time; the file appears whole.

    A conversation is a row with `messages`. Of ranked answers each pair with different scores is a row with
    `prompt`, `chosen` and `rejected`, all lists of messages, and, if the config's loss wants it, the `margin`.

    Returns:
        The number of rows.

    Raises:
        ValueError: no row at all; or, with the prompt's id, unpaired feedback, answers that are all tied, and
            answers that were cut off, to which OpenRLHF would add an end.
    """
    scale = _margin_scale(config)

    def write(temporary: Path) -> int:
        rows = 0
        with temporary.open("w", encoding="utf-8") as file:
            for record in records:
                for row in _rows_of(record, scale):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows += 1
        if not rows:
            raise ValueError(f"{path}: no sample to write; the sources (or their held-out part) are empty")
        return rows

    path.parent.mkdir(parents=True, exist_ok=True)
    return int(write_whole(path, write))


def _margin_scale(config: SftConfig | RewardConfig | PreferenceConfig) -> float | None:
    objective = config.objective if isinstance(config, RewardConfig) else None
    with_margin = isinstance(objective, BradleyTerry) and objective.margin != "none"
    return objective.margin_scale if isinstance(objective, BradleyTerry) and with_margin else None


def _rows_of(record: Conversation | RankedAnswers, margin_scale: float | None) -> Iterator[dict[str, Any]]:
    if isinstance(record, Conversation):
        yield {"messages": list(record.messages)}
        return
    ranked = list(zip(record.answers, record.scores, strict=True))
    pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :] if a[1] > b[1]]
    if record.cut or not pairs:
        cut = f"answers {sorted(record.cut)} were cut off"
        reason = cut if record.cut else f"its scores {list(record.scores)} make no pair"
        raise ValueError(
            f"prompt {record.prompt_id!r}: {reason}, and OpenRLHF takes pairs of whole answers; leave it out or use "
            "engine=native"
        )
    for (better, high), (worse, low) in pairs:
        row: dict[str, Any] = {
            "prompt": list(record.messages),
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
        yield row if margin_scale is None else {**row, "margin": margin_scale * (high - low)}


# -- checkpoints -------------------------------------------------------------------------------------------


def adopt_openrlhf(output: Path, config: SftConfig | RewardConfig | PreferenceConfig) -> None:
    """Make what OpenRLHF saved a checkpoint like the native engine's. Doing it again does no harm.

    Adapters are merged into their base model and kept beside it in `adapter/`; a reward model becomes a
    `num_labels=1` classifier.

    Raises:
        RuntimeError: a weight isn't finite.
        ValueError: a reward model without a classifier class in transformers.
    """
    if config.model.lora is not None:
        _merge_adapters(output, config.model)
    if isinstance(config, RewardConfig):
        adopt_openrlhf_reward(output)
    _change_config(output, {})
    check_finite(output)


def adopt_openrlhf_reward(path: Path) -> None:
    """Make a reward model that OpenRLHF saved load as `AutoModelForSequenceClassification`, in place.

    OpenRLHF names a class of its own and the labels of its base model; its head may have another name.

    Raises:
        ValueError: transformers has no classifier of that architecture, or it has other weights.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ultramed_rl.models.checks import check_reward_model
    from ultramed_rl.models.load import set_padding
    from ultramed_rl.models.tokenizer import ChatTokenizer

    own = AutoConfig.from_pretrained(path)
    family = AutoModelForSequenceClassification._model_mapping.get(type(own), None)
    if family is None:
        raise ValueError(
            f"{path}: transformers has no sequence classifier for {own.model_type!r}; start from another model"
        )
    prefix = json.loads((path / "config.json").read_text()).get("value_head_prefix", "score")
    if prefix != "score":
        _rename_weight(path, f"{prefix}.weight", "score.weight")
    tokenizer = ChatTokenizer(str(path))
    changes = {
        "architectures": [family.__name__],
        "value_head_prefix": "score",
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": set_padding(tokenizer.backend, own.vocab_size, tokenizer.end_id),
        **READ_AT,
    }
    _change_config(path, changes)
    tokenizer.backend.save_pretrained(path)
    check_reward_model(str(path), trained=True)


def check_finite(path: Path) -> None:
    """Raise RuntimeError if a checkpoint has a weight that isn't finite: OpenRLHF steps over nothing."""
    for name, tensor in _weights(path):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RuntimeError(
                f"{path}: weight {name!r} isn't finite, so the training diverged; lower training.learning_rate"
            )


def _merge_adapters(output: Path, model: Model) -> None:
    """OpenRLHF saves adapters alone; the base model is read again, quantised as it was in training."""
    from transformers import AutoTokenizer

    from ultramed_rl.models.load import ADAPTER_FOLDER, load_policy, save_model
    from ultramed_rl.models.lora import merged_weights

    folder = output / ADAPTER_FOLDER
    folder.mkdir(exist_ok=True)
    for name in _ADAPTER_FILES:
        if (output / name).exists():
            (output / name).replace(folder / name)
    policy = load_policy(
        model.path,
        "bfloat16",
        lora=model.lora,
        adapter=str(output),
        trust_remote_code=model.trust_remote_code,
    )
    merged = merged_weights(policy.lm, lambda parameters: nullcontext())
    state = {name: tensor.cpu().clone() for name, tensor in merged}
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=model.trust_remote_code)
    save_model(policy, tokenizer, str(output), state)


def _change_config(path: Path, changes: dict[str, Any]) -> None:
    file = path / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {key: value for key, value in _RESTORED.items() if key in content}
    write_json(file, {**content, **changes})


def _weight_files(path: Path) -> list[Path]:
    return sorted(path.glob("model*.safetensors"))


def _weights(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in _weight_files(path):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)


def _rename_weight(path: Path, old: str, new: str) -> None:
    from safetensors.torch import load_file, save_file

    for file in _weight_files(path):
        state = load_file(file)
        if old in state:
            state[new] = state.pop(old)
            write_whole(file, partial(save_file, state, metadata={"format": "pt"}))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {new if k == old else k: v for k, v in content["weight_map"].items()}
        write_json(index, content)
