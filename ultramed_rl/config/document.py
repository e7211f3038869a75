"""What somebody wrote: a file's values with overrides over them, and where each of them stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultramed_rl.config.base import LONGEST_LINE, ConfigError, shorten, show
from ultramed_rl.config.files import why_unreadable
from ultramed_rl.config.strict_yaml import DEEPEST, MOST_CHARACTERS, YamlProblem, read_yaml

COMMAND_LINE = "command line"  # where a config comes from that is in no file
# Keys whose null says something, since their default is another value.
NULL_SAYS = ("benchmarks.contamination", "contamination.embedder", "step.cosine", "step.jaccard")
_OVERRIDDEN = 0  # the line of what no file says
_LONGEST_NAME, _LONGEST_KEY = 160, 120


@dataclass(frozen=True)
class Document:
    """Values to validate. `lines` has the line of each dotted key in the file `name`."""

    name: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def tell(self, problem: str, where: str | None = None) -> str:
        """A problem as one line, with the file before it and its line in the file after it.

        Args:
            where: its line, where that isn't the line of the key that the problem begins with; "" for none.
        """
        key = re.split(r"[=:,\s]", problem, maxsplit=1)[0]
        line = self._line(key)
        if where is None:
            where = f"line {line}" if line else ""
        problem = shorten(key, _LONGEST_KEY) + problem[len(key) :]
        end = f" ({where})" if where else ""
        whole = f"{shorten(self.name, _LONGEST_NAME)}: {problem}"
        return shorten(whole, LONGEST_LINE - len(end)) + end

    def _line(self, key: str) -> int:
        """The line of a key, or of the nearest one above it; what a recipe's stage doesn't say itself, it shares."""
        while key:
            for place in (key, re.sub(r"^stages\.[^.]+\.", "shared.", key)):
                if place in self.lines:
                    return self.lines[place]
            key = key.rpartition(".")[0]
        return 0


def read_document(path: str | Path | None, overrides: Sequence[str] = ()) -> Document:
    """A YAML file, or nothing, with overrides applied, not validated yet.

    Raises:
        ConfigError: no readable file, no strict YAML in it, or an override that isn't one.
    """
    document = Document(COMMAND_LINE, {}) if path is None else _read_file(Path(path))
    for override in overrides:
        _apply_override(document, override)
    return document


def _read_file(path: Path) -> Document:
    document = Document(str(path), {})
    reason = why_unreadable(path)
    if reason is not None:
        missing = reason == "no such file"
        words = (
            "no such file; see configs/ for complete examples" if missing else f"{reason}; name a YAML file"
        )
        raise ConfigError([document.tell(words)])
    try:
        with path.open("rb") as file:
            content = file.read(4 * MOST_CHARACTERS + 1)  # UTF-8 has at most 4 bytes a character
        whole = len(content) <= 4 * MOST_CHARACTERS  # what is too large may be cut off within one
        data, lines = read_yaml(content.decode("utf-8-sig", "strict" if whole else "replace"))
    except UnicodeDecodeError as error:
        words = f"not valid YAML: not UTF-8 at byte {error.start}; save it as UTF-8"
        raise ConfigError([document.tell(words)]) from None
    except OSError as error:
        raise ConfigError([document.tell(f"cannot be read ({error.strerror})")]) from None
    except YamlProblem as error:
        words = f"{error.key}: {error.problem}" if error.key else error.problem
        raise ConfigError([document.tell(words, error.where)]) from None
    if not isinstance(data, dict):
        found = "empty" if data is None else type(data).__name__
        words = f"must be a mapping of sections, not {found}; see configs/ for complete examples"
        raise ConfigError([document.tell(words)])
    return Document(str(path), data, lines)


def _apply_override(document: Document, override: str) -> None:
    dotted, equals, text = override.partition("=")
    dotted, shown = dotted.strip(), show(override)
    if not equals or not dotted or not all(dotted.split(".")):
        raise ConfigError([f"override {shown}: must read section.key=value, as in training.epochs=2"])
    *sections, last = dotted.split(".")
    if len(sections) >= DEEPEST:
        raise ConfigError([f"override {shown}: {len(sections)} sections deep; at most {DEEPEST - 1}"])
    node = document.data
    for section in sections:
        child = node.setdefault(section, {})
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                [f"override {shown}: {show(section)} is a value, not a section; set the value itself"]
            )
        node = child
    value = _override_value(dotted, text)
    for key in [key for key in document.lines if key == dotted or key.startswith(f"{dotted}.")]:
        del document.lines[key]
    document.lines[dotted] = _OVERRIDDEN
    if value is None and not dotted.endswith(NULL_SAYS):
        node.pop(last, None)  # every other key that may be null is null by default
    else:
        node[last] = value


def _override_value(key: str, text: str) -> Any:
    """What stands after the equals sign: YAML; what is none, as `a: b: c`, is plain text."""
    try:
        return read_yaml(text, key)[0]
    except YamlProblem as error:
        if error.column:
            return text
        raise ConfigError([f"override {show(f'{key}={text}')}: {error.key}: {error.problem}"]) from None
