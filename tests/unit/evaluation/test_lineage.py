"""What checkpoints were trained on: run directories as the store writes them, and the walk from one to the next."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import make_questions, make_tokenizer, tiny_config, tiny_run
from ultramed_rl.config import dump_config, parse_config
from ultramed_rl.data.prompts import load_prompts, split_pool
from ultramed_rl.data.stage_data import PreparedConversations, PreparedPreferences
from ultramed_rl.evaluation.lineage import Lineage
from ultramed_rl.kinds import KINDS
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Message, PreferenceGroup, Prompt
from ultramed_rl.store import write_samples
from ultramed_rl.store.atomic import write_json
from ultramed_rl.store.tables import write_records


@pytest.fixture(autouse=True)
def started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs are started in the test's directory and looked at from another one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield


def write_run(root: Path, config: dict[str, Any]) -> Path:
    """A run's directory with its resolved config."""
    parsed = parse_config(config, kind=KINDS[config.get("type", "online")].config_class)
    directory = root / parsed.run.directory / parsed.run.name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump_config(parsed))
    return directory


def stage(kind: str, name: str, model: str, data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": kind,
        "run": {"name": name, "directory": "runs/recipe", "seed": 3},
        "model": {"path": model, "max_length": 512},
        "training": {"learning_rate": 1e-5},
        "data": data,
    }
    return found | ({"objective": {"type": "dpo", "beta": 0.1}} if kind == "preference" else {})


def online(root: Path, **changes: Any) -> dict[str, Any]:
    return tiny_run(root, run__directory="runs", **changes)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_chats(path: Path, count: int) -> None:
    turns = lambda i: [
        {"role": "user", "content": f"Question {i}?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": f"And then {i}?"},
        {"role": "assistant", "content": "No."},
    ]
    write_rows(path, [{"messages": turns(i)} for i in range(count)])


def write_pairs(path: Path, count: int, name: str = "Pair") -> None:
    write_rows(path, [{"prompt": f"{name} {i}?", "chosen": "good", "rejected": "bad"} for i in range(count)])


def write_round(run: Path, index: int, *texts: str) -> None:
    folder = run / "rounds" / f"{index:03d}"
    folder.mkdir(parents=True)
    records = [Prompt(text, (Message(role="user", content=text),), (1, 2)) for text in texts]
    write_records(records, Prompt, folder / "prompts.parquet")
    write_json(folder / "commit.json", {"round": index, "metrics": {}, "phases": {}})


def texts(lineage: Lineage, role: str = "model") -> list[str]:
    return [prompt.text for prompt in lineage.prompts() if prompt.role == role]


def absolute(root: Path, sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**source, "uri": str(root / source["uri"])} for source in sources]


def tokenizer(path: Path) -> ChatTokenizer:
    make_tokenizer().save_pretrained(path)
    tiny_config().save_pretrained(path)
    return ChatTokenizer(str(path))


# -- models not made here ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["offline://smollm2-135m-instruct", "meta/llama", "../nowhere/model"])
def test_a_model_not_made_here_is_unknown_and_never_clean(path: str) -> None:
    lineage = Lineage(path)
    assert lineage.unknown == [path] and not lineage.sources and not texts(lineage)
    (gap,) = lineage.gaps
    assert f" {path} " in gap


def test_a_config_that_happens_to_lie_above_a_model_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("something: else")
    (tmp_path / "models" / "llama").mkdir(parents=True)
    model = str(tmp_path / "models" / "llama")
    assert Lineage(model).unknown == [model]


# -- stages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["model", "best/step-000000040", "states/step-000000040", ""])
def test_a_fine_tuned_model_saw_the_users_turns_of_its_sources(tmp_path: Path, inside: str) -> None:
    write_chats(tmp_path / "data" / "chats.jsonl", 3)
    config = stage("sft", "sft", "hub/base", {"sources": [{"uri": "data/chats.jsonl"}]})
    lineage = Lineage(str(write_run(tmp_path, config) / inside))
    assert texts(lineage) == [t for i in range(3) for t in (f"Question {i}?", f"And then {i}?")]
    (source,) = lineage.sources
    assert (source.run, source.uri, len(list(source.texts()))) == ("runs/recipe/sft", "data/chats.jsonl", 6)
    assert next(lineage.prompts()).source == "runs/recipe/sft: data/chats.jsonl"
    assert lineage.unknown == ["hub/base"] and not lineage.unreadable


