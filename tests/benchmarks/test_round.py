"""The books of the round benchmark: what each side is said to have done, and when that is called the same."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_policy, make_reward, make_tokenizer
from ultramed_rl.config import load_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from round import report, round_config, same_work, why_unequal
from round_peers import PEERS, STAGED, STAGES, online_round, run_scripts, staged_round

WORK = {"prompts": 8, "prompt_tokens": 300, "completions": 16, "tokens": 500, "pairs": 8}


def our_round(**changes: Any) -> dict[str, Any]:
    return {**WORK, "seconds_checkpoint": 5.0, "seconds_training": 4.0, "seconds_completions": 2.0, **changes}


def peer_round(seconds: float, **changes: Any) -> dict[str, Any]:
    counts = {**WORK, "generation": 3.0, "scoring": 1.0, "saving": 0.5, "seconds": seconds, **changes}
    return online_round(counts)


def options(baseline: str, **changes: Any) -> Namespace:
    return Namespace(
        **{
            "baseline": baseline,
            "config": "configs/quickstart.yaml",
            "size": 1,
            "repeats": 2,
            "prompts": 16,
            "tokens": None,
            "precision": "float32",
            "peer_pass": 8,
            "set": [],
            "spread": 2.0,
            **changes,
        }
    )


# -- what is told ------------------------------------------------------------------------------------------


def test_a_line_has_the_medians_of_the_measured_rounds() -> None:
    ours = {
        "seconds": [90.0, 10.0, 20.0],
        "startup": 7.0,
        "rounds": [our_round(tokens=1), our_round(tokens=600), our_round(tokens=900)],
    }
    rounds = [peer_round(30.0, tokens=700), peer_round(50.0, tokens=900)]
    line = report(ours, {"rounds": rounds, "beside": {"peer_first": 60.0}}, options("online_dpo"))
    assert (line["ours"], line["peer"], line["ratio"]) == (15.0, 40.0, 2.667)
    assert (line["ours_first"], line["ours_startup"], line["peer_first"]) == (90.0, 7.0, 60.0)
    assert line["tokens"] == {"ours": 1500, "peer": 1600} and line["gaps"]["tokens"] == 0.0667
    assert line["tokens_per_second"] == {"ours": 50.0, "peer": 20.0}
    assert line["ours_phases"]["saving"] == 1.0 and line["ours_phases"]["generation"] == 2.0
    assert line["peer_phases"] == {
        "generation": 3.0,
        "scoring": 1.0,
        "saving": 0.5,
        "reference_and_training": 35.5,
    }
    assert line["same_work"] and line["faults"] == []
    json.dumps(line)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"tokens": 550}, True),
        ({"tokens": 449}, False),
        ({"tokens": 551}, False),
        ({"prompts": 7}, False),
        ({"prompt_tokens": 301}, False),
        ({"completions": 32}, False),
        ({"pairs": 7}, False),
    ],
)
def test_online_dpo_differs_in_what_it_samples_alone(changes: Mapping[str, int], same: bool) -> None:
    found = same_work([our_round()], [peer_round(1.0, **changes)], PEERS["online_dpo"].allowed)
    assert found["same_work"] is same


def test_a_staged_round_is_its_three_processes() -> None:
    reports = {
        "generate": {"process": 20.0, "seconds": {"import": 5.0, "load": 4.0, "work": 8.0}, "tokens": 500},
        "score": {"process": 9.0, "seconds": {"import": 2.0, "load": 1.0, "work": 4.0}, "pairs": 8},
        "train": {"process": 30.0, "seconds": {"load": 3.0, "work": 20.0, "save": 2.0}},
    }
    assert staged_round(reports) == {
        "seconds": 59.0,
        "tokens": 500,
        "pairs": 8,
        "phases": {
            "generation": 8.0,
            "scoring": 4.0,
            "reference_and_training": 20.0,
            "saving": 2.0,
            "loading": 25.0,
        },
    }
    assert same_work([our_round(tokens=510)], [staged_round(reports)], PEERS["staged"].allowed)["same_work"]


def test_scripts_get_the_job_and_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STAGES:
        (tmp_path / f"{name}.py").write_text(
            f"import sys; sys.path.insert(0, {str(STAGED)!r})\n"
            "from stage import Stage, read_jsonl\n"
            "stage = Stage()\n"
            "stage.finish(prompts=read_jsonl(stage.job['prompts']), n=stage.job['n'])\n"
        )
    monkeypatch.setattr("round_peers.STAGED", tmp_path)
    reports = run_scripts(STAGES, {"n": 2}, [{"ids": [1, 2]}, {"ids": [3]}])
    assert list(reports) == list(STAGES)
    for told in reports.values():
        assert told["process"] > 0 and told["n"] == 2 and told["prompts"] == [{"ids": [1, 2]}, {"ids": [3]}]


# -- what is asked -----------------------------------------------------------------------------------------


def test_online_dpo_has_two_answers_and_whole_batches(tmp_path: Path) -> None:
    assert round_config(options("online_dpo"), tmp_path).sampling.n == 2
    assert (
        round_config(options("staged"), tmp_path).sampling.n
        == load_config("configs/quickstart.yaml").sampling.n
    )
    ours = round_config(options("staged"), tmp_path)  # what a peer does too
    assert (ours.reward.terms, ours.reward.length_slope, ours.evaluation.judges) == ([], None, [])
    assert ours.cluster.rollout.precision is None
    for changes, key in (
        ({"prompts": 12}, "prompts.per_round=12"),
        ({"peer_pass": 3}, "--peer-pass 3"),
        ({"set": ["training.epochs=2"]}, "training.epochs=2"),
    ):
        asked = options("online_dpo", **changes)
        problem = why_unequal(round_config(asked, tmp_path), asked)
        assert problem is not None and problem.startswith(key)
    for baseline in PEERS:
        assert why_unequal(round_config(options(baseline), tmp_path), options(baseline)) is None


# -- the trainer itself ------------------------------------------------------------------------------------


def test_trls_trainer_is_counted_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STAGED)
    import online_dpo  # imported late: it takes seconds

    job = {
        "policy": str(make_policy(tmp_path / "policy")),
        "reward": str(make_reward(tmp_path / "reward")),
        "output": str(tmp_path / "output"),
        "prompts_a_round": 4,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "precision": "float32",
        "peer_pass": 2,
        "beta": 0.1,
        "engine": {"max_length": 96},
        "training": {
            "batch_size": 2,
            "epochs": 1,
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "warmup": 0.1,
            "max_grad_norm": 1.0,
        },
    }
    texts = ["a", "bb", "ccc", "dddd", "e" * 10, "f" * 20, "g" * 30, "h" * 40]
    chats = [[{"role": "user", "content": text}] for text in texts]
    rounds = online_dpo.train(job, [{"messages": chat} for chat in chats])
    lengths = [
        len(make_tokenizer().apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        for chat in chats
    ]
    assert [r["prompt_tokens"] for r in rounds] == [sum(lengths[:4]), sum(lengths[4:])]
    for counts in rounds:
        assert (counts["prompts"], counts["completions"], counts["pairs"]) == (4, 8, 4)
        assert 8 <= counts["tokens"] <= 8 * 6 and 0 <= counts.get("ties", 0) <= 4
        told = online_round(counts)
        assert min(told["phases"].values()) > 0
        assert sum(told["phases"].values()) == pytest.approx(counts["seconds"])
    assert {path.name for path in (tmp_path / "output").iterdir()} >= {"checkpoint-2", "checkpoint-4"}
