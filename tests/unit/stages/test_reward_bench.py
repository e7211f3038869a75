"""A reward model's benchmark: pairs out of every form, sections and averages by hand, and one line a mistake."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.tiny import make_policy, make_reward
from ultramed_rl.cli import app
from ultramed_rl.cli.evaluations import option_overrides, run_name, split_arguments
from ultramed_rl.cluster.layout import PlanError
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import ConfigError, RewardBenchConfig, load_any, parse_config
from ultramed_rl.config.recipe import load_recipe, stage_config
from ultramed_rl.config.stages import BenchmarkPairs
from ultramed_rl.data.preferences import read_pairs
from ultramed_rl.data.stage_data import fit_pairs
from ultramed_rl.evaluation.reward_benches import (
    GENERAL,
    GENERAL_2,
    MEDICAL,
    OTHERS,
    SECTIONS,
    ScoredPair,
    SubsetAverage,
    average_subsets,
    known_subset,
    length_alone,
    score_group,
    score_subsets,
    wrong_pairs,
)
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt, RankedAnswers
from ultramed_rl.store.tables import write_records

USER = (Message(role="user", content="Which?"),)

# -- what scores come to -----------------------------------------------------------------------------------


def scored(subset: str, *margins: float) -> list[ScoredPair]:
    return [ScoredPair(f"{subset}#{i}", subset, margin, 0.0) for i, margin in enumerate(margins)]


def averages(pairs: list[ScoredPair]) -> dict[str, float]:
    return {a.name: a.accuracy for a in average_subsets(score_subsets(pairs, {}), pairs)}


def shares(subset: str, right: int, total: int) -> list[ScoredPair]:
    return scored(subset, *[1.0] * right, *[-1.0] * (total - right))


def test_a_tie_counts_half_and_a_missing_number_never_counts() -> None:
    pairs = scored("Easy", 2.0, 0.0, -1.0, math.inf, math.nan)
    (score,) = score_subsets(pairs, {"Easy": 3})
    assert (score.pairs, score.right, score.ties, score.non_finite, score.too_long) == (5, 1.5, 1, 2, 3)
    assert score.accuracy is not None and score.accuracy.mean == 0.3


@pytest.mark.parametrize(
    ("rewards", "wanted", "right", "places"),
    [
        ([2.0, 1.0], 1, 1.0, (0, 1)),
        ([1.0, 1.0], 1, 0.5, (0, 1)),
        ([2.0, 1.0, 0.0, 1.5], 1, 1.0, (0, 3)),
        ([2.0, 1.0, 0.0, 2.5], 1, 0.0, (0, 3)),
        ([2.0, 2.0, 0.0, 2.0], 1, 1 / 3, (0, 1)),
        ([2.0, 4.0, 6.0, 1.0, 3.0, 5.0], 3, 6 / 9, (0, 5)),
        ([2.0, 4.0, 6.0, 1.0, 4.0, 5.0], 3, 5 / 9, (0, 5)),  # RM-Bench: equal is wrong
        ([2.0, 4.0, 4.0], 2, 0.25, (0, 2)),
        ([2.0, math.nan, 0.0, 1.0], 1, 0.0, (0, 1)),
    ],
)
def test_a_row_of_several_answers_is_right_by_their_order(
    rewards: list[float], wanted: int, right: float, places: tuple[int, int]
) -> None:
    answers = tuple(Completion("p", i, f"{i}", (i + 1,), "stop", 0.0, 0) for i in range(len(rewards)))
    group = PreferenceGroup(Prompt("p", USER, (1,), kind="Math"), answers, (1.0,) * len(answers), wanted)
    scored = score_group(group, rewards)
    assert scored.right == pytest.approx(right) and scored.places == places
    assert scored.finite == (not any(map(math.isnan, rewards)))


def benched(name: str, subset: str, wanted: list[float], others: list[float]) -> ScoredPair:
    answers = tuple(Completion(name, i, "", (i,), "stop", 0.0, 0) for i in range(len(wanted + others)))
    prompt = Prompt(name, USER, (1,), kind=subset)
    return score_group(PreferenceGroup(prompt, answers, (1.0,) * len(answers), len(wanted)), wanted + others)


def test_rm_benchs_styles_are_means_over_domains() -> None:
    rows = [
        # Won, by wanted rows: 0 0 0, 1 0 0, 1 1 1; easy 3 of 3, normal 1 of 3, hard 0 of 3.
        benched("1", "chat", [1.0, 2.0, 9.0], [1.0, 2.0, 3.0]),
        # Safety is one domain: 1 1 1 thrice, and never; 0.5 of each.
        benched("2", "safety-refuse", [5.0, 6.0, 7.0], [1.0, 2.0, 3.0]),
        benched("3", "safety-response", [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        # 1 1 0, 1 1 0, 1 1 1: easy 3 of 3, normal 3 of 3, hard 1 of 3.
        benched("4", "math", [4.0, 4.0, 9.0], [1.0, 2.0, 4.0]),
    ]
    found = {a.name: a for a in average_subsets(score_subsets(rows, {}), rows)}
    assert [*found] == ["RM-Bench easy", "RM-Bench normal", "RM-Bench hard", "RM-Bench"]
    easy, normal, hard = (1 + 0.5 + 1) / 3, (1 / 3 + 0.5 + 1) / 3, (0 + 0.5 + 1 / 3) / 3
    expected = [easy, normal, hard, (easy + normal + hard) / 3]
    assert [a.accuracy for a in found.values()] == pytest.approx(expected)
    assert found["RM-Bench"].missing == ("code",)
    assert rows[0].right == pytest.approx(4 / 9)


def test_ties_are_scored_by_their_formula() -> None:
    rows = [
        # Margins 2 and 3, spread 1: leads both, closeness tanh(2 / 1 - 1).
        benched("ref:1", "Ties", [3.0], [1.0, 0.0]),
        benched("tied:1", "Ties", [5.0, 4.0], [1.0, 0.0]),
        # Margins -1 and 2, spread 1: leads but not hard, closeness tanh(-1 / 1 - 1).
        benched("ref:2", "Ties", [0.0], [1.0]),
        benched("tied:2", "Ties", [4.0, 3.0, 3.5], [1.0]),
        # Margins 1 and 0: the tied row is inaccurate; without a spread it has no closeness.
        benched("ref:3", "Ties", [2.0], [1.0]),
        benched("tied:3", "Ties", [1.0, 1.0], [1.0]),
        benched("ref:4", "Ties", [2.0], [1.0]),  # alone
    ]
    others = [benched("5", "Focus", [2.0], [1.0, 0.0, 2.0])]  # 1 / 2
    found = {a.name: a for a in average_subsets(score_subsets(rows + others, {}), rows + others)}
    ties = 0.3 * (2 / 3 + 3 / 4) + 0.2 * (2 / 3 + 1 / 3) + 0.01 * (math.tanh(1) + math.tanh(-2)) / 2
    assert found["RewardBench 2 Ties"].accuracy == pytest.approx(ties)
    assert found[GENERAL_2].accuracy == pytest.approx((ties + 0.5) / 2)
    assert found[GENERAL_2].missing == ("Factuality", "Precise IF", "Math", "Safety") and OTHERS not in found


def test_ties_without_both_rows_of_a_question_have_no_score() -> None:
    rows = [benched("ref:1", "Ties", [3.0], [1.0, 0.0]), benched("x", "Ties", [3.0, 2.0], [1.0])]
    rows.append(benched("2", "Math", [3.0], [1.0, 0.0, 2.0]))
    (average,) = average_subsets(score_subsets(rows, {}), rows)
    assert (average.name, average.accuracy) == (GENERAL_2, 1.0) and "Ties" in average.missing


def test_length_alone_is_judged_as_the_model_is() -> None:
    """The longer one wins 1 of 2 in Easy and 0 of 2 in Hard; of four answers the wanted one must be the only longest."""

    def pair(name: str, subset: str, *tokens: int) -> PreferenceGroup:
        answers = tuple(Completion(name, i, "", (1,) * n, "stop", 0.0, 0) for i, n in enumerate(tokens))
        return PreferenceGroup(
            Prompt(name, USER, (1,), kind=subset), answers, (1.0, *[0.0] * (len(tokens) - 1))
        )

    pairs = [
        pair("a", "Easy", 5, 3),
        pair("b", "Easy", 3, 5),
        pair("c", "Hard", 2, 4),
        pair("d", "Hard", 4, 4),
    ]
    # By the shorter one: 1.5 of 2 in Hard, so 0.625 on average.
    assert length_alone(pairs) == {"Easy": 0.5, "Hard": 0.75, MEDICAL: 0.625}
    assert length_alone([pair("a", "mine", 9, 1, 9, 2)])["mine"] == 0.5


def test_a_half_count_has_wilsons_interval() -> None:
    (score,) = score_subsets(scored("Easy", 1.0, 1.0, 0.0, -1.0), {})
    # p = 2.5 / 4, z^2 = 3.8415: centre (p + z^2/8) / (1 + z^2/4), half z sqrt(p q / 4 + z^2 / 64) / (1 + z^2/4)
    p, z = 0.625, 1.959964
    centre = (p + z * z / 8) / (1 + z * z / 4)
    half = z * math.sqrt(p * (1 - p) / 4 + z * z / 64) / (1 + z * z / 4)
    assert score.accuracy is not None
    assert (score.accuracy.low, score.accuracy.high) == pytest.approx((centre - half, centre + half))


def test_medical_reward_bench_is_the_plain_mean_of_its_four() -> None:
    """UltraMedRM-8B's published row: 94.12, 73.47, 77.30 and 77.22 make 80.53."""
    counts = {"Easy": (224, 238), "Hard": (144, 196), "Human": (126, 163), "Length": (139, 180)}
    pairs = [pair for name, (right, total) in counts.items() for pair in shares(name, right, total)]
    scores = score_subsets(pairs, {})
    assert [round(100 * s.right / s.pairs, 2) for s in scores] == [94.12, 73.47, 77.30, 77.22]
    (average,) = average_subsets(scores, pairs)
    assert (average.name, round(100 * average.accuracy, 2), average.missing) == (MEDICAL, 80.53, ())


