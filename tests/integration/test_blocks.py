"""Blocks of rows on a real Ray: every row once, resumed after kill -9, the same as in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ultramed_rl.cluster.blocks import map_blocks, read_part
from ultramed_rl.cluster.connection import connect
from ultramed_rl.config.cluster import Cluster


def lengths(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.table({"id": [row["id"] for row in rows], "length": [len(row["text"]) for row in rows]})


def write_rows(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Rows in JSON lines, some of which are blank, and in parquet of several row groups."""
    rows = [{"id": f"r{i}", "text": "x" * (i % 17)} for i in range(230)]
    lines, columns = folder / "a.jsonl", folder / "b.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" + "\n" * (i % 3) for i, row in enumerate(rows[:100])))
    pq.write_table(pa.Table.from_pylist(rows[100:]), columns, row_group_size=30)
    return [lines, columns], rows


def test_every_row_comes_out_once_and_in_order_from_ray_as_from_this_process(
    tmp_path: Path, ray_cluster: None
) -> None:
    connect(Cluster(device="cpu", cpus_per_node=2))
    files, rows = write_rows(tmp_path)
    here = map_blocks(files, lengths, tmp_path / "here", identity=["lengths"], rows=32)
    there = map_blocks(files, lengths, tmp_path / "there", identity=["lengths"], rows=32, workers=2)
    assert [part.name for part in here] == [part.name for part in there] and len(there) > 8
    for parts in (here, there):
        found = pa.concat_tables(read_part(part) for part in parts).to_pylist()
        assert found == [{"id": row["id"], "length": len(row["text"])} for row in rows]
    with files[0].open("a") as lines:
        lines.write('{"id": \n')
    with pytest.raises(ValueError, match=r"a.jsonl: line \d+ after byte \d+ is not JSON") as caught:
        map_blocks(files, lengths, tmp_path / "there", identity=["lengths"], rows=32, workers=2)
    assert len(str(caught.value).splitlines()) == 1


SLOW = """
import sys, time, os
from pathlib import Path
import pyarrow as pa
from ultramed_rl.cluster.blocks import map_blocks
folder = Path(sys.argv[1])
def slow(rows):
    with open(folder / "calls", "a") as calls:
        calls.write(rows[0]["id"] + "\\n")
    time.sleep(0.15)
    return pa.table({"id": [row["id"] for row in rows]})
map_blocks([folder / "a.jsonl", folder / "b.parquet"], slow, folder / "parts", identity=["slow"], rows=10)
"""


def test_a_killed_run_goes_on_where_it_was_and_loses_and_doubles_nothing(tmp_path: Path) -> None:
    _, rows = write_rows(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "parts").glob("0*.arrow"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "parts").glob("0*.arrow")}
    assert finished
    subprocess.run([sys.executable, "-c", SLOW, str(tmp_path)], check=True)
    parts = sorted((tmp_path / "parts").glob("0*.arrow"))
    assert pa.concat_tables(map(read_part, parts))["id"].to_pylist() == [row["id"] for row in rows]
    assert all((tmp_path / "parts" / name).stat().st_mtime_ns == at for name, at in finished.items())
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) <= len(parts) + 1  # at most the block that was under way is computed twice


def test_other_inputs_or_another_function_compute_all_anew(tmp_path: Path) -> None:
    files, _ = write_rows(tmp_path)
    calls: list[int] = []

    def count(rows: Sequence[dict[str, Any]]) -> pa.Table:
        calls.append(len(rows))
        return lengths(rows)

    for identity in (["one"], ["one"], ["two"]):
        map_blocks(files, count, tmp_path / "parts", identity=identity, rows=1000)
    assert len(calls) == 4  # two files, and both again for "two"
    files[0].write_text('{"id": "new", "text": "abc"}\n')
    parts = map_blocks(files, count, tmp_path / "parts", identity=["two"], rows=1000)
    assert len(calls) == 6 and read_part(parts[0]).to_pylist() == [{"id": "new", "length": 3}]


def test_broken_lines_and_other_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "a", "text": ""}\n{"id": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl: line 2 after byte 0 is not JSON"):
        map_blocks([broken], lengths, tmp_path / "parts", identity=[])
    (tmp_path / "rows.csv").write_text("id\n")
    with pytest.raises(ValueError, match=r"rows.csv: blocks are cut out of"):
        map_blocks([tmp_path / "rows.csv"], lengths, tmp_path / "parts", identity=[])
