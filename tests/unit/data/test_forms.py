"""Every published form, a row of each: decoded as the tokenizer would, with what is learnt in brackets; and refusals."""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.config.rounds import Prompts
from ultramed_rl.config.stages import BenchmarkPairs, ConversationData, PreferenceData
from ultramed_rl.data.preferences import read_pairs
from ultramed_rl.data.prompts import load_prompts
from ultramed_rl.data.stage_data import PreparedConversations, PreparedPreferences
from ultramed_rl.models.tokenizer import ChatTokenizer

Row = dict[str, Any]


def source(directory: Path, *rows: Row, **options: Any) -> Row:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"uri": str(path), **options}


def short(text: str) -> str:
    """A rendered chat on one line: u: and a: for the headers."""
    for long, letter in (("user", "u"), ("assistant", "a"), ("system", "s")):
        text = text.replace(f"<|im_start|>{long}\n", f"{letter}:")
    return (
        text.replace("<|im_end|>\n", " ").replace("<|im_end|>", "$").replace("]\n", "] ").replace("\n", "/")
    )


def chats(tokenizer: ChatTokenizer, directory: Path, *rows: Row, **options: Any) -> str:
    """The rows' one chat, its learnt parts in brackets and $ for an end that is learnt."""
    data = ConversationData.model_validate({"sources": [source(directory, *rows, **options)]})
    (sample,) = PreparedConversations(data, tokenizer, 10_000, 0).training()
    shown = ""
    for wanted, pairs in groupby(
        zip(sample.learned, sample.token_ids, strict=True), key=lambda pair: pair[0]
    ):
        text = tokenizer.backend.decode([token for _, token in pairs])
        shown += f"[{text}]" if wanted else text
    return short(shown)


def preferences(tokenizer: ChatTokenizer, directory: Path, *rows: Row, **options: Any) -> list[str]:
    """Prompt and answers of each group, best first, with its scores and how many are wanted."""
    data = PreferenceData.model_validate({"sources": [source(directory, *rows, **options)]})
    decode = tokenizer.backend.decode
    return [
        " | ".join(
            [
                short(decode(list(g.prompt.token_ids))),
                *(short(decode(list(c.token_ids))) for c in g.completions),
            ]
        )
        + f" {list(g.rewards)} {g.desirable}"
        for g in PreparedPreferences(data, tokenizer, 10_000, 0).training()
    ]


def turn(role: str, text: Any, **more: Any) -> Row:
    return {"role": role, "content": text, **more}


def said(role: str, text: str) -> Row:
    return {"from": role, "value": text}


