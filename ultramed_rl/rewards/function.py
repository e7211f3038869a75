"""A reward function out of a file of the user's own, in processes of its own: what it does to them, a run outlives."""

from __future__ import annotations

import ast
import json
import math
import os
import queue
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from ultramed_rl.config.document import why_unreadable
from ultramed_rl.config.rewards import PythonTerm
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import Scores, with_prompts

_LOAD_S = 120.0  # that a file may take at least: it may import much
_PROCESS = Path(__file__).with_name("function_process.py")
_TOTAL = "reward"  # of named numbers, the one that counts
_FORM = "def {}(prompt, answers): ... with one number for each answer"


def check_function(path: str, key: str) -> tuple[Path, str]:
    """The file and the name of FILE.py:NAME. The file is read and never run. Raises ValueError: it cannot be read, is no Python,
    or defines no such function; `key` is the config's name for it."""
    file, _, name = path.rpartition(":")
    where = Path(file).expanduser().absolute()
    if (reason := why_unreadable(where)) is not None:
        raise ValueError(
            f"{key}={path!r}: {reason}; give a Python file and its function, as my_reward.py:score"
        )
    try:
        body = ast.parse(where.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{key}={path!r}: no Python ({error}); mend the file") from None
    if {name, "*"}.isdisjoint(_names(body)):
        raise ValueError(f"{key}={path!r}: defines no {name!r}; write {_FORM.format(name)}")
    return where, name


def _names(body: Sequence[ast.stmt]) -> list[str]:
    """What a module's statements bind, those in its ifs, tries and withs included."""
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        else:
            names += [
                n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            ]
            blocks = [node, *getattr(node, "handlers", [])]
            names += [
                name
                for block in blocks
                for part in ("body", "orelse", "finalbody")
                for name in _names(getattr(block, part, []))
            ]
    return names


class Misbehaved(Exception):
    """What a function did instead of giving its numbers."""


class PythonFunction:
    """Asks the function of each prompt's answers, `concurrency` prompts at a time, each in a process.

    The function gets the prompt as a dict (`prompt_id`, `messages`, `reference`, and the columns that its source keeps) and the
    answers as texts. It may be async. It gives a number for each answer, or named numbers, of which `reward` counts, or else
    their sum. What it does instead of that is a reason to ask again, `retries` times, and then to set the prompt aside.
    """

    def __init__(self, config: PythonTerm) -> None:
        """Starts a first process, which runs the file. Raises ValueError: there is no such function, or its file fails."""
        self.config = config
        self.file, self.name = check_function(config.path, f"reward.terms, {config.name}: path")
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        try:
            self._idle.put(_Process(self.file, self.name, config.timeout_s))
        except Misbehaved as error:
            raise ValueError(f"{config.path}: {error}; mend the file") from None

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """The function's numbers; why a prompt's answers have none stands in `errors`."""
        places = sorted(range(len(completions)), key=lambda i: completions[i].prompt_id)
        pairs = with_prompts(prompts, completions)
        groups = [list(group) for _, group in groupby(places, key=lambda i: completions[i].prompt_id)]
        scores = Scores.empty(len(completions))
        asked = [(pairs[group[0]][0], [completions[i].text for i in group]) for group in groups]
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="function") as threads:
            found = list(threads.map(lambda one: self._ask(*one), asked))
        for group, (prompt, _), values in zip(groups, asked, found, strict=True):
            if isinstance(values, str):
                scores.errors[prompt.prompt_id] = values
                continue
            for place, value in zip(group, values, strict=True):
                named = value if isinstance(value, dict) else {}
                scores.details[place] = {f"{self.config.name}.{name}": n for name, n in named.items()}
                scores.values[place] = _total(value)
        return scores

    def _ask(self, prompt: Prompt, answers: list[str]) -> list[Any] | str:
        """The numbers of a prompt's answers, or what went wrong the last time."""
        known = {"prompt_id": prompt.prompt_id, "messages": prompt.messages, "reference": prompt.answer}
        payload = json.dumps([prompt.columns | known, answers]).encode()
        error = ""
        for _ in range(self.config.retries + 1):
            try:
                return self._attempt(payload, len(answers))
            except Misbehaved as misbehaved:
                error = f"{self.config.path}, asked of {prompt.messages[-1]['content'][:60]!r}: {misbehaved}"
        return error

    def _attempt(self, payload: bytes, count: int) -> list[Any]:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process(self.file, self.name, self.config.timeout_s)
        try:
            values = process.ask(payload)["values"]
        finally:
            if process.alive:
                self._idle.put(process)
        if len(values) != count:
            raise Misbehaved(f"gave {len(values)} numbers for {count} answers")
        for value in values:
            if not math.isfinite(_total(value)):
                raise Misbehaved(f"gave {value}, which is no finite number")
        return list(values)


def _total(value: Any) -> float:
    if isinstance(value, dict):
        value = value.get(_TOTAL, math.fsum(value.values()) if value else math.nan)
    return float(value)


class _Process:
    """One process of the function, which answers one question after another."""

    def __init__(self, file: Path, name: str, timeout_s: float) -> None:
        """Raises Misbehaved: the file cannot be run."""
        self.timeout_s = timeout_s
        self._connection, theirs = Pipe()
        assert isinstance(theirs, Connection)
        command = [sys.executable, "-P", str(_PROCESS), str(theirs.fileno()), str(file), name]
        # What it prints goes where warnings go: our own output may be read by a program.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the run, which ends it
        )
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        self._receive(max(_LOAD_S, timeout_s))

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._end.alive

    def ask(self, payload: bytes) -> dict[str, Any]:
        """Raises Misbehaved: it raised, ended, or gave nothing in time; in the last two cases it is gone."""
        try:
            self._connection.send_bytes(payload)
        except OSError:
            raise self._gone() from None
        return self._receive(self.timeout_s)

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            if not self._connection.poll(seconds):
                self._end()
                raise Misbehaved(f"gave nothing within timeout_s={seconds:g}, and was stopped")
            reply: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._gone() from None
        if reply["error"]:
            raise Misbehaved(f"raised {reply['error']}")
        return reply

    def _gone(self) -> Misbehaved:
        self._end()
        return Misbehaved(f"ended its process (exit status {self._process.returncode})")


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    if process.poll() is None:
        os.killpg(process.pid, 9)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