def test_a_section_weights_its_subsets_by_their_pairs() -> None:
    found = averages(shares("alpacaeval-easy", 100, 100) + shares("mt-bench-easy", 7, 28))
    assert found == {"Chat": pytest.approx(107 / 128), GENERAL: pytest.approx(107 / 128)}


def test_mathematics_counts_as_much_as_all_code() -> None:
    pairs = shares("math-prm", 9, 10) + shares("hep-cpp", 10, 20) + shares("hep-rust", 0, 5)
    assert averages(pairs)["Reasoning"] == pytest.approx((9 / 10 + 10 / 25) / 2)
    assert averages(shares("hep-cpp", 10, 20) + shares("hep-rust", 0, 5))["Reasoning"] == pytest.approx(0.4)


def test_the_sections_count_alike_whatever_their_sizes() -> None:
    pairs = [
        *shares("mt-bench-med", 3, 4),
        *shares("llmbar-natural", 1, 2),
        *shares("donotanswer", 90, 100),
        *shares("math-prm", 1, 4),
        *shares("hep-go", 3, 4),
    ]
    found = average_subsets(score_subsets(pairs, {}), pairs)
    assert [a.name for a in found] == ["Chat", "Chat Hard", "Safety", "Reasoning", GENERAL]
    assert [a.accuracy for a in found] == pytest.approx([0.75, 0.5, 0.9, 0.5, (0.75 + 0.5 + 0.9 + 0.5) / 4])
    assert found[3].missing == ("hep-cpp", "hep-java", "hep-js", "hep-python", "hep-rust")


