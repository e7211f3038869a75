"""Conversations out of every published format: whole, once each, and with the misfits named."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.chats import SourceNotes
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.records import Conversation

# Real UltraMedical records, where a developer has them; they are not ours to ship.
EXAMPLES = Path(os.environ.get("ULTRAMEDICAL_EXAMPLES", "no-examples.json"))
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def read(directory: Path, rows: list[Any], **options: Any) -> tuple[list[Conversation], dict[str, int]]:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()
    found = list(read_conversations(ConversationSource(uri=str(path), **options), counts))
    return found, dict(counts)


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    found = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return found if system is None else [{"role": "system", "content": system}, *found]


def sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": SHAREGPT[m["role"]], "value": m["content"]} for m in messages]


def test_an_ultramedical_row(tmp_path: Path) -> None:
    row = {
        "id": "TextBookQA,Anatomy_Gray_28",
        "type": "Exam",
        "conversations": [{"from": "human", "value": " Which? "}, {"from": "gpt", "value": "C.\n"}],
        "answer": "C",
        "score": "4",
    }
    (conversation,), counts = read(tmp_path, [row])
    assert conversation == Conversation("TextBookQA,Anatomy_Gray_28", tuple(turns("Which?", "C.")), "Exam")  # type: ignore[arg-type]
    assert counts == {"rows": 1, "duplicate": 0, "misfit": 0}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("a", "b", "c", "d", system="s")},
        {"messages": None, "conversations": sharegpt(turns("a", "b", "c", "d", system="s"))},
        {"conversations": turns("a", "b", "c", "d", system="s"), "prompt": "a"},
        {"prompt": turns("a", "b", "c", system="s"), "completion": "d"},
        {"prompt": turns("a", system="s"), "completion": turns("a", "b", "c", "d")[1:]},
        {
            "messages": None,
            "conversations": None,
            "prompt": turns("a", "b", "c", system="s"),
            "completion": "d",
        },
    ],
)
def test_every_format_gives_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    (conversation,), _ = read(tmp_path, [row])
    assert list(conversation.messages) == turns("a", "b", "c", "d", system="s")
    assert conversation.kind == "messages"


def test_a_prompt_and_completion_in_plain_text(tmp_path: Path) -> None:
    (conversation,), _ = read(tmp_path, [{"prompt": "What?", "completion": " That."}])
    assert list(conversation.messages) == turns("What?", "That.")


def test_another_column_can_be_named(tmp_path: Path) -> None:
    row = {"messages": turns("a", "b"), "dialogue": turns("c", "d")}
    (conversation,), _ = read(tmp_path, [row], column="dialogue")
    assert list(conversation.messages) == turns("c", "d")
    with pytest.raises(ValueError, match=r"rows\.jsonl': .*'dialog'; .*\bmessages, dialogue:"):
        read(tmp_path, [row], column="dialog")
    with pytest.raises(ValueError, match=r"\b1 of 2 .*; row 2: .*'dialogue'\)"):
        read(tmp_path, [row, {"messages": turns("a", "b")}], column="dialogue")


def test_ids_are_the_rows_own_or_stand_for_the_content(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "prompt_id": "p", "messages": turns("a", "b")},
        {"id": None, "prompt_id": "p", "messages": turns("c", "d")},
        {"id": "", "messages": turns("e", "f")},
    ]
    conversations, _ = read(tmp_path, rows)
    ids = [c.conversation_id for c in conversations]
    content = b"user 1 e\nassistant 1 f"
    assert ids == ["0", "p", hashlib.sha256(content).hexdigest()[:16]]
    moved, _ = read(tmp_path, [{"prompt": "e ", "completion": " f"}])
    assert moved[0].conversation_id == ids[2]


def test_equal_content_counts_once_and_equal_ids_of_other_content_are_misfits(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "messages": turns("a", "b")},
        {"id": "y", "messages": turns("a", " b")},
        {"id": "x", "messages": turns("a", "b")},
        {"messages": turns("a", "b", system="s")},
    ]
    conversations, counts = read(tmp_path, rows)
    assert [c.messages[-2]["content"] for c in conversations] == ["a", "a"] and len(
        conversations[1].messages
    ) == 3
    assert counts == {"rows": 4, "duplicate": 2, "misfit": 0}
    rows.append({"id": "x", "messages": turns("a", "other")})
    _, counts = read(tmp_path, rows, max_misfit_share=0.2)
    assert counts == {"rows": 5, "duplicate": 2, "misfit": 1, "misfit_id": 1}
    with pytest.raises(ValueError, match=r"\b1 of 5 .*\(1 id; row 5: id 'x' "):
        read(tmp_path, rows)


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ({"text": "x", "n": 1}, "column", r"\btext, n; .*\bmessages, conversations, .*\bprompt .*completion"),
        ({"prompt": "x"}, "column", r"\bprompt; .*\bmessages, conversations, .*\bprompt .*completion"),
        ({"messages": "x"}, "turn", r"'messages' .*\bstr\b"),
        ({"messages": ["x"]}, "turn", r"\bstr, .*\brole .*\bcontent\b"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn", r"\brole 'tool' .*\bstr content\b"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "turn", r"\brole \['user'\] .*\bstr content\b"),
        ({"messages": [{"role": "user", "content": None}]}, "turn", r"\brole 'user' .*\bNoneType content\b"),
        ({"messages": turns("x", "y"), "id": "\ud83d"}, "id", r"\bid [a-z ]+ surrogate\b"),
        ({"messages": turns("x", "y"), "type": "\ud83d"}, "id", r"\btype [a-z ]+ surrogate\b"),
        ({"messages": turns("\ud83d", "x")}, "turn", r"\brole 'user' [a-z ]+ surrogate\b"),
        ({"prompt": 3, "completion": "x"}, "turn", r"'prompt' .*\bint\b"),
        ({"messages": turns("x", " \n\t")}, "empty", r"\brole 'assistant'"),
        ({"prompt": "x", "completion": ""}, "empty", r"\brole 'assistant'"),
        ({"messages": []}, "order", r"\brole 'assistant'\)"),
        ({"messages": turns(system="s")}, "order", r"\brole 'assistant'\)"),
        ({"messages": turns("x", "y", "z")}, "order", r"\brole 'assistant'\)"),
        ({"messages": turns("x", "y")[1:]}, "order", r"\b1 [a-z ]+ 'assistant', .*'user'\)"),
        ({"messages": [*turns("x"), *turns("x", "y")]}, "order", r"\b2 [a-z ]+ 'user', .*'assistant'\)"),
        (
            {"messages": [*turns("x", "y"), *turns("y", system="s")]},
            "order",
            r"\b3 [a-z ]+ 'system', .*'user'\)",
        ),
        (
            {"messages": [*turns(system="s"), *turns("x", system="t")]},
            "order",
            r"\b2 [a-z ]+ 'system', .*'user'\)",
        ),
    ],
)
def test_misfits_are_counted_by_reason_and_refused_above_their_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], name: str, reason: str
) -> None:
    good = [{"messages": turns(f"q{i}", "a")} for i in range(19)]
    with caplog.at_level(logging.WARNING):
        conversations, counts = read(tmp_path, [*good, row])  # 1 of 20 is 5 %
    assert len(conversations) == 19
    assert counts == {"rows": 20, "duplicate": 0, "misfit": 1, f"misfit_{name}": 1}
    assert re.search(r"\b1 of 20 [a-z]+ \(row 20: ", caplog.text)
    with pytest.raises(ValueError, match=rf"\b1 of 19 .*\(1 {name}; row 19: .*{reason}") as refusal:
        read(tmp_path, [*good[:18], row])
    line = str(refusal.value)
    assert line.startswith(f"source '{tmp_path}/rows.jsonl': ") and "\n" not in line
    assert " 5% " in line and line.endswith(" max_misfit_share")
    with pytest.raises(ValueError, match=r"\b1 of 1 .* max_misfit_share$"):  # allowed, but nothing is left
        read(tmp_path, [row], max_misfit_share=1.0)


def test_the_first_misfit_is_named_and_all_are_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": turns("a", "b")},
        {"messages": turns("x")},
        {"messages": turns("")},
        {"messages": turns("y")},
    ]
    with pytest.raises(ValueError, match=r"\b3 of 4 .*\(2 order, 1 empty; row 2: .*'assistant'\)"):
        read(tmp_path, rows)
    conversations, counts = read(tmp_path, rows, limit=1)
    assert len(conversations) == counts["rows"] == 1


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns("a", "b")}) + "\nno row\n")
    conversations = read_conversations(ConversationSource(uri=str(path)), Counter())
    assert next(conversations).messages[0]["content"] == "a"
    with pytest.raises(ValueError, match=r"rows\.jsonl.*\b2\b.*JSON"):
        next(conversations)


def test_a_second_reading_can_be_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns("a", "b")}) + "\n{}\n")
    source = ConversationSource(uri=str(path), max_misfit_share=0.5)
    assert len(list(read_conversations(source, Counter(), SourceNotes()))) == 1 and not caplog.text
    assert len(list(read_conversations(source, Counter()))) == 1 and "1 of 2 " in caplog.text


@pytest.mark.skipif(not EXAMPLES.is_file(), reason="UltraMedical's examples are not on this machine")
def test_all_ultramedical_examples_load() -> None:
    rows = json.loads(EXAMPLES.read_text())
    counts: Counter[str] = Counter()
    conversations = list(read_conversations(ConversationSource(uri=str(EXAMPLES)), counts))
    assert counts == {"rows": 50, "duplicate": 0, "misfit": 0}
    for conversation, row in zip(conversations, rows, strict=True):
        assert (conversation.conversation_id, conversation.kind) == (row["id"], row["type"])
        assert sharegpt(list(conversation.messages)) == [  # type: ignore[arg-type]
            {"from": turn["from"], "value": turn["value"].strip()} for turn in row["conversations"]
        ]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
chats = st.builds(
    lambda pairs, system: turns(*(text for pair in pairs for text in pair), system=system),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    st.none() | texts,
)


@given(st.lists(chats, min_size=1, max_size=5), st.data())
def test_reading_keeps_every_chat_once_in_order_whatever_its_format(
    tmp_path_factory: pytest.TempPathFactory, found: list[list[dict[str, str]]], data: st.DataObject
) -> None:
    formats = {
        "messages": lambda chat: {"messages": chat},
        "conversations": lambda chat: {"conversations": sharegpt(chat)},
        "pair": lambda chat: {"prompt": chat[:-1], "completion": chat[-1]["content"]},
    }
    rows = [formats[data.draw(st.sampled_from(sorted(formats)))](chat) for chat in found]
    conversations, counts = read(tmp_path_factory.mktemp("rows"), rows)
    trimmed = [[{**m, "content": m["content"].strip()} for m in chat] for chat in found]
    once = list({json.dumps(chat): chat for chat in trimmed}.values())
    assert [list(c.messages) for c in conversations] == once
    assert counts == {"rows": len(found), "duplicate": len(found) - len(once), "misfit": 0}
    assert set(Counter(c.conversation_id for c in conversations).values()) == {1}
