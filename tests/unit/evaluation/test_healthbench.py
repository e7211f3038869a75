"""HealthBench: its arithmetic against the published formula, its rows, and a grader asked about a policy's answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rewards.test_http import serving
from tests.unit.rewards.test_rubric import by_words
from ultramed_rl.config.benchmarks import Benchmarks, Grader
from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.healthbench import (
    GradedExample,
    RubricSummary,
    grader_agreement,
    summarize_rubrics,
    worst_of,
)
from ultramed_rl.evaluation.items import Row
from ultramed_rl.evaluation.rubrics import Criterion
from ultramed_rl.evaluation.runner import AnswerPlace, AskedPolicy, BenchmarkRunner
from ultramed_rl.evaluation.suite import check_task, load_suite
from ultramed_rl.evaluation.tasks.healthbench import read_row
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.benchmark_judges import judge_rubrics, measure_grader
from ultramed_rl.rewards.rubric import RubricGrader
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress

ACCURACY, CONTEXT = ("axis:accuracy",), ("axis:context_awareness",)
CRITERIA = (
    Criterion("dose", 5.0, ACCURACY),
    Criterion("doctor", 3.0, CONTEXT),
    Criterion("study", -6.0, ACCURACY),
)


def example(name: str, theme: str, *answers: tuple[int, tuple[bool, ...]]) -> GradedExample:
    return GradedExample(name, (f"theme:{theme}", "other:x"), CRITERIA, answers)


def test_figures_are_those_of_the_published_formula() -> None:
    """Scores by hand: 8/8, (5 - 6)/8, 3/8; nothing is clipped but the means."""
    graded = [
        example("a", "emergency", (2500, (True, True, False))),
        example("b", "emergency", (1000, (True, False, True))),
        example("c", "hedging", (2000, (False, True, False))),
    ]
    found = summarize_rubrics("healthbench", "greedy", graded)
    assert found is not None
    assert found.score.mean == pytest.approx((1 - 1 / 8 + 3 / 8) / 3)
    adjusted = (1 - 0.0299 * 1) + (-1 / 8 + 0.0299 * 2) + 3 / 8
    assert found.length_adjusted.mean == pytest.approx(adjusted / 3)
    assert found.tags == {
        "axis:accuracy": (pytest.approx((5 / 5 + (5 - 6) / 5 + 0) / 3), 3),
        "axis:context_awareness": (pytest.approx((1 + 0 + 1) / 3), 3),
        "theme:emergency": (pytest.approx((1 - 1 / 8) / 2), 2),
        "theme:hedging": (3 / 8, 1),
    }
    assert found.metrics["healthbench_greedy_theme_hedging"] == 3 / 8


def test_a_mean_below_zero_is_clipped_and_an_axis_of_faults_alone_has_no_score() -> None:
    faults = (Criterion("dose", 1.0), Criterion("study", -6.0, ("axis:accuracy",)))
    one = GradedExample("a", (), faults, ((10, (False, True)),))
    found = summarize_rubrics("healthbench_hard", "greedy", [one])
    assert found is not None and (found.score.mean, found.score.low, found.tags) == (0.0, 0.0, {})


def test_the_worst_of_k_is_the_mean_over_all_choices() -> None:
    assert worst_of([1.0, 0.0, 0.5], 1) == 0.5
    assert worst_of([1.0, 0.0, 0.5], 2) == pytest.approx((0.0 + 0.5 + 0.0) / 3)
    assert worst_of([1.0, 0.0, 0.5], 3) == 0.0
    met, lost = (True, True, False), (False, False, False)
    found = summarize_rubrics("healthbench", "self_consistency", [example("a", "x", (0, met), (0, lost))])
    assert found is not None and found.worst_at == {1: 0.5, 2: 0.0}


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=3)), min_size=1, max_size=9
    )
)
def test_a_grader_is_measured_as_its_authors_do(rows: list[tuple[bool, list[bool]]]) -> None:
    pairs = [(said, label) for said, labels in rows for label in labels]
    f1 = []
    for side in (True, False):
        precise = [label == side for said, label in pairs if said == side]
        recalled = [said == side for said, label in pairs if label == side]
        if not precise or not recalled:
            f1.append(math.nan)
            continue
        p, r = sum(precise) / len(precise), sum(recalled) / len(recalled)
        f1.append(2 * p * r / (p + r) if p + r else 0.0)
    found = grader_agreement([said for said, _ in rows], [labels for _, labels in rows])
    assert found.f1 == pytest.approx(sum(f1) / 2, nan_ok=True)
    assert found.agreement == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


# -- rows and a run ----------------------------------------------------------------------------------------

ROW = {
    "prompt_id": "q1",
    "prompt": [
        {"role": "user", "content": "I take aspirin."},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "How much?"},
    ],
    "rubrics": [{"criterion": c.text, "points": c.points, "tags": list(c.tags)} for c in CRITERIA],
    "example_tags": ["theme:hedging"],
}


def test_a_row_is_a_chat_with_its_rubric() -> None:
    item = read_row(Row(ROW))
    assert (item.item_id, item.question, item.criteria, item.tags) == (
        "q1",
        "How much?",
        CRITERIA,
        ("theme:hedging",),
    )
    assert [turn["role"] for turn in item.turns] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    "change",
    [
        {"rubrics": []},
        {"rubrics": [{"criterion": "a"}]},
        {"rubrics": [{"criterion": "a", "points": -1}]},
        {"prompt": "How much?"},
        {"prompt": ROW["prompt"][:2]},
    ],
)
def test_rows_that_do_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(Misfit):
        read_row(Row(ROW | change))


def benchmarks(folder: Path, url: str = "http://h", **grader: Any) -> Benchmarks:
    file = folder / "healthbench.jsonl"
    rows = [ROW, {**ROW, "prompt_id": "q2", "prompt": [{"role": "user", "content": "Which?"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Benchmarks(
        tasks=[{"name": "healthbench_hard", "uri": str(file)}],
        protocols=["greedy", {"type": "self_consistency", "samples": 2}],
        grader={"model": "m", "base_url": f"{url}/v1", "retries": 0, **grader},
    )


def test_a_grader_is_needed(tmp_path: Path) -> None:
    config = benchmarks(tmp_path).model_copy(update={"grader": None})
    with pytest.raises(ValueError, match=r"benchmarks\.grader"):
        check_task(config, config.tasks[0])


def test_answers_are_graded_once_and_the_grader_is_measured(tmp_path: Path) -> None:
    meta = tmp_path / "meta.jsonl"
    labelled = [("the dose", [True, True]), ("nothing", [False, True])]
    meta.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": ROW["prompt"],
                    "completion": said,
                    "rubric": "Names the dose",
                    "binary_labels": own,
                }
            )
            + "\n"
            for said, own in labelled
        )
    )
    requests: list[Any] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        requests.append(request)
        return by_words(request)

    with serving(answer) as url:
        config = benchmarks(tmp_path, url, meta=str(meta))
        suite = load_suite(config, 0)
        runner = BenchmarkRunner(config, suite, 0, 512, Progress())
        assert [len(q.item.turns) for q in runner.sampled_questions] == [3, 1] and not runner.voted_questions
        said = [["dose and doctor"], ["a study"]], [["dose", "nothing"], ["doctor", "doctor"]]
        greedy, samples = (
            [
                Completion(f"healthbench_hard/q{i}/0", k, text, (1,), "stop", 0.0, 0)
                for i, texts in enumerate(group, 1)
                for k, text in enumerate(texts)
            ]
            for group in said
        )
        prompts = [Prompt(f"healthbench_hard/q{i}/0", (Message(role="user", content="x"),)) for i in (1, 2)]
        policy = AskedPolicy("p", "/p", prompts=prompts, greedy=greedy, samples=samples)
        assert runner.report(policy).results == ()
        place = AnswerPlace(ArtifactFolder(tmp_path / "run"), suffix="-p")
        assert isinstance(config.grader, Grader)
        grader = RubricGrader(config.grader)

        def summaries(grader: RubricGrader) -> list[RubricSummary]:
            found = (
                judge_rubrics(grader, *key, answered, place, Progress(), 0)
                for key, answered in runner.rubrics(policy).items()
            )
            return [summary for summary in found if summary is not None]

        alone, drawn = summaries(grader)
        assert alone.score.mean == pytest.approx((1.0 - 6 / 8) / 2) and alone.items == 2
        assert drawn.score.mean == pytest.approx((5 / 16 + 3 / 8) / 2)
        assert drawn.worst_at == {1: pytest.approx((5 / 16 + 3 / 8) / 2), 2: pytest.approx((0 + 3 / 8) / 2)}
        agreement = measure_grader(grader, config.grader, place.folder, Progress())
        assert agreement is not None and agreement.agreement == 0.75
        count = len(requests)
        again = RubricGrader(config.grader)
        assert summaries(again) == [alone, drawn]
        assert measure_grader(again, config.grader, place.folder, Progress()) == agreement
        assert len(requests) == count
    (row, _) = map(
        json.loads,
        (tmp_path / "run/rubrics-healthbench_hard-greedy-p/verdicts.jsonl").read_text().splitlines(),
    )
    assert [(c["text"], c["met"]) for c in row["criteria"]] == [
        ("dose", True),
        ("doctor", True),
        ("study", False),
    ]
