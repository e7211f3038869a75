"""Whether a path is a file that can be read from beginning to end."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_unreadable(path: Path) -> str | None:
    """What keeps a path from being read, in words; None for a regular file.

    A FIFO or a device would hang whoever reads it, or never end.
    """
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