def test_absent_sections_and_subsets_are_named() -> None:
    pairs = shares("donotanswer", 1, 2) + shares("Easy", 1, 1)
    by_name = {a.name: a for a in average_subsets(score_subsets(pairs, {"Hard": 4}), pairs)}
    assert by_name[MEDICAL] == SubsetAverage(MEDICAL, 1.0, ("Hard", "Human", "Length"))
    assert by_name[GENERAL] == SubsetAverage(GENERAL, 0.5, ("Chat", "Chat Hard", "Reasoning"))
    scores = score_subsets(pairs, {"Hard": 4})
    assert [(s.subset, s.pairs, s.too_long) for s in scores] == [
        ("Easy", 1, 0),
        ("Hard", 0, 4),
        ("donotanswer", 2, 0),
    ]
    assert scores[1].accuracy is None


def test_other_subsets_stand_apart_from_the_benchmarks() -> None:
    pairs = shares("zeta", 1, 2) + shares("Easy", 0, 1) + shares("alpha", 30, 30)
    assert averages(pairs) == {MEDICAL: 0.0, OTHERS: 0.75}
    assert [s.subset for s in score_subsets(pairs, {})] == ["Easy", "zeta", "alpha"]


def test_reward_bench_has_its_23_subsets_once() -> None:
    subsets = [subset for parts in SECTIONS.values() for part in parts for subset in part]
    assert len(subsets) == len(set(subsets)) == 23
    assert [known_subset(s) for s in ("HARD", "LLMBar-adver-gptinst", "Cardiology")] == [
        "Hard",
        "llmbar-adver-GPTInst",
        "Cardiology",
    ]