CHATS: dict[str, tuple[Row, str]] = {
    "alpaca": ({"instruction": "Sum up.", "input": "Text.", "output": "Sum."}, "u:Sum up.//Text. a:[Sum.$]"),
    "alpaca, no input": ({"instruction": "Hi", "input": "", "output": "Ho"}, "u:Hi a:[Ho$]"),
    "alpaca with system and history": (
        {"instruction": "C", "input": "", "output": "D", "system": "S", "history": [["A", "B"]]},
        "s:S u:A a:[B$] u:C a:[D$]",
    ),
    "dolly": ({"instruction": "Q", "context": "T", "response": "R", "category": "qa"}, "u:Q//T a:[R$]"),
    "sharegpt": (
        {"conversations": [said("human", "A"), said("gpt", "B")], "system": "S", "tools": "[]"},
        "s:S u:A a:[B$]",
    ),
    "sharegpt's other names": (
        {"conversations": [said("system", "S"), said("user", "A"), said("bot", "B"), said("prompter", "C"), said("Model", "D")]},
        "s:S u:A a:[B$] u:C a:[D$]",
    ),
    "openai": (
        {"messages": [turn("developer", "S"), turn("user", [{"type": "text", "text": "A"}]), turn("assistant", "B")]},
        "s:S u:A a:[B$]",
    ),
    "turns as a json string": ({"messages": json.dumps([turn("user", "A"), turn("assistant", "B")])}, "u:A a:[B$]"),
    "prompt and completion": ({"prompt": "A", "completion": "B", "system_prompt": "S"}, "s:S u:A a:[B$]"),
    "question and answer": ({"Question": "A", "Answer": "B"}, "u:A a:[B$]"),
    "nemo's chat": (
        {"mask": "User", "system": "", "conversations": [said("User", "A"), said("Assistant", "B")]},
        "u:A a:[B$]",
    ),
    "nemo's input and output": ({"input": "A", "output": "B"}, "u:A a:[B$]"),
    "an hh transcript": ({"prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", "completion": " D"}, "u:A a:[B$] u:C a:[D$]"),
    "a baize transcript": ({"prompt": "[|Human|] A\n[|AI|] B\n[|Human|] C\n[|AI|]", "completion": "D"}, "u:A a:[B$] u:C a:[D$]"),
    "openai's weights": (
        {"messages": [turn("user", "A"), turn("assistant", "B", weight=0), turn("user", "C"), turn("assistant", "D", weight=1)]},
        "u:A a:B u:C a:[D$]",
    ),
    "axolotl's train": (
        {"messages": [turn("user", "A"), turn("assistant", "B", train=False), turn("user", "C"), turn("assistant", "D")]},
        "u:A a:B u:C a:[D$]",
    ),
    "oasst": (
        {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "prompt": {
                "text": "A",
                "role": "prompter",
                "replies": [
                    {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
                    {"text": "B", "role": "assistant", "rank": 0, "replies": [{"text": "C", "role": "prompter", "replies": []}]},
                ],
            },
        },
        "u:A a:[B$]",
    ),
    "capybara": (
        {"conversation": [{"input": "A", "output": "B"}, {"input": "C", "output": "D"}]},
        "u:A a:[B$] u:C a:[D$]",
    ),
    "turns as python prints them": (
        {"messages": str([turn("user", "A"), turn("assistant", "it's \"B\"")])},
        'u:A a:[it\'s "B"$]',
    ),
    "an empty system turn": ({"messages": [turn("system", None), turn("user", "A"), turn("assistant", "B")]}, "u:A a:[B$]"),
    "parts of every text": (
        {"messages": [turn("user", [{"type": "input_text", "text": "A"}, "A"]), turn("assistant", {"type": "output_text", "text": "B"})]},
        "u:AA a:[B$]",
    ),
    "a history in json": ({"instruction": "C", "output": "D", "history": '[["A", "B"]]'}, "u:A a:[B$] u:C a:[D$]"),
    "a list in a text": ({"instruction": "Sort", "input": '[{"value": 2}]', "output": "[]"}, 'u:Sort//[{"value": 2}] a:[[]$]'),
    "swift's weights": (
        {"messages": [turn("user", "A"), turn("assistant", "B", loss_scale=0.0), turn("user", "C"), turn("assistant", "D", loss_mask=1)]},
        "u:A a:B u:C a:[D$]",
    ),
    "roles and texts": ({"messages": [["human", "A"], ["ai", "B"]]}, "u:A a:[B$]"),
    "an hh transcript whole": ({"conversation": "\n\nHuman: A\n\nAssistant: B\n\nHuman:"}, "u:A a:[B$]"),
    "medical-instruction-120k": (
        {"Conversation": "The conversation between human and AI assistant.\n[|Human|] A\n[|AI|] B\n[|Human|] "},
        "u:A a:[B$]",
    ),
    "a weight, and a system message beside": (
        {"system": "S", "messages": [turn("user", "A"), turn("assistant", "B", weight=0), turn("user", "C"), turn("assistant", "D")]},
        "s:S u:A a:B u:C a:[D$]",
    ),
    "weights of a completion": (
        {
            "prompt": [turn("user", "A"), turn("assistant", "B", train=False), turn("user", "C")],
            "completion": [turn("assistant", "D")],
            "chat_history": [["E", "F"]],
        },
        "u:E a:[F$] u:A a:B u:C a:[D$]",
    ),
    "a weight of a row": ({"prompt": "A", "completion": "B", "weight": 0.5}, "u:A a:[B$]"),
    "a wanted answer": ({"prompt": "A", "completion": "B", "label": True}, "u:A a:[B$]"),
}  # fmt: skip


@pytest.mark.parametrize("form", CHATS)
def test_a_chat_in_every_form(tmp_path: Path, tokenizer: ChatTokenizer, form: str) -> None:
    row, shown = CHATS[form]
    assert chats(tokenizer, tmp_path, row) == shown


PREFERENCES: dict[str, tuple[Row, list[str]]] = {
    "llama-factory's ranking": (
        {"conversations": [said("human", "A")], "chosen": said("gpt", "B"), "rejected": said("gpt", "C"), "system": "S"},
        ["s:S u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "alpaca's ranking": (
        {"instruction": "A", "input": "T", "chosen": "B", "rejected": "C"},
        ["u:A//T a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "llama-factory's kto": (
        {"messages": [turn("user", "A"), turn("assistant", "B")], "label": False},
        ["u:A a: | B$ [0.0] 0"],
    ),
    "alpaca's kto": (
        {"instruction": "A", "input": "", "output": "B", "kto_tag": True},
        ["u:A a: | B$ [1.0] 1"],
    ),
    "hh-rlhf": (
        {"chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D", "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E"},
        ["u:A a:B u:C a: | D$ | E$ [1.0, 0.0] 1"],
    ),
    "trl, paired": ({"prompt": "A", "chosen": "B", "rejected": "C"}, ["u:A a: | B$ | C$ [1.0, 0.0] 1"]),
    "trl, implicit prompt": (
        {"chosen": [turn("user", "A"), turn("assistant", "B")], "rejected": [turn("user", "A"), turn("assistant", "C")]},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "trl, unpaired": ({"prompt": "A", "completion": "B", "label": True}, ["u:A a: | B$ [1.0] 1"]),
    "orca": (
        {"system": "S", "question": "A", "chosen": "B", "rejected": "C"},
        ["s:S u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "openai": (
        {"input": {"messages": [turn("user", "A")], "tools": []}, "preferred_output": [turn("assistant", "B")], "non_preferred_output": [turn("assistant", "C")]},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "argilla's ratings": (
        {"prompt": "A", "chosen": [turn("user", "A"), turn("assistant", "B")], "chosen-rating": 4.5, "rejected": [turn("user", "A"), turn("assistant", "C")], "rejected-rating": 2},
        ["u:A a: | B$ | C$ [4.5, 2.0] 1"],
    ),
    "ranks of sides": (
        {"prompt": "A", "chosen": "B", "rejected": "C", "chosen_rank": 1, "rejected_rank": 3},
        ["u:A a: | B$ | C$ [-1.0, -3.0] 1"],
    ),
    "ultrafeedback": (
        {"instruction": "A", "completions": [{"response": "C", "overall_score": 3}, {"response": "B", "overall_score": 8.5}]},
        ["u:A a: | B$ | C$ [8.5, 3.0] 1"],
    ),
    "ms-swift": (
        {"messages": [turn("user", "A"), turn("assistant", "B")], "rejected_response": "C"},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "stack exchange": (
        {"question": "A", "answers": [{"answer_id": 7, "text": "C", "pm_score": 1}, {"answer_id": 3, "text": "B", "pm_score": 5}]},
        ["u:A a: | B$ | C$ [5.0, 1.0] 1"],
    ),
    "a score of one side": (
        {"input": "A", "chosen": "B", "rejected": "C", "chosen_score": 9.0},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "answers after their speaker": (
        {"prompt": "\n\nHuman: A\n\nAssistant:", "chosen": "\n\nAssistant: B", "rejected": "Assistant: C"},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "sides as printed turns": (
        {"prompt": "A", "chosen": str([turn("assistant", "B")]), "rejected": json.dumps(turn("assistant", "C"))},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "labels in words": ({"prompt": "A", "completion": "B", "label": "rejected"}, ["u:A a: | B$ [0.0] 0"]),
    "nectar": (
        {"prompt": "\n\nHuman: A\n\nAssistant: ", "answers": [{"answer": "C", "rank": 2}, {"answer": "B", "rank": 1}, {"answer": "D", "rank": 7}]},
        ["u:A a: | B$ | C$ | D$ [-1.0, -2.0, -7.0] 1"],
    ),
    "nemo": (
        {"context": [turn("system", "S"), turn("user", "A")], "completions": [{"rank": 1, "completion": [turn("assistant", "C")]}, {"rank": 0, "completion": [turn("assistant", "B")]}]},
        ["s:S u:A a: | B$ | C$ [0.0, -1.0] 1"],
    ),
    "nemo aligner": (
        {"prompt": "A", "chosen_response": "B", "rejected_response": "C", "chosen_reward": 5, "rejected_reward": 4},
        ["u:A a: | B$ | C$ [5.0, 4.0] 1"],
    ),
    "helpsteer2": (
        {"prompt": "A", "response_1": "C", "response_2": "B", "preference_strength": 2},
        ["u:A a: | B$ | C$ [2.0, 0.0] 1"],
    ),
    "helpsteer2's turns": (
        {"prompt": "A\n<extra_id_1>Assistant\nB\n<extra_id_1>User\nC", "response_1": "D", "response_2": "E", "preference_strength": -1},
        ["u:A a:B u:C a: | D$ | E$ [1.0, 0.0] 1"],
    ),
    "helpsteer3": (
        {"context": [turn("user", "A")], "response1": "B", "response2": "C", "overall_preference": -3},
        ["u:A a: | B$ | C$ [3.0, 0.0] 1"],
    ),
    "shp": (
        {"history": "A", "human_ref_A": "C", "human_ref_B": "B", "labels": 0, "score_A": 4, "score_B": 9},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "alpaca_farm": (
        {"instruction": "A", "input": "T", "output_1": "C", "output_2": "B", "preference": 2},
        ["u:A//T a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "beavertails": (
        {"prompt": "A", "response_0": "C", "response_1": "B", "better_response_id": 1},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "chatbot arena": (
        {"conversation_a": [turn("user", "A"), turn("assistant", "B")], "conversation_b": [turn("user", "A"), turn("assistant", "C")], "winner": "model_a"},
        ["u:A a: | B$ | C$ [1.0, 0.0] 1"],
    ),
    "oasst": (
        {
            "message_tree_id": "t",
            "prompt": {
                "text": "A",
                "role": "prompter",
                "replies": [
                    {"text": "C", "role": "assistant", "rank": 1},
                    {
                        "text": "B",
                        "role": "assistant",
                        "rank": 0,
                        "replies": [{"text": "D", "role": "prompter", "replies": [{"text": "E", "role": "assistant", "rank": 0}, {"text": "F", "role": "assistant", "rank": 1}]}],
                    },
                ],
            },
        },
        ["u:A a: | B$ | C$ [0.0, -1.0] 1", "u:A a:B u:D a: | E$ | F$ [0.0, -1.0] 1"],
    ),
    "rewardbench 2": (
        {"prompt": "A", "chosen": ["B"], "rejected": ["C", "D", "E"], "num_correct": 1, "num_incorrect": 3},
        ["u:A a: | B$ | C$ | D$ | E$ [1.0, 0.0, 0.0, 0.0] 1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", PREFERENCES)
def test_a_preference_in_every_form(tmp_path: Path, tokenizer: ChatTokenizer, form: str) -> None:
    row, shown = PREFERENCES[form]
    assert preferences(tokenizer, tmp_path, row) == shown


def message(name: str, parent: str | None, text: str, rank: int | None = None, **more: Any) -> Row:
    """A message of OASST's flat lists."""
    role = "prompter" if len(name) % 2 else "assistant"
    row = {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank, "lang": "en"}
    return {"message_tree_id": "t", "deleted": False, "review_result": True, **row, **more}


MESSAGES = [
    message("t", None, "A"),
    message("t1", "t", "C", 1),
    message("t2", "t", "B", 0),
    message("t21", "t2", "D"),
    message("t211", "t21", "E", 0),
    message("t212", "t21", "F", 1),
    message("t3", "t", "spam", -1, review_result=False),
    message("t4", "t", "gone", -2, deleted=True),
]


def test_flat_messages_are_their_trees(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    expected = ["u:A a: | B$ | C$ [0.0, -1.0] 1", "u:A a:B u:D a: | E$ | F$ [0.0, -1.0] 1"]
    for rows in (MESSAGES, MESSAGES[::-1]):
        assert preferences(tokenizer, tmp_path, *rows) == expected
        assert chats(tokenizer, tmp_path, *rows) == "u:A a:[B$] u:D a:[E$]"
    rows = [{**row, "message_tree_id": tree} for tree in ("s", "t") for row in MESSAGES]
    config = {"sources": [{"type": "messages", **source(tmp_path, *rows)}], "held_out": 1}
    counts = load_prompts(Prompts.model_validate(config), lambda _: []).counts
    assert (counts["rows"], counts["duplicate"], counts["misfit"]) == (2, 1, 0)


def test_messages_apart_from_their_tree_are_refused(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = [*MESSAGES[1:], {**MESSAGES[0], "message_tree_id": "s", "message_id": "s"}, MESSAGES[0]]
    for read in (chats, preferences):
        with pytest.raises(ValueError, match=r"4 parent\b.*'t'.*message_tree_id"):
            read(tokenizer, tmp_path, *rows)


def rated(prompt: str, response: str, helpfulness: float) -> Row:
    scores = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 2}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **scores}


def test_rated_answers_that_follow_one_another_make_a_comparison(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    rows = [
        rated("A", "C", 1),
        rated("A", "B", 4),
        rated("D", "E", 3),
        rated("D", "F", 0),
        rated("D", "G", 2),
    ]
    expected = ["u:A a: | B$ | C$ [4.0, 1.0] 1", "u:D a: | E$ | G$ | F$ [3.0, 2.0, 0.0] 1"]
    assert preferences(tokenizer, tmp_path, *rows) == expected
    with pytest.raises(ValueError, match=r"2 of 3 .*\(1 answers, 1 tie\b"):
        preferences(
            tokenizer, tmp_path, *rows[:2], rated("H", "I", 1), rated("J", "K", 2), rated("J", "L", 2)
        )


BENCHES: dict[str, tuple[Row, tuple[str, ...], int, str]] = {
    "rewardbench": ({"prompt": "A", "chosen": "B", "rejected": "C", "subset": "hep-go"}, ("B", "C"), 1, "hep-go"),
    "rewardbench 2": (
        {"id": "1", "prompt": "A", "chosen": ["B"], "rejected": ["C", "D", "E"], "subset": "Math"},
        ("B", "C", "D", "E"),
        1,
        "Math",
    ),
    "rm-bench": (
        {"id": 1, "prompt": "A", "chosen": ["B", "C", "D"], "rejected": ["E", "F", "G"], "domain": "chat"},
        ("B", "C", "D", "E", "F", "G"),
        3,
        "chat",
    ),
    "judgebench": (
        {"pair_id": "x", "question": "A", "response_A": "C", "response_B": "B", "label": "B>A", "source": "mmlu"},
        ("B", "C"),
        1,
        "all",
    ),
    "ppe": ({"prompt": "A", "response_1": "B", "response_2": "C", "winner": "model_a"}, ("B", "C"), 1, "all"),
    "ppe, samples": (
        {"prompt": "A: x, y", "choices": ["x", "y"], "scores": [False, True, True], "response_1": "D", "response_2": "B", "response_3": "C"},
        ("B", "C", "D"),
        2,
        "all",
    ),
    "helpsteer3": (
        {"context": [turn("user", "A")], "response1": "C", "response2": "B", "overall_preference": 1, "domain": "code"},
        ("B", "C"),
        1,
        "code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BENCHES)
def test_a_benchmarks_row_in_every_form(tmp_path: Path, form: str) -> None:
    row, answers, wanted, subset = BENCHES[form]
    counts: Counter[str] = Counter()
    (pair,) = read_pairs(BenchmarkPairs.model_validate(source(tmp_path, row)), counts)
    assert (pair.answers, pair.desirable, pair.kind) == (answers, wanted, subset)
    assert pair.messages[-1]["content"].startswith("A") and counts["misfit"] == 0


def test_a_benchmarks_ties_are_left_out(tmp_path: Path) -> None:
    row = {"prompt": "A", "response_1": "B", "response_2": "C", "winner": "both_bad"}
    with pytest.raises(ValueError, match="1 pairs are all ties"):
        list(read_pairs(BenchmarkPairs.model_validate(source(tmp_path, row)), Counter()))
    counts: Counter[str] = Counter()
    benched = source(tmp_path, row, {**row, "winner": "model_b"})
    assert len(list(read_pairs(BenchmarkPairs.model_validate(benched), counts))) == 1 == counts["tie"]


# -- what belongs to a prompt, and what isn't read ---------------------------------------------------------

PAIR = {"prompt": "A", "chosen": "B", "rejected": "C"}
CHAT = {"messages": [turn("user", "A"), turn("assistant", "B")]}


@pytest.mark.parametrize(
    "column", ["tools", "context", "options", "input", "images", "documents", "choices", "article"]
)
def test_columns_that_can_only_be_of_the_prompt_are_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, column: str
) -> None:
    value = ["x"] if column in ("tools", "options", "images", "choices", "documents") else "x"
    for read, row in ((chats, CHAT), (preferences, PAIR)):
        with pytest.raises(ValueError, match=rf"\b1 of 1 .*\(1 unread; .*{column!r}.*ignore"):
            read(tokenizer, tmp_path, {**row, column: value})
        assert read(tokenizer, tmp_path, {**row, column: value}, ignore=[column])
        assert read(tokenizer, tmp_path, {**row, column: []})
    with pytest.raises(ValueError, match=rf"\(1 unread; .*{column!r}"):
        list(read_pairs(BenchmarkPairs.model_validate(source(tmp_path, {**PAIR, column: value})), Counter()))
    asked = source(tmp_path, *({"question": f"q{n}", column: value} for n in range(9)))
    config = {"sources": [{"type": "question", **asked}], "held_out": 1}
    with pytest.raises(ValueError, match=rf"\(9 unread; .*{column!r}"):
        load_prompts(Prompts.model_validate(config), lambda _: [])


def test_a_column_whose_text_the_prompt_has_is_no_loss(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    row = {**CHAT, "input": "A", "system": None, "options": ["A"], "context": {"content": "A"}}
    assert chats(tokenizer, tmp_path, row) == "u:A a:[B$]"


def test_prompts_have_their_system_message_and_earlier_turns(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "input": "T", "system": "S", "history": [["A", "B"]]} for n in range(2)]
    config = {"sources": [{"type": "question", "column": "instruction", **source(tmp_path, *rows)}]}
    prompt = load_prompts(Prompts.model_validate({**config, "held_out": 1}), lambda _: []).training[0]
    assert [m["content"] for m in prompt.messages] == ["S", "A", "B", "q0\n\nT"]


def test_a_question_may_be_turns_or_a_transcript(tmp_path: Path) -> None:
    asked = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    chat = [turn("user", "A"), turn("assistant", "B"), turn("user", "D")]
    rows = source(tmp_path, {"question": asked}, {"question": chat})
    config = {"sources": [{"type": "question", "column": "question", **rows}], "held_out": 1}
    pool = load_prompts(Prompts.model_validate(config), lambda _: [])
    assert [[m["content"] for m in prompt.messages] for prompt in pool.training] == [
        ["A", "B", "C"],
        ["A", "B", "D"],
    ]


def test_two_system_messages_are_a_misfit(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    row = {"messages": [turn("system", "S"), *CHAT["messages"]], "system": "other"}
    with pytest.raises(ValueError, match=r"\(1 prompt; .*'system'"):
        chats(tokenizer, tmp_path, row)


def test_other_columns_are_named_once(
    tmp_path: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        chats(tokenizer, tmp_path, {**CHAT, "id": 1, "model": "gpt", "empty": "", "none": None})
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(": model (1 rows)")


def test_what_turns_hold_beside_their_text_is_named(
    tmp_path: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        chats(
            tokenizer,
            tmp_path,
            {"messages": [turn("user", "A", lang="en", name=None), turn("assistant", "B", weight=1)]},
        )
    assert caplog.text.strip().endswith(": messages.lang (1 rows)")


@pytest.mark.parametrize(
    "text",
    ["Patient: A\nDoctor: B", "A\nAnswer:", "Which of these:", "The user: A", "The <video>A</video> tag"],
)
def test_dialogues_that_are_told_are_texts(tmp_path: Path, tokenizer: ChatTokenizer, text: str) -> None:
    shown = chats(tokenizer, tmp_path, {"prompt": text, "completion": "B"})
    assert shown == f"u:{text} a:[B$]".replace("\n", "/")


@pytest.mark.parametrize("text", ["nan", "None", "NULL", "<noinput>", " "])
def test_an_input_of_a_table_may_say_that_there_is_none(
    tmp_path: Path, tokenizer: ChatTokenizer, text: str
) -> None:
    row = {"instruction": "A", "input": text, "output": "B", "system": text}
    assert chats(tokenizer, tmp_path, row) == "u:A a:[B$]"


def test_what_is_missing_may_be_null_or_nan(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """As tables of several kinds of rows have it, and as pandas writes it."""
    nan = float("nan")
    mixed = {"role": None, "content": None}
    shown = [{**said("human", "A"), **mixed}, {**said("gpt", "B"), **mixed}]
    for row in (
        {"messages": shown, "system": nan, "history": nan, "id": nan},
        {"messages": nan, "instruction": "A", "input": nan, "output": "B"},
    ):
        assert chats(tokenizer, tmp_path, row) == "u:A a:[B$]"
    row = {**PAIR, "chosen_score": nan, "rejected_score": nan, "system": nan}
    assert preferences(tokenizer, tmp_path, row) == ["u:A a: | B$ | C$ [1.0, 0.0] 1"]


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name", "words"),
    [
        ({**PAIR, "chosen_score": 1, "rejected_score": 2}, "score", "score 1.* 2"),
        ({**PAIR, "rank_chosen": 2, "rank_rejected": 1}, "score", "rank 2.* 1"),
        ({**PAIR, "chosen-rating": 3, "rejected-rating": 3}, "tie", "3"),
        (
            {**PAIR, "chosen": {"text": "B", "rank": 4}, "rejected": {"text": "C", "rank": 1}},
            "score",
            "rank 4.* 1",
        ),
        ({"prompt": "A", "answers": ["B", "C"], "scores": [1, 2], "ranks": [1, 2]}, "score", "contradict"),
        ({"prompt": "A", "response_1": "B", "response_2": "C", "preference_strength": 0}, "tie", "0"),
        (
            {"prompt": "A", "response_1": "B", "response_2": "C", "preference_strength": "nan"},
            "non_finite",
            "nan",
        ),
        ({**PAIR, "chosen": [turn("assistant", "B", weight=0)]}, "weight", "'chosen'"),
        (
            {"messages": [turn("user", "A"), turn("assistant", "B", train=False)], "label": True},
            "weight",
            "'messages'",
        ),
        (
            {"prompt": "A", "response_1": "B", "response_2": "C", "winner": "left"},
            "score",
            "'winner'.*'left'",
        ),
        ({"instruction": "A", "input": "", "output": "B"}, "column", "one answer alone"),
        (
            {"prompt": "Human: A\nAssistant: B\nHuman: C", "chosen": "B", "rejected": "C"},
            "rendered",
            "Human:",
        ),
        ({"prompt": "USER: A ASSISTANT: B", "chosen": "B", "rejected": "C"}, "rendered", "USER:"),
        ({"prompt": "### Instruction:\nA\n### Response:", "chosen": "B", "rejected": "C"}, "rendered", "###"),
        ({"prompt": "[INST] A [/INST]", "chosen": "B", "rejected": "C"}, "rendered", "INST"),
        ({**PAIR, "prompt": "See <image>. What is it?"}, "part", "<image>"),
        ({**PAIR, "prompt": "[{'role': 'user', 'content': 'A'}\n {'role'"}, "turn", "JSON"),
        ({"prompt": "A", "answers": [{"text": "B", "votes": 1}, {"text": "C", "votes": 5}]}, "score", "'votes'"),
        ({"prompt": "A", "answers": ["B", "C"], "upvotes": [1, 5]}, "score", "'upvotes'"),
        ({"prompt": "A", "answers": [{"text": "B", "votes": "1"}, {"text": "C", "votes": "5"}]}, "score", "'votes'"),
        ({"prompt": "A", "answers": [{"text": "B", "label": "bad"}, {"text": "C", "label": "good"}]}, "score", "'label'"),
        ({"prompt": "A", "answers": ["B", "C"], "best": 1}, "score", "'best'"),
        ({"prompt": "A", "answers": ["B", "C"], "correct_index": "1"}, "score", "'correct_index'"),
        (
            {"history": "A", "human_ref_A": "B", "human_ref_B": "C", "labels": 1, "score_A": 1, "score_B": 8},
            "score",
            "score 1.* 8",
        ),
        (
            {"prompt": "A", "response_0": "B", "response_1": "C", "better_response_id": 1, "response_0_score": 3, "response_1_score": 2},
            "score",
            "score 2.* 3",
        ),
        ({**PAIR, "chat_history": "earlier"}, "unread", "'chat_history'"),
        ({"prompt": "other", "chosen": [turn("user", "A"), turn("assistant", "B")], "rejected": [turn("user", "A"), turn("assistant", "C")]}, "prompt", "'other'"),
        ({**PAIR, "rejected": None}, "column", r"rejected \(empty\)"),
    ],
)  # fmt: skip
def test_preferences_that_would_be_read_wrong_are_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, row: Row, name: str, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"\(1 {name}; row 1: .*{words}"):
        preferences(tokenizer, tmp_path, row)


@pytest.mark.parametrize(
    ("row", "name", "words"),
    [
        ({"prompt": "A", "completion": "B", "label": False}, "label", "'label'.*kto"),
        ({**CHAT, "label": 0}, "label", "'label'.*kto"),
        ({"instruction": "A", "output": "B", "kto_tag": False}, "label", "'kto_tag'.*kto"),
        ({**CHAT, "is_correct": False}, "label", "'is_correct'.*kto"),
        ({**CHAT, "weight": 0}, "weight", "'weight'"),
        ({**CHAT, "train": "false"}, "weight", "'train'"),
        ({"prompt": "A", "completion": [turn("assistant", "B", weight=0)]}, "weight", "all"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", masked=True)]}, "part", "'masked'"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", thought="Hm")]}, "part", "'thought'"),
        ({"Question": "A", "Complex_CoT": "Hm", "Response": "B"}, "unread", "'Complex_CoT'.*ignore"),
        ({"prompt": "A", "completion": "B", "reasoning_content": "Hm"}, "unread", "'reasoning_content'"),
        ({"article": "T", "question": "A", "answer": "B"}, "unread", "'article'"),
        ({"prompt": "A", "completion": "B", "chat_history": "earlier"}, "unread", "'chat_history'"),
        ({"prompt": "<image_1> A", "completion": "B"}, "part", "<image_1>"),
        ({"prompt": "<|image_1|>A", "completion": "B"}, "part", "image_1"),
        ({"prompt": "<video>A", "completion": "B"}, "part", "<video>"),
        ({"prompt": "System: S\n\nHuman: A\n\nAssistant: B\n\nHuman: C", "completion": "D"}, "rendered", "System:"),
        ({"prompt": "A user asks. USER: A ASSISTANT: B USER: C", "completion": "D"}, "rendered", "USER:"),
        ({"prompt": "user\nA\nassistant\n", "completion": "B"}, "rendered", "user"),
        ({"prompt": "<<SYS>>\nS\n<</SYS>>\n\nA", "completion": "B"}, "rendered", "SYS"),
        ({"prompt": "用户：A\n助手：", "completion": "B"}, "rendered", "用户"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", weight=0)]}, "weight", "all"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", loss_weight=0)]}, "weight", "all"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", weight=0.5)]}, "weight", "0.5"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", mask=1)]}, "part", "'mask'"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", train_detail=[{}])]}, "part", "'train_detail'"),
        ({"prompt": "A", "completion": "B", "label": "rejected"}, "label", "'label'"),
        ({"instruction": "A", "input": ["x"], "output": "B"}, "unread", "'input'"),
        ({"instruction": "A", "output": "B", "history": "earlier"}, "unread", "'history'"),
        ({"prompt": "<|start_of_role|>user<|end_of_role|>A", "completion": "B"}, "rendered", "start_of_role"),
        ({"prompt": "[gMASK]<sop><|user|>A", "completion": "B"}, "rendered", "gMASK"),
        ({"prompt": "[|user|]A", "completion": "B"}, "rendered", "user"),
        ({"question": "A", "answer": "B", "B": "x", "A": "y"}, "unread", "'B'"),
        ({"question": "A", "answer": "opb", "opa": "x", "opb": "y"}, "unread", "'opa'"),
        ({"instruction": "A", "context": "T", "question": "Q", "answer": "B"}, "unread", "'question'"),
        ({**CHAT, "mask": "Assistant"}, "weight", "'mask'.*'Assistant'"),
        ({**CHAT, "weights": [0, 1]}, "weight", "'weights'"),
        ({**CHAT, "loss_mask": [0, 1]}, "weight", "'loss_mask'"),
        ({"prompt": "A", "completion": "\u200b"}, "empty", "'assistant'"),
        ({"prompt": "Q: A\n\nA:", "completion": "B"}, "rendered", "Q:"),
        ({"prompt": "Patient: A\nDoctor:", "completion": "B"}, "rendered", "Patient:"),
        ({"prompt": "<human>: A\n<bot>:", "completion": "B"}, "rendered", "<human>:"),
        ({"prompt": "HUMAN: A\nASSISTANT: B\nHUMAN: C", "completion": "D"}, "rendered", "HUMAN:"),
        ({"prompt": "GPT4 Correct User: A<|end_of_turn|>GPT4 Correct Assistant:", "completion": "B"}, "rendered", "User:"),
        ({"prompt": "A chat of a user with an assistant. USER: A ASSISTANT:", "completion": "B"}, "rendered", "USER:"),
        ({"prompt": "<|User|>A<|Assistant|>", "completion": "B"}, "rendered", "User"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", reasoning_content="Hm")]}, "part", "reasoning"),
        ({"messages": [turn("user", "A"), turn("assistant", "B", tool_calls=[{}])]}, "part", "tool_calls"),
        ({"messages": [turn("user", "A"), turn("observation", "B"), turn("assistant", "C")]}, "turn", "observation"),
        ({"messages": [turn("user", [{"type": "image_url"}]), turn("assistant", "B")]}, "part", "image_url"),
        ({"prompt": "Question", "chosen": "B", "rejected": "C"}, "column", "prompt, chosen, rejected"),
    ],
)  # fmt: skip
def test_chats_that_would_be_learnt_wrong_are_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, row: Row, name: str, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"\(1 {name}; row 1: .*{words}"):
        chats(tokenizer, tmp_path, row)


# -- tables of texts ---------------------------------------------------------------------------------------

YES, NO = ("True", "true", "1", "1.0", "yes", "TRUE "), ("False", "false", "0", "0.0", "No", "FALSE")


def table(directory: Path, text: str) -> Row:
    path = directory / "rows.csv"
    path.write_text(text)
    return {"uri": str(path)}


@pytest.mark.parametrize(("word", "wanted"), [*((word, 1) for word in YES), *((word, 0) for word in NO)])
def test_labels_of_a_table_are_yes_or_no(
    tmp_path: Path, tokenizer: ChatTokenizer, word: str, wanted: int
) -> None:
    rows = table(tmp_path, f"prompt,completion,label\nA,B,{word}\n")
    data = PreferenceData.model_validate({"sources": [rows]})
    (group,) = PreparedPreferences(data, tokenizer, 99, 0).training()
    assert (group.rewards, group.desirable) == ((float(wanted),), wanted)
    learnt = lambda: PreparedConversations(
        ConversationData.model_validate({"sources": [rows]}), tokenizer, 99, 0
    )
    if wanted:
        assert len(list(learnt().training())) == 1
    else:
        with pytest.raises(ValueError, match=r"\(1 label\b"):
            learnt()


@pytest.mark.parametrize("word", ["perhaps", "2", "-1", "TrueFalse"])
def test_a_label_that_is_neither_is_a_class(
    tmp_path: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    rows = table(tmp_path, f"prompt,completion,label\nA,B,{word}\n")
    with pytest.raises(ValueError, match=rf"\(1 score; .*'label'.*{word}"):
        PreparedPreferences(PreferenceData.model_validate({"sources": [rows]}), tokenizer, 99, 0)
    with caplog.at_level(logging.WARNING):
        PreparedConversations(ConversationData.model_validate({"sources": [rows]}), tokenizer, 99, 0)
    assert "label (1 rows)" in caplog.text


def test_verdicts_of_a_table_are_numbers(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = table(tmp_path, "instruction,output_1,output_2,preference\nA,C,B,2\n")
    (group,) = PreparedPreferences(
        PreferenceData.model_validate({"sources": [rows]}), tokenizer, 99, 0
    ).training()
    assert [answer.text for answer in group.completions] == ["B", "C"]


def test_a_table_without_a_header_is_told_how_to_get_one(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = table(tmp_path, "Which?,a,b,c,d,A\nWho?,e,f,g,h,B\n")
    with pytest.raises(ValueError, match="Which.*first line"):
        PreparedPreferences(PreferenceData.model_validate({"sources": [rows]}), tokenizer, 99, 0)
    with pytest.raises(ValueError, match="Which.*first line"):
        PreparedConversations(ConversationData.model_validate({"sources": [rows]}), tokenizer, 99, 0)
