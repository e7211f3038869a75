"""Addresses in a config hold no secret: `config.yaml` keeps them, and many files are made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(\S+)", re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PORTLESS = {"s3", "s3a", "gs", "gcs", "oss"}
# A word of a parameter's name that says what its value is.
_SECRET = re.compile(
    r"(key|token|secret|passw(or)?d|passphrase|pwd|auth|authorization|bearer|credentials?|signature|jwt)$"
    r"|^(pass|pw|sig|sas|code)$",
    re.IGNORECASE,
)


def secret_parts(value: Any) -> Iterator[tuple[str, str]]:
    """Where a config's value holds a secret in an address, as ".key.0" inside it, and which part that is."""
    if isinstance(value, str) and "://" in value:
        # fsspec chains addresses, as in simplecache::s3://bucket/file.
        for chained in _CHAIN.split(value):
            for found in _ADDRESS.finditer(chained):
                yield from (("", part) for part in _parts(found[1].lower(), found[2]))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((f".{key}{place}", part) for place, part in secret_parts(inner))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from ((f".{number}{place}", part) for place, part in secret_parts(inner))


def _parts(scheme: str, rest: str) -> Iterator[str]:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if (at and ":" in unquote(user)) or _password_with_a_slash(scheme, rest):
        yield "a password"
    elif user and scheme in ("http", "https"):
        yield "a user name"
    parameters = re.sub("[?#;]", "&", rest).partition("&")[2]
    for name, _ in parse_qsl(parameters):
        if any(map(_SECRET.search, _WORD.findall(name))):
            yield f"the parameter {name!r}"


def _password_with_a_slash(scheme: str, rest: str) -> bool:
    """As in s3://key:abc/def@bucket; a number before the slash is a port, where there are ports."""
    found = re.match(r"[^/?#@:\[]*:([^@]*)@", rest)
    port = found is not None and scheme not in _PORTLESS and re.match(r"\d*(?:[/?#]|$)", found[1])
    return found is not None and not port
