"""Whatever is done to a config: exit code 0 or 2, one short line for each problem, soon, and in little memory."""

from __future__ import annotations

import copy
import io
import resource
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultramed_rl.cli.runs import plan_command
from ultramed_rl.config.base import LONGEST_LINE

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MUTATIONS = 360
HERE = "PLACE-OF-THE-MUTATION"
LAUGHS = "\n".join(
    ["l0: &l0 [x, x]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))]
)
# What may stand where a value stood, as YAML.
VALUES = [
    *["null", "true", "yes", "0", "-1", "1.5", "1e400", "-1e400", ".inf", "-.inf", ".nan", "1e308", "1e-320"],
    *["9" * 25, "9" * 5000, "0x" + "f" * 20, "0o17", "0777", "1_000", "1:30", "2024-13-45", "2024-01-31"],
    *[
        "''",
        "' '",
        '"\\0"',
        '"\\n"',
        '"\\ud83d"',
        '"\\ud83d\\ude00"',
        '"\\UFFFFFFFF"',
        "\U0001f600",
        "é" * 200,
    ],
    *[
        "x" * 300,
        "x" * 100_000,
        "a/" * 2000,
        "~nobody-has-this-name/x",
        "/dev/zero",
        "../../x",
        "{{x}}",
        "'{{x}}'",
    ],
    *[
        "'{{ x.y }}'",
        "${HOME}",
        "!!int x",
        "!!bool maybe",
        "!!map [a]",
        "!!set {a}",
        "!!binary x",
        "!mine x",
        "! x",
    ],
    *[
        "!!python/object/apply:os.getcwd []",
        "[]",
        "{}",
        "[a]",
        "[[a]]",
        "{a: 1}",
        "{a: 1, a: 2}",
        "{[a]: 1}",
        "{1: 2}",
    ],
    *[
        "[" * 500 + "]" * 500,
        "{a: " * 500 + "}" * 500,
        "&a [*a]",
        "*nowhere",
        "{<<: 1}",
        "{<<: {n: 3}}",
        "&x 5",
        "@x",
    ],
    *[
        "[1, 2",
        "'open",
        "a: b: c",
        "- x",
        "? y",
        "%x",
        "`x`",
        "|",
        ">\n x",
        "#",
        "[" + "a, " * 20_000 + "]",
        "\t1",
    ],
]
# What may be added to a file, as YAML; beside a key that is named or anywhere.
KEYS = [
    *[
        "unknown: 1",
        "? [a, b]\n: 1",
        "? {a: 1}\n: 1",
        "1: x",
        "null: x",
        "true: x",
        ": x",
        "{{x}}: 1",
        "'': 1",
    ],
    *[
        "k" * 5000 + ": 1",
        "a.b: 1",
        "é: 1",
        "<<: *nowhere",
        "<<: {unknown: 1}",
        "!!str a: 1",
        "*a : 1",
        '"\\ud83d": 1',
    ],
    *[
        "type: [a]",
        "type: {a: 1}",
        "type: sft",
        "type: online",
        "type: 5",
        "run: {name: a}",
        "run: 5",
        LAUGHS,
    ],
]


@cache
def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def with_value(data: Any, place: tuple[Any, ...], value: str) -> str:
    """The config with other YAML at one place."""
    changed = copy.deepcopy(data)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = HERE
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).replace(HERE, value)


def with_key(data: Any, key: str, place: int) -> str:
    """The config with another key in one of its sections; what isn't one line goes to the end."""
    whole = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if "\n" in key or not place:
        return f"{whole}{key}\n"
    lines = whole.splitlines()
    line = lines[place % len(lines)]
    indent = line[: len(line) - len(line.lstrip(" -"))].replace("-", " ")
    return "\n".join([*lines[: place % len(lines)], indent + key, *lines[place % len(lines) :]])