def test_what_a_fine_tuning_held_out_or_left_out_by_weight_was_not_trained_on(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 60)
    write_rows(
        tmp_path / "judged.jsonl",
        [{"prompt": "Question 5?", "completion": "x"}, {"prompt": "Q", "completion": "x"}],
    )
    data: dict[str, Any] = {
        "sources": [{"uri": "chats.jsonl", "weight": 0.5}],
        "evaluation_sources": [{"uri": "judged.jsonl"}],
        "held_out": 7,
    }
    run = write_run(tmp_path, stage("sft", "sft", "hub/base", data))
    found = [text for text in texts(Lineage(str(run / "model"))) if text.startswith("Question")]
    placed = {**data, **{key: absolute(tmp_path, data[key]) for key in ("sources", "evaluation_sources")}}
    config: Any = parse_config(stage("sft", "sft", "hub/base", placed), kind=KINDS["sft"].config_class)
    prepared = PreparedConversations(config.data, tokenizer(tmp_path / "tokenizer"), 512, 3)
    assert found == [row.messages[0]["content"] for row in prepared.training_rows()]
    assert 10 < len(found) < 30 and "Question 5?" not in found


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_kept_pairs_are_read_even_where_the_source_has_gone(tmp_path: Path, kind: str) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 5)
    config = stage(kind, kind, "hub/base", {"sources": [{"uri": "pairs.jsonl"}], "held_out": 2})
    run = write_run(tmp_path, config)
    placed = {"sources": absolute(tmp_path, [{"uri": "pairs.jsonl"}]), "held_out": 2}
    parsed: Any = parse_config(stage(kind, kind, "hub/base", placed), kind=KINDS[kind].config_class)
    prepared = PreparedPreferences(parsed.data, tokenizer(tmp_path / "tokenizer"), 512, 3)
    expected = [row.messages[0]["content"] for row in prepared.training_rows()]
    from_sources = texts(Lineage(str(run / "model")))
    (run / "data").mkdir()
    write_samples(prepared.training(), PreferenceGroup, run / "data" / "training.arrow")
    (tmp_path / "pairs.jsonl").unlink()
    assert len(expected) == 3 and from_sources == expected
    assert texts(Lineage(str(run / "model"))) == expected


def test_rows_handed_to_openrlhf_are_read_back(tmp_path: Path) -> None:
    run = write_run(tmp_path, stage("sft", "sft", "hub/base", {"sources": [{"uri": "gone.jsonl"}]}))
    write_chats(run / "data" / "training.jsonl", 1)
    assert texts(Lineage(str(run / "model"))) == ["Question 0?", "And then 0?"]


def test_a_source_that_has_gone_is_named_and_the_others_still_count(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 2)
    sources = [
        {"uri": "chats.jsonl"},
        {"uri": "moved.jsonl"},
        {"uri": "package://not_installed_here/a.jsonl"},
    ]
    run = write_run(tmp_path, stage("sft", "sft", "hub/base", {"sources": sources, "held_out": 1}))
    lineage = Lineage(str(run / "model"))
    assert len(texts(lineage)) == 4  # which one was held out cannot be told any more
    moved, package = lineage.unreadable
    assert moved.startswith("runs/recipe/sft: moved.jsonl (")
    assert "not_installed_here" in package and "pip install " in package
    assert all("\n" not in gap for gap in lineage.gaps) and len(lineage.gaps) == 3


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "old" / "model").mkdir(parents=True)
    (tmp_path / "old" / "config.yaml").write_text("type: forgotten\n")
    (note,) = Lineage(str(tmp_path / "old" / "model")).unreadable
    assert note.startswith(f"{tmp_path / 'old'} (") and "type='forgotten'" in note


# -- online runs -------------------------------------------------------------------------------------------


def test_a_rounds_checkpoint_saw_the_rounds_up_to_its_own_without_the_suffix(tmp_path: Path) -> None:
    run = write_run(tmp_path, online(tmp_path, prompts__suffix=" Be brief.", policy__path="hub/policy"))
    for index in range(3):
        write_round(run, index, f"Asked {index}? Be brief.", f"List {index}:\n- x\n\nBe brief.")
    lineage = Lineage(str(run / "rounds" / "001" / "checkpoint"))
    assert texts(lineage) == ["Asked 0?", "List 0:\n- x", "Asked 1?", "List 1:\n- x"]
    assert len(texts(Lineage(str(run)))) == 6
    assert lineage.unknown == ["hub/policy", f"{tmp_path}/reward (reward model)"]


