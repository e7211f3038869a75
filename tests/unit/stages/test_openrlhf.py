"""Stages handed to OpenRLHF: its own parsers, datasets and model classes, with what needs CUDA stubbed."""

from __future__ import annotations

import importlib.machinery
import json
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_policy, make_reward, make_tokenizer
from ultramed_rl.config import ConfigError, PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.records import Conversation, RankedAnswers
from ultramed_rl.stages.openrlhf import (
    adopt_openrlhf,
    openrlhf_command,
    openrlhf_environment,
    states_directory,
    submit_openrlhf,
    write_openrlhf_data,
)

# The kernels of flash-attn, which OpenRLHF imports by name wherever it starts, and which need CUDA to be built.
STUBS = {
    "flash_attn": [],
    "flash_attn.bert_padding": ["index_first_axis", "pad_input", "rearrange", "unpad_input"],
    "flash_attn.utils": [],
    "flash_attn.utils.distributed": ["all_gather"],
}
TYPES: dict[str, Any] = {"sft": SftConfig, "reward": RewardConfig, "preference": PreferenceConfig}


class Captured(Exception):
    """What OpenRLHF had parsed and checked when it began to work."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture(scope="module")
def openrlhf() -> Iterator[types.ModuleType]:
    """The real package; loaded for this module alone."""
    before = set(sys.modules)
    for name, attributes in STUBS.items():
        stub = types.ModuleType(name)
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
        stub.__dict__.update(dict.fromkeys(attributes), __path__=[])
        sys.modules[name] = stub
    import openrlhf.utils

    yield openrlhf
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"openrlhf", "flash_attn"}:
            del sys.modules[name]


@pytest.fixture
def parse(openrlhf: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """Give a command line to OpenRLHF's real main program, up to where its training would begin."""

    def capture(arguments: Any) -> None:
        raise Captured(arguments)

    monkeypatch.setattr("openrlhf.utils.get_strategy", capture)

    def run(command: list[str]) -> Any:
        module = command.index("-m", command.index("--standalone")) + 1
        monkeypatch.setattr(sys, "argv", command[module:])
        with pytest.raises(Captured) as caught:
            runpy.run_module(command[module], run_name="__main__")
        return caught.value.arguments

    return run


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("models") / "policy")


def stage(kind: str, model: Path | str, **changes: Any) -> Any:
    """A complete config that OpenRLHF can run; `changes` are keys with `__` for dots."""
    config: dict[str, Any] = {
        "type": kind,
        "engine": "openrlhf",
        "run": {"name": "tiny", "seed": 7},
        "model": {"path": str(model), "max_length": 128},
        "data": {"sources": [{"uri": "rows.jsonl"}], "held_out": 4},
        "training": {"learning_rate": 5e-7, "batch_size": 16, "micro_batch_tokens": 1024},
        "cluster": {"trainer": {"ranks": 2}, "devices_per_node": 2, "cpus_per_node": 16},
        "tracking": {"wandb": "disabled"},
    }
    if kind == "preference":
        config["objective"] = {"type": "dpo"}
    for key, value in changes.items():
        node = config
        *sections, last = key.split("__")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return TYPES[kind].model_validate(config)


TRAIN, HELD_OUT, OUTPUT = Path("/run/train.jsonl"), Path("/run/held_out.jsonl"), Path("/run/model")


def command_of(config: Any, held_out: Path | None = HELD_OUT) -> list[str]:
    return openrlhf_command(config, TRAIN, held_out, OUTPUT)


