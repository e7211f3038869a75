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
_read: set[str] = set()  # what was read by this process, and is never told again


def read_secret(variable: str | None, key: str) -> str | None:
    """The secret in an environment variable, or None where none is named. `key`: the config's key that names the variable,
    for the error. Raises ValueError: the variable is named but not set, or holds what no header can."""
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
    """A text without any secret that was read. Found as it is, URL-encoded, escaped as in JSON or HTML, and in base64, also
    of a longer text. `least`: shorter secrets are left, for texts that may hold them by chance."""
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
        code, hexed = ord(secret[0]), f"{ord(secret[0]):02x}"  # where every character is escaped
        marks |= {f"%{hexed}", f"%25{hexed}", f"u00{hexed}", f"\\x{hexed}", f"{code};", f"x{code:x};"}
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


# -- addresses, which config.yaml keeps and many files are made of -----------------------------------------


def secret_parts(value: Any) -> Iterator[tuple[str, str]]:
    """Where a config's value holds a secret in an address, as ".key.0" inside it, and which part that is."""
    if isinstance(value, str) and "://" in value:
        # fsspec chains addresses, as in simplecache::s3://bucket/file.
        for chained in _CHAIN.split(value):
            for address in _ADDRESS.finditer(chained):
                yield from (("", part) for part in _parts(address[1].lower(), address[2]))
    elif isinstance(value, Mapping | list | tuple):
        for place, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from ((f".{place}{below}", part) for below, part in secret_parts(inner))


def _parts(scheme: str, address: str) -> Iterator[str]:
    authority = re.split(r"[/?#]", address, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    # As in s3://key:abc/def@bucket; a number before the slash is a port, where there are ports.
    slashed = re.match(r"[^/?#@:\[]*:([^@]*)@", address)
    has_port = scheme not in _PORTLESS and slashed and re.match(r"\d*(?:[/?#]|$)", slashed[1])
    if (at and ":" in unquote(user)) or (slashed and not has_port):
        yield "a password"
    elif user and scheme in ("http", "https"):
        yield "a user name"
    for name, _ in parse_qsl(re.sub("[?#;]", "&", address).partition("&")[2]):
        if any(map(_SECRET.search, _WORD.findall(name))):
            yield f"the parameter {name!r}"
