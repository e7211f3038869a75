"""The check of an evaluation's questions against what its policy was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain

from ultramed_rl.config.benchmarks import ContaminationCheck
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.contamination.lineage import training_prompts
from ultramed_rl.evaluation.contamination.search import (
    Contamination,
    Embed,
    TrainedPrompt,
    find_contamination,
    question_text,
)
from ultramed_rl.evaluation.suite import AskedTask

_USERS = ("user", "human")
_TEXT_COLUMNS = ("prompt", "question", "Question", "instruction", "text")


def check_contamination(
    check: ContaminationCheck, suite: Sequence[AskedTask], path: str, own: Iterable[TrainedPrompt] = ()
) -> Contamination:
    """Look for every task's items in what the model at `path` was trained on, and in `own` and `check.sources`.

    Raises:
        ValueError: a source or an embedding model that cannot be read.
    """
    lineage = training_prompts(path)
    questions = {
        asked.task.name: {item.item_id: question_text(item) for item in asked.loaded.items} for asked in suite
    }
    further = (prompt for uri in check.sources for prompt in _source_prompts(uri))
    trained = chain(own, lineage.prompts(), further)
    return find_contamination(questions, trained, _load_embedder(check.embedder), unknown=lineage.gaps)


def check_readable(check: ContaminationCheck) -> None:
    """Make sure before an engine starts that the sources begin well and that the embedding model is there.

    Raises:
        ValueError: as `check_contamination`.
    """
    for uri in check.sources:
        next(_source_prompts(uri), None)
    if check.embedder != "auto":
        _load_embedder(check.embedder)


@cache
def _load_embedder(name: str | None) -> Embed | None:
    """What tells near-duplicates, once for all policies; none where `auto` finds none installed."""
    if name is None:
        return None
    import torch

    from ultramed_rl.models.embedding import Embedder, default_embedder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "auto":
        return Embedder(name, device)
    try:
        return default_embedder(device)
    except ValueError:
        return None  # the report says that near-duplicates were not looked for


def _source_prompts(uri: str) -> Iterator[TrainedPrompt]:
    """The user turns of chats, or the text of the first usual column."""
    for row in read_rows(uri):
        turns = row.get("messages") or row.get("conversations")
        if isinstance(turns, list):
            users = [t for t in turns if isinstance(t, dict) and (t.get("role") or t.get("from")) in _USERS]
            said = [turn.get("content") or turn.get("value") for turn in users]
        else:
            said = [next((row[name] for name in _TEXT_COLUMNS if isinstance(row.get(name), str)), None)]
        if not said or not all(isinstance(text, str) for text in said):
            raise ValueError(
                f"benchmarks.contamination.sources={uri!r}: a row has neither messages, conversations nor a text in "
                f"{', '.join(_TEXT_COLUMNS)}; rename the column that holds the prompt"
            )
        yield from (TrainedPrompt(str(text), uri) for text in said)
