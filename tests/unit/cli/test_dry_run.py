"""What a dry run finds without a GPU or a network, each with its key and line; a real run finds it as early."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.tiny import make_policy, make_questions, make_reward, tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config.base import LONGEST_LINE

SHAPE = dict.fromkeys(
    ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"), 64
) | {"num_hidden_layers": 1}
JUDGE = {"type": "judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}


@cache
def models() -> Path:
    """A policy and a reward model, made once."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    make_policy(root / "policy")
    make_reward(root / "reward")
    return root


def write(root: Path, **changes: Any) -> Path:
    """A config whose plan fits and whose models and rows are there; `changes` as those of `tiny_run`."""
    for name in ("policy", "reward"):
        if not (root / name).exists():
            shutil.copytree(models() / name, root / name)
    if not (root / "questions.jsonl").exists():
        make_questions(root / "questions.jsonl", 24)
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump(tiny_run(root, **changes), sort_keys=False))
    return path


def refused(path: Path, command: str = "run", *arguments: str) -> str:
    """The only line that a dry run says of a config; what would run says the same."""
    found = CliRunner().invoke(app, [command, str(path), "--dry-run", *arguments])
    assert found.exit_code == 2, found.output
    line = found.stderr.splitlines()[-1]
    assert len(line) <= LONGEST_LINE and line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def line_of(path: Path, text: str) -> str:
    number = next(n for n, line in enumerate(path.read_text().splitlines(), start=1) if text in line)
    return f"(line {number})"


def test_what_is_all_there_would_begin(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["run", str(write(tmp_path)), "--dry-run"]).exit_code == 0


@pytest.mark.parametrize(
    ("terms", "key"),
    [
        ([{**JUDGE, "api_key_env": "NO_SUCH_KEY"}], "reward.terms.0.api_key_env"),
        ([{"type": "http", "url": "http://h/r", "token_env": "NO_SUCH_KEY"}], "reward.terms.0.token_env"),
        (
            [{"type": "format", "ended": True}, {**JUDGE, "template": "{dir}/none.txt"}],
            "reward.terms.1.template",
        ),
        ([{**JUDGE, "template": "{dir}/wrong.txt"}], "reward.terms.0.template"),
        ([{**JUDGE, "template": "{dir}/fifo.txt"}], "reward.terms.0.template"),
        ([{**JUDGE, "template": "{dir}"}], "reward.terms.0.template"),
        ([{"type": "http", "url": "http://h/r", "tokenizer": "{dir}/none"}], "reward.terms.0.tokenizer"),
    ],
)
def test_scorers_are_looked_at(tmp_path: Path, terms: list[dict[str, Any]], key: str) -> None:
    (tmp_path / "wrong.txt").write_text("Grade $answer.")
    os.mkfifo(tmp_path / "fifo.txt")
    filled = [
        {k: v.replace("{dir}", str(tmp_path)) if isinstance(v, str) else v for k, v in term.items()}
        for term in terms
    ]
    path = write(tmp_path, reward__terms=filled)
    said = refused(path)
    assert said.startswith(key) and said.endswith(line_of(path, f"{key.rpartition('.')[2]}:"))


def test_a_variable_that_is_set_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, reward__terms=[{**JUDGE, "api_key_env": "MY_KEY"}])
    monkeypatch.setenv("MY_KEY", " ")
    assert "reward.terms.0.api_key_env" in refused(path)
    monkeypatch.setenv("MY_KEY", "a-key-that-opens-nothing")
    assert CliRunner().invoke(app, ["run", str(path), "--dry-run"]).exit_code == 0