def test_a_round_whose_prompts_are_gone_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, online(tmp_path))
    write_round(run, 1, "Asked 1?")
    lineage = Lineage(str(run / "rounds" / "001" / "checkpoint"))
    assert texts(lineage) == ["Asked 1?"]
    (gone,) = lineage.unreadable
    assert gone.startswith("runs/tiny: rounds/000/prompts.parquet (")


def test_the_walk_goes_through_all_stages_and_tells_the_reward_models_data_apart(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 1)
    write_pairs(tmp_path / "pairs.jsonl", 2)
    write_run(tmp_path, stage("sft", "sft", "hub/base", {"sources": [{"uri": "chats.jsonl"}]}))
    reward = stage("reward", "reward", "runs/recipe/sft/model", {"sources": [{"uri": "pairs.jsonl"}]})
    write_run(tmp_path, reward)
    places = {"policy__path": "runs/recipe/sft/model", "reward__path": "runs/recipe/reward/model"}
    terms = [{"type": "http", "url": "http://host:5000/get_reward"}]
    run = write_run(tmp_path, online(tmp_path, **places, reward__terms=terms))
    write_round(run, 0, "Asked?")
    lineage = Lineage(str(run / "rounds" / "000" / "checkpoint"))
    assert texts(lineage) == ["Asked?", "Question 0?", "And then 0?"]
    assert texts(lineage, "reward") == ["Pair 0?", "Pair 1?", "Question 0?", "And then 0?"]
    assert [p.role for p in lineage.prompts()] == ["model"] * 3 + ["reward"] * 4
    named = {prompt.source for prompt in lineage.prompts() if prompt.role == "reward"}
    assert "runs/recipe/reward: pairs.jsonl (reward model)" in named
    *models, scorer = lineage.unknown
    assert models == ["hub/base", "hub/base (reward model)"] and re.search("'http' .*runs/tiny", scorer)


def test_a_reward_model_made_in_the_run_saw_the_end_of_the_pool(tmp_path: Path) -> None:
    make_questions(tmp_path / "questions.jsonl")
    chat = tokenizer(tmp_path / "policy")
    config = online(tmp_path, reward__train={"data": {"prompts": 5}}, prompts__suffix=" Be brief.")
    del config["reward"]["path"]
    run = write_run(tmp_path, config)
    write_round(run, 0, "Asked?")
    parsed = parse_config(config)
    pool = split_pool(load_prompts(parsed.prompts, chat.encode_chat), parsed.prompts.held_out, 7)
    expected = [p.messages[0]["content"].removesuffix(" Be brief.") for p in pool.training[-5:]]
    lineage = Lineage(str(run / "rounds" / "000" / "checkpoint"))
    assert texts(lineage) == ["Asked?"] and texts(lineage, "reward") == expected
    assert texts(Lineage(str(run / "initial" / "reward_model"))) == expected


def test_pairs_made_by_a_contrasts_stage_lose_its_suffix(tmp_path: Path) -> None:
    contrasts = {
        "type": "contrasts",
        "run": {"name": "contrasts", "directory": "runs/recipe"},
        "policy": {"path": "hub/base", "max_length": 2048},
        "prompts": {"sources": [{"type": "question", "uri": "questions.jsonl"}], "suffix": " Be brief."},
    }
    made = write_run(tmp_path, contrasts) / "pairs.parquet"
    group = [{"role": "user", "content": "What is gout Be brief."}]
    pq.write_table(pa.Table.from_pylist([{"prompt": group, "chosen": "a", "rejected": "b"}]), made)
    data = {"sources": [{"uri": "runs/recipe/contrasts/pairs.parquet"}]}
    run = write_run(tmp_path, stage("reward", "reward", "hub/base", data))
    assert texts(Lineage(str(run / "model"))) == ["What is gout"]


def test_a_run_that_was_moved_is_still_read_where_its_paths_are_whole(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 1)
    data = {"sources": [{"uri": str(tmp_path / "chats.jsonl")}]}
    run = write_run(tmp_path, stage("sft", "sft", "hub/base", data))
    moved = tmp_path / "backup"
    run.rename(moved)
    assert len(texts(Lineage(str(moved / "model")))) == 2