def test_failures_are_worst_first_without_ties() -> None:
    pairs = scored("a", -1.0, 3.0, 0.0, -7.0, math.nan, -0.5)
    assert [p.pair_id for p in wrong_pairs(pairs)] == ["a#4", "a#3", "a#0", "a#5"]


@given(st.lists(st.tuples(st.sampled_from(["Easy", "hep-go", "x"]), st.floats(), st.floats()), min_size=1))
def test_swapping_the_sides_mirrors_the_accuracy(rows: list[tuple[str, float, float]]) -> None:
    """Right + wrong + ties' halves make all finite pairs, whatever the scores."""
    one = score_subsets([ScoredPair(str(i), s, a, b) for i, (s, a, b) in enumerate(rows)], {})
    other = score_subsets([ScoredPair(str(i), s, b, a) for i, (s, a, b) in enumerate(rows)], {})
    for forward, backward in zip(one, other, strict=True):
        assert forward.right + backward.right == forward.pairs - forward.non_finite
        assert forward.accuracy is not None
        assert 0.0 <= forward.accuracy.low <= forward.accuracy.mean <= forward.accuracy.high <= 1.0


# -- rows --------------------------------------------------------------------------------------------------


def read(directory: Path, rows: list[Any], **options: Any) -> tuple[list[RankedAnswers], dict[str, int]]:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()
    return list(read_pairs(BenchmarkPairs(uri=str(path), **options), counts)), dict(counts)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