# -- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_what_all_stages_share(kind: str, policy: Path, parse: Callable[[list[str]], Any]) -> None:
    config = stage(
        kind,
        policy,
        training__learning_rate=3e-6,
        training__schedule="linear",
        training__warmup=0.05,
        training__epochs=3,
        training__weight_decay=0.01,
        training__max_grad_norm=0.5,
        training__evaluate_every=20,
        training__save_every=10,
        training__gradient_checkpointing=False,
        cluster__trainer__zero_stage=3,
        cluster__trainer__offload_optimizer=True,
    )
    command = command_of(config)
    assert command[:5] == ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = parse(command)
    assert (found.adam.lr, found.adam.weight_decay, tuple(found.adam.betas)) == (3e-6, 0.01, (0.9, 0.95))
    assert (found.optim, found.lr_scheduler, found.lr_warmup_ratio, found.max_norm) == (
        "adam",
        "linear",
        0.05,
        0.5,
    )
    assert (found.train.batch_size, found.train.max_epochs, found.train.seed) == (16, 3, 7)
    assert (found.ds.zero_stage, found.ds.adam_offload, found.ds.param_dtype) == (3, True, "bf16")
    assert found.ds.packing_samples and found.ds.attn_implementation == "flash_attention_2"
    assert found.model.gradient_checkpointing_enable is False
    assert found.model.model_name_or_path == str(policy)
    assert (found.data.dataset, found.eval.dataset) == (str(TRAIN), str(HELD_OUT))
    assert found.eval.split == found.data.dataset_split == "train"
    assert found.data.apply_chat_template and found.data.max_len == 130 and found.data.max_samples == 10**12
    assert (found.ckpt.output_dir, found.ckpt.path) == (str(OUTPUT), str(states_directory(OUTPUT)))
    assert (found.ckpt.save_steps, found.eval.steps, found.ckpt.load_enable) == (10, 20, False)
    assert (found.ds.lora.rank, found.ds.load_in_4bit, found.logger.wandb.key) == (0, False, None)


def test_supervised_fine_tuning(policy: Path, parse: Callable[[list[str]], Any]) -> None:
    found = parse(command_of(stage("sft", policy), held_out=None))
    assert (found.data.input_key, found.data.output_key, found.data.multiturn) == ("messages", None, True)
    assert found.eval.dataset is None
    assert not found.model.pretrain_mode_enable
    assert found.model.gradient_checkpointing_enable
    assert (found.ckpt.save_steps, found.eval.steps) == (-1, -1)
    assert found.lr_scheduler == "cosine"


@pytest.mark.parametrize(
    ("objective", "loss", "margin"),
    [
        ({"type": "bradley_terry"}, "sigmoid", False),
        ({"type": "bradley_terry", "margin": "score_difference", "margin_scale": 2.0}, "sigmoid", True),
        ({"type": "log_exp"}, "logexp", False),
    ],
)
def test_reward_losses(
    objective: dict[str, Any], loss: str, margin: bool, policy: Path, parse: Callable[[list[str]], Any]
) -> None:
    found = parse(command_of(stage("reward", policy, objective=objective)))
    assert (found.model.loss_type, found.model.margin_loss_enable) == (loss, margin)
    assert found.model.compute_fp32_loss_enable and found.ds.value_head_prefix == "score"
    keys = (found.data.prompt_key, found.data.chosen_key, found.data.rejected_key)
    assert keys == ("prompt", "chosen", "rejected")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"type": "dpo", "beta": 0.2}, (0.2, False, 0.0, 0.0)),
        ({"type": "dpo", "label_smoothing": 0.1, "nll_weight": 0.3}, (0.1, False, 0.1, 0.3)),
        ({"type": "ipo", "beta": 0.5, "length_normalized": False}, (0.5, True, 0.0, 0.0)),
    ],
)
def test_preference_losses(
    objective: dict[str, Any], expected: tuple[Any, ...], policy: Path, parse: Callable[[list[str]], Any]
) -> None:
    found = parse(command_of(stage("preference", policy, objective=objective)))
    model = found.model
    assert (model.beta, model.ipo_enable, model.label_smoothing, model.nll_loss_coef) == expected
    assert found.ref.model_name_or_path == str(policy)
    assert found.data.prompt_key == "prompt"


