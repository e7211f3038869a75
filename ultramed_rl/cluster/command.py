"""A foreign command on the GPUs of one node: it has an actor to itself, and ends with it."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from ultramed_rl.cluster.connection import connect
from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import keep_sigterm

_POLL_S = 0.2
_STOP_S = 15.0
_SHOWN_LINES = 20
_BIN = Path(sys.executable).parent
# While process $1 lives, wait; then end the group $2, if it is still there: Ray knows nothing of a command's own processes,
# which would keep the GPUs. In the background of a shell that ends at once, so that it outlives $1.
_WATCH = """(while kill -s 0 $1 && kill -s 0 -- -$2; do sleep 1; done
kill -s TERM -- -$2 && sleep 10 && kill -s KILL -- -$2) < /dev/null > /dev/null 2>&1 &"""


class Command:
    """The actor of a command; `stop` is called while `run` runs."""

    process: subprocess.Popen[bytes]

    def run(self, command: Sequence[str]) -> Iterator[str | int]:
        """Its output as it comes, a first part, perhaps empty, when it has started; at last its exit code."""
        # A file, not a pipe: what the command leaves running may hold a pipe open.
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            watch = ("sh", "-c", _WATCH, "watch", str(os.getpid()), str(self.process.pid))
            subprocess.run(watch, check=True, start_new_session=True)
            yield ""
            decoder, shown, ended = codecs.getincrementaldecoder("utf-8")("replace"), 0, False
            while not ended:
                ended = self.process.poll() is not None  # before it is read: then this is its last part
                while data := os.pread(log.fileno(), 2**20, shown):
                    shown += len(data)
                    yield decoder.decode(data)
                time.sleep(_POLL_S)
        yield self.process.returncode

    def stop(self) -> None:
        """Ask the command, and all that it has started, to end; end them where they have not after some seconds."""
        deadline = time.monotonic() + _STOP_S
        with suppress(ProcessLookupError):  # they are gone
            os.killpg(self.process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                self.process.poll()
                os.killpg(self.process.pid, 0)
                time.sleep(_POLL_S)
            os.killpg(self.process.pid, signal.SIGKILL)


def run_command(
    command: Sequence[str],
    cluster: Devices,
    *,
    gpus: int,
    variables: Mapping[str, str],
    say: Callable[[str], Any] = sys.stdout.write,
) -> None:
    """Run a command on one node of the Ray cluster, see `connect`, until it ends; its output goes to `say` as it comes.
    Ctrl-C and SIGTERM stop it, and whatever ends this process ends it too.

    Args:
        gpus: what it is given, with a CPU for each, and at least one.
        variables: added to that node's environment. Whoever reaches Ray can read them: no secret belongs there.

    Raises:
        RuntimeError: the cluster has no room for it, its node was lost, or it failed, with its last lines.
    """
    connect(cluster)
    keep_sigterm()
    cpus = min(max(1, gpus), cluster.cpus_per_node or gpus or 1)
    # Ray puts the node's own PATH in; a folder that a node hasn't got does no harm there.
    environment = {"env_vars": {**variables, "PATH": f"{_BIN}:${{PATH}}"}}
    room = {"num_gpus": gpus, "num_cpus": cpus, "max_concurrency": 2, "runtime_env": environment}
    actor, name = ray.remote(Command).options(**room).remote(), " ".join(command)[:80]
    last, runs, code = deque[str](maxlen=_SHOWN_LINES), False, 0
    try:
        parts = actor.run.options(num_returns="streaming").remote(list(command))
        if not ray.wait([parts], timeout=cluster.start_timeout_s)[0]:
            raise RuntimeError(
                f"{name}: no node had {gpus} GPUs and {cpus} CPUs free within "
                f"cluster.start_timeout_s={cluster.start_timeout_s:g}; start such a node or ask for fewer ranks"
            )
        runs = True
        for part in parts:
            if isinstance(text := ray.get(part), int):
                code, runs = text, False
            else:
                say(text)
                last.extend(line for line in text.replace("\r", "\n").splitlines() if line.strip())
        if code:
            raise RuntimeError(
                f"{name}: exit code {code}; mend what its last lines name and run the same command again:\n"
                + "\n".join(last)
            )
    except RayActorError as error:
        runs = False
        raise RuntimeError(f"{name}: its node is lost ({str(error).splitlines()[0]}); run it again") from None
    finally:
        if runs:
            with suppress(Exception):
                ray.get(actor.stop.remote(), timeout=_STOP_S + 5.0)
        ray.kill(actor)
