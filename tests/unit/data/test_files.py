"""Files as people have them: each container, packed or not, gives the same rows; what is broken is told."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ultramed_rl.config.rounds import Prompts
from ultramed_rl.config.stages import ConversationSource, PreferenceSource
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.preferences import read_preferences
from ultramed_rl.data.prompts import load_prompts
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import find_task

ROWS: list[dict[str, Any]] = [
    {"id": "007", "question": "what is morphine", "opa": "1.50"},
    {"id": "8", "question": 'two\nlines, a "quote" and ß', "opa": None},
    {"id": "9", "question": "x\ty", "opa": "None"},
]
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def as_arrow(rows: list[dict[str, Any]], opener: Any) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with opener(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8-sig")


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "lines.jsonl": lines,
    "lines.json": lines,  # MedMCQA's dev.json
    "list.json": lambda rows: json.dumps(rows).encode(),
    "list.jsonl": lambda rows: json.dumps(rows, indent=2).encode(),  # UltraMedical's paragraphs.jsonl
    "line.jsonl": lambda rows: json.dumps(rows).encode(),
    "by_id.json": lambda rows: json.dumps({row["id"]: {**row, "id": row["id"]} for row in rows}).encode(),
    "named.json": lambda rows: json.dumps({"version": 1, "data": rows, "notes": []}, indent=1).encode(),
    "table.csv": as_csv,
    "table.tsv": lambda rows: as_csv(rows, "\t"),
    "table.parquet": as_parquet,
    "stream.arrow": lambda rows: as_arrow(rows, pa.ipc.new_stream),
    "file.arrow": lambda rows: as_arrow(rows, pa.ipc.new_file),
}


def write(path: Path, content: bytes) -> Path:
    """The content as the name's end says."""
    if path.suffix == ".gz":
        content = gzip.compress(content[:9]) + gzip.compress(
            content[9:]
        )  # of two members, as pigz and cat make
    elif path.suffix == ".zst":
        with pa.output_stream(str(path)) as stream:
            stream.write(content)
        return path
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMS)
def test_every_container_gives_the_same_rows_packed_or_not(tmp_path: Path, name: str, packed: str) -> None:
    path = write(tmp_path / (name + packed), FORMS[name](ROWS))
    assert list(read_rows(str(path))) == ROWS
    assert list(read_rows(str(path), limit=2)) == ROWS[:2]


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "table.parquet", "file.arrow"])
def test_nan_is_nothing(tmp_path: Path, name: str) -> None:
    """As pandas writes what isn't there."""
    rows = [{"id": "a", "score": 1.5}, {"id": "b", "score": float("nan")}, {"id": "c", "score": float("inf")}]
    path = write(tmp_path / name, FORMS[name](rows))
    assert [row["score"] for row in read_rows(str(path))] == [1.5, None, float("inf")]


def test_a_packed_document_is_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "one.md.gz", "# Größe\n".encode())
    assert list(read_rows(str(path))) == [{"path": "one.md.gz", "text": "# Größe\n"}]


