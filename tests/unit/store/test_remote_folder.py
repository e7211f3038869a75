"""The right to write at a URL, by one process at a time; a store that fails; URLs that nothing opens."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.rounds import finish_round
from tests.staged import (
    URL,
    Staged,
    config,
    owner,
    there,
)
from ultramed_rl.config import ConfigError
from ultramed_rl.store import RunDirectory
from ultramed_rl.store.remote import (
    RemoteCopy,
)
from ultramed_rl.store.remote_folder import WRITER, Lease, LostLease, RemoteFolder, Writer

# -- the lease -----------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_by_name_until_the_first_has_ended(tmp_path: Path) -> None:
    with RunDirectory.open(config(tmp_path, "a"), resume=False):
        with pytest.raises(
            ValueError, match=rf"^{URL}: .*\b{os.getpid()} .*{socket.gethostname()}"
        ) as refused:
            RunDirectory.open(config(tmp_path, "b"), resume=True)
        assert "\n" not in str(refused.value)
    with RunDirectory.open(config(tmp_path, "b"), resume=True):
        pass


@pytest.mark.parametrize(
    ("age_s", "released", "refused"),
    [(0, False, True), (15, False, True), (30, False, False), (0, True, False)],
)
def test_a_lease_lasts_three_renewals(age_s: float, released: bool, refused: bool) -> None:
    at_url = RemoteFolder(URL)
    at_url.write_json(WRITER, asdict(owner(renewed=time.time() - age_s, released=released)))
    if refused:
        with pytest.raises(ValueError, match=rf"^{URL}: .*\b17 .*\bother\b"):
            Lease(at_url, "ours", 10.0)
    else:
        Lease(at_url, "ours", 10.0).release()


def test_the_lease_of_a_process_of_the_same_folder_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    """Whether it was killed when it had pulled the run, or before."""
    url = f"file://{tmp_path}/run"
    for step in ("", "copy.take_up()"):
        code = textwrap.dedent(
            f"""
            import os
            from pathlib import Path
            from ultramed_rl.store.remote import RemoteCopy
            copy = RemoteCopy("{url}", Path("{tmp_path}/a"), 60.0)
            {step}
            os.kill(os.getpid(), 9)
            """
        )
        (tmp_path / "a").mkdir(exist_ok=True)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert not json.loads((tmp_path / "run" / WRITER).read_text())["released"]
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=f"^{url}: .*{socket.gethostname()}"):
        RemoteCopy(url, tmp_path / "b", 60.0)
    RemoteCopy(url, tmp_path / "a", 60.0).lease.release()


def test_a_lease_is_renewed_while_an_upload_goes_on(tmp_path: Path) -> None:
    at_url = RemoteFolder(URL)
    lease = Lease(at_url, "ours", 0.05)
    first, deadline = at_url.read_json(WRITER, Writer), time.monotonic() + 60
    assert first
    while (at_url.read_json(WRITER, Writer) or first).renewed <= first.renewed:
        assert time.monotonic() < deadline, "it was never renewed"
        time.sleep(0.01)
    lease.release()


def test_a_writer_that_was_overtaken_publishes_nothing_more_and_says_so(tmp_path: Path) -> None:
    overtaken = pytest.raises(RuntimeError, match=rf"^{URL}: .*\b17 .*\bother\b")
    with overtaken as ended, RunDirectory.open(config(tmp_path), resume=False) as store:
        RemoteFolder(URL).write_json(WRITER, asdict(owner()))
        finish_round(store, 0, {"round": 0.0})
    assert isinstance(ended.value.__cause__, LostLease)
    assert there() == {}
    assert json.loads(Staged.store["/bucket/runs/tiny/writer.json"].getvalue())["host"] == "other"


def test_the_loser_of_a_race_for_a_new_run_is_refused(tmp_path: Path) -> None:
    at_url = RemoteFolder(URL)

    def overtake(step: str, path: str) -> None:
        Staged.before = staticmethod(lambda step, path: None)
        at_url.write_json(WRITER, asdict(owner()))

    Staged.before = staticmethod(overtake)
    with pytest.raises(ValueError, match=rf"^{URL}: .*\b17 .*\bother\b"):
        Lease(at_url, "ours", 10.0)


# -- a store that fails --------------------------------------------------------------------------------------


def test_a_failure_that_passes_is_tried_again_and_nobody_hears_of_it(tmp_path: Path) -> None:
    failures = iter([True, True])

    def fail(step: str, path: str) -> None:
        if next(failures, False):
            raise ConnectionError("the network is down")

    (tmp_path / "a.txt").write_text("a")
    Staged.before = staticmethod(fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copying = RemoteCopy(URL, tmp_path, 30.0)
        copying.take_up()
        copying.start()
        copying.close()
    assert there() == {"a.txt": b"a"}


def test_a_failure_that_stays_is_warned_of_once_never_stops_the_run_and_is_the_end_of_it(
    tmp_path: Path,
) -> None:
    copying = RemoteCopy(URL, tmp_path, 0.02)
    copying.take_up()
    tries: list[str] = []

    def fail(step: str, path: str) -> None:
        if not path.endswith(WRITER) and ".tmp-" in path and WRITER not in path:
            tries.append(path)
            raise ConnectionError("the network is down")

    Staged.before = staticmethod(fail)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        (tmp_path / "a.txt").write_text("a")
        copying.start()
        deadline = time.monotonic() + 20
        while len(tries) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RuntimeError) as ended:
            copying.close()
    assert len(tries) >= 10, "five tries a publication, and publication after publication"
    (warning,) = heard
    assert re.match(rf"{URL}: .*\(the network is down\).*\b0\.02 s\b", str(warning.message))
    assert re.match(rf"{URL}: .*\(the network is down\).*{tmp_path} .*--resume", str(ended.value))


def test_a_runs_own_error_is_not_hidden_by_a_copy_that_is_not_whole(tmp_path: Path) -> None:
    def fail(step: str, path: str) -> None:
        if step == "put":
            raise ConnectionError("the network is down")

    with (
        pytest.warns(UserWarning, match=rf"^{URL}: .*\(the network is down\).*--resume"),
        pytest.raises(RuntimeError, match="its own"),
        RunDirectory.open(config(tmp_path), resume=False),
    ):
        Staged.before = staticmethod(fail)
        raise RuntimeError("its own")


def test_after_an_outage_everything_is_published(tmp_path: Path) -> None:
    copying = RemoteCopy(URL, tmp_path, 0.02)
    copying.take_up()
    down = [True]

    def fail(step: str, path: str) -> None:
        if down and step == "put":
            raise ConnectionError("the network is down")

    Staged.before = staticmethod(fail)
    (tmp_path / "a.txt").write_text("a")
    with pytest.warns(UserWarning, match=rf"^{URL}: .*\(the network is down\).*\b0\.02 s\b"):
        copying.start()
        deadline = time.monotonic() + 20
        while copying.problem is None and time.monotonic() < deadline:
            time.sleep(0.01)
        down.clear()
        while "a.txt" not in there() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert there() == {"a.txt": b"a"}
    copying.close()


def test_a_store_that_cannot_be_reached_stops_a_run_before_it_starts_in_one_line(tmp_path: Path) -> None:
    def fail(step: str, path: str) -> None:
        raise PermissionError("403 Forbidden")

    Staged.before = staticmethod(fail)
    with pytest.raises(RuntimeError, match=rf"^{URL}: .*\(PermissionError: 403 Forbidden\)"):
        RunDirectory.open(config(tmp_path), resume=False)


# -- what can be kept there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "named"),
    [
        ("s3://bucket/runs", r"ultramed_rl\[s3\]"),
        ("gs://bucket/runs", r"ultramed_rl\[gs\]"),
        ("nosuch://bucket/runs", "s3://.*gs://"),
    ],
)
def test_a_url_that_nothing_opens_is_refused_with_the_fix(tmp_path: Path, directory: str, named: str) -> None:
    package = {"s3": "s3fs", "gs": "gcsfs"}.get(directory.partition(":")[0])
    if package and importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"^{directory}.*{named}") as refused:
        RemoteFolder(directory)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=f"^{directory}.*{named}"):
        RunDirectory.open(config(tmp_path, url=directory), resume=False)
    assert not list((tmp_path / "a").rglob("config.yaml"))


def test_a_url_with_one_slash_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.directory='s3:/bucket/runs': "):
        config(tmp_path, url="s3:/bucket/runs")


def test_two_urls_never_share_a_folder(tmp_path: Path) -> None:
    urls = ("s3://b/runs", "gs://b/runs", "s3://b@c/runs", "s3://b_c/runs", "s3://b/runs/more")
    folders = {config(tmp_path, url=url).run.folder for url in urls}
    assert len(folders) == len(urls) and all(tmp_path / "a" in folder.parents for folder in folders)
    assert config(tmp_path, url="s3://b/runs/").run.url == "s3://b/runs/tiny"
