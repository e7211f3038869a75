"""Comparing runs: paired where prompts and reward are the same, and said plainly where they are not."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests.report_run import Plan, make_run
from tests.unit.report.test_run_report import KEY_ATTACK, Reader
from ultramed_rl.report.comparison import (
    compare_benchmarks,
    compare_runs,
    write_comparison,
)
from ultramed_rl.report.online_run import OnlineRun, read_online_run, reward_difference
from ultramed_rl.store import RunReader


def read(folder: Path) -> OnlineRun:
    return read_online_run(RunReader.of(folder))


def page_of(folders: list[Path], output: Path) -> Reader:
    return Reader(write_comparison(folders, output).read_text(encoding="utf-8"))


def test_a_better_run_is_called_better_over_shared_prompts(tmp_path: Path) -> None:
    # Two rounds of +1 against two of +1.5 + 0.1 p: 2 + 0.2 p apart less 1... at the end 3 + 0.2 p against 2 a prompt.
    one = make_run(tmp_path, Plan(held_out_reward=lambda v, p, s: float(v)), run__name="one")
    two = make_run(tmp_path, Plan(held_out_reward=lambda v, p, s: v * (1.5 + 0.1 * p)), run__name="two")
    pair = compare_runs(read(one), read(two))
    assert pair.change is not None and pair.why_not == "" and pair.shared == 8
    # 1 + 0.2 p over p = 0..7: 1.7 on average; all 8 prompts are won.
    assert pair.change.reward.mean == pytest.approx(1.7) and pair.change.wins.mean == 1.0
    assert pair.wins is not None and pair.wins.mean == 0.0, "both win every prompt over their own start"
    ((tone, verdict),) = page_of([one, two], tmp_path / "page.html").callouts
    assert tone == "good" and re.search(r"^\s*two .*\bone\b(?s:.*)\+1\.70 .*95%.*\b8\b", verdict)
    ((tone, verdict),) = page_of([two, one], tmp_path / "page.html").callouts
    assert tone == "bad" and re.search(r"^\s*one .*\btwo\b(?s:.*)-1\.70 ", verdict)


def test_only_shared_prompts_are_compared(tmp_path: Path) -> None:
    one = make_run(tmp_path, Plan(held_out=8), run__name="one")
    two = make_run(tmp_path, Plan(held_out=3), run__name="two")
    assert compare_runs(read(one), read(two)).shared == 3
    none = make_run(tmp_path, Plan(held_out=3), run__name="none")
    for file in none.rglob("evaluation.parquet"):
        file.unlink()
    pair = compare_runs(read(one), read(none))
    assert pair.shared == 0 and pair.change is None and pair.why_not
    ((tone, verdict),) = page_of([one, none], tmp_path / "page.html").callouts
    assert tone == "plain" and pair.why_not in verdict


def test_rewards_of_different_reward_models_are_not_compared(tmp_path: Path) -> None:
    one = make_run(tmp_path, run__name="one")
    two = make_run(tmp_path, run__name="two", reward__path="another/model")
    cheaper = make_run(tmp_path, run__name="cheaper", reward__micro_batch_tokens=128)
    assert re.search(r" reward\.path$", reward_difference(read(one), read(two)))
    assert reward_difference(read(one), read(cheaper)) == ""
    page = page_of([one, two], tmp_path / "page.html")
    ((tone, verdict),) = page.callouts
    assert tone == "plain" and re.search(r"reward\.path(?s:.*)\+0 .*95%.*\b8\b", verdict)
    assert "another/model" in page.text


def test_each_runs_own_reward_model_is_known_by_its_digest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, run__name=name) for name in ("a", "b", "c")]
    for folder, digest in zip(runs, ("x", "x", "y"), strict=True):
        manifest = {"name": "reward_model", "digest": digest, "seconds": 1.0}
        (folder / "initial" / "reward_model.json").write_text(json.dumps(manifest))
    a, b, c = map(read, runs)
    assert reward_difference(a, b) == "" and "digest" in reward_difference(a, c)


def test_rewards_with_other_slopes_of_length_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, run__name=name, reward__length_slope="fit") for name in ("a", "b", "c")]
    for folder, slope in zip(runs, (0.5, 0.5, 0.25), strict=True):
        manifest = {"name": "length", "digest": "d", "seconds": 1.0, "metrics": {"slope": slope}}
        (folder / "initial" / "length.json").write_text(json.dumps(manifest))
    a, b, c = map(read, runs)
    assert reward_difference(a, b) == "" and "slope" in reward_difference(a, c)


def test_seeds_of_one_config_are_taken_together(tmp_path: Path) -> None:
    """Two configs at two seeds each: rewards rise by 2 and 4, and by 5 and 7."""
    runs = [
        make_run(
            tmp_path,
            Plan(held_out_reward=partial(lambda gain, v, p, s: v * gain, gain)),
            run__name=f"{name}-{seed}",
            run__seed=seed,
            objective=objective,
        )
        for name, objective, gains in (
            ("dpo", {"type": "dpo"}, {1: 1.0, 2: 2.0}),
            ("kto", {"type": "kto_pair"}, {1: 2.5, 2: 3.5}),
        )
        for seed, gain in gains.items()
    ]
    page = page_of(runs, tmp_path / "page.html")
    for text in ("dpo-1, dpo-2", "seed 2", "+3.000", "+2.000 to +4.000", "kto-1, kto-2", "+6.000"):
        assert text in page.text, text
    assert "+3.000 (+1.000 to +5.000) *" in page.text, "their difference"
    assert "dpo-1, kto-2" not in page_of([runs[0], runs[3]], tmp_path / "page.html").text


def benchmark(folder: Path, accuracy: float, wrong: list[int], items: int = 20) -> Path:
    place = folder / "rounds" / "001" / "benchmarks"
    (place / "failures").mkdir(parents=True)
    score = {"items": items, "accuracy": accuracy, "low": 0.0, "high": 1.0}
    result = {"task": "medqa", "protocol": "greedy", "score": score}
    (place / "results.json").write_text(json.dumps({"results": [result], "averages": {}}))
    rows = [json.dumps({"question_id": f"q{n}", "score": 0.0}) for n in wrong]
    (place / "failures" / "medqa-greedy.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_benchmarks_are_tested_on_the_items_that_one_side_failed(tmp_path: Path) -> None:
    one = benchmark(make_run(tmp_path, run__name="one"), 0.5, list(range(10)))
    two = benchmark(make_run(tmp_path, run__name="two"), 0.95, [10])
    ((result, test),) = compare_benchmarks(read(one), read(two)).values()
    # Ten only the second has right, one only the first: p = 2 (1 + 11) / 2^11.
    assert result["score"]["accuracy"] == 0.95
    assert test is not None and (test.only_before, test.only_after) == (1, 10)
    assert test.p_value == pytest.approx(24 / 2048)
    assert "95.0%* (0% to 100%)" in page_of([one, two], tmp_path / "page.html").text
    other = benchmark(make_run(tmp_path, run__name="other", run__seed=8), 0.5, [1])
    assert compare_benchmarks(read(one), read(other)) == {}, "another seed may draw other items"


def test_runs_of_one_name_are_told_apart_and_names_are_escaped(tmp_path: Path) -> None:
    one, two = (
        make_run(tmp_path / "x"),
        make_run(tmp_path / "y", tracking__project=KEY_ATTACK),
    )
    page = write_comparison([one, two], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "runs/tiny (2)" in Reader(page).text


def test_what_does_not_compare_is_refused_in_one_line(tmp_path: Path) -> None:
    one = make_run(tmp_path)
    with pytest.raises(ValueError, match=r"^1\b"):
        write_comparison([one], tmp_path / "page.html")
    with pytest.raises(ValueError, match=f"^{one}: "):
        write_comparison([one, one], tmp_path / "page.html")
    stage = tmp_path / "sft"
    stage.mkdir()
    (stage / "config.yaml").write_text("type: sft\nrun: {name: sft}\n")
    with pytest.raises(ValueError, match="online, sft: "):
        write_comparison([one, stage], tmp_path / "page.html")
