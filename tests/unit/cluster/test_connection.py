"""Where a run's own Ray keeps its files, what stays of them, and who gets its token. No Ray is started."""

from __future__ import annotations

import fcntl
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray

from tests.unit.cluster.test_plan import gpu_run
from ultramed_rl.cluster import connection
from ultramed_rl.cluster.connection import Placement, choose_parent, remove_spilled, stop_private_ray
from ultramed_rl.cluster.jobs import JobServer
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config.cluster import ATTENTION, KERNELS, Devices
from ultramed_rl.tracking.heartbeat import watched

# 107 bytes of a socket's path, less /umrl-12345678 (14), /ray (4), the session's name (43) and /sockets/plasma_store
# (21).
LONGEST = 25


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is shorter than that of pytest's."""
    with tempfile.TemporaryDirectory(prefix="u-", dir="/tmp") as folder:
        yield Path(folder)


def folder_of(path: Path, length: int) -> Path:
    """A folder in `path` whose own path has this length."""
    found = path / ("x" * (length - len(str(path)) - 1))
    found.mkdir()
    return found


def test_ray_tmpdir_wins_up_to_the_length_that_sockets_allow(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest, longer = folder_of(short, LONGEST), folder_of(short, LONGEST + 1)
    monkeypatch.setenv("RAY_TMPDIR", str(longest))
    assert choose_parent() == longest
    for path in (longer, short / "absent"):
        monkeypatch.setenv("RAY_TMPDIR", str(path))
        with pytest.raises(ValueError, match=rf"RAY_TMPDIR={path}: .*\b{LONGEST}\b"):
            choose_parent()


def test_a_long_or_full_tmpdir_is_passed_over(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    full = {short: 0.96}
    monkeypatch.setattr(connection, "full_share", lambda folder: full.get(folder, 0.5))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    assert choose_parent() == Path("/tmp")
    full[Path("/tmp")] = full[Path("/var/tmp")] = 1.0
    assert choose_parent() == short, "all are full: the first"
    full.clear()
    assert choose_parent() == short
    monkeypatch.setattr(tempfile, "tempdir", str(folder_of(short, LONGEST + 1)))
    assert choose_parent() == Path("/tmp")


def test_what_a_killed_process_spilled_goes_and_a_living_ones_stays(short: Path) -> None:
    for name in ("umrl-dead", "umrl-alive", "somebodys"):
        (short / name / "spilled").mkdir(parents=True)
        (short / name / "lock").touch()
    with (short / "umrl-alive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_spilled(short)
    assert sorted(str(path.relative_to(short)) for path in short.glob("*/*")) == [
        *("somebodys/lock", "somebodys/spilled", "umrl-alive/lock", "umrl-alive/spilled", "umrl-dead/lock")
    ]


def started(folder: Path) -> Path:
    """A folder as that of a Ray which was started now; returns its logs."""
    logs = folder / connection.LOGS
    logs.mkdir(parents=True)
    (folder / "spilled").mkdir()
    lock = (folder / "lock").open("w")
    connection._started.append(connection._Started(folder, lock, time.monotonic()))
    return logs


def test_logs_stay_after_a_failure_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, error in (("failed", RuntimeError), ("stopped", KeyboardInterrupt)):
        logs = started(tmp_path / name)
        with pytest.raises(error), watched(tmp_path):
            raise error
        stop_private_ray()
        assert logs.is_dir() == (name == "failed")
        assert (str(logs) in capsys.readouterr().out) == (name == "failed")
    assert not (tmp_path / "failed" / "spilled").exists() and not (tmp_path / "stopped").exists()
    logs = started(tmp_path / "later")
    stop_private_ray()
    assert not logs.exists(), "the failure was that of an earlier one"


def test_another_cluster_gets_the_users_token_and_never_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str | None] = []

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "4", "ray_version": "2.55.0"}')

    monkeypatch.setenv("HOME", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with monkeypatch.context() as ours, connection._closed():
            # As while a Ray of our own is up: Ray's client has read its token.
            assert ray._raylet.AuthenticationTokenLoader.instance().has_token()
            for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
                ours.delenv(name, raising=False)
            JobServer(address)
            ours.setenv("RAY_AUTH_TOKEN", "the user's")
            JobServer(address)
        server.shutdown()
    connection._read_token_settings()
    assert shown == ["", "", "Bearer the user's", "Bearer the user's"]  # two requests each


def test_the_address_of_a_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for cluster, key in (
        (Devices(address="http://head:8265"), "cluster.address"),
        (Devices(), "RAY_ADDRESS"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
        with pytest.raises(ValueError, match=rf"^{key}='http://head:8265': .*6379"):
            connection.connect(cluster)


def test_workers_find_in_their_environment_what_computes_attention_and_layers() -> None:
    config = gpu_run(cluster__attention="flash_attn_3", cluster__kernels="liger")
    placement = Placement.__new__(Placement)
    placement.plan = make_plan(config)
    placement.cpus_per_slot, placement.share, placement.groups = 1.0, 1.0, [None]
    for role in placement.plan.roles:
        found = placement._options(role.members[0])["runtime_env"]["env_vars"]
        assert (found[ATTENTION], found[KERNELS]) == ("flash_attn_3", "liger")