@pytest.mark.parametrize(
    ("modules", "expected"), [("all-linear", "all-linear"), (["q_proj", "v_proj"], ["q_proj", "v_proj"])]
)
def test_lora(modules: Any, expected: Any, policy: Path, parse: Callable[[list[str]], Any]) -> None:
    lora = {"rank": 8, "alpha": 24, "target_modules": modules, "quantize": "nf4"}
    found = parse(command_of(stage("sft", policy, model__lora=lora)))
    assert (found.ds.lora.rank, found.ds.lora.alpha, found.ds.lora.dropout) == (8, 24, 0)
    assert found.ds.lora.target_modules == expected and found.ds.load_in_4bit


@pytest.mark.parametrize(
    ("kind", "batch", "tokens", "ranks", "expected"),
    [
        ("sft", 16, 1024, 2, 8),  # 1024 / 128
        ("sft", 12, 1024, 2, 6),  # no more than a rank's share
        ("sft", 20, 1024, 2, 5),  # the largest divisor of 10 up to 8
        ("preference", 16, 1024, 2, 4),  # two answers each
        ("reward", 14, 1024, 2, 1),  # of 7 there is no other divisor up to 4
        ("sft", 16, 100, 1, 1),  # at least one
    ],
)
def test_micro_batches_divide_the_batch(
    kind: str,
    batch: int,
    tokens: int,
    ranks: int,
    expected: int,
    policy: Path,
    parse: Callable[[list[str]], Any],
) -> None:
    config = stage(
        kind,
        policy,
        training__batch_size=batch,
        training__micro_batch_tokens=tokens,
        cluster__trainer__ranks=ranks,
    )
    found = parse(command_of(config))
    assert found.train.micro_batch_size == expected
    assert found.train.batch_size % (found.train.micro_batch_size * ranks) == 0  # what DeepSpeed asserts


def test_saved_states_are_gone_on_from(
    tmp_path: Path, policy: Path, parse: Callable[[list[str]], Any]
) -> None:
    states_directory(tmp_path / "model").mkdir()
    command = openrlhf_command(stage("sft", policy), TRAIN, None, tmp_path / "model")
    assert parse(command).ckpt.load_enable