def test_an_object_by_id_names_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_text(
        json.dumps({"21645374": {"QUESTION": "Does it?"}, "1": {"QUESTION": "Is it?", "id": "own"}})
    )
    assert list(read_rows(str(path))) == [
        {"id": "21645374", "QUESTION": "Does it?"},
        {"id": "own", "QUESTION": "Is it?"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("chat.json", {"id": "c", "conversations": SHARED}, [{"id": "c", "conversations": SHARED}]),
        ("chat.json", {"messages": TURNS, "tools": []}, [{"messages": TURNS, "tools": []}]),
        ("chat.json", TURNS, [{"messages": TURNS}]),
        ("chats.json", [TURNS, SHARED], [{"messages": TURNS}, {"messages": SHARED}]),
        ("chat.json", [TURNS], [{"messages": TURNS}]),
        ("row.json", {"question": "Q?", "options": ["a", "b"]}, [{"question": "Q?", "options": ["a", "b"]}]),
        ("truth.json", {"12": "yes", "13": "no"}, [{"12": "yes", "13": "no"}]),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_one_chat_or_row_is_one_row(
    tmp_path: Path, name: str, content: Any, rows: list[dict[str, Any]], indent: int | None
) -> None:
    (tmp_path / name).write_text(json.dumps(content, indent=indent))
    assert list(read_rows(str(tmp_path / name))) == rows


def test_a_line_that_is_a_list_of_turns_is_a_chat(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    for count in (1, 2):
        path.write_text((json.dumps(TURNS) + "\n") * count)
        assert list(read_rows(str(path))) == [{"messages": TURNS}] * count


def test_a_line_alone_is_a_row_whatever_lists_are_in_it(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "completions": [{"response": "a"}, {"response": "b"}]}
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row))
    assert list(read_rows(str(path))) == [row]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("short.csv", b"a,b\n1,2\n\n3\n", r"short\.csv, line 4: 1 cells .* 2 "),
        ("long.tsv", b"a\tb\n1\t2\t3\n", r"long\.tsv, line 2: 3 cells .* 2 "),
        ("twice.csv", b"a,a\n1,2\n", r"twice\.csv: .*\ba, a\b"),
        ("latin.csv", "a\nß\n".encode("latin-1"), r"latin\.csv, line \d: .*utf-8"),
        ("open.csv", b'a,b\n1,"2\n', r"open\.csv, line 3: "),
        ("header.csv", b"a,b\n", r"'.*header\.csv': 0 "),
        ("no.jsonl.gz", b"no", r"no\.jsonl\.gz: .*not readable"),
        ("no.csv.zst", b"no", r"no\.csv\.zst: .*not readable"),
        ("no.parquet.gz", b"no", r"no\.parquet\.gz: .*not readable"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:30], r"cut\.jsonl\.gz: .*not readable"),
        ("two.json", b'[{"a": 1}] [{"a": 2}]', r"two\.json, line 1: .*JSON"),
        ("odd.json", b'[{"a": 1}, 3]', r"odd\.json, row 2: .*\bint\b"),
    ],
)
def test_what_is_broken_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named) as error:
        list(read_rows(str(tmp_path / name)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv.gz", "rows.json.zst", "rows.parquet.gz"])
def test_every_reader_takes_every_container(tmp_path: Path, name: str) -> None:
    """Conversations, preferences, prompts and benchmarks; records have tests of their own."""
    form = next(
        FORMS[kind]
        for kind in ("table.csv", "table.tsv", "list.json", "table.parquet")
        if kind[kind.index(".") :] in name
    )
    path = tmp_path / name

    def put(*rows: dict[str, Any]) -> str:
        write(path, form([*rows]))
        return str(path)

    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No,\nnot so."}
    (ranked,) = read_preferences(PreferenceSource(uri=put(pair)), Counter())
    assert ranked.answers == ("So.", "No,\nnot so.")
    chat = {"prompt": "Why?", "completion": 'Since "it" is.'}
    (said,) = read_conversations(ConversationSource(uri=put(chat)), Counter())
    assert [turn["content"] for turn in said.messages] == ["Why?", 'Since "it" is.']
    source = {"type": "question", "uri": put({"q": "Why so?"}), "column": "q"}
    (prompt,) = load_prompts(Prompts(sources=[source], per_round=1), lambda messages: [1]).training
    assert prompt.messages[0]["content"] == "Why so?"
    organs = {"opa": "Heart", "opb": "Liver", "opc": "Lung", "opd": "Skin"}
    rows = [{"question": f"Which {n}?", **organs, "cop": str(n)} for n in (4, 2)]
    assert [item.answer for item in load_items(find_task("medmcqa"), put(*rows)).items] == ["D", "B"]


CELLS = st.text(st.characters(blacklist_categories=("Cs", "Cc")) | st.sampled_from('\n",\t'), max_size=5)


@given(
    st.lists(st.tuples(CELLS, CELLS.map(lambda text: "x" + text)), min_size=1, max_size=5),
    st.sampled_from([",", "\t"]),
)
def test_any_texts_come_back_from_a_table_of_texts(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], delimiter: str
) -> None:
    rows = [{"a": a or None, "b": b} for a, b in cells]
    path = tmp_path_factory.getbasetemp() / ("any.csv" if delimiter == "," else "any.tsv")
    path.write_bytes(as_csv(rows, delimiter))
    assert list(read_rows(str(path))) == rows