TEXTS = {"prompt": "Which?", "chosen": " C.\n", "rejected": "D."}
FORMS = {
    "reward_bench": TEXTS,
    "turns": {"prompt": turns("Which?"), "chosen": turns("Which?", "C.")[1:], "rejected": "D."},
    "ultramedical": {
        "prompt": "Which?",
        "chosen": turns("Which?", "C."),
        "rejected": turns("Which?", "D."),
        "metadata": {"models": ["a", "b"]},
    },
    "conversations_alone": {"chosen": turns("Which?", "C."), "rejected": turns("Which?", "D.")},
    "messages": {"messages": turns("Which?"), "chosen": "C.", "rejected": "D."},
    "messages_with_the_answer": {
        "messages": turns("Which?", "C."),
        "chosen": turns("Which?", "C."),
        "rejected": turns("Which?", "D."),
    },
    "with_other_answers": {**TEXTS, "completions": ["E.", "F."], "scores": [2.0, 1.0]},
    "scored_against_its_label": {**TEXTS, "score_chosen": 1.0, "score_rejected": 9.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(tmp_path: Path, form: str) -> None:
    (pair,), counts = read(tmp_path, [{"id": 5, **FORMS[form]}])
    assert pair == RankedAnswers("5", USER, ("C.", "D."), (1.0, 0.0), "all", 1)
    assert counts == {"rows": 1, "misfit": 0}


def test_earlier_turns_are_part_of_the_prompt(tmp_path: Path) -> None:
    chat = turns("Hello", "Hi.", "Which?")
    (pair,), _ = read(tmp_path, [{"prompt": chat, "chosen": "C.", "rejected": "D."}])
    assert [m["content"] for m in pair.messages] == ["Hello", "Hi.", "Which?"]


def test_rows_that_stand_twice_count_twice(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, [{"id": 1, **TEXTS}, {"id": 1, **TEXTS}, {"id": 2, **TEXTS}])
    assert [pair.prompt_id for pair in pairs] == ["1", "1~2", "2"]


@pytest.mark.parametrize(
    ("columns", "option", "subset"),
    [
        ({"subset": "hep-go", "label_type": "Easy", "type": "t", "category": "c"}, None, "hep-go"),
        ({"subset": None, "label_type": " Easy ", "type": "t"}, None, "Easy"),
        ({"label_type": None, "type": "t", "category": "c"}, None, "t"),
        ({"category": 3}, None, "3"),
        ({"label_type": None}, None, "all"),
        ({"subset": "hep-go", "source": "exam"}, "source", "exam"),
    ],
)
def test_where_the_subset_is(
    tmp_path: Path, columns: dict[str, Any], option: str | None, subset: str
) -> None:
    (pair,), _ = read(tmp_path, [{**TEXTS, **columns}], subset_column=option)
    assert pair.kind == subset


def test_misfits_are_named_and_counted(tmp_path: Path) -> None:
    rows = [
        TEXTS,
        {**TEXTS, "rejected": "C."},
        {**TEXTS, "chosen": "  "},
        {**TEXTS, "rejected": None},
        {"prompt": "Which?", "chosen": "C."},
        {"chosen": "C.", "rejected": "D."},
        {**TEXTS, "prompt": turns("Which?", "C.")},
        {**TEXTS, "subset": ["a"]},
        {**TEXTS, "chosen": turns("Which?", "C."), "rejected": turns("Who?", "D.")},
        {**TEXTS, "chosen": [{"role": "doctor", "content": "C."}]},
    ]
    pairs, counts = read(tmp_path, rows, max_misfit_share=0.95)
    assert len(pairs) == 1
    assert counts == {
        "rows": 10,
        "misfit": 9,
        "misfit_equal": 1,
        "misfit_empty": 1,
        "misfit_column": 2,
        "misfit_prompt": 2,
        "misfit_order": 1,
        "misfit_subset": 1,
        "misfit_turn": 1,
    }


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        ([TEXTS, {**TEXTS, "rejected": "C."}], {}, r"1 of 2 .*\(1 equal; .*\b2: "),
        ([{"prompt": "p", "better": "C."}], {}, ".*prompt, better; .*chosen and rejected"),
        ([TEXTS], {"subset_column": "topic"}, ".*'topic'"),
        ([], {}, "0 "),
    ],
)
def test_a_source_that_does_not_fit_is_one_line(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"'{tmp_path}/rows\.jsonl': {named}") as caught:
        read(tmp_path, rows, **options)
    assert "\n" not in str(caught.value)


def group(name: str, subset: str, prompt: int, *answers: int) -> PreferenceGroup:
    """A pair by its lengths in tokens."""
    completions = tuple(
        Completion(name, place, f"{place} of {name}", tuple(range(size)), reason, 0.0, 0)
        for place, (size, reason) in enumerate(zip(answers, ("length", "stop"), strict=True))
    )
    return PreferenceGroup(Prompt(name, USER, tuple(range(prompt)), kind=subset), completions, (2.0, 1.0))


def test_the_projects_own_pairs_load_with_their_cuts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_records([group("p", "question", 3, 4, 5)], PreferenceGroup, path)
    (pair,) = read_pairs(BenchmarkPairs(uri=str(path), subset_column="kind"), Counter())
    expected = (USER, ("0 of p", "1 of p"), "question", frozenset({0}))
    assert (pair.messages, pair.answers, pair.kind, pair.cut) == expected