def test_tracking_keeps_the_key_in_the_environment(
    policy: Path, parse: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-0123456789")
    tracking = {"wandb": "auto", "project": "p", "group": "g", "tags": ["a", "b"]}
    config = stage("sft", policy, tracking=tracking)
    command, environment = command_of(config), openrlhf_environment(config, OUTPUT)
    assert "secret" not in " ".join([*command, *environment.values()])
    assert (environment["WANDB_MODE"], environment["WANDB_TAGS"]) == ("online", "a,b")
    assert environment["OMP_NUM_THREADS"] == "8"
    wandb = parse(command).logger.wandb
    assert wandb.key and (wandb.project, wandb.group, wandb.run_name) == ("p", "g", "tiny")
    monkeypatch.delenv("WANDB_API_KEY")
    assert openrlhf_environment(config, OUTPUT)["WANDB_MODE"] == "offline"


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("sft", {"training__max_steps": 5}, "training.max_steps=5: .*training.epochs"),
        ("sft", {"training__patience": 2, "training__evaluate_every": 5}, "training.patience=2: "),
        ("sft", {"training__keep": "best"}, "training.keep='best': .*training.keep=last"),
        ("sft", {"training__max_skipped_steps": 0}, "training.max_skipped_steps=0: "),
        ("sft", {"run__seed": 2**32}, "run.seed=4294967296: "),
        ("sft", {"training__batch_size": 15}, "training.batch_size=15: .*cluster.trainer.ranks=2"),
        ("sft", {"model__precision": "float32"}, "model.precision='float32': .* bfloat16"),
        ("sft", {"model__path": "owner/name"}, "model.trust_remote_code=false: .*'owner/name'"),
        (
            "sft",
            {"model__lora": {}, "cluster__trainer__zero_stage": 3},
            "cluster.trainer.zero_stage=3: .* pickle",
        ),
        ("sft", {"cluster__nodes": 2}, "cluster.nodes=2: .*cluster.nodes=1"),
        ("sft", {"cluster__trainer__ranks": 4}, "cluster.trainer.ranks=4: .*devices_per_node=2"),
        ("reward", {"objective": {"type": "bradley_terry", "centering": 0.01}}, "objective.centering=0.01: "),
        ("reward", {"trainable_layers": 2}, "trainable_layers=2: "),
        ("reward", {"data__held_out": 0}, "data.held_out=0: .* 1 %"),
        ("preference", {"objective": {"type": "simpo"}}, "objective.type='simpo': .* dpo .* ipo"),
        ("preference", {"objective": {"type": "kto"}}, "objective.type='kto': "),
        ("preference", {"objective": {"type": "robust_dpo"}}, "objective.type='robust_dpo': "),
        ("preference", {"objective": {"type": "ipo"}}, "objective.length_normalized=true: .* ipo "),
        ("preference", {"objective": {"type": "dpo", "ld_alpha": 0.5}}, "objective.ld_alpha=0.5: "),
        (
            "preference",
            {"objective": {"type": "dpo", "policy_weighted": True}},
            "objective.policy_weighted=true: ",
        ),
        (
            "sft",
            {"model__path": "org/name@v1", "model__trust_remote_code": True},
            "model.path='org/name@v1': ",
        ),
        (
            "preference",
            {"objective": {"type": "dpo", "length_normalized": True}},
            "objective.length_normalized=true: .* dpo ",
        ),
    ],
)
def test_refusals(kind: str, changes: dict[str, Any], line: str, policy: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{line}") as caught:
        command_of(stage(kind, policy, **changes))
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_a_checkpoint_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    own = make_policy(tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code=false"):
        command_of(stage("sft", own))
    assert command_of(stage("sft", own, model__trust_remote_code=True))


def test_a_reward_model_is_no_start_for_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^model.path='{tmp_path}/reward': "):
        command_of(stage("reward", make_reward(tmp_path / "reward")))


@pytest.mark.parametrize("name", ["a,b", "a@b"])
def test_paths_that_it_would_split_are_refused(name: str, policy: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^/{name}/train\.jsonl: .*run\.directory"):
        openrlhf_command(stage("sft", policy), Path("/") / name / "train.jsonl", None, OUTPUT)


def test_less_data_than_a_batch_is_refused(tmp_path: Path, policy: Path) -> None:
    config = stage("sft", policy)
    rows = write_openrlhf_data(tmp_path / "train.jsonl", [CHAT] * 15, config)
    with pytest.raises(ValueError, match=rf"training\.batch_size=16: .* {rows} samples"):
        submit_openrlhf(config, tmp_path / "train.jsonl", None, tmp_path / "model")


# -- data --------------------------------------------------------------------------------------------------

CHAT = Conversation(
    "c1",
    (
        {"role": "user", "content": "dose?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "when?"},
        {"role": "assistant", "content": "at night"},
    ),
)
RANKED = RankedAnswers("p1", ({"role": "user", "content": "dose?"},), ("a", "b", "c"), (3.0, 1.0, 1.0))


def dataset_of(openrlhf: types.ModuleType, path: Path, arguments: Any) -> Any:
    """The file as OpenRLHF's own loader and dataset class read it."""
    from openrlhf.datasets import RewardDataset, SFTDataset
    from openrlhf.datasets.utils import blending_datasets

    arguments.data.dataset = str(path)
    strategy = types.SimpleNamespace(args=arguments, print=lambda *words: None, is_rank_0=lambda: False)
    rows = blending_datasets(str(path), None, strategy, max_count=arguments.data.max_samples)
    common = (rows, make_tokenizer(), arguments.data.max_len, strategy)
    if hasattr(arguments.data, "multiturn"):
        return SFTDataset(*common, num_processors=1, multiturn=arguments.data.multiturn)
    return RewardDataset(*common, is_dpo=hasattr(arguments.model, "beta"), num_processors=1)


def test_openrlhf_reads_our_conversations(
    tmp_path: Path, policy: Path, openrlhf: types.ModuleType, parse: Callable[[list[str]], Any]
) -> None:
    config = stage("sft", policy)
    assert write_openrlhf_data(tmp_path / "train.jsonl", iter([CHAT, CHAT]), config) == 2
    dataset = dataset_of(openrlhf, tmp_path / "train.jsonl", parse(command_of(config)))
    assert len(dataset) == 2
    ids, _, learned = dataset[0]
    tokenizer = make_tokenizer()
    text = tokenizer.apply_chat_template(list(CHAT.messages), tokenize=False)
    assert tokenizer.decode(ids[0]) == text.rstrip("\n")
    predicted = ids[0][1:][learned[0][:-1].bool()]  # the mask is that of the predictor
    assert tokenizer.decode(predicted) == "two<|im_end|>\nat night<|im_end|>"


@pytest.mark.parametrize("kind", ["reward", "preference"])
def test_openrlhf_reads_our_pairs(
    kind: str, tmp_path: Path, policy: Path, openrlhf: types.ModuleType, parse: Callable[[list[str]], Any]
) -> None:
    config = stage(kind, policy)
    assert write_openrlhf_data(tmp_path / "train.jsonl", iter([RANKED]), config) == 2
    dataset = dataset_of(openrlhf, tmp_path / "train.jsonl", parse(command_of(config)))
    tokenizer = make_tokenizer()
    seen = {(tokenizer.decode(dataset[i][0][0]), tokenizer.decode(dataset[i][2][0])) for i in range(2)}
    start = "<|im_start|>user\ndose?<|im_end|>\n<|im_start|>assistant\n"
    assert seen == {(f"{start}a<|im_end|>", f"{start}{worse}<|im_end|>") for worse in "bc"}
    if kind == "preference":
        assert dataset[0][4] == len(tokenizer(start, add_special_tokens=False)["input_ids"])


def test_margins_are_scaled_score_gaps(tmp_path: Path, policy: Path) -> None:
    objective = {"type": "bradley_terry", "margin": "score_difference", "margin_scale": 0.25}
    path = tmp_path / "train.jsonl"
    write_openrlhf_data(path, [RANKED], stage("reward", policy, objective=objective))
    assert [json.loads(line)["margin"] for line in path.read_text().splitlines()] == [0.5, 0.5]
    write_openrlhf_data(path, [RANKED], stage("reward", policy))
    assert "margin" not in path.read_text()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (RankedAnswers("p1", RANKED.messages, ("a",), (1.0,)), r"'p1': .*\[1\.0\]"),
        (RankedAnswers("p1", RANKED.messages, ("a", "b"), (1.0, 1.0)), r"'p1': .*\[1\.0, 1\.0\]"),
        (replace(RANKED, cut=frozenset({2})), r"'p1': .*\[2\]"),
    ],
)
def test_what_is_no_pair_is_refused(record: RankedAnswers, reason: str, tmp_path: Path, policy: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        write_openrlhf_data(tmp_path / "train.jsonl", [record], stage("preference", policy))
    assert not (tmp_path / "train.jsonl").exists()


def test_no_data_is_refused(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/train\.jsonl: "):
        write_openrlhf_data(tmp_path / "train.jsonl", [], stage("sft", policy))


# -- checkpoints -------------------------------------------------------------------------------------------


def save_as_openrlhf(model: Any, directory: Path) -> Path:
    """What its `DeepspeedStrategy.save_model` does on one rank."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peft = hasattr(model, "peft_config")
    model.save_pretrained(directory, **({} if peft else {"state_dict": state}))
    model.config.to_json_file(directory / "config.json")
    make_tokenizer().save_pretrained(directory)
    return directory


def scores(model: Any) -> Any:
    import torch

    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        found = model.eval()(ids, attention_mask=torch.ones_like(ids))
    return getattr(found, "logits", found).float().flatten()


def test_our_reward_models_load_in_openrlhf(tmp_path: Path, openrlhf: types.ModuleType) -> None:
    import torch
    from openrlhf.models import get_llm_for_sequence_regression
    from transformers import AutoModelForSequenceClassification

    ours = make_reward(tmp_path / "ours")
    theirs = get_llm_for_sequence_regression(str(ours), "reward", attn_implementation="eager")
    plain = AutoModelForSequenceClassification.from_pretrained(
        ours, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    assert torch.equal(scores(theirs), scores(plain))


def test_openrlhf_reward_models_load_here(tmp_path: Path, policy: Path, openrlhf: types.ModuleType) -> None:
    import torch
    from openrlhf.models import get_llm_for_sequence_regression
    from transformers import AutoModelForSequenceClassification

    from ultramed_rl.models.load import load_reward

    trained = get_llm_for_sequence_regression(
        str(policy), "reward", attn_implementation="eager", init_value_head=True, value_head_prefix="score"
    )
    trained.config.value_head_prefix, trained.config.mean, trained.config.std = "score", 0.25, 2.0
    saved = save_as_openrlhf(trained, tmp_path / "model")
    for _ in range(2):  # the second time nothing is left to do
        adopt_openrlhf(saved, stage("reward", policy))
    plain, notes = AutoModelForSequenceClassification.from_pretrained(
        saved, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True
    )
    assert not any(notes.values()) and plain.config.num_labels == 1
    assert plain.config.architectures == ["LlamaForSequenceClassification"]
    assert torch.equal(scores(trained), scores(plain))
    assert load_reward(str(saved), "float32").lm.config.num_labels == 1


def test_openrlhf_policies_load_here(tmp_path: Path, policy: Path, openrlhf: types.ModuleType) -> None:
    import torch
    from openrlhf.models import Actor
    from transformers import AutoModelForCausalLM

    trained = Actor(str(policy), attn_implementation="eager").model
    saved = save_as_openrlhf(trained, tmp_path / "model")
    adopt_openrlhf(saved, stage("preference", policy))
    plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16, attn_implementation="eager")
    assert torch.equal(scores(trained), scores(plain))
    assert plain.config.use_cache


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_openrlhf_adapters_are_merged(
    quantize: str | None, tmp_path: Path, policy: Path, openrlhf: types.ModuleType
) -> None:
    import torch
    from openrlhf.models import Actor
    from transformers import AutoModelForCausalLM

    # bitsandbytes leaves layers of two types behind, which OpenRLHF computes under autocast.
    with torch.autocast("cpu", torch.bfloat16):
        arguments: Any = {"attn_implementation": "eager", "load_in_4bit": quantize is not None}
        base = scores(Actor(str(policy), **arguments).model)
        lora: Any = {"lora_rank": 4, "lora_alpha": 8, "target_modules": "all-linear"}
        trained = Actor(str(policy), **arguments, **lora).model
        torch.manual_seed(0)
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        expected = scores(trained)
    saved = save_as_openrlhf(trained, tmp_path / "model")
    config = stage("sft", policy, model__lora={"rank": 4, "alpha": 8, "quantize": quantize})
    for _ in range(2):
        adopt_openrlhf(saved, config)
    plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32, attn_implementation="eager")
    assert (expected - base).abs().max() > 0.2
    torch.testing.assert_close(scores(plain), expected, atol=0.05, rtol=0.0)  # bf16 on one side
    assert not hasattr(plain.config, "quantization_config")
    assert {p.name for p in (saved / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_weights_that_diverged_are_refused(tmp_path: Path, policy: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match=r"'model\.norm\.weight'.*training\.learning_rate"):
        adopt_openrlhf(tmp_path / "model", stage("sft", policy))