@pytest.mark.parametrize("content", [None, "fifo", "{% for m in messages %}", "{{ messages[0", b"\xff"])
def test_chat_templates_are_looked_at(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "chat.jinja"
    if content == "fifo":
        os.mkfifo(file)
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    path = write(tmp_path, policy__chat_template=str(file))
    said = refused(path)
    assert said.startswith("policy.chat_template=") and said.endswith(line_of(path, "  chat_template:"))


@pytest.mark.parametrize(
    "template", ["chatml", "{% generation %}{{ messages }}{% endgeneration %}{% break %}", "x"]
)
def test_chat_templates_that_transformers_takes_are_taken(tmp_path: Path, template: str) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(template.replace("{% break %}", "{% for m in messages %}{% break %}{% endfor %}"))
    path = write(tmp_path, policy__chat_template=template if template == "chatml" else str(file))
    if template == "chatml":
        assert CliRunner().invoke(app, ["run", str(path), "--dry-run"]).exit_code == 0
    else:  # Jinja, but answers would not be in what it writes
        said = refused(path)
        assert re.search("chat.template", said) and "no Jinja" not in said


@pytest.mark.parametrize(
    ("role", "name"), [("policy", "model.layers.1.mlp.up_proj.weight"), ("reward", "score.weight")]
)
def test_local_models_are_whole(tmp_path: Path, role: str, name: str) -> None:
    path = write(tmp_path)
    file = tmp_path / role / "model.safetensors"
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    said = refused(path)
    assert said.startswith(f"{role}.path") and name in said
    found = CliRunner().invoke(app, ["run", str(path)])
    assert found.exit_code == 2 and not (tmp_path / "runs").exists()


def test_every_model_is_looked_at_as_what_it_is_for(tmp_path: Path) -> None:
    """A reward model is no policy, nor the other way round; adapters have layers."""
    path = write(tmp_path, policy__lora={"target_modules": "query"}, reward__path=str(tmp_path / "policy"))
    found = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
    assert found.exit_code == 2
    lines = [
        line.removeprefix(f"{path}: ") for line in found.stderr.splitlines() if line.startswith(str(path))
    ]
    assert [re.split("[=: ]", line)[0] for line in lines] == [
        "policy.lora.target_modules",
        "reward.path",
    ]


def sources(root: Path) -> Iterator[str]:
    os.mkfifo(root / "fifo.jsonl")
    (root / "folder.jsonl").mkdir()
    (root / "loop.jsonl").symlink_to(root / "loop.jsonl")
    yield from (
        str(root / name) for name in ("none.jsonl", "fifo.jsonl", "folder.jsonl", "loop.jsonl", "*.parquet")
    )
    yield from ("/dev/zero", "package://no_such_package/x.jsonl", "ftp://h/x.jsonl")


def test_local_rows_are_looked_for(tmp_path: Path) -> None:
    for uri in sources(tmp_path):
        path = write(tmp_path, prompts__sources=[{"type": "question", "uri": uri}])
        said = refused(path)
        assert said.startswith("prompts.sources.0.uri") and line_of(path, "uri:") in said, uri
        found = CliRunner().invoke(app, ["run", str(path)])
        assert found.exit_code == 2 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "key", "numbers"),
    [
        ({"prompts__held_out": 24}, "prompts.held_out", ("24",)),
        ({"prompts__held_out": 10**9}, "prompts.held_out", ("1000000000", "24")),
        ({"prompts__per_round": 21}, "prompts.per_round", ("21", "20")),
        ({"prompts__per_round": 11}, "prompts.per_round", ("22", "20")),
    ],
)
def test_the_pool_is_counted(
    tmp_path: Path, change: dict[str, Any], key: str, numbers: tuple[str, ...]
) -> None:
    said = refused(write(tmp_path, **change))
    assert key in said and all(number in said for number in numbers)


@pytest.mark.parametrize("text", ["half \ud83d", "word " * 2_000_000], ids=["surrogate", "long"])
def test_a_row_that_no_tokenizer_takes_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    files = [tmp_path / "part-1.jsonl", tmp_path / "part-2.jsonl"]
    for number, file in enumerate(files):
        make_questions(file, 8 + number)
    with files[1].open("a") as rows:
        rows.write(json.dumps({"question": text}) + "\n")
    path = write(
        tmp_path, prompts__sources=[{"type": "question", "uri": f"{tmp_path}/part-*"}], prompts__held_out=2
    )
    said = refused(path)
    assert "part-2.jsonl, row 10" in said and "'question'" in said