# -- lengths -----------------------------------------------------------------------------------------------

GROUPS = [group("a", "Easy", 10, 5, 5), group("b", "Easy", 10, 2, 6), group("c", "Hard", 14, 9, 1)]


def test_a_pair_at_the_limit_is_kept_and_one_over_it_left_out_whole() -> None:
    fitting, left_out = fit_pairs(GROUPS, 15, drop=True)
    assert [g.prompt.prompt_id for g in fitting] == ["a"] and left_out == {"Easy": 1, "Hard": 1}
    assert fit_pairs(GROUPS, 23, drop=False) == (GROUPS, Counter())


@pytest.mark.parametrize(
    ("limit", "drop", "numbers", "fix"),
    [
        (15, False, r"2 of 3 .*=15 \(Easy 1, Hard 1\)", r"model\.max_length, .*data\.too_long=drop"),
        (9, True, r"3 of 3 .*=9 \(Easy 2, Hard 1\)", r"model\.max_length"),
    ],
)
def test_a_pair_that_is_too_long_is_refused_with_the_length_to_set(
    limit: int, drop: bool, numbers: str, fix: str
) -> None:
    with pytest.raises(ValueError, match=rf"^data: {numbers}.*\b23\b[^;]*; \w+ {fix}$"):
        fit_pairs(GROUPS, limit, drop=drop)


# -- configs -----------------------------------------------------------------------------------------------


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "reward_bench",
        "run": {"name": "bench"},
        "model": {"path": "sfairXC/FsfairX-LLaMA3-RM-v0.1"},
        "data": {"uri": "pairs.jsonl"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        base[section] = {**base.get(section, {}), name: value}
    return base


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"data__too_long": "cut"}, "data.too_long='cut'", "'drop'"),
        ({"data__subset": "x"}, "data.subset", "'subset_column'"),
        ({"data__limit": 0}, "data.limit=0", "0"),
        ({"model__precision": "int8"}, "model.precision='int8'", "'auto', 'bfloat16'"),
        ({"cluster__rollout": {}}, "cluster.rollout", ""),
    ],
)
def test_each_mistake_is_one_line(change: dict[str, Any], key: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config(**change), "my.yaml", kind=RewardBenchConfig)
    (found,) = caught.value.problems
    start = f"my.yaml: {key}: "
    assert found.startswith(start) and named in found.removeprefix(start) and "\n" not in found


def test_options_fill_what_a_file_would_say() -> None:
    options = {
        "type": "reward_bench",
        "model.path": "/m/reward model/",
        "data.uri": "hf://allenai/reward-bench:filtered",
        "data.limit": 7,
    }
    own = run_name([options["model.path"], options["data.uri"]])
    found = load_any(None, option_overrides({**options, "run.name": own, "model.precision": None}))
    expected = config(model__path="/m/reward model/", data__uri=options["data.uri"], data__limit=7)
    expected["run"] = {"name": "reward-model-on-reward-bench"}
    assert found == parse_config(expected, kind=RewardBenchConfig)
    named = load_any(None, option_overrides({**options, "run.name": "7"}))
    assert named.run.name == "7", "a text stays one that YAML would read as a number"


def test_a_config_file_comes_first_and_may_be_left_out(tmp_path: Path) -> None:
    odd = tmp_path / "lr=1.yaml"
    odd.write_text("")
    assert split_arguments(["my.yaml", "run.name=a"]) == ("my.yaml", ["run.name=a"])
    assert split_arguments([str(odd)]) == (str(odd), [])
    assert split_arguments(["model.path=m", "run.name=a"]) == (None, ["model.path=m", "run.name=a"])
    assert split_arguments([]) == (None, [])


