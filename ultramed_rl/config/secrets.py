"""Keys and tokens: in the environment alone, never in a config."""

from __future__ import annotations

import os


def read_secret(variable: str | None, key: str) -> str | None:
    """The secret in an environment variable, or None where none is named.

    Args:
        key: the config's key that names the variable, for the error.

    Raises:
        ValueError: the variable is named but not set.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise ValueError(
            f"{key}={variable!r}: this environment variable isn't set; export it, or remove the key"
        )
    return secret
