"""Model and data cards: what they say, that the hub can read them, and that a rerun writes the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_run
from ultramed_rl.config import (
    DataConfig,
    PreferenceConfig,
    RewardConfig,
    RunConfig,
    SftConfig,
    dump_config,
    parse_config,
)
from ultramed_rl.stages.data.run import make_data
from ultramed_rl.store.cards import (
    CARD,
    EarlierStep,
    Input,
    data_card,
    earlier_steps,
    front_matter,
    made_from,
    model_card,
    place,
    read_versions,
    settings,
    table,
    write_card,
)
from ultramed_rl.store.digests import digest_path

DISCLAIMER = "Not a medical device."
STAGE: dict[str, Any] = {
    "run": {"name": "mine", "directory": "/home/someone/runs"},
    "model": {"path": "owner/base", "max_length": 128},
    "data": {"sources": [{"uri": "hf://owner/chats:train"}]},
    "training": {"learning_rate": 1e-5},
}


def front(card: str) -> dict[str, Any]:
    start, block, _ = card.split("---\n", 2)
    assert start == ""
    loaded: dict[str, Any] = yaml.safe_load(block)
    return loaded


def stage(kind: type, **more: Any) -> Any:
    return parse_config({**STAGE, "type": kind.model_fields["type"].default, **more}, kind=kind)


def data_stage(root: Path, name: str, source: str, step: dict[str, Any]) -> DataConfig:
    settings = {
        "type": "data",
        "run": {"name": name, "directory": str(root)},
        "input": [source],
        "step": step,
        "cluster": {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8},
        "tracking": {"wandb": "disabled"},
    }
    return parse_config(settings, kind=DataConfig)


MODELS = [
    (stage(SftConfig), "text-generation", "supervised fine-tuning"),
    (stage(RewardConfig), "text-classification", "higher is better"),
    (stage(PreferenceConfig, objective={"type": "simpo"}), "text-generation", "offline preference learning"),
    (None, "text-generation", "after round 1 of 2"),
]


@pytest.mark.parametrize(
    ("config", "pipeline", "words"), MODELS, ids=["sft", "reward", "preference", "online"]
)
def test_every_kind_of_model_has_a_card_that_the_hub_reads(
    tmp_path: Path, config: Any, pipeline: str, words: str
) -> None:
    config = config or parse_config(tiny_run(tmp_path, run__rounds=2))
    card = model_card(
        config,
        {"loss_last": 0.25, "seconds_training": 12.5, "mfu": 0.4, "accuracy": float("nan")},
        [Input("samples that were trained on", "data/ of the run", "ab12")],
        index=1,
    )
    head = front(card)
    assert head["pipeline_tag"] == pipeline and head["library_name"] == "transformers"
    assert head["license"] == "unknown" and (head.get("datasets") == ["owner/chats"]) != (
        config.type == "online"
    )
    assert words in card and "ab12" in card and "| loss last | 0.25 |" in card
    assert card.count(DISCLAIMER) == 2
    assert "seconds" not in card and "mfu" not in card and "nan" not in card


def test_a_card_names_the_base_model_only_where_the_hub_has_it(tmp_path: Path) -> None:
    assert front(model_card(stage(SftConfig), {}))["base_model"] == "owner/base"
    pinned = model_card(stage(SftConfig, model={"path": "owner/base@v1", "max_length": 128}), {})
    assert front(pinned)["base_model"] == "owner/base" and "owner/base@v1" in pinned
    offline = stage(SftConfig, model={"path": "offline://smollm2-135m-instruct", "max_length": 128})
    assert front(model_card(offline, {}))["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    local = stage(SftConfig, model={"path": "/home/someone/models/secret/base", "max_length": 128})
    card = model_card(local, {})
    assert "base_model" not in front(card)
    assert "/home/someone" not in card and ".../models/secret/base" in card


def test_a_round_s_card_tells_of_the_rounds_before_and_the_run_s_of_its_own(tmp_path: Path) -> None:
    config = parse_config(tiny_run(tmp_path, run__rounds=3))
    rows = [
        {
            "round": float(n),
            "eval_reward_mean": 3.0 + n,
            "eval_change": 0.5,
            "eval_win_rate": 0.75,
            "seconds": 9.0,
        }
        for n in range(3)
    ]
    early = model_card(config, {}, index=2, rounds=rows[:2])
    assert "| 1 | 4.000 | 0.500 | - | - | 0.750 |" in early and "| 2 |" not in early
    whole = model_card(config, {}, index=2, rounds=rows)
    assert "| 2 | 5.000 |" in whole


TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(TEXTS, min_size=1)), min_size=1, max_size=4))
def test_front_matter_gives_back_what_went_in(entries: dict[str, Any]) -> None:
    assert yaml.safe_load(front_matter(entries)) == entries


@given(TEXTS)
def test_a_table_cell_stays_one_cell_without_html(value: str) -> None:
    row = table(("a", "b"), [(value, "end")]).split("\n")[-1]
    unescaped = row.replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == 3 and "<" not in row


def test_a_code_block_cannot_be_closed_from_within() -> None:
    assert settings({"step": "a\n```\n# out"}).splitlines()[0] == "````yaml"
    assert "/home/me" not in settings(
        {"reward": {"path": "/home/me/runs/x/model", "terms": ["/home/me/a/b/c/d"]}}
    )


@pytest.mark.parametrize(
    ("where", "shown"),
    [("hf://a/b:train", "hf://a/b:train"), ("runs/x/y", "runs/x/y"), ("/r/s/t/u/v", ".../t/u/v")],
)
def test_a_place_keeps_the_machine_s_own_folders_to_itself(where: str, shown: str) -> None:
    assert place(where) == shown


RECORDS = {"type": "records", "name": "Set, A".replace(", ", "-"), "kind": "Open-End", "question": "q"}


def test_a_finished_data_stage_has_its_card_and_a_rerun_the_same_one(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"q": f"What does drug {n} do?"}) + "\n" for n in range(3)))
    folder = make_data(data_stage(tmp_path / "one", "first", str(source), RECORDS))
    card = (folder / CARD).read_text()
    head = front(card)
    assert head["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "rows.jsonl"}]}
    ]
    assert digest_path(source) in card and "| Set-A | 3 |" in card and DISCLAIMER in card
    manifest = json.loads(folder.with_suffix(".json").read_text())
    assert manifest["digest"] == digest_path(folder), "the card was written after the digest was taken"
    again = make_data(data_stage(tmp_path / "two", "first", str(source), RECORDS))
    assert (again / CARD).read_bytes() == (folder / CARD).read_bytes()


def test_a_card_knows_the_steps_before_and_whether_one_decontaminated(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"q": f"What does drug {n} do?"}) + "\n" for n in range(4)))
    first = make_data(data_stage(tmp_path, "first", str(source), RECORDS))
    step = {"type": "sample", "sizes": {"Set-A": 2}}
    second = make_data(data_stage(tmp_path, "second", str(first / "rows.jsonl"), step))
    assert "| first | records | - |" in (second / CARD).read_text()
    assert earlier_steps([str(second / "rows.jsonl")]) == [
        EarlierStep("first", "records"),
        EarlierStep("second", "sample"),
    ]
    config = data_stage(tmp_path, "third", str(second / "rows.jsonl"), step)
    assert not re.search(r"\bclean\b", data_card(config, tmp_path, {}))
    generators = {"m": {"type": "api", "model": "m", "base_url": "https://api.example.org/v1"}}
    rows = str(second / "rows.jsonl")
    for name, step, models in (
        ("asked", {"type": "score"}, generators),
        ("clean", {"type": "decontaminate"}, {}),
    ):
        before = {
            **data_stage(tmp_path, name, rows, RECORDS).to_mapping(),
            "step": step,
            "generators": models,
        }
        (tmp_path / name).mkdir()
        text = dump_config(parse_config(before, kind=DataConfig))
        (tmp_path / name / "config.yaml").write_text(text)
        rows = str(tmp_path / name / "records" / "rows.jsonl")
    clean = data_card(data_stage(tmp_path, "third", rows, RECORDS), tmp_path, {})
    assert re.search(r"^## Decontamination\n\n.*\bclean\b", clean, re.M)
    assert "synthetic" in front(clean)["tags"]


def sections_of(card: str, *rows: str) -> list[str]:
    """The one section in which each row stands."""
    found = [[part for part in card.split("\n## ") if row in part] for row in rows]
    return [part for (part,) in found]


def test_models_behind_an_api_are_named_with_their_terms_and_without_their_key(tmp_path: Path) -> None:
    settings = data_stage(tmp_path, "x", "rows.jsonl", RECORDS).to_mapping()
    settings["step"] = {"type": "score"}
    settings["generators"] = {
        "judge": {
            "type": "api",
            "model": "big|1",
            "base_url": "https://api.example.org/v1",
            "api_key_env": "MY_KEY",
        }
    }
    counts = {"records": 5.0, "kept": 3.0, "failed_no_score": 1.0, "dropped_below_threshold": 1.0}
    card = data_card(parse_config(settings, kind=DataConfig), tmp_path, counts)
    assert "| judge | big\\|1 | api.example.org | " in card
    assert "MY_KEY" not in card and front(card)["tags"] == ["ultramed_rl", "synthetic", "research"]
    kept, gone = sections_of(card, "| kept | 3 |", "| failed no score | 1 |")
    assert "failed" not in kept and "dropped" not in kept and "| kept" not in gone


def test_made_from_knows_files_directories_of_ours_and_names(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    assert made_from("x", str(file)).digest == digest_path(file)
    model = tmp_path / "v1.5"
    model.mkdir()
    assert made_from("x", str(model)).digest == ""
    (tmp_path / "v1.5.json").write_text(json.dumps({"digest": "cd34"}))
    assert made_from("x", str(model)).digest == "cd34"
    assert made_from("x", "owner/name").digest == made_from("x", "hf://a/b").digest == ""


def test_versions_are_those_of_the_run_s_first_start(tmp_path: Path) -> None:
    assert read_versions(tmp_path) == {}
    (tmp_path / "environment.json").write_text(
        json.dumps({"python": "3.12.1", "packages": {"torch": "2.13.0", "numpy": "2.1"}})
    )
    assert read_versions(tmp_path) == {"python": "3.12.1", "torch": "2.13.0"}


def test_another_tool_s_card_gives_way(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("of another tool")
    write_card(tmp_path, "ours")
    assert (tmp_path / CARD).read_text() == "ours"


def test_an_online_run_s_pairs_have_a_card_with_the_audit(tmp_path: Path) -> None:
    config = parse_config(tiny_run(tmp_path))
    assert isinstance(config, RunConfig)
    counts = {"pairs": 30.0, "pairs_prompts": 32.0, "pairs_tied": 2.0}
    card = data_card(config, tmp_path, counts)
    kept, gone = sections_of(card, "| pairs prompts | 32 |", "| pairs tied | 2 |")
    assert kept != gone