def test_the_plan_is_the_reward_replicas_alone() -> None:
    whole = parse_config(
        config(cluster__devices_per_node=4, cluster__reward={"replicas": 4}), kind=RewardBenchConfig
    )
    (role,) = make_plan(whole).roles
    assert (role.role, len(role.members)) == ("reward", 4)
    small = parse_config(config(cluster__device_memory_gib=10.0), kind=RewardBenchConfig)
    with pytest.raises(PlanError, match=r"cluster\.reward\.shard=true .*model\.micro_batch_tokens"):
        make_plan(small)
    unknown = parse_config(config(model__path="who/knows"), kind=RewardBenchConfig)
    with pytest.raises(ValueError, match=r"model\.path='who/knows': .*model\.architecture"):
        make_plan(unknown)


def write_recipe(root: Path, **after: Any) -> Path:
    reward = {
        "type": "reward",
        "model": {"path": str(root / "policy"), "max_length": 128},
        "data": {"sources": [{"uri": "pairs.jsonl"}]},
        "training": {"learning_rate": 1e-3},
    }
    bench = {"type": "reward_bench", "model": {"path": "stage://reward"}, "data": {"uri": "pairs.jsonl"}}
    stages = {"reward": reward, "bench": bench, **after}
    path = root / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"type": "recipe", "run": {"name": "r"}, "stages": stages}, sort_keys=False)
    )
    return path


def test_a_recipes_reward_model_can_be_benchmarked(tmp_path: Path) -> None:
    make_policy(tmp_path / "policy")
    recipe = load_recipe(write_recipe(tmp_path))
    before = stage_config(recipe, "bench", {})
    assert make_plan(before).roles[0].role == "reward"
    made = stage_config(recipe, "bench", {"reward": "/made/reward"})
    assert isinstance(made, RewardBenchConfig)
    assert (made.model.path, made.reward.paths) == ("/made/reward", ("/made/reward",))


def test_a_benchmark_makes_no_model_for_later_stages(tmp_path: Path) -> None:
    later = {"type": "reward_bench", "model": {"path": "stage://bench"}, "data": {"uri": "pairs.jsonl"}}
    with pytest.raises(ConfigError, match=r"stages\.again\.model\.path=stage://bench: .*'reward_bench'"):
        load_recipe(write_recipe(tmp_path, again=later))


# -- the command line --------------------------------------------------------------------------------------


def test_the_command_names_another_types_command(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(config()))
    found = CliRunner().invoke(app, ["evaluate", str(file)])
    assert found.exit_code == 2
    (line,) = found.output.splitlines()
    assert line.startswith(f"{file}: type='reward_bench': ") and "ultramed-rl reward-bench (line " in line


def test_options_win_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(config(cluster__device="tpu")))
    arguments = [str(file), "--device", "cpu", "data.limit=-1"]
    found = CliRunner().invoke(app, ["reward-bench", *arguments, "--limit", "5"])
    assert found.exit_code == 2
    assert [line.split(": ")[1] for line in found.output.splitlines()] == ["data.limit=-1"]


def test_what_the_command_lacks_is_said() -> None:
    found = CliRunner().invoke(app, ["reward-bench", "--device", "cpu"])
    assert found.exit_code == 2
    assert [line.split(": ")[1] for line in found.output.splitlines()] == ["model", "data"]


@pytest.mark.parametrize("kind", ["policy", "labels", "missing"])
def test_a_wrong_reward_model_is_refused_before_ray_starts(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    path = tmp_path / kind
    named = {
        "policy": "LlamaForCausalLM .*num_labels=1",
        "labels": r"\b3 .*num_labels=1",
        "missing": "config.json",
    }
    if kind == "policy":
        make_policy(path)
    elif kind == "labels":
        make_reward(path)
        file = path / "config.json"
        changed = {**json.loads(file.read_text()), "id2label": {str(i): f"LABEL_{i}" for i in range(3)}}
        file.write_text(json.dumps(changed))
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(TEXTS) + "\n")
    shape = "model.architecture={hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, vocab_size: 259}"
    arguments = ["--model", str(path), "--data", str(pairs), "--device", "cpu", shape]
    found = CliRunner().invoke(app, ["reward-bench", *arguments])
    assert found.exit_code == 2
    assert re.search(f"'{path}': .*{named[kind]}", found.output), found.output
    assert not ray.is_initialized() and not (tmp_path / "runs").exists()
