"""Data that OpenRLHF reads, and its checkpoints made ones that transformers, vLLM and the rest of this project read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ultramed_rl.config.models import Model
from ultramed_rl.config.stages import BradleyTerry, StageConfig
from ultramed_rl.models.reading import READ_AT
from ultramed_rl.records import Conversation, RankedAnswers
from ultramed_rl.store.atomic import write_json, write_whole

# OpenRLHF switches these for training and saves them so.
_RESTORED = {"use_cache": True, "output_router_logits": False}


def write_openrlhf_data(
    path: Path, records: Iterable[Conversation] | Iterable[RankedAnswers], config: StageConfig
) -> int:
    """Write samples as JSON lines, one at a time, and return their number; the file appears whole.

    A conversation is a row with `messages`. Of ranked answers each pair with different scores is a row with
    `prompt`, `chosen` and `rejected`, all lists of messages, and, if the config's loss wants it, the `margin`.

    Raises:
        ValueError: no row at all; or, with the prompt's id, unpaired feedback, answers that are all tied, and
            answers that were cut off, to which OpenRLHF would add an end.
    """
    loss = getattr(config, "objective", None)
    scale = loss.margin_scale if isinstance(loss, BradleyTerry) and loss.margin != "none" else None

    def write(temporary: Path) -> int:
        with temporary.open("w", encoding="utf-8") as file:
            rows = (row for record in records for row in _rows_of(record, scale))
            count = sum(1 for row in rows if file.write(json.dumps(row, ensure_ascii=False) + "\n"))
        if not count:
            raise ValueError(f"{path}: no sample to write; the sources (or their held-out part) are empty")
        return count

    path.parent.mkdir(parents=True, exist_ok=True)
    return int(write_whole(path, write))


def _rows_of(record: Conversation | RankedAnswers, margin_scale: float | None) -> Iterator[dict[str, Any]]:
    if isinstance(record, Conversation):
        yield {"messages": list(record.messages)}
        return
    ranked = list(zip(record.answers, record.scores, strict=True))
    pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :] if a[1] > b[1]]
    if record.cut or not pairs:
        scores, cut = list(record.scores), sorted(record.cut)
        reason = f"answers {cut} were cut off" if cut else f"its scores {scores} make no pair"
        rule = "OpenRLHF takes pairs of whole answers; leave it out or use engine=native"
        raise ValueError(f"prompt {record.prompt_id!r}: {reason}, and {rule}")
    for (better, high), (worse, low) in pairs:
        answers = {"chosen": better, "rejected": worse}
        row: dict[str, Any] = {"prompt": list(record.messages)}
        row |= {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
        yield row if margin_scale is None else {**row, "margin": margin_scale * (high - low)}


def adopt_openrlhf(output: Path, config: StageConfig) -> None:
    """Make what OpenRLHF saved a checkpoint like the native engine's. Doing it again does no harm.

    Adapters are merged into their base model and kept beside it in `adapter/`; a reward model becomes a
    `num_labels=1` classifier.

    Raises:
        RuntimeError: a weight isn't finite: OpenRLHF steps over nothing.
        ValueError: a reward model without a classifier class in transformers.
    """
    from safetensors import safe_open

    if config.model.lora is not None:
        _merge_adapters(output, config.model)
    if config.type == "reward":
        _adopt_reward(output)
    _change_config(output, {})
    for file in sorted(output.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if not bool(opened.get_tensor(name).isfinite().all()):
                    why = "isn't finite, so the training diverged; lower training.learning_rate"
                    raise RuntimeError(f"{output}: weight {name!r} {why}")


def _adopt_reward(path: Path) -> None:
    """OpenRLHF names a class of its own and the labels of its base model."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ultramed_rl.models.checks import check_reward_model
    from ultramed_rl.models.load import set_padding
    from ultramed_rl.models.tokenizer import ChatTokenizer

    own, tokenizer = AutoConfig.from_pretrained(path), ChatTokenizer(str(path))
    family = AutoModelForSequenceClassification._model_mapping.get(type(own), None)
    if family is None:
        why = f"transformers has no sequence classifier for {own.model_type!r}; start from another model"
        raise ValueError(f"{path}: {why}")
    labels = {"architectures": [family.__name__], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    padding = set_padding(tokenizer.backend, own.vocab_size, tokenizer.end_id)
    _change_config(path, {**labels, "pad_token_id": padding, **READ_AT})
    tokenizer.backend.save_pretrained(path)
    check_reward_model(str(path), trained=True)


def _merge_adapters(output: Path, model: Model) -> None:
    """OpenRLHF saves adapters alone; the base model is read again, quantised as it was in training."""
    from transformers import AutoTokenizer

    from ultramed_rl.models.load import ADAPTER_FOLDER, load_policy, save_model
    from ultramed_rl.models.lora import merged_weights

    trust = model.trust_remote_code
    folder = output / ADAPTER_FOLDER
    folder.mkdir(exist_ok=True)
    for file in output.glob("adapter_*"):
        file.replace(folder / file.name)
    policy = load_policy(
        model.path, "bfloat16", lora=model.lora, adapter=str(output), trust_remote_code=trust
    )
    merged = merged_weights(policy.lm, lambda parameters: nullcontext())
    state = {name: tensor.cpu().clone() for name, tensor in merged}
    save_model(policy, AutoTokenizer.from_pretrained(output, trust_remote_code=trust), str(output), state)


def _change_config(path: Path, changes: dict[str, Any]) -> None:
    file = path / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {key: value for key, value in _RESTORED.items() if key in content}
    write_json(file, {**content, **changes})
