"""Kinds of values, each with the bounds beyond which no value of the kind makes sense. All keys are of one of these.

A key may narrow its kind, as `n: Samples = key(8, ..., ge=2)` does.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ultramed_rl.config.base import repeated
from ultramed_rl.config.secrets import secret_parts

# -- numbers -----------------------------------------------------------------------------------------------

Count = Annotated[int, Field(gt=0, le=10**9)]  # of rows, prompts, steps: what is never held in memory at once
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(gt=0, le=10_000)]  # of rounds, attempts, passes over the data
FewOrZero = Annotated[int, Field(ge=0, le=10_000)]
Samples = Annotated[int, Field(gt=0, le=1024)]  # answers to one prompt
Tokens = Annotated[int, Field(gt=0, le=2**24)]
Words = Annotated[int, Field(ge=0, le=10**6)]
Retries = Annotated[int, Field(ge=0, le=20)]
Concurrency = Annotated[int, Field(gt=0, le=1024)]
BatchSize = Annotated[int, Field(gt=0, le=2**20)]  # samples that are computed at once
Processes = Annotated[int, Field(gt=0, le=4096)]
WorkersOrZero = Annotated[int, Field(ge=0, le=4096)]
ZeroStage = Annotated[int, Field(ge=0, le=3)]
Nodes = Annotated[int, Field(gt=0, le=4096)]
NodeDevices = Annotated[int, Field(gt=0, le=1024)]
Width = Annotated[int, Field(gt=0, le=2**20)]  # of a layer, or rows of an embedding
Parameters = Annotated[int, Field(ge=1, le=10**14)]  # weights of a model
Budget = Annotated[int, Field(gt=0, le=10**15)]  # of tokens that are paid for
Resamples = Annotated[int, Field(ge=100, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and vLLM take
SmallSeed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy, scikit-learn and lm-eval take
Grade = Annotated[int, Field(ge=-1000, le=1000)]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
PositiveTemperature = Annotated[float, Field(gt=0.0, le=2.0)]
Factor = Annotated[float, Field(gt=0.0, le=10**6)]
FactorOrZero = Annotated[float, Field(ge=0.0, le=10**6)]
Points = Annotated[float, Field(ge=-(10**6), le=10**6)]
Seconds = Annotated[float, Field(gt=0.0, le=31 * 86_400)]
GiB = Annotated[float, Field(gt=0.0, le=65_536)]
PerMinute = Annotated[float, Field(gt=0.0, le=10**9)]
Money = Annotated[float, Field(ge=0.0, le=10**9)]
TopP = Annotated[
    PositiveShare, Field(description="sample from the likeliest tokens that together have this probability")
]
ReplicaTokens = Annotated[Tokens, Field(description="packed tokens per forward pass on one replica")]
TrainableLayers = Annotated[
    Few | None, Field(description="train only the last k decoder layers and the head; null: all")
]
Reads = Annotated[
    Literal["answer", "all"],
    Field(description="of a policy that reasons: the answer after its thought, or all that it wrote"),
]
TooLong = Annotated[
    Literal["refuse", "drop"],
    Field(description="what is over the longest length stops the run, or is dropped and counted"),
]

# -- texts -------------------------------------------------------------------------------------------------


def _filled_in(value: object) -> object:
    if isinstance(value, str) and re.search(r"\{\{.*?\}\}", value):
        raise PydanticCustomError("template", "a template that was not filled in; put the value there")
    return value


def _printable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty", "must not be empty")
    if not text.isprintable():
        raise PydanticCustomError("unprintable", "must be one line of printable characters")
    return text


def _path(text: str) -> str:
    if any(len(part.encode()) > 255 for part in text.split("/")):
        raise PydanticCustomError("too_long", "a part of it is over 255 bytes, which no file's name may have")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise PydanticCustomError("home", "nobody of this name has a home directory here") from None
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        why = str(error)[:80].replace("{", "(").replace("}", ")")
        rule = f"not a regular expression ({why}); escape what is meant literally with \\"
        raise PydanticCustomError("pattern", rule) from None
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Without the value, which may be the key itself.
        raise ValueError("must be the name of an environment variable, and never what it holds")
    return name


def _web_address(url: str) -> str:
    with suppress(ValueError):  # a port that is none
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    raise PydanticCustomError("address", "not a web address; write http://host:port/path")


def _unique(names: list[str]) -> list[str]:
    again = repeated(names)
    if again and not any(secret_parts(names)):  # a secret is refused by its section, without being shown
        raise PydanticCustomError(
            "repeated", "{name} stands there twice; remove one", {"name": repr(again[0])}
        )
    return names


Unique = AfterValidator(_unique)  # of a list of names
_Filled = BeforeValidator(_filled_in)
_Line = AfterValidator(_printable)

Text = Annotated[str, Field(max_length=20_000)]  # what a model reads
Label = Annotated[str, Field(max_length=200), _Filled, _Line]  # only shown, or another program's name
Column = Label  # of a table of rows
Tag = Annotated[str, Field(max_length=64), _Filled, _Line]  # as wandb takes it
# The name of a folder, which gets endings beside it: a file's name has at most 255 bytes.
Name = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), _Filled]
# An id is the set's name, a comma, and the row's own.
SetName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^,]*$"), _Filled, _Line]
TermName = Annotated[Label, Field(min_length=1, description="the term's column in the scored table")]
Variable = Annotated[str, Field(max_length=200), _Filled, AfterValidator(_variable)]
KeyVariable = Annotated[Variable | None, Field(description="environment variable that holds the API key")]
# A path, a hub id or a URI.
Address = Annotated[str, Field(max_length=1024), _Filled, _Line, AfterValidator(_path)]
WebAddress = Annotated[str, Field(max_length=1024), _Filled, _Line, AfterValidator(_web_address)]
Pattern = Annotated[str, Field(max_length=1000), AfterValidator(_pattern)]
