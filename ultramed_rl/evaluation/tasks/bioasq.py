"""BioASQ's yes/no, factoid and list questions with their snippets (Tsatsaronis et al. 2015; task b).

Rows are the questions in the challenge's JSON files, {"questions": [...]}. These are given to registered users
only, so that no task has a default source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Item, Row, Task, ask_choice, join_parts
from ultramed_rl.evaluation.tasks.pubmedqa import continue_abstract
from ultramed_rl.evaluation.tasks.rows import (
    build_choice,
    check_text,
    key_by_text,
    read_id,
    read_key,
    read_question,
    read_text,
)

_OPTIONS = ("yes", "no")
_ONE_NAME = 'Think step by step. Then give, on a last line "Answer: name", the name of what is asked for and nothing else.'
_NAMES = (
    'Think step by step. Then give all that is asked for on a last line "Answer: name; name; ...", with nothing '
    "else on it."
)


def read_yesno(row: Row) -> Item | None:
    """A yes/no question; older files hold its answer in a list."""
    if read_text(row, "type") != "yesno":
        return None
    key = read_key(row, "exact_answer")
    place = key_by_text(_OPTIONS, key[0] if isinstance(key, list) and len(key) == 1 else key)
    return build_choice(read_question(row, "body"), _OPTIONS, place, read_id(row, "id"), _snippets(row))


def read_factoid(row: Row) -> Item | None:
    """A factoid, which wants one entity: every name in its answer, however nested, is accepted for it."""
    if read_text(row, "type") != "factoid":
        return None
    names = dict.fromkeys(name for entity in _entities(row) for name in entity)
    return _names_item(row, (tuple(names),))


def read_list(row: Row) -> Item | None:
    """A list question: one entity per inner list of names, or per name."""
    if read_text(row, "type") != "list":
        return None
    return _names_item(row, _entities(row))


def _names_item(row: Row, expected: tuple[tuple[str, ...], ...]) -> Item:
    question, context = read_question(row, "body"), _snippets(row)
    return Item(read_id(row, "id"), question, context=context, expected=expected)


def _entities(row: Row) -> tuple[tuple[str, ...], ...]:
    """The names of each entity in `exact_answer`: a text, a list of texts, or a list of lists of texts."""
    key = read_key(row, "exact_answer")
    entities = [_names(entity) for entity in (key if isinstance(key, list) else [key])]
    named = tuple(names for names in entities if names)
    if not named:
        raise Misfit("exact_answer holds no name", name="missing_key")
    return named


def _names(entity: object) -> tuple[str, ...]:
    names = entity if isinstance(entity, list) else [entity]
    stripped = (check_text(name, "exact_answer").strip() for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name))


def _snippets(row: Row) -> str:
    """The snippets' texts, one a line; a question may have none."""
    snippets = row.get("snippets") or []
    if not isinstance(snippets, list) or not all(isinstance(snippet, Mapping) for snippet in snippets):
        raise Misfit("snippets are no list of objects", name="context")
    return "\n".join(read_text(snippet, "text").strip() for snippet in snippets)


def _ask(instruction: str) -> Callable[[Item], str]:
    return lambda item: join_parts(item.context, item.question, instruction)


# The harness has no such task; this is its pubmedqa's form with two endings.
BIOASQ_YESNO = Task("bioasq_yesno", (), read_yesno, ask_choice, continuations=continue_abstract)
BIOASQ_FACTOID = Task("bioasq_factoid", (), read_factoid, _ask(_ONE_NAME), form="factoid")
BIOASQ_LIST = Task("bioasq_list", (), read_list, _ask(_NAMES), form="list")
