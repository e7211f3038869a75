"""A YAML file read strictly, overrides over it, and the line at which each value stands.

YAML 1.2's core schema: null, true and false, numbers and text, in mappings and lists; nothing else is known. So `yes`,
`1:30` and `2024-01-31` are text, `010` is ten, and a tag is refused. Anchors and merge keys (`<<`) are allowed, and as
everything else they are bounded: reading takes a second at most, whatever the text.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ultramed_rl.config.base import LONGEST_PROBLEM, ConfigError, shorten, show

MOST_CHARACTERS = 2**18
MOST_VALUES = 10_000  # with what aliases repeat
DEEPEST = 32
_LONGEST_NUMBER = 40
_LONGEST_NAME, _LONGEST_KEY = 160, 120
_OPEN = object()
# Keys whose null says something, since their default is another value; the last two are former ones, and refused.
NULL_SAYS = ("benchmarks.contamination", "contamination.embedder", "step.cosine", "step.jaccard")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class YamlProblem(ValueError):
    """What is wrong with a text, at which dotted key ("" for none) and line (0 for none); with a column it is no YAML."""

    def __init__(self, problem: str, key: str, line: int, column: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.key, self.line, self.column = problem, key, line, column


def read_yaml(text: str, key: str = "") -> tuple[Any, dict[str, int]]:
    """The values of a YAML document, and the line of each by its dotted key. `key`: where the document stands in another,
    which all its keys begin with. Raises YamlProblem: the text is no YAML, is too large, or has something other than
    plain values."""
    if len(text) > MOST_CHARACTERS:
        raise YamlProblem(f"{len(text):,} characters; a config has at most {MOST_CHARACTERS:,}", key, 0)
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"not valid YAML: character U+{error.character:04X}", key, line) from None
    reading = _Reading(text, loader)
    try:
        return reading.document(key), reading.lines
    finally:
        loader.dispose()


class _Reading:
    """One document on its way from events to values: each method takes its own events from the stream, so that what is
    too large or too deep is refused where it stands, before the rest of the text is looked at."""

    def __init__(self, text: str, loader: yaml.SafeLoader) -> None:
        self.lines: dict[str, int] = {}
        self._text, self._loader = text, loader
        self._values = 0
        self._anchors: dict[str, Any] = {}  # values by their names; _OPEN until one is whole

    def document(self, key: str) -> Any:
        """The only document's value; None of an empty text."""
        self._next(key)  # the stream's start
        if isinstance(self._next(key), yaml.StreamEndEvent):
            return None
        value = self._value(self._next(key), key, 0)
        self._next(key)  # the document's end
        event = self._next(key)
        if not isinstance(event, yaml.StreamEndEvent):
            raise YamlProblem("a second document; a config is one, so remove it", key, _line(event))
        return value

    def _next(self, key: str) -> Any:
        try:
            return self._loader.get_event()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            assert mark is not None
            words = f"not valid YAML; mend it: {' '.join(f'{error.problem}'.split())}"
            raise YamlProblem(words, key, mark.line + 1, mark.column + 1) from None
        except (ValueError, OverflowError):
            words = "not valid YAML: an escape that is no character"
            raise YamlProblem(words, key, self._loader.line + 1) from None

    def _value(self, event: Any, key: str, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, key, depth)
        self._count(depth, key, event)
        if event.tag is not None:
            rule = "remove it, types are told by what stands there"
            raise YamlProblem(f"not valid YAML here: tag {_tag(event)}; {rule}", key, _line(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = _OPEN
        value: Any = []
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(key, depth)
        elif isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, key)
        else:
            while not isinstance(item := self._next(key), yaml.SequenceEndEvent):
                place = _below(key, str(len(value)))
                self.lines[place] = _line(item)
                value.append(self._value(item, place, depth + 1))
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _alias(self, event: Any, key: str, depth: int) -> Any:
        name, line = event.anchor, _line(event)
        if name not in self._anchors:
            raise YamlProblem(f"alias *{name}: no anchor &{name} before it; put one there", key, line)
        if self._anchors[name] is _OPEN:
            raise YamlProblem(f"alias *{name}: stands inside what it repeats; write it out", key, line)
        return self._copy(self._anchors[name], key, depth, event)

    def _copy(self, value: Any, key: str, depth: int, event: Any) -> Any:
        """What an alias stands for, counted: a change of the one is none of the other."""
        self._count(depth, key, event)
        if isinstance(value, dict):
            return {name: self._copy(item, key, depth + 1, event) for name, item in value.items()}
        return (
            [self._copy(item, key, depth + 1, event) for item in value] if isinstance(value, list) else value
        )

    def _count(self, depth: int, key: str, event: Any) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise YamlProblem(f"more than {MOST_VALUES:,} values, aliases counted", key, _line(event))
        if depth > DEEPEST:
            raise YamlProblem(f"nested more than {DEEPEST} deep, which no section is", key, _line(event))

    def _mapping(self, key: str, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        merge_line = 0
        while not isinstance(event := self._next(key), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                if merge_line:
                    words = "key '<<' stands twice; give it a list: [*one, *two]"
                    raise YamlProblem(words, key, _line(event))
                merge_line = _line(event)
                value = self._value(self._next(key), _below(key, "<<"), depth + 1)
                parts = value if isinstance(value, list) else [value]
                if not all(isinstance(part, dict) for part in parts):
                    words = "'<<' takes a mapping, or a list of them, as in <<: *shared"
                    raise YamlProblem(words, key, merge_line)
                # Of several mappings the first that has a key decides.
                merged = {name: item for part in reversed(parts) for name, item in part.items()}
                continue
            name = self._name(event, key)
            place = _below(key, name)
            if name in own:
                raise YamlProblem(f"key {name!r} stands twice; remove one", place, _line(event))
            self.lines[place] = _line(event)
            own[name] = self._value(self._next(place), place, depth + 1)
        for name in merged.keys() - own.keys():
            self.lines[_below(key, name)] = merge_line
        return {**merged, **own}

    def _name(self, event: Any, key: str) -> str:
        """A mapping's key, which must be text."""
        if not isinstance(event, yaml.ScalarEvent):
            at = event.start_mark.index
            if self._text[at - 1 : at + 1] == "{{":
                words = "a template {{...}} that was not filled in; fill it in, or put it in quotes"
                raise YamlProblem(words, key, _line(event))
            kinds = {yaml.SequenceStartEvent: "a list", yaml.MappingStartEvent: "a mapping"}
            kind = kinds.get(type(event), "an alias")
            raise YamlProblem(f"a key is {kind}; keys are text", key, _line(event))
        if event.tag is not None:
            raise YamlProblem(f"a key has the tag {_tag(event)}; keys are text", key, _line(event))
        name = _scalar(event, key)
        if not isinstance(name, str):
            words = f"key {event.value!r:.40}: keys are text; put it in quotes"
            raise YamlProblem(words, key, _line(event))
        return name


def _scalar(event: Any, key: str) -> bool | int | float | str | None:
    text: str = event.value
    is_integer = _INTEGER.fullmatch(text)
    if event.implicit[0] and text in _WORDS:
        return _WORDS[text]
    if event.implicit[0] and (is_integer or _FLOAT.fullmatch(text)):
        if len(text) > _LONGEST_NUMBER:
            words = f"a number of {len(text):,} characters; at most {_LONGEST_NUMBER}"
            raise YamlProblem(words, key, _line(event))
        if is_integer:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return float(re.sub(r"\.(?=inf|nan)", "", text, flags=re.IGNORECASE))
    try:
        # A pair of surrogates that JSON escaped becomes the character that it stands for.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise YamlProblem("half of a surrogate pair, which is no character", key, _line(event)) from None


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _tag(event: Any) -> str:
    return str(event.tag).replace("tag:yaml.org,2002:", "!!")


# -- documents ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """Values to validate. `lines` has the line of each dotted key in the file `name`."""

    name: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def tell(self, problem: str, where: str | None = None) -> str:
        """A problem as one line, with the file before it and its line in the file after it. `where`: its line, where that
        isn't the line of the key that the problem begins with; "" for none."""
        key = re.split(r"[=:,\s]", problem, maxsplit=1)[0]
        line = self._line(key)
        if where is None:
            where = f"line {line}" if line else ""
        end = f" ({where})" if where else ""
        problem = shorten(key, _LONGEST_KEY) + problem[len(key) :]
        return f"{shorten(self.name, _LONGEST_NAME)}: {shorten(problem, LONGEST_PROBLEM)}{end}"

    def _line(self, key: str) -> int:
        """The line of a key, or of the nearest one above it; what a recipe's stage doesn't say itself, it shares."""
        while key:
            for place in (key, re.sub(r"^stages\.[^.]+\.", "shared.", key)):
                if place in self.lines:
                    return self.lines[place]
            key = key.rpartition(".")[0]
        return 0


def read_document(path: str | Path | None, overrides: Sequence[str] = ()) -> Document:
    """A YAML file, or nothing, with overrides applied, not validated yet. Raises ConfigError: no readable file, no strict
    YAML in it, or an override that isn't one."""
    document = Document("command line", {}) if path is None else _read_file(Path(path))
    for override in overrides:
        _apply_override(document, override)
    return document


def _read_file(path: Path) -> Document:
    where = None
    try:
        if reason := why_unreadable(path):
            absent = "no such file; see configs/ for complete examples"
            raise YamlProblem(absent if absent.startswith(reason) else f"{reason}; name a YAML file", "", 0)
        with path.open("rb") as file:
            content = file.read(4 * MOST_CHARACTERS + 1)  # UTF-8 has at most 4 bytes a character
        is_whole = len(content) <= 4 * MOST_CHARACTERS  # what is too large may be cut off within one
        data, lines = read_yaml(content.decode("utf-8-sig", "strict" if is_whole else "replace"))
        if isinstance(data, dict):
            return Document(str(path), data, lines)
        kind = "empty" if data is None else type(data).__name__
        words = f"must be a mapping of sections, not {kind}; see configs/ for complete examples"
    except UnicodeDecodeError as error:
        words = f"not valid YAML: not UTF-8 at byte {error.start}; save it as UTF-8"
    except OSError as error:
        words = f"cannot be read ({error.strerror})"
    except YamlProblem as error:
        words = f"{error.key}: {error.problem}" if error.key else error.problem
        where = f"line {error.line}" if error.line else ""
        where += f", column {error.column}" if error.column else ""
    raise ConfigError([Document(str(path), {}).tell(words, where)])


def _apply_override(document: Document, override: str) -> None:
    dotted, equals, text = override.partition("=")
    dotted, shown = dotted.strip(), show(override)
    *sections, last = dotted.split(".")
    problem, node = "", document.data
    if not equals or not all([*sections, last]):
        problem = "must read section.key=value, as in training.epochs=2"
    elif len(sections) >= DEEPEST:
        problem = f"{len(sections)} sections deep; at most {DEEPEST - 1}"
    for section in () if problem else sections:
        if node.get(section) is None:
            node[section] = {}
        if not isinstance(child := node[section], dict):
            problem = f"{show(section)} is a value, not a section; set the value itself"
            break
        node = child
    if problem:
        raise ConfigError([f"override {shown}: {problem}"])
    value = _override_value(dotted, text)
    for key in [key for key in document.lines if key == dotted or key.startswith(f"{dotted}.")]:
        del document.lines[key]
    document.lines[dotted] = 0  # in no file
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


def why_unreadable(path: Path) -> str | None:
    """What keeps a path from being read, in words; None for a regular file. A FIFO or a device would hang whoever reads it,
    or never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError) as error:  # too long, not allowed, a loop of links, a null character
        return f"no such file ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not stat.S_ISREG(mode):
        return "is no regular file but a FIFO, a socket or a device"
    return None if os.access(path, os.R_OK) else "may not be read; look at its permissions"
