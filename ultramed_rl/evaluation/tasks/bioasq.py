"""BioASQ's yes/no, factoid and list questions with their snippets (Tsatsaronis et al. 2015; task b).

Rows are the questions in the challenge's JSON files, {"questions": [...]}. These are given to registered users
only, so that no task has a default source.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ultramed_rl.data.chats import Misfit, check_text
from ultramed_rl.data.choices import read_key
from ultramed_rl.evaluation.items import Item, Row, Task, join_parts
from ultramed_rl.evaluation.tasks.pubmedqa import continue_abstract

_OPTIONS = ("yes", "no")
_ONE_NAME = 'Think step by step. Then give, on a last line "Answer: name", the name of what is asked for and nothing else.'
_NAMES = (
    'Think step by step. Then give all that is asked for on a last line "Answer: name; name; ...", with nothing '
    "else on it."
)


def read_row(kind: str, row: Row) -> Item | None:
    """A question of this kind.

    Older files hold a yes/no answer in a list. A factoid wants one entity: every name in its answer, however
    nested, is accepted for it. A list wants one entity per inner list of names, or per name.
    """
    if row.text("type") != kind:
        return None
    if kind == "yesno":
        return row.choice("body", _OPTIONS, "exact_answer", context=_snippets(row))
    expected = _entities(row)
    if kind == "factoid":
        expected = (tuple(dict.fromkeys(name for entity in expected for name in entity)),)
    return Item(row.first_id("id"), row.question("body"), context=_snippets(row), expected=expected)


def _entities(row: Row) -> tuple[tuple[str, ...], ...]:
    """The names of each entity in `exact_answer`: a text, a list of texts, or a list of lists of texts."""
    key = read_key(row, "exact_answer")
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


def _ask(instruction: str, item: Item) -> str:
    return join_parts(item.context, item.question, instruction)


# The harness has no such task; this is its pubmedqa's form with two endings.
BIOASQ_YESNO = Task("bioasq_yesno", (), partial(read_row, "yesno"), continuations=continue_abstract)
BIOASQ_FACTOID = Task("bioasq_factoid", (), partial(read_row, "factoid"), partial(_ask, _ONE_NAME), "factoid")
BIOASQ_LIST = Task("bioasq_list", (), partial(read_row, "list"), partial(_ask, _NAMES), "list")
