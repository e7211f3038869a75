"""Who strikes a run of `chaos.py`: its processes found among all others, and signals to them at random times."""

from __future__ import annotations

import math
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "ULTRAMED_RL_CHAOS"  # an environment variable that the processes of the struck run inherit
WORKERS = {"rollout": 2, "reward": 2, "reference": 1, "policy": 2}
KINDS = (*WORKERS, "driver", "hang")
HANGING = ("rollout", "reward", "reference")
AIMS = ("", "", "", "train", "sync", "evaluate")
STARTING = {"__init__", "start", "load", "join", "rendezvous"}  # methods of a worker that isn't ready yet
TRAINING = {"start_round", "learn_preferences", "train", "save"}
SYNC = {"connect", "meet_engines", "describe_weights", "push_weights", "init_weight_transfer", "pull_weights"}
SECONDS = {"look": 0.1, "patience": 30.0, "pause": 4.0, "aim": 40.0, "stall": 600.0, "leave": 15.0}
RUSH = 0.2  # the share of strikes that don't wait for the recovery from the one before


# -- who is struck -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process of the run. `born` is in clock ticks since boot: with it a pid is never another's."""

    pid: int
    born: int
    title: str

    @property
    def role(self) -> str:
        """That of a worker, by the class in its title; empty for others."""
        worker = self.title.removeprefix("ray::").partition(".")[0]
        return next((role for role in WORKERS if worker == f"{role.capitalize()}Worker"), "")

    @property
    def method(self) -> str:
        """What a worker is at; empty when it is idle."""
        return self.title.partition(".")[2] if self.role else ""


