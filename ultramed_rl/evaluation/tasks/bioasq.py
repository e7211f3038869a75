"""BioASQ's yes/no, factoid and list questions with their snippets (Tsatsaronis et al. 2015; task b).

Rows are the questions in the challenge's JSON files, {"questions": [...]}. These are given to registered users
only, so that no task has a default source.
"""

from __future__ import annotations

from collections.abc import Mapping

from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Item, Row, Task, build_choice, check_text, join_parts, key_by_text
from ultramed_rl.evaluation.tasks.pubmedqa import continue_abstract

_OPTIONS = ("yes", "no")
_ONE_NAME = 'Think step by step. Then give, on a last line "Answer: name", the name of what is asked for and nothing else.'
_NAMES = (
    'Think step by step. Then give all that is asked for on a last line "Answer: name; name; ...", with nothing '
    "else on it."
)


def read_yesno(row: Row) -> Item | None:
    """A yes/no question; older files hold its answer in a list."""
    if row.text("type") != "yesno":
        return None
    key = row.key("exact_answer")
    place = key_by_text(_OPTIONS, key[0] if isinstance(key, list) and len(key) == 1 else key)
    return build_choice(row.question("body"), _OPTIONS, place, row.first_id("id"), _snippets(row))


def read_factoid(row: Row) -> Item | None:
    """A factoid, which wants one entity: every name in its answer, however nested, is accepted for it."""
    if row.text("type") != "factoid":
        return None
    names = dict.fromkeys(name for entity in _entities(row) for name in entity)
    return _names_item(row, (tuple(names),))


def read_list(row: Row) -> Item | None:
    """A list question: one entity per inner list of names, or per name."""
    return _names_item(row, _entities(row)) if row.text("type") == "list" else None


def _names_item(row: Row, expected: tuple[tuple[str, ...], ...]) -> Item:
    question, context = row.question("body"), _snippets(row)
    return Item(row.first_id("id"), question, context=context, expected=expected)


def _entities(row: Row) -> tuple[tuple[str, ...], ...]:
    """The names of each entity in `exact_answer`: a text, a list of texts, or a list of lists of texts."""
    key = row.key("exact_answer")
    entities = []
    for entity in key if isinstance(key, list) else [key]:
        names = entity if isinstance(entity, list) else [entity]
        stripped = (check_text(name, "exact_answer").strip() for name in names)
        entities.append(tuple(dict.fromkeys(name for name in stripped if name)))
    if not any(entities):
        raise Misfit("exact_answer holds no name", name="missing_key")
    return tuple(filter(None, entities))


def _snippets(row: Row) -> str:
    """The snippets' texts, one a line; a question may have none."""
    snippets = row.get("snippets") or []
    if not isinstance(snippets, list) or not all(isinstance(snippet, Mapping) for snippet in snippets):
        raise Misfit("snippets are no list of objects", name="context")
    return "\n".join(Row(snippet).text("text").strip() for snippet in snippets)


# The harness has no such task; this is its pubmedqa's form with two endings.
BIOASQ_YESNO = Task("bioasq_yesno", (), read_yesno, continuations=continue_abstract)
BIOASQ_FACTOID = Task(
    "bioasq_factoid", (), read_factoid, lambda i: join_parts(i.context, i.question, _ONE_NAME), form="factoid"
)
BIOASQ_LIST = Task(
    "bioasq_list", (), read_list, lambda i: join_parts(i.context, i.question, _NAMES), form="list"
)