def with_damage(text: str, damage: str, place: int) -> bytes:
    """The file cut off, or in another encoding, or with what doesn't belong there."""
    at = place % len(text)
    lines = text.splitlines()
    line = place % len(lines)
    return {
        "truncated": text[:at].encode(),
        "tabs": "\n".join([*lines[:line], "\t" + lines[line], *lines[line + 1 :]]).encode(),
        "binary": text[:at].encode() + bytes(range(256)) + text[at:].encode(),
        "nul": text[:at].encode() + b"\0" + text[at:].encode(),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "utf-16": text.encode("utf-16"),
        "empty": b"",
        "comment": b"# nothing else\n",
        "list": b"- a\n- b\n",
        "scalar": b"hello\n",
        "twice": f"{text}\n---\n{text}".encode(),
        "doubled": f"{text}\n{text}".encode(),
        "deep": "\n".join(" " * n + "a:" for n in range(500)).encode(),
        "long": text.encode() + b"#" + b"x" * 2**20,
        "unindented": "\n".join([*lines[:line], lines[line].lstrip(), *lines[line + 1 :]]).encode(),
    }[damage]


DAMAGES = [
    "truncated",
    "tabs",
    "binary",
    "nul",
    "bom",
    "crlf",
    "utf-16",
    "empty",
    "comment",
    "list",
    "scalar",
]
DAMAGES += ["twice", "doubled", "deep", "long", "unindented"]


@dataclass(frozen=True)
class Mutant:
    """A file and overrides, and the first key of the place that was changed; none where the whole file was."""

    content: bytes
    overrides: tuple[str, ...] = ()
    key: str = ""


@st.composite
def mutants(draw: st.DrawFn) -> Mutant:
    config = draw(st.sampled_from(CONFIGS))
    kind = draw(st.sampled_from(["value", "value", "value", "override", "key", "damage"]))
    data, text = read(config), config.read_text(encoding="utf-8")
    if kind == "value":
        place = draw(st.sampled_from(list(places(data))))
        return Mutant(with_value(data, place, draw(st.sampled_from(VALUES))).encode(), key=str(place[0]))
    if kind == "override":
        place = draw(
            st.sampled_from([place for place in places(data) if all(isinstance(k, str) for k in place)])
        )
        dotted = draw(
            st.sampled_from([".".join(place), place[0], f"{place[0]}..x", f"{place[0]}.unknown", ".", ""])
        )
        override = f"{dotted}={draw(st.sampled_from(VALUES))}"
        return Mutant(text.encode(), (draw(st.sampled_from([override, override, dotted])),))
    if kind == "key":
        return Mutant(with_key(data, draw(st.sampled_from(KEYS)), draw(st.integers(0, 500))).encode())
    return Mutant(with_damage(text, draw(st.sampled_from(DAMAGES)), draw(st.integers(0, 10_000))))


def plan(path: Path, overrides: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The exit code of `ultramed-rl plan`, and what it says on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            plan_command(str(path), list(overrides))
        except typer.Exit as ended:
            return ended.exit_code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_no_mutation_gives_a_traceback_or_takes_long(tmp_path: Path) -> None:
    path = tmp_path / "mutant.yaml"
    codes: list[int] = []

    @given(mutants())
    @settings(max_examples=MUTATIONS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(mutant: Mutant) -> None:
        path.write_bytes(mutant.content)
        began = time.process_time()
        code, said, told = plan(path, mutant.overrides)  # any other exception is a traceback, and fails here
        seconds = time.process_time() - began
        assert code in (0, 2), told
        assert seconds < 1.0, f"{seconds:.1f} s"
        codes.append(code)
        if code == 0:
            return
        lines = told.splitlines()
        assert 1 <= len(lines) <= 21 and said == ""
        for line in lines:
            assert len(line) <= LONGEST_LINE and line.isprintable(), line
            assert line.startswith((f"{path}: ", "and ", "override ")), line
        assert any(mutant.key in line or "(line " in line for line in lines), lines

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(codes) >= 300 and 0 in codes and 2 in codes
    assert grown < 200, f"{grown:.0f} MB"
    assert time.process_time() - began < 20