def turns_of_kinds(kinds: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """Kinds of strikes, each as often as the others, in random order."""
    turns: list[str] = []
    while len(turns) < count:
        turns += chance.sample(list(kinds), len(kinds))
    return turns[:count]


def choose_victim(processes: Iterable[Process], kind: str, chance: random.Random) -> Process | None:
    """A random worker of a random role that `kind` may strike; None where there is none."""
    by_role: dict[str, list[Process]] = {}
    for process in processes:
        if process.role in (HANGING if kind == "hang" else (kind,)):
            by_role.setdefault(process.role, []).append(process)
    return chance.choice(by_role[chance.choice(sorted(by_role))]) if by_role else None


def is_whole(processes: Iterable[Process], struck: set[int]) -> bool:
    """Whether every role has all its workers, loaded, and none of the `struck` ones is among them."""
    workers = [p for p in processes if p.role]
    ready = Counter(p.role for p in workers if p.method not in STARTING)
    return ready == WORKERS and not struck & {p.pid for p in workers}


class Household:
    """All processes that descend from one that has `MARK=NAME` in its environment. Nobody else's are ever touched."""

    def __init__(self, name: str) -> None:
        self.mark = f"{MARK}={name}".encode()
        self._known: set[tuple[int, int]] = set()  # also those whose parents have died since

    def look(self) -> list[Process]:
        """Those that live."""
        table = {
            int(path.name): found for path in Path("/proc").glob("[0-9]*") if (found := _read_stat(path))
        }
        ours: dict[int, Process] = {}
        for pid, (parent, born) in sorted(table.items(), key=lambda item: item[1][1]):
            if parent in ours or (pid, born) in self._known or self.mark in _read(pid, "environ"):
                self._known.add((pid, born))
                title = _read(pid, "cmdline").replace(b"\0", b" ").strip().decode(errors="replace")
                ours[pid] = Process(pid, born, title)
        return list(ours.values())

    def send(self, process: Process, number: signal.Signals) -> bool:
        """Whether the process was there to get the signal."""
        stat = _read_stat(Path("/proc") / str(process.pid))
        if stat is None or stat[1] != process.born:
            return False
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
            return True
        return False

    def end(self, seconds: float) -> list[str]:
        """Wait until all are gone, end those that stay longer than that; returns the titles of these."""
        deadline = time.monotonic() + seconds
        while self.look() and time.monotonic() < deadline:
            time.sleep(SECONDS["look"])
        stayed = [process.title for process in self.look()]
        while left := self.look():
            for process in left:
                self.send(process, signal.SIGKILL)
            time.sleep(SECONDS["look"])
        return stayed


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _read_stat(path: Path) -> tuple[int, int] | None:
    """A process's parent and birth; None if it is gone, or dead and only not yet buried."""
    try:
        fields = (path / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


# -- the driver --------------------------------------------------------------------------------------------


def start_driver(config: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`ultramed-rl run`, or its going on; what it says goes to the end of a log beside the config."""
    command = [sys.executable, "-m", "ultramed_rl.cli", "run", str(config), "--resume"]
    with config.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def log_end(config: Path, lines: int = 30) -> str:
    """The last lines of a run's log."""
    return "\n".join(config.with_suffix(".log").read_text(errors="replace").splitlines()[-lines:])


# -- the killer --------------------------------------------------------------------------------------------


@dataclass
class Strike:
    """One of the killer's, in unix seconds.

    `replacing`: since when a new process of the victim's role is there; `whole`: all workers are whole again; 0 where
    it was not seen. `pids` lived before.
    """

    kind: str
    at: float
    phase: str
    victim: Process
    pids: frozenset[int]
    replacing: float = 0.0
    whole: float = 0.0

    def look(self, processes: Iterable[Process], whole: bool) -> None:
        """Note what is to be seen now."""
        new = (p for p in processes if p.pid not in self.pids)
        if not self.replacing and any(p.role == self.victim.role for p in new):
            self.replacing = time.time()
        if whole:
            self.whole = time.time()


@dataclass
class Killer:
    """Strikes the run of a config until it is over."""

    config: Path
    directory: Path
    rounds: int
    chance: random.Random
    household: Household = field(default_factory=lambda: Household(secrets.token_hex(8)))
    strikes: list[Strike] = field(default_factory=list)
    gave_up: int = 0  # times that the driver ended with an error
    stayed: list[str] = field(default_factory=list)  # processes that outlived their driver

    def run(self, kinds: Sequence[str]) -> None:
        """Make all strikes, or as many as the run lasts for, then wait for the end.

        Raises:
            RuntimeError: the run stands still, or gives up again and again.
        """
        try:
            self._start()
            for number, kind in enumerate(kinds):
                # The last quarter of the rounds is there for strikes that come late.
                self._wait_for_moment(number * (3 * self.rounds // 4) // len(kinds))
                if not self._strike(kind):
                    break
            while not self.over:
                self._tick()
        finally:
            self.household.end(0.0 if sys.exc_info()[0] else SECONDS["leave"])

    def _start(self) -> None:
        name = self.household.mark.partition(b"=")[2].decode()
        self.over, self.workers_met, self.processes = False, False, list[Process]()
        self.driver = start_driver(self.config, {MARK: name})
        self._moved = time.monotonic()

    def _strike(self, kind: str) -> bool:
        """Whether there was still somebody to strike."""
        victim = None
        while victim is None:
            self._until(lambda: kind == "driver" or self.workers_met, math.inf)
            if self.over:
                return False
            if kind == "driver":
                victim = next((p for p in self.processes if p.pid == self.driver.pid), None)
            else:
                victim = choose_victim(self.processes, kind, self.chance)
            if victim is None or not self.household.send(
                victim, signal.SIGSTOP if kind == "hang" else signal.SIGKILL
            ):
                victim = None
                self._tick()
        pids = frozenset(p.pid for p in self.processes)
        self.strikes.append(Strike(kind, time.time(), self.phase, victim, pids))
        print(f"kill {len(self.strikes)}: {kind} in {self.phase}: {victim.title[-60:]}", flush=True)
        if kind == "driver":
            self.driver.wait()
            self.stayed += self.household.end(SECONDS["leave"])
            self._start()
        return True

    def _wait_for_moment(self, due: int) -> None:
        """A random time, not before `due` rounds are done."""
        self._until(lambda: committed_rounds(self.directory) >= due, math.inf)
        rushed = bool(self.strikes) and self.chance.random() < RUSH
        self._until(lambda: self.workers_met and not self._open, 0.0 if rushed else SECONDS["patience"])
        self._until(lambda: False, self.chance.uniform(0.0, SECONDS["pause"]))
        aim = self.chance.choice(AIMS)
        if aim and not rushed:
            self._until(lambda: self.phase == aim, SECONDS["aim"])
            self._until(lambda: False, self.chance.uniform(0.0, 0.5))

    @property
    def _open(self) -> list[Strike]:
        return [strike for strike in self.strikes if not strike.whole]

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not (self.over or condition()) and time.monotonic() < deadline:
            self._tick()

    def _tick(self) -> None:
        """Look around: who is there, whether all workers are whole, whether the driver has ended."""
        time.sleep(SECONDS["look"])
        status = self.driver.poll()
        if status is not None:
            self._ended(status)
            return
        before, self.processes = self.processes, self.household.look()
        struck = {strike.victim.pid for strike in self._open}
        # Twice in a row: a worker is idle for a moment before it is told to load.
        whole = is_whole(before, struck) and is_whole(self.processes, struck)
        self.workers_met |= whole
        for strike in self._open:
            strike.look(self.processes, whole)
        if {p.title for p in before} != {p.title for p in self.processes}:
            self._moved = time.monotonic()
        if time.monotonic() - self._moved > SECONDS["stall"]:
            raise RuntimeError(f"the run stands still; its log ends:\n{log_end(self.config)}")

    def _ended(self, status: int) -> None:
        self.over = status == 0
        if self.over:
            return
        self.gave_up += 1
        print(f"the driver ended with status {status}:\n{log_end(self.config)}", flush=True)
        if self.gave_up > 5:
            raise RuntimeError("the run gave up again and again")
        self.stayed += self.household.end(SECONDS["leave"])
        self._start()

    @property
    def phase(self) -> str:
        """What the round is at: start, rollout, train, sync, evaluate."""
        if not self.workers_met:
            return "start"
        methods = {p.method for p in self.processes if p.role in ("policy", "rollout")}
        if methods & SYNC:
            return "sync"
        if methods & TRAINING:
            return "train"
        return phase_on_disk(self.directory)


def committed_rounds(directory: Path) -> int:
    """How many rounds of a run are done."""
    return len(list((directory / "rounds").glob("*/commit.json")))


def phase_on_disk(directory: Path) -> str:
    """The phase after the last one whose manifest is there."""
    if not (directory / "initial" / "evaluation.json").is_file():
        return "evaluate"
    rounds = sorted((directory / "rounds").glob("[0-9]*"))
    if not rounds or (rounds[-1] / "commit.json").is_file():
        return "rollout"
    steps = {"evaluation": "commit", "checkpoint": "evaluate", "reference": "train", "scored": "reference"}
    return next(
        (phase for name, phase in steps.items() if (rounds[-1] / f"{name}.json").is_file()), "rollout"
    )
