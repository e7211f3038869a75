"""The process of a reward function of the user's own: `python -P function_process.py SOCKET FILE NAME`. It knows nothing of this
package, so that a function sees what any script of its user sees.

It says {"error": ...} once, empty where the function is there. Then, for each [prompt, answers] that comes, {"error": ..., "values":
[...]}; it ends with whoever started it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve until nobody asks any more."""
    socket, file, name = sys.argv[1:]
    connection = Connection(int(socket))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function: Callable[[Any, Any], Any] | None = None
    error = ""
    try:
        function = _load(file, name)
    except BaseException as raised:  # a script may even exit
        error = _words(raised, file)
    connection.send_bytes(json.dumps({"error": error}).encode())
    loop = asyncio.new_event_loop()  # one for all calls: a client that the function keeps belongs to it
    while function is not None:
        try:
            prompt, answers = json.loads(connection.recv_bytes())
        except EOFError:
            return
        reply: dict[str, Any] = {"error": ""}
        try:
            values = function(prompt, answers)
            if inspect.isawaitable(values):
                values = loop.run_until_complete(_awaited(values))
            reply["values"] = [_plain(value) for value in values]
        except BaseException as raised:
            reply["error"] = _words(raised, file)
        connection.send_bytes(json.dumps(reply).encode())


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # a pipe that the parent holds; it ends with the parent, however that ends
    os._exit(0)


def _load(file: str, name: str) -> Callable[[Any, Any], Any]:
    sys.path.insert(0, os.path.dirname(file))  # for what lies beside it
    spec = spec_from_file_location("reward_function", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["reward_function"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Any, Any], Any] = getattr(module, name)
    return function


async def _awaited(value: Any) -> Any:
    return await value


def _plain(value: Any) -> Any:
    """A number, or numbers by name; numpy's and torch's become Python's."""
    if isinstance(value, dict):
        return {str(name): _number(number) for name, number in value.items()}
    return _number(value)


def _number(value: Any) -> float:
    if value is None or isinstance(value, str | dict):
        raise TypeError(f"{value!r:.80} is no number")
    return float(value)


def _words(error: BaseException, file: str) -> str:
    """What was raised, and the last line of the file that it passed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" (line {lines[-1]})" if lines else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + place


if __name__ == "__main__":
    main()
