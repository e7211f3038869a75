"""Keys and tokens: in the environment alone, never in a config, a log or a file."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote

LEAST_IN_TEXT = 8  # characters of a secret that no text holds by chance
_LEAST_IN_BASE64 = 6
_read: set[str] = set()  # what was read by this process, and is never told again


def read_secret(variable: str | None, key: str) -> str | None:
    """The secret in an environment variable, or None where none is named.

    Args:
        key: the config's key that names the variable, for the error.

    Raises:
        ValueError: the variable is named but not set, or holds what no header can.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise ValueError(
            f"{key}={variable!r}: this environment variable isn't set; export it, or remove the key"
        )
    if not (secret.isascii() and secret.isprintable()):
        raise ValueError(
            f"{key}={variable!r}: this environment variable holds line breaks or characters beyond ASCII; "
            "export the key alone"
        )
    _read.add(secret)
    return secret


def redact(text: str, least: int = 1) -> str:
    """A text without any secret that was read.

    Found as it is, URL-encoded, escaped as in JSON or HTML, and in base64, also of a longer text.

    Args:
        least: shorter secrets are left, for texts that may hold them by chance.
    """
    marks, pattern = _search(frozenset(secret for secret in _read if len(secret) >= least))
    low = text.lower()
    return pattern.sub("***", text) if any(mark in low for mark in marks) else text


@lru_cache(maxsize=8)
def _search(secrets: frozenset[str]) -> tuple[set[str], re.Pattern[str]]:
    """What finds secrets, and in lower case what a text must hold for that to be worth its time: the pattern takes a
    second for a million characters."""
    marks, forms = set[str](), list[str]()
    for secret in sorted(secrets, key=len, reverse=True):
        for core in (secret, *_in_base64(secret)):
            marks.add(max(re.findall("[a-z0-9]*", core.lower()), key=len))
            forms.append("".join(map(_notations, core)))
        code = ord(secret[0])  # where every character is escaped
        marks |= {
            f"%{code:02x}",
            f"%25{code:02x}",
            f"u00{code:02x}",
            f"\\x{code:02x}",
            f"{code};",
            f"x{code:x};",
        }
    return marks, re.compile("|".join(forms))


def _in_base64(secret: str) -> Iterator[str]:
    """The characters that a secret alone decides on in the base64 of a longer text; three ways to lie in it."""
    for shift in range(3):
        coded = base64.b64encode(bytes(shift) + secret.encode()).decode()
        core = coded[-(-8 * shift // 6) : 8 * (shift + len(secret)) // 6]
        if len(core) >= _LEAST_IN_BASE64:
            yield core
            yield core.translate(str.maketrans("+/", "-_"))


def _notations(character: str) -> str:
    """A pattern of all ways in which a server may repeat a character."""
    code = ord(character)
    ways = {
        rf"\\*{re.escape(character)}",
        rf"(?i:%(?:25)*{code:02x})",
        rf"(?i:\\+u00{code:02x})",
        rf"(?i:\\+x{code:02x})",
        rf"(?i:&\#(?:0*{code}|x0*{code:x});)",
        re.escape(html.escape(character)),
        r"\+" if character == " " else re.escape(character),
    }
    return f"(?:{'|'.join(sorted(ways))})"


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
