"""What a config may hold and what not, example by example: every refusal names file, key and line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import ConfigError, dump_config, load_any, load_config, parse_config
from ultramed_rl.config.base import LONGEST_LINE
from ultramed_rl.config.document import Document, YamlProblem, read_yaml
from ultramed_rl.config.recipe import load_recipe

HERE = "PLACE-OF-THE-VALUE"
JUDGE = {"type": "judge", "model": "m", "base_url": "http://h/v1", "temperature": 0.5}


def write(root: Path, key: str, value: str, **changes: Any) -> tuple[Path, int]:
    """A config with this YAML at a dotted key, and the line where that is."""
    changes = {
        "reward__terms": [dict(JUDGE)],
        "cluster__faults": {"hang_s": 1.0},
        "type": "online",
        **changes,
    }
    data = tiny_run(root, **changes)
    *sections, last = key.split(".")
    node: Any = data
    for section in sections:
        node = node[int(section)] if isinstance(node, list) else node.setdefault(section, {})
    node[last] = HERE
    text = yaml.safe_dump(data, sort_keys=False)
    path = root / "my.yaml"
    path.write_text(text.replace(HERE, value), encoding="utf-8")
    return path, 1 + next(n for n, line in enumerate(text.splitlines()) if HERE in line)


def problem(path: Path, *overrides: str) -> str:
    """The only line that is said of a config."""
    with pytest.raises(ConfigError) as caught:
        load_any(path, overrides)
    (line,) = caught.value.problems
    assert len(line) <= LONGEST_LINE and line.isprintable()
    return line


def test_how_long_a_path_is_decides_nothing_of_what_is_said() -> None:
    problem = "cluster.device_memory_gib=10 per GPU: " + "too little; " * 30 + "raise it"
    told = {
        Document("/" + "folder/" * depth + "my.yaml", {}).tell(problem).split(": ", 1)[1]
        for depth in (1, 20, 400)
    }
    assert told == {problem}


# -- values ------------------------------------------------------------------------------------------------

REFUSED = [
    # a template that was not filled in
    *[("run.name", value) for value in ("{{x}}", "'{{x}}'", "'a-{{ x.y }}'")],
    *[("policy.path", "'{{model}}'"), ("run.directory", "'/runs/{{user}}'"), ("tracking.group", "'{{x}}'")],
    # names
    *[("run.name", value) for value in ("x" * 201, "x" * 300, "'a/b'", "'.a'", "''", "'a b'", "é", "5", "[a]", "{a: 1}")],
    *[("run.directory", value) for value in ("x" * 256, "a/" * 600, "''", '"a\\nb"', '"a\\0"', "~nobody-is-called-so/x")],
    *[("run.name", value) for value in ('"\\ud83d"', '"\\UFFFFFFFF"', "\U0001f600", "2024-01-31x/")],
    # tags
    *[("training.epochs", value) for value in ("!!int x", "!!int 1", "!!str 1", "!mine 1", "! 1", "!!binary eA==")],
    *[("training.gradient_checkpointing", "!!bool maybe"), ("training", "!!map [a]"), ("tracking.tags", "!!set {a}")],
    # numbers
    *[("training.learning_rate", value) for value in ("1e400", ".inf", "-.inf", ".nan", "0", "-1", "1.1", "1e-3x", "true")],
    *[(key, value) for key in ("objective.beta", "pairs.min_margin", "training.max_grad_norm") for value in (".inf", "1e308")],
    *[(key, ".inf") for key in ("reward.weight", "training.weight_decay", "reward.terms.0.weight", "run.publish_every_s")],
    *[("sampling.temperature", value) for value in ("5", "0", "2.01", "-1")],
    *[("run.seed", value) for value in (str(2**63), str(2**64), "-1", "1e3", "true", "9" * 41, "9" * 5000, "1_000")],
    *[("sampling.n", value) for value in ("1", "1025", "100000000", "1e8", "8.0", "false")],
    *[("cluster.faults.hang_s", value) for value in ("1:30", "0", "1e308", ".inf", "true", "2024-01-31")],
    *[("cluster.policy.zero_stage", value) for value in ("true", "false", "4", "-1", "2.0")],
    *[("cluster.device_memory_gib", value) for value in (".inf", "1e308", "0")],
    *[("cluster.nodes", value) for value in ("1000000000", "0", "1e9")],
    *[("training.epochs", value) for value in ("2024-13-45", "2024-01-31", "12:30:45", "yes", "0b1", "+ 1", "'1'", "null")],
    # booleans
    *[("training.gradient_checkpointing", value) for value in ("yes", "no", "on", "off", "1", "0", "'true'", "y")],
    # types
    *[("type", value) for value in ("[a]", "{a: 1}", "5", "true", "onlin")],
    *[("objective.type", value) for value in ("[dpo]", "{a: 1}", "5", "dop")],
    *[("reward.terms.0.type", value) for value in ("[a]", "jugde")],
    *[("prompts.sources", value) for value in ("5", "[5]", "[[]]", "[]")],
    # structure
    *[("tracking.tags", value) for value in ("[" * 500 + "]" * 500, "*nowhere", "&a [*a]", "[" + "a, " * 20_000 + "]")],
    *[("training", value) for value in ("{a: " * 500 + "}" * 500, "{[a]: 1}", "{1: 2}", "{epochs: 1, epochs: 2}", "{<<: 1}")],
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=lambda x: x[:24])
def test_a_value_that_cannot_be_is_refused_with_its_key_and_line(
    tmp_path: Path, key: str, value: str
) -> None:
    path, line = write(tmp_path, key, value)
    said = problem(path)
    assert said.startswith(f"{path}: {key}") and said.endswith(f"(line {line})")


@pytest.mark.parametrize(
    ("key", "value"), [case for case in REFUSED if ".0." not in case[0]], ids=lambda x: x[:24]
)
def test_an_override_goes_the_same_way(tmp_path: Path, key: str, value: str) -> None:
    if value == "null":
        return  # takes a key away
    path, _ = write(tmp_path, "run.rounds", "2")
    said = problem(path, f"{key}={value}")
    assert key in said and "(line" not in said


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("training.learning_rate", "1e-5", 1e-5),
        ("training.learning_rate", "1", 1.0),
        ("training.epochs", "010", 10),
        ("training.epochs", "0o17", 15),
        ("training.epochs", "0x1F", 31),
        ("training.epochs", "+3", 3),
        ("run.name", "on", "on"),
        ("run.name", "no", "no"),
        ("run.name", "2024-01-31", "2024-01-31"),
        ("run.directory", "1:30", "1:30"),
        ("run.directory", "0b11", "0b11"),
        ("run.name", "1_000", "1_000"),
        ("prompts.system", '"\\ud83d\\ude00"', "\U0001f600"),
        ("prompts.system", "|-\n    a\n    b", "a\nb"),
        ("prompts.system", "'say {{x}}'", "say {{x}}"),
        ("run.keep_checkpoints", "~", None),
        ("training.gradient_checkpointing", "TRUE", True),
        ("tracking.tags", "&t [a, b]", ["a", "b"]),
    ],
)
def test_values_are_read_as_yaml_1_2_has_them(tmp_path: Path, key: str, value: str, read: Any) -> None:
    path, _ = write(tmp_path, key, value)
    found: Any = load_any(path)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == read and type(found) is type(read)


def test_a_long_value_is_not_echoed(tmp_path: Path) -> None:
    for value in ("x" * 100_000, '"' + "\\n" * 50_000 + '"', "\U0001f600" * 25_000):
        path, line = write(tmp_path, "run.name", value)
        said = problem(path)
        assert (
            len(said) <= LONGEST_LINE
            and said.startswith(f"{path}: run.name=")
            and said.endswith(f"(line {line})")
        )


def test_a_key_that_was_meant_to_be_named_is_not_echoed(tmp_path: Path) -> None:
    path, line = write(tmp_path, "reward.terms.0.api_key_env", "sk-very-secret")
    said = problem(path)
    assert "secret" not in said and "reward.terms.0.api_key_env" in said and said.endswith(f"(line {line})")


# -- keys and structure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "key"),
    [
        ("unknown: 1", "unknown"),
        ("k" * 900 + ": 1", "k"),
        ("k" * 5000 + ": 1", ""),
        ("run: {name: b}", "run"),
        ("? [a, b]\n: 1", ""),
        ("? {a: 1}\n: 1", ""),
        ("{{x}}: 1", ""),
        ("1: x", ""),
        ("null: x", ""),
        ("2.5: x", ""),
        ("true: x", ""),
        ("!!str a: x", ""),
        ('"\\ud83d": 1', ""),
        ("a: *nowhere", "a"),
        ("<<: *nowhere", "<<"),
        ("<<: [1]", ""),
        ("a: [1, 2", "a"),
        ("a: 'open", "a"),
        ("a: b: c", ""),
        ("\ta: 1", ""),
        ("a: @x", "a"),
        ("a: %x", "a"),
        ("--- \na: 1", ""),
        ("a: \x07", ""),
    ],
    ids=lambda x: x[:16],
)
def test_a_key_that_cannot_be_is_refused_with_its_line(tmp_path: Path, added: str, key: str) -> None:
    path, _ = write(tmp_path, "run.rounds", "2")
    lines = path.read_text().count("\n")
    with path.open("a") as file:
        file.write(added + "\n")
    said = problem(path)
    line = int(re.search(r"\(line (\d+)(, column \d+)?\)$", said)[1])  # type: ignore[index]
    assert lines < line <= lines + 3 and said.startswith(f"{path}: {key}")


def test_aliases_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    laughs = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    path.write_text("\n".join(laughs))
    assert problem(path).endswith("(line 5)")  # 2, 19, 172, 1549, 13942 values
    path.write_text("\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60))]))
    assert "32" in problem(path)


def test_merge_keys_bring_what_is_not_said(tmp_path: Path) -> None:
    text = """