def stage(root: Path, **changes: Any) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(6)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "type": "sft",
        "run": {"name": "sft", "directory": str(root)},
        "model": {"path": "a/b", "architecture": SHAPE},
        "training": {"learning_rate": 1e-5},
        "data": {"sources": [{"uri": str(root / "chats.jsonl")}], "held_out": 2},
        "cluster": {"device": "cpu"},
        **changes,
    }
    path = root / "sft.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_a_stages_data_are_counted(tmp_path: Path) -> None:
    path = stage(tmp_path)
    assert CliRunner().invoke(app, ["sft", str(path), "--dry-run"]).exit_code == 0
    said = refused(path, "sft", "data.held_out=6")
    assert said.startswith("data.held_out=6") and "6 prompts" in said


def policy_stage(root: Path, kind: str, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A stage whose model is here, so that its first samples are tokenised."""
    write(root)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = {"objective": {"type": "dpo"}} if kind == "preference" else {}
    data = {"sources": [{"uri": str(root / "rows.jsonl")}]}
    return stage(root, type=kind, model={"path": str(root / "policy")}, data=data, **objective, **changes)


CHATS = [{"prompt": f"q{n}", "completion": "a", "model": "m"} for n in range(3)]
PAIRS = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(3)]


@pytest.mark.parametrize(
    ("kind", "rows", "told"),
    [
        ("sft", [*CHATS, {"prompt": "q", "completion": "a" * 20_000}], "max_length"),
        ("sft", [{**row, "tools": ["t"]} for row in CHATS], "'tools'"),
        ("preference", [*PAIRS, {**PAIRS[0], "prompt": "x" * 20_000}], "max_length"),
        ("preference", CHATS, "one answer alone"),
    ],
)
def test_the_first_samples_are_made(tmp_path: Path, kind: str, rows: list[dict[str, Any]], told: str) -> None:
    assert told in refused(policy_stage(tmp_path, kind, rows), kind)
    assert not (tmp_path / kind).exists()
    well = policy_stage(tmp_path, kind, CHATS if kind == "sft" else PAIRS)
    found = CliRunner().invoke(app, [kind, str(well), "--dry-run"])
    assert found.exit_code == 0 and "3 of the first 3 rows fit" in found.stdout


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("reward-bench", {"type": "reward_bench", "model": {"path": "{root}/reward"}, "data": {"uri": "{root}/rows.jsonl"}}, "prompt, completion"),
        ("data sample", {"type": "data", "input": ["{root}/broken.jsonl"], "step": {"type": "sample", "sizes": {"x": 1}}}, "broken.jsonl, line 1"),
        ("evaluate", {"type": "evaluate", "policies": {"one": "{root}/policy"}, "benchmarks": {"tasks": [{"name": "medqa", "uri": "{root}/rows.jsonl"}]}}, "'question'"),
    ],
)  # fmt: skip
def test_every_kind_of_stage_opens_its_data(
    tmp_path: Path, kind: str, config: dict[str, Any], told: str
) -> None:
    write(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (tmp_path / "broken.jsonl").write_text("no row\n")
    cluster = {"rollout": {"kv_cache_gib": 1.0}} if kind == "evaluate" else {}
    whole = {
        **config,
        "run": {"name": "r", "directory": str(tmp_path)},
        "cluster": {"device": "cpu", **cluster},
    }
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False).replace("{root}", str(tmp_path)))
    found = CliRunner().invoke(app, [*kind.split(), str(path), "--dry-run"])
    assert found.exit_code == 2, found.output
    assert told in found.stderr


def test_a_hub_source_is_read_out_of_its_cache_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset, config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = policy_stage(tmp_path, "sft", CHATS)
    hub = "data.sources=[{uri: hf://owner/MyChats:train}]"
    found = CliRunner().invoke(app, ["sft", str(path), "--dry-run", hub])
    assert found.exit_code == 0 and "hf://owner/MyChats:train: not in" in found.stdout
    for version, rows in (
        ("0.0.0/old", CHATS[:1]),
        ("0.0.0/new", [*CHATS, {"prompt": "q", "completion": ""}]),
    ):
        saved = tmp_path / "saved"
        Dataset.from_list(rows).save_to_disk(saved)
        folder = tmp_path / "cache/owner___my_chats/default" / version
        folder.mkdir(parents=True)
        (saved / "data-00000-of-00001.arrow").rename(folder / "my_chats-train.arrow")
        os.utime(folder, (len(rows), len(rows)))
    said = refused(path, "sft", hub)
    assert "1 of 4 rows" in said and "(1 empty" in said
    assert "owner/name:split" in refused(path, "sft", "data.sources=[{uri: hf://owner/MyChats}]")


# -- data show ---------------------------------------------------------------------------------------------


def test_data_show_marks_what_is_learnt(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "model": "m"},
        *CHATS[1:],
        {"prompt": "q", "completion": ""},
    ]
    path = policy_stage(tmp_path, "sft", rows)
    data = yaml.safe_load(path.read_text())
    data["data"]["sources"][0]["max_misfit_share"] = 0.5
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    found = CliRunner().invoke(app, ["data", "show", str(path), "--rows", "1"])
    assert found.exit_code == 0, found.output
    assert "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦a<|im_end|>⟧" in found.stdout
    assert "user assistant; " in found.stdout and " 2 learnt" in found.stdout and "q1" not in found.stdout
    assert "3 of the first 4 rows" in found.stdout
    assert re.search(r"1 empty: row 4: ", found.stdout) and re.search(r"model \(3 rows\)", found.stdout)
    found = CliRunner().invoke(app, ["data", "show", str(path), "--json", "--rows", "1"])
    event = next(json.loads(line) for line in found.stdout.splitlines() if '"source"' in line)
    assert event["samples"][0]["parts"][1] == ["a<|im_end|>", True]
    assert (event["misfits"], event["unread"], event["rows"]) == ({"empty": 1}, {"model": 3}, 4)


def test_data_show_has_all_answers_and_the_problem(tmp_path: Path) -> None:
    path = policy_stage(tmp_path, "preference", PAIRS)
    found = CliRunner().invoke(app, ["data", "show", str(path), "--rows", "1"])
    assert found.exit_code == 0, found.output
    assert re.search(
        r"wanted, score 1, 5 tokens: ⟦good<\|im_end\|>⟧\n-- unwanted, score 0, 4 tok", found.stdout
    )
    path = policy_stage(tmp_path, "preference", CHATS)
    found = CliRunner().invoke(app, ["data", "show", str(path)])
    assert found.exit_code == 2 and "3 column: row 1: one answer alone" in found.stdout


def test_data_show_shows_prompts(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["data", "show", str(write(tmp_path)), "--rows", "2"])
    assert found.exit_code == 0, found.output
    assert found.stdout.count("<|im_start|>assistant") == 2 and "question; user; " in found.stdout


def test_a_recipes_stages_are_looked_at_but_not_what_earlier_ones_make(tmp_path: Path) -> None:
    model = {"path": "a/b", "architecture": SHAPE}
    one = {"type": "sft", "model": model, "training": {"learning_rate": 1e-5}}
    made = str(tmp_path / "r" / "contrasts" / "pairs.jsonl")
    recipe = {
        "type": "recipe",
        "run": {"name": "r", "directory": str(tmp_path)},
        "shared": {"cluster": {"device": "cpu"}},
        "stages": {
            "one": {**one, "data": {"sources": [{"uri": str(tmp_path / "none.jsonl")}]}},
            "two": {**one, "model": {**model, "path": "stage://one"}, "data": {"sources": [{"uri": made}]}},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    said = refused(path, "recipe")
    assert said.startswith("stages.one.data.sources.0.uri") and said.endswith(line_of(path, "none.jsonl"))


def test_a_run_that_goes_on_may_have_lost_what_it_read(tmp_path: Path) -> None:
    path = write(tmp_path, prompts__sources=[{"type": "question", "uri": str(tmp_path / "gone.jsonl")}])
    assert CliRunner().invoke(app, ["run", str(path), "--dry-run", "--resume"]).exit_code == 0


@pytest.mark.parametrize(
    "content", ["{", "[1]", "[" * 5000, '{"hidden_size": "x"}', '{"hidden_size": 1e400}', "\0"]
)
def test_a_models_config_that_is_none_is_told_with_its_key(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    folder = tmp_path_factory.mktemp("m")  # short: a line has an end, and the path stands twice in it
    path = write(folder)
    (folder / "policy" / "config.json").write_text(content)
    said = refused(path)
    assert said.startswith("policy.path=") and "config.json" in said and line_of(path, "  path:") in said
