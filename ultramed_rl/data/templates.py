"""What a model is asked: text files with $fields, and material that cannot leave the frame it is shown in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from ultramed_rl.config.document import why_unreadable
from ultramed_rl.records import Message


def read_template(file: Path, needed: Sequence[str], optional: Sequence[str], key: str) -> Template:
    """A template that holds every needed field and none but the optional ones besides.

    Raises:
        ValueError: the file cannot be read, or its fields are others; `key` is the config's name for it.
    """
    if (reason := why_unreadable(file)) is not None:
        raise ValueError(f"{key}={str(file)!r}: cannot be read ({reason}); give a text file")
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}={str(file)!r}: cannot be read ({error}); give a text file") from None
    names = set(template.get_identifiers())
    if not template.is_valid() or not {*needed} <= names <= {*needed, *optional}:
        wanted, may = (" and ".join(f"${name}" for name in fields) for fields in (needed, optional))
        raise ValueError(
            f"{key}={str(file)!r}: holds {sorted(names)}; it needs {wanted}{may and f', and may hold {may}'}; "
            "write a dollar sign as $$"
        )
    return template


def shown_chat(messages: Sequence[Message]) -> str:
    """What a judge is shown of a chat: a lone question, or every turn after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def without_tags(text: str, *tags: str) -> str:
    """The text with these tags made harmless, so that an answer cannot close its frame."""
    return re.sub(rf"<(?=\s*/?\s*(?:{'|'.join(tags)})\b)", "‹", text, flags=re.IGNORECASE)