base: &base {n: 4, top_p: 0.5}
other: &other {n: 5, max_new_tokens: 7}
sampling:
  <<: [*base, *other]
  top_p: 0.9
copy: *base
quoted: {"<<": 1}
"""
    found, lines = read_yaml(text)
    assert found["sampling"] == {"n": 4, "max_new_tokens": 7, "top_p": 0.9}
    assert found["copy"] == found["base"] and found["copy"] is not found["base"]
    assert found["quoted"] == {"<<": 1}
    assert (lines["sampling.n"], lines["sampling.top_p"], lines["base.n"], lines["copy"]) == (5, 6, 2, 7)
    path, _ = write(tmp_path, "sampling", "{<<: {n: 3, temperature: 0.5}, max_new_tokens: 16}")
    assert load_config(path).sampling.n == 3


def test_a_shared_value_is_changed_in_one_place_alone(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "cluster.reference", "&group {replicas: 1}\n  reward: *group")
    config = load_config(path, ["cluster.reference.replicas=2"])
    assert (config.cluster.reference.replicas, config.cluster.reward.replicas) == (2, 1)


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"- a\n", b"hello\n", b"\xff\xfe\x00", b"a: \xe9\n", b"a: 1\0"]
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    assert problem(path).startswith(f"{path}: ")


def test_encodings_and_ends_of_lines_that_mean_the_same(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "run.rounds", "2")
    config, content = load_any(path), path.read_bytes()
    for same in (
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        b"---\n" + content,
        content + b"...\n",
    ):
        path.write_bytes(same)
        assert load_any(path) == config


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    long = tmp_path / "long.yaml"
    long.write_bytes(b"#" * 10_000_000)
    for path in (fifo, tmp_path, tmp_path / "none.yaml", Path("/dev/zero"), tmp_path / ("x" * 300), long):
        assert problem(path).startswith(f"{path}"[:100])


def test_of_many_problems_the_first_are_told(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "tracking.tags", "[" + "5, " * 5000 + "]")
    with pytest.raises(ConfigError) as caught:
        load_any(path)
    assert len(caught.value.problems) == 21 and "4980" in caught.value.problems[-1]


def test_a_stages_problem_has_the_line_where_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "type: recipe\n"
        "run: {name: r}\n"
        "shared:\n"
        "  training: {learning_rate: .inf}\n"
        "stages:\n"
        "  one:\n"
        "    type: sft\n"
        "    model: {path: a/b}\n"
        "    data:\n"
        "      sources: [{uri: x.jsonl}]\n"
        "      held_out: -1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    places = {line.split(": ")[1].partition("=")[0]: line[-8:] for line in caught.value.problems}
    assert places == {"stages.one.training.learning_rate": "(line 4)", "stages.one.data.held_out": "line 11)"}


def test_a_plan_that_does_not_fit_is_told_with_its_line(tmp_path: Path) -> None:
    path, line = write(
        tmp_path, "cluster.device_memory_gib", "0.001", policy__architecture=SHAPE, reward__architecture=SHAPE
    )
    found = CliRunner().invoke(app, ["plan", str(path)])
    assert found.exit_code == 2
    assert (
        found.stderr.startswith(f"{path}: cluster.device_memory_gib=0.001")
        and f"(line {line})" in found.stderr
    )


SHAPE = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 8,
}


def test_lines_of_wrong_yaml_are_counted_from_one() -> None:
    with pytest.raises(YamlProblem) as caught:
        read_yaml("a: 1\nb:\n  c: !!int 2\n")
    assert (caught.value.key, caught.value.line) == ("b.c", 3)


@given(
    st.text(max_size=40),
    st.sampled_from(["1e5", "0o17", "on", "1:30", "2024-01-31", "08", "~", "<<", "=", "1_0", ""]),
)
@settings(deadline=None, max_examples=150)
def test_any_text_survives_a_dump(text: str, word: str) -> None:
    config = parse_config(tiny_run(Path("/r"), prompts__system=text, prompts__suffix=word, run__name="1e5"))
    data, _ = read_yaml(dump_config(config))
    assert parse_config(data) == config and yaml.safe_load(dump_config(config)) == data
