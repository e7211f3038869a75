"""Runs kept in a bucket of a real S3 server (moto's), through s3fs: killed and taken up elsewhere, by a store that often fails."""

from __future__ import annotations

import itertools
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rounds import finish_round
from tests.simulated.cases import Cases
from tests.simulated.outcome import check_same, read_outcome
from tests.simulated.run import Simulation
from tests.staged import config, here, there
from ultramed_rl.store import RunDirectory
from ultramed_rl.store import remote as remote_module
from ultramed_rl.store.remote import INDEX, Index, RemoteCopy, fetch_files
from ultramed_rl.store.remote_folder import WRITER, Lease, RemoteFolder, Writer

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
BUCKET = "s3://bucket"


class Bucket:
    """moto's S3, whose requests a test may refuse or cut off.

    `fault` is given each request's method and number, and says: "" it is served; "503" it is refused; "cut" the connection is
    lost before it is served; "unheard" after it was, so that nobody hears of it.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.app = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[str, int], str] = lambda method, number: ""
        self.faults: list[str] = []
        self.numbers = itertools.count()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        fault = self.fault(environ["REQUEST_METHOD"], next(self.numbers))
        self.faults += [fault] if fault else []
        if fault == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        if fault == "unheard":
            list(self.app(environ, lambda *_: None))
        if fault:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Bucket, str]]:
    from werkzeug.serving import make_server

    bucket = Bucket()
    server = make_server("127.0.0.1", 0, bucket, threaded=True)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield bucket, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def bucket(served: tuple[Bucket, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The server, found as `FSSPEC_S3_ENDPOINT_URL` would have it; what fails is tried again at once."""
    from fsspec import filesystem
    from fsspec.config import conf

    bucket, address = served
    settings = {"endpoint_url": address, "key": "key", "secret": "secret"}
    monkeypatch.setitem(conf, "s3", {**settings, "client_kwargs": {"region_name": "eu-west-1"}})
    monkeypatch.setattr("ultramed_rl.store.remote_folder.LONGEST_WAIT_S", 0.0)
    files = filesystem("s3")
    files.makedirs("bucket", exist_ok=True)
    yield bucket
    bucket.fault = lambda method, number: ""
    bucket.faults.clear()
    files.rm("bucket", recursive=True)
    files.invalidate_cache()


def now_and_then(fault: str, every: int, *methods: str) -> Callable[[str, int], str]:
    return lambda method, number: (
        fault if number % every == 0 and method in (methods or ("GET", "PUT", "HEAD")) else ""
    )


FAULTS = {
    "sound": lambda method, number: "",
    "busy": now_and_then("503", 3),
    "cut": now_and_then("cut", 4),
    "unheard": now_and_then("unheard", 3, "PUT", "DELETE"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_is_published_and_resumed_elsewhere(tmp_path: Path, bucket: Bucket, name: str) -> None:
    bucket.fault, url = FAULTS[name], f"{BUCKET}/{name}"
    path = publish_and_resume(tmp_path, url)
    assert (name == "sound") == (not bucket.faults)
    bucket.fault = FAULTS["sound"]
    assert there(f"{url}/tiny") == here(path)


def publish_and_resume(tmp_path: Path, url: str) -> Path:
    """The folder of a run of two rounds, of which the second was made elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a failure that passes is nobody's business
        with RunDirectory.open(config(tmp_path, "a", url), resume=False) as one:
            finish_round(one, 0, {"round": 0.0})
        published = here(one.path)
        with RunDirectory.open(config(tmp_path, "b", url), resume=True) as other:
            assert other.path != one.path and other.committed_rounds() == 1
            other.round(0).directory("checkpoint")
            finish_round(other, 1, {"round": 1.0})
    assert published.keys() < here(other.path).keys()
    return other.path


def test_so_it_is_in_googles_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator keeps the files. It lets one be made twice, so nothing is shown of the lease."""
    emulator, gcsfs = pytest.importorskip("gcp_storage_emulator.server"), pytest.importorskip("gcsfs.core")
    from fsspec.config import conf
    from fsspec.registry import _registry

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    # Its subclass for zones asks by gRPC first, which the emulator doesn't know.
    monkeypatch.setitem(_registry, "gs", gcsfs.GCSFileSystem)
    monkeypatch.setitem(conf, "gs", {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon"})
    with emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
        path = publish_and_resume(tmp_path, "gs://bucket/runs")
        assert there("gs://bucket/runs/tiny") == here(path)


def test_of_two_who_begin_at_once_one_publishes(bucket: Bucket) -> None:
    """Each sees no other, and both create the lease: the store lets one."""
    at_url, start, outcomes = RemoteFolder(f"{BUCKET}/race"), threading.Barrier(2), list[Any]()
    read = RemoteFolder.read_json

    class Together(RemoteFolder):
        def read_json(self, name: str, kind: Any) -> Any:
            found = read(self, name, kind)
            if found is None:
                start.wait(30)
            return found

    def take(number: int) -> None:
        try:
            outcomes.append(Lease(Together(at_url.url), f"folder {number}", 30.0))
        except ValueError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    owner = at_url.read_json(WRITER, Writer)
    assert owner is not None and owner.token == lease.mine.token and len(outcomes) == 2
    lease.release()


def abandon(copying: RemoteCopy, failed: bool = False) -> None:
    """What is left of a copy whose process was killed: no last publication, and a lease that nobody gives back."""
    copying._over.set()
    copying.lease._over.set()
    for thread in (copying._thread, copying.lease._thread):
        if thread is not None:
            thread.join()


def test_a_run_that_is_killed_goes_on_elsewhere_to_the_same_end(
    known: Cases, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever its publication was, at thirds of its changes of the disk; the next machine has an empty one."""
    expected, whole = known.unbroken("dpo")
    url, close = f"{BUCKET}/runs", RemoteCopy.close
    kills = [whole.disk.changes // 3, whole.disk.changes // 3, None]
    for machine, kill_at in enumerate(kills):
        path = tmp_path / str(machine)
        places = {"run__directory": url, "run__scratch": str(path), "run__publish_every_s": 0.1}
        simulation = Simulation(known.models, path, {**known.at("dpo", path).changes, **places})
        monkeypatch.setattr(remote_module.RemoteCopy, "close", abandon if kill_at else close)
        with warnings.catch_warnings():  # that it waits for the lease of the one before
            warnings.simplefilter("ignore")
            assert simulation.run(resume=True, kill_at=kill_at).killed == (kill_at is not None)
    remote = RemoteFolder(f"{url}/tiny")
    index = remote.read_json(INDEX, Index)
    assert index is not None
    fetch_files(remote, index, tmp_path / "read", index.files)
    check_same(read_outcome(tmp_path / "read"), expected, "two kills")
