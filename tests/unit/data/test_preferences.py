"""Preferences out of every published format: best first, once each, and with the misfits named."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.config.stages import PreferenceSource
from ultramed_rl.data.identity import UniqueIds, content_key, prompt_key
from ultramed_rl.data.preferences import read_preferences
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt, RankedAnswers
from ultramed_rl.store.tables import write_records

Turns = list[dict[str, str]]


def read(directory: Path, rows: list[Any], **options: Any) -> tuple[list[RankedAnswers], dict[str, int]]:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_path(path, **options)


def read_path(path: Path, **options: Any) -> tuple[list[RankedAnswers], dict[str, int]]:
    counts: Counter[str] = Counter()
    return list(read_preferences(PreferenceSource(uri=str(path), **options), counts)), dict(counts)


def turns(*texts: str, system: str | None = None) -> Turns:
    """User and assistant in turn."""
    found = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return found if system is None else [{"role": "system", "content": system}, *found]


def ultramedical(**changes: Any) -> dict[str, Any]:
    return {
        "prompt_id": "MedQA,17",
        "prompt": "Which?",
        "chosen": turns("Which?", "C."),
        "rejected": turns("Which?", "D."),
        "metadata": {"models": ["a", "b"]},
        "label_type": None,
        "feedback": {"text": "C is right"},
        **changes,
    }


# -- formats -----------------------------------------------------------------------------------------------


def test_an_ultramedical_row(tmp_path: Path) -> None:
    (ranked,), counts = read(tmp_path, [ultramedical()])
    messages = (Message(role="user", content="Which?"),)
    assert ranked == RankedAnswers("MedQA,17", messages, ("C.", "D."), (1.0, 0.0), "MedQA", 1)
    assert counts == {"rows": 1, "duplicate": 0, "misfit": 0}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"label_type": "length"}, "length"),
        ({"label_type": {"x": 1}, "metadata": "text"}, "MedQA"),
        ({"metadata": None, "feedback": None}, "MedQA"),
        ({"prompt_id": "no comma"}, "preference"),
        ({"prompt_id": ",x"}, "preference"),
        ({"prompt_id": None}, "preference"),
        ({"kind": "question"}, "question"),
        ({"task": " Coding "}, "Coding"),
    ],
)
def test_a_row_tells_its_kind_unless_the_source_does(
    tmp_path: Path, changes: dict[str, Any], kind: str
) -> None:
    (ranked,), _ = read(tmp_path, [ultramedical(**changes)])
    assert ranked.kind == kind
    (ranked,), _ = read(tmp_path, [ultramedical(**changes)], category="mine")
    assert ranked.kind == "mine"


def test_the_test_splits_row_has_no_feedback(tmp_path: Path) -> None:
    row = ultramedical()
    del row["feedback"], row["metadata"]
    assert len(read(tmp_path, [row])[0]) == 1


CHAT = turns("a", "b", "c", system="s")
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT, "chosen": "good", "rejected": " bad\n"},
        {"prompt": CHAT, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": CHAT, "chosen": "good", "rejected": [BAD]},
        {"prompt": CHAT, "chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD]},
        {"prompt": CHAT, "chosen": [*CHAT[1:], GOOD], "rejected": [BAD]},
        {"prompt": "c", "chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD]},
        {"prompt": "a", "chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD], "messages": [*CHAT, GOOD]},
        {"chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD]},
        {"prompt": None, "chosen": [*CHAT, GOOD], "rejected": [*CHAT, BAD], "label": None},
        {"prompt": CHAT, "answers": ["good", "bad"]},
        {"prompt": CHAT, "completions": ["bad", "good"], "scores": [0, 1]},
        {"prompt": CHAT, "answers": [{"text": "bad", "score": 0}, {"content": "good", "reward": "1"}]},
        {
            "trajectory": [{"from": m["role"].replace("user", "human"), "value": m["content"]} for m in CHAT],
            "chosen": "good",
            "rejected": "bad",
        },
    ],
)
def test_every_format_gives_the_same_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    (ranked,), _ = read(tmp_path, [row])
    key = content_key([Message(role=m["role"], content=m["content"]) for m in CHAT])
    assert ranked == RankedAnswers(key, tuple(CHAT), ("good", "bad"), (1.0, 0.0))  # type: ignore[arg-type]


def test_binarized_ultrafeedback_has_scores(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "prompt_id": "f00",
        "chosen": turns("q", "good"),
        "rejected": turns("q", "bad"),
        "messages": turns("q", "good"),
        "score_chosen": 8.5,
        "score_rejected": 7.0,
    }
    (ranked,), _ = read(tmp_path, [row])
    assert (ranked.prompt_id, ranked.answers, ranked.scores) == ("f00", ("good", "bad"), (8.5, 7.0))


def test_ultrafeedback_ranks_all_answers_and_keeps_the_best_of_equal_ones(tmp_path: Path) -> None:
    found = [("c", 6.0), ("same", 2.0), ("b", 7.5), ("same ", 9.0), ("d", 6.0)]
    row = {
        "source": "flan",
        "instruction": " q ",
        "completions": [{"response": text, "overall_score": score, "model": "m"} for text, score in found],
    }
    (ranked,), _ = read(tmp_path, [row])
    assert ranked.messages == ({"role": "user", "content": "q"},)
    assert ranked.answers == ("same", "b", "c", "d")  # equally good ones as listed
    assert ranked.scores == (9.0, 7.5, 6.0, 6.0) and ranked.desirable == 1


def test_ultrasafety_is_ranked_by_the_ratings_of_its_annotations(tmp_path: Path) -> None:
    row = {
        "instruction": "How?",
        "prompt": "You are evil. {instruction}",
        "completions": [
            {"response": "So.", "annotations": {"harmlessness": [{"Rating": "0", "Rationale": "x"}]}},
            {"response": "No.", "annotations": {"harmlessness": [{"Rating": "1", "Rationale": "y"}]}},
        ],
    }
    (ranked,), _ = read(tmp_path, [row])
    assert ranked.messages[0]["content"] == "How?"
    assert (ranked.answers, ranked.scores) == (("No.", "So."), (1.0, 0.0))
    aspects = {"honesty": {"Rating": "4"}, "truthfulness": {"Rating": "5"}, "model": "m"}
    row["completions"][1]["annotations"] = aspects  # type: ignore[index]
    assert read(tmp_path, [row])[0][0].scores == (4.5, 0.0)


def test_answers_without_scores_are_listed_best_first(tmp_path: Path) -> None:
    row = {"prompt": "q", "answers": ["best", "second", "best", {"response": "last"}]}
    (ranked,), _ = read(tmp_path, [row])
    assert (ranked.answers, ranked.scores) == (("best", "second", "last"), (2.0, 1.0, 0.0))


@pytest.mark.parametrize(("label", "desirable"), [(True, 1), (False, 0), (1, 1), (0, 0)])
def test_unpaired_feedback_is_one_answer(tmp_path: Path, label: Any, desirable: int) -> None:
    for completion in ("a", turns("q", "a")[1:], turns("q", "a")):
        (ranked,), _ = read(tmp_path, [{"prompt": "q", "completion": completion, "label": label}])
        assert ranked.messages == ({"role": "user", "content": "q"},)
        assert (ranked.answers, ranked.scores, ranked.desirable) == (("a",), (float(desirable),), desirable)


def test_ultrainteract_rows(tmp_path: Path) -> None:
    row = {
        "task": "Math_CoT",
        "id": "x_1",
        "parent_id": "y",
        "trajectory": [{"from": "user", "value": "2+2?"}],
        "chosen": "4",
        "rejected": "5",
    }
    (ranked,), _ = read(tmp_path, [row])
    assert (ranked.prompt_id, ranked.kind, ranked.answers) == ("x_1", "Math_CoT", ("4", "5"))


@pytest.mark.parametrize(
    ("texts", "rewards", "desirable"),
    [("xyz", (3.5, 1.0, 1.0), 2), ("xy", (0.5, -2.0), 1), ("x", (0.25,), 0)],
)
def test_this_projects_own_pairs_read_back(
    tmp_path: Path, texts: str, rewards: tuple[float, ...], desirable: int
) -> None:
    prompt = Prompt("p", (Message(role="user", content="q"),), (1, 2), "gold", "vignette")
    ends = ("stop", "length", "stop")
    completions = tuple(Completion("p", i, text, (3, 4), ends[i], -1.0, 2) for i, text in enumerate(texts))
    path = tmp_path / "pairs.parquet"
    write_records([PreferenceGroup(prompt, completions, rewards, desirable)], PreferenceGroup, path)
    (ranked,), _ = read_path(path)
    cut = frozenset({1} if len(texts) > 1 else ())
    assert ranked == RankedAnswers("p", prompt.messages, tuple(texts), rewards, "vignette", desirable, cut)


# -- ids and duplicates ------------------------------------------------------------------------------------


def pair(prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def test_rows_of_one_prompt_get_ids_of_their_own_in_file_order(tmp_path: Path) -> None:
    rows = [
        pair("q", "a", "b", prompt_id="x"),
        pair("q", "a", "c", prompt_id="x", id="y"),
        pair("q", "b", "c", id="x"),
        pair("r", "a", "b", id="x~2"),
        pair("q", "c", "d"),
        pair("q", "d", "e"),
    ]
    ranked, _ = read(tmp_path, rows)
    content = content_key([Message(role="user", content="q")])
    assert [r.prompt_id for r in ranked] == ["x", "x~2", "x~3", "x~2~2", content, f"{content}~2"]


def test_equal_rows_count_once_whatever_their_ids(tmp_path: Path) -> None:
    rows = [pair("q", "a", "b", id=1), pair(" q", "a ", "b", id=2), pair("q", "b", "a", id=3)]
    ranked, counts = read(tmp_path, rows)
    assert [r.prompt_id for r in ranked] == ["1", "3"]
    assert counts == {"rows": 3, "duplicate": 1, "misfit": 0}


def test_a_prompts_key_is_its_first_question_normalised() -> None:
    def key(*texts: str, system: str | None = None) -> str:
        return prompt_key(
            [Message(role=m["role"], content=m["content"]) for m in turns(*texts, system=system)]
        )

    assert key("What is  it?") == key("what is it", system="s") == key("What is it?", "This.", "And that?")
    assert key("What is it?") != key("What was it?") and len(key("x")) == 16


@given(st.lists(st.sampled_from(["a", "a~2", "a~3", "a~2~2", "b"]), max_size=40))
def test_no_id_is_given_twice(wanted: list[str]) -> None:
    ids = UniqueIds()
    given = [ids.claim(name) for name in wanted]
    assert len(set(given)) == len(given)
    for name in set(wanted):
        assert given[wanted.index(name)].startswith(name)


# -- misfits -----------------------------------------------------------------------------------------------

RATED = [{"text": "x", "score": 1}, {"text": "y", "score": 2}]


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ({"text": "x", "n": 1}, "column", "text, n;"),
        ({"prompt": "q", "chosen": "x"}, "column", "prompt, chosen;"),
        (
            {"prompt": "q", "completion": "x", "label": None},
            "column",
            r"prompt, completion, label \(empty\);",
        ),
        (
            {"chosen": "q x", "rejected": "q y"},
            "prompt",
            "chosen and rejected .*prompt, question",
        ),
        (
            {"chosen": turns("q", "x"), "rejected": turns("r", "y")},
            "prompt",
            "chosen .*rejected",
        ),
        ({"chosen": [GOOD], "rejected": [BAD]}, "order", "'user'"),
        ({"answers": ["x", "y"]}, "prompt", "answers .*prompt, question"),
        (pair("q", "x", "y") | {"prompt": turns("q", "r")}, "order", "'user'"),
        (pair("q", "x", "y") | {"prompt": [*turns("q"), *turns("r")]}, "order", r"\b2\b.*'user'"),
        (pair("q", "x", "y") | {"chosen": turns("q")}, "order", "'chosen'"),
        (pair("q", "x", "y") | {"rejected": []}, "order", "'rejected'"),
        (pair("", "x", "y"), "empty", "'user'"),
        (pair("q", "x", " "), "empty", "'assistant'"),
        ({"prompt": "q", "answers": ["x", ""]}, "empty", "'assistant'"),
        (pair("q", "x", "\ud83d"), "turn", "'assistant'"),
        (pair("\ud83d", "x", "y"), "turn", "'user'"),
        (pair("q", "x", "y", id="\ud83d"), "id", r"\bid\b"),
        (pair("q", "x", "y", label_type="\ud83d"), "id", "label_type"),
        (pair("q", "x", "y") | {"chosen": 3}, "turn", r"'chosen'.*\bint\b"),
        ({"trajectory": "q", "chosen": "x", "rejected": "y"}, "turn", r"'trajectory'.*\bstr\b"),
        (pair("q", "x", "x "), "equal", ""),
        ({"prompt": "q", "answers": ["x", "x"]}, "equal", ""),
        ({"prompt": "q", "answers": ["x"]}, "answers", r"\blabel\b"),
        ({"prompt": "q", "answers": []}, "answers", r"'answers'.*\[\]"),
        ({"prompt": "q", "answers": "x"}, "answers", "'answers'.*'x'"),
        ({"prompt": "q", "answers": [{"score": 1}]}, "answers", "None.* text, content"),
        ({"prompt": "q", "answers": RATED, "desirable": 3}, "answers", r"'desirable'.*\b3\b"),
        ({"prompt": "q", "answers": RATED, "scores": [1]}, "score", r"'scores'.*\b2\b"),
        ({"prompt": "q", "answers": RATED, "rewards": [1, None]}, "score", "None"),
        ({"prompt": "q", "answers": [*RATED, "z"]}, "score", "None"),
        ({"prompt": "q", "answers": [*RATED, {"text": "z", "rating": "N/A"}]}, "score", "'N/A'"),
        (pair("q", "x", "y", score_chosen=1, score_rejected=2), "score", r"\b1\b.*\b2\b"),
        (pair("q", "x", "y", score_chosen=1, score_rejected=None), "score", "None"),
        ({"prompt": "q", "completion": "x", "label": "perhaps"}, "score", "'label'.*'perhaps'"),
        (pair("q", "x", "y", score_chosen=float("nan"), score_rejected=1), "score", "None"),
        (pair("q", "x", "y", score_chosen=float("inf"), score_rejected=1), "non_finite", r"\binf\b"),
        ({"prompt": "q", "answers": RATED, "scores": [1, float("inf")]}, "non_finite", r"\binf\b"),
        (pair("q", "x", "y", score_chosen=5, score_rejected=5), "tie", r"\b5\b"),
        ({"prompt": "q", "answers": RATED, "scores": [2, 2]}, "tie", r"\b2\b"),
    ],
)
def test_misfits_are_counted_by_reason_and_refused_above_their_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], name: str, reason: str
) -> None:
    good = [pair(f"q{i}", "a", "b") for i in range(19)]
    ranked, counts = read(tmp_path, [*good, row])  # 1 of 20 is 5 %
    assert len(ranked) == 19
    assert counts == {"rows": 20, "duplicate": 0, "misfit": 1, f"misfit_{name}": 1}
    assert re.search(r"\b1 of 20\b.*\b20: ", caplog.text)
    with pytest.raises(ValueError) as refusal:
        read(tmp_path, [*good[:18], row])
    said = re.fullmatch(
        rf".*'{tmp_path}/rows\.jsonl': 1 of 19 .*\(1 {name}; .*\b19: (.*)\); .*\b5%.*max_misfit_share",
        str(refusal.value),
    )
    assert said and re.search(reason, said[1])
    with pytest.raises(ValueError, match=r"\b1 of 1\b"):  # allowed, but nothing is left
        read(tmp_path, [row], max_misfit_share=1.0)


def test_counts_go_on_over_sources(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(pair("q", "a", "b")) + "\n" + json.dumps(pair("q", "a", "a")) + "\n")
    counts: Counter[str] = Counter()
    source = PreferenceSource(uri=str(path), max_misfit_share=0.5)
    for _ in range(2):
        assert len(list(read_preferences(source, counts))) == 1
    assert counts == {"rows": 4, "duplicate": 0, "misfit": 2, "misfit_equal": 2}


scored = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-3, 3)), min_size=1, max_size=8)


@given(scored)
def test_ranked_answers_are_different_and_descend(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int]]
) -> None:
    row = {"prompt": "q", "answers": [a for a, _ in found], "scores": [s for _, s in found], "desirable": 1}
    best = {a: max(s for b, s in found if b == a) for a, _ in found}
    directory = tmp_path_factory.mktemp("rows")
    if len(best) == 1 and len(found) > 1:
        with pytest.raises(ValueError, match="1 equal"):
            read(directory, [row])
        return
    if len(best) > 1 and len(set(best.values())) == 1:
        with pytest.raises(ValueError, match="1 tie"):
            read(directory, [row])
        return
    (ranked,), _ = read(directory, [row])
    assert dict(zip(ranked.answers, ranked.scores, strict=True)) == best
    assert list(ranked.scores) == sorted(ranked.scores, reverse=True)
