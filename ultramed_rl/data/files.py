"""A file's rows, whatever holds them.

.jsonl, .json     a row a line; or one document, whatever the name: a list of rows, rows by their ids, an object with
                  just one list of rows in it, or one row. A list of turns is a row, {"messages": turns}
.csv, .tsv        a header, then rows of texts; an empty cell is None
.parquet, .arrow  tables
.md, .txt         a document is one row, {"path", "text"}

Each may be packed as .gz or .zst.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from ultramed_rl.config.base import Problems

Row = dict[str, Any]
PACKED = (".gz", ".zst")
DOCUMENTS = (".md", ".txt")
# pandas writes NaN for what isn't there.
_load_json = json.JSONDecoder(parse_constant=lambda name: None if name == "NaN" else float(name)).decode
_LONGEST_LINE = 2**26  # bytes: whatever is longer has lost its ends of lines


class SourceError(Problems):
    """A source that cannot be read, or not as what it is taken for: one line with the value, the rule and the fix."""

    def __init__(self, line: str) -> None:
        super().__init__([line])


def file_form(path: Path) -> tuple[str, str]:
    """What a file is by the end of its name, and the name without that: train.json.gz is .json, and train."""
    name = Path(path.stem if path.suffix in PACKED else path.name)
    return name.suffix, name.stem


def read_file(path: Path, name: str) -> Iterator[Row]:
    """The file's rows, in order; of a document its text, under this name.

    Raises:
        SourceError: what is wrong with the file.
    """
    form = file_form(path)[0]
    try:
        if form in DOCUMENTS:
            with _open(path) as file:
                yield {"path": name, "text": _decode(file.read(), str(path))}
        else:
            yield from _READERS[form](path)
    except OSError as error:  # as of what was packed and broke off
        raise SourceError(f"{path}: not readable ({first_line(error)}); fetch or write it again") from None


def _open(path: Path) -> BinaryIO:
    """The file's own bytes, unpacked as they are read."""
    if path.suffix not in PACKED:
        return path.open("rb")
    from pyarrow import input_stream  # by the name's end

    return io.BufferedReader(input_stream(str(path)))


def _read_json(path: Path) -> Iterator[Row]:
    """Rows by lines or out of one document: the first line tells."""
    is_lines = file_form(path)[0] == ".jsonl"
    with _open(path) as file:
        lines = enumerate(iter(partial(file.readline, _LONGEST_LINE + 1), b""), start=1)
        filled = ((number, line) for number, line in lines if not line.isspace())
        first = list(islice(filled, 2))
        is_alone = len(first) == 1
        if not (first and _is_document(first[0][1], f"{path}, line {first[0][0]}", is_alone, is_lines)):
            name = str(path)
            for number, line in chain(first, filled):
                place = f"{name}, line {number}"
                if len(line) > _LONGEST_LINE:
                    raise SourceError(f"{place}: over {_LONGEST_LINE:,} bytes; a line is one row of texts")
                yield _row(_parse_json(line, place), place)
            return
    with _open(path) as file:
        document = _parse_json(file.read(), str(path))
    for number, row in enumerate(_rows_in(document, path), start=1):
        yield _row(row, f"{path}, row {number}")


def _is_document(line: bytes, place: str, is_alone: bool, is_lines: bool) -> bool:
    """Whether a file's first line, perhaps its only one, begins a document: it ends too early for a row, or is all
    there is."""
    if len(line) > _LONGEST_LINE:
        return not is_lines
    text = _decode(line, place).rstrip()
    try:
        value = _load_json(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return is_alone and not (is_lines and (isinstance(value, dict) or _is_chat(value)))


def _rows_in(document: Any, path: Path) -> list[Any]:
    if isinstance(document, list) and not _is_chat(document):
        return document
    if not isinstance(document, dict) or not document:
        return [document] if document else []
    if all(isinstance(value, dict) for value in document.values()):
        return [{"id": name, **row} for name, row in document.items()]
    tables = {
        name: rows
        for name, rows in document.items()
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows) and not _is_chat(rows)
    }
    if len(tables) > 1:
        raise SourceError(
            f"{path}: holds {len(tables)} lists of objects ({', '.join(tables)}); a source is one, so write the one that is "
            "meant to a file of its own"
        )
    if not tables:  # one row, unless nothing is in it
        return [document] if any(document.values()) else []
    (rows,) = tables.values()
    return rows


def _is_chat(value: Any) -> bool:
    """Whether it is a list of turns."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or {"from", "value"} <= {*turn}) for turn in value)
    )


def _parse_json(content: bytes, place: str) -> Any:
    text = _decode(content, place)
    try:
        return _load_json(text)
    except json.JSONDecodeError as error:
        inside = f" (its line {error.lineno})" if error.lineno > 1 else ""
        raise SourceError(
            f"{place}: not JSON{inside}: {error.msg} at column {error.colno}; repair the file"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists without end
        raise SourceError(
            f"{place}: not JSON that can be read: {first_line(error)}; repair the file"
        ) from None


def _decode(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{place}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def _row(value: Any, place: str) -> Row:
    if _is_chat(value):
        return {"messages": value}
    if not isinstance(value, dict):
        raise SourceError(
            f"{place}: holds a {type(value).__name__}; every row is a JSON object of named columns, or a list of turns"
        )
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    delimiter = "\t" if file_form(path)[0] == ".tsv" else ","
    csv.field_size_limit(_LONGEST_LINE)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
        cells = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = next(cells, [])
            if len({*columns}) < len(columns):
                raise SourceError(
                    f"{path}: two of its columns {', '.join(columns)} have one name; rename one, or write a header where there is none"
                )
            for row in cells:
                if row and len(row) != len(columns):
                    raise SourceError(
                        f"{path}, line {cells.line_num}: {len(row)} cells under {len(columns)} columns; quote texts that hold "
                        "quotes, ends of lines or what stands between cells"
                    )
                if row:
                    yield {column: cell or None for column, cell in zip(columns, row, strict=True)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}, line {cells.line_num + 1}: no table of texts ({error}); save it as CSV in UTF-8"
            ) from None


def _read_arrow(path: Path) -> Iterator[Row]:
    """Parquet; or Arrow IPC in either form: `datasets` caches streams, most other tools write files."""
    from pyarrow import ArrowException, ArrowInvalid, BufferReader, RecordBatch, ipc, memory_map, parquet

    form = "parquet" if file_form(path)[0] == ".parquet" else "Arrow IPC"
    packed = path.suffix in PACKED  # tables are read from their ends, so all of it is unpacked
    try:
        with BufferReader(_open(path).read()) if packed else memory_map(str(path)) as source:
            if form == "parquet":
                batches = parquet.ParquetFile(source).iter_batches()
            else:
                try:
                    table = ipc.open_file(source)
                    batches = (table.get_batch(i) for i in range(table.num_record_batches))
                except ArrowInvalid:
                    source.seek(0)
                    batches = iter(ipc.open_stream(source))
            for batch in batches:
                columns = [_without_nan(column) for column in batch.columns]
                yield from RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not readable as {form} ({first_line(error)}); write it again") from error


def _without_nan(column: Any) -> Any:
    """A column of a table, with nothing in the place of NaN."""
    from pyarrow import compute, types

    return compute.if_else(compute.is_nan(column), None, column) if types.is_floating(column.type) else column


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
}
FORMS = (*_READERS, *DOCUMENTS)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
