"""Names as answers: BioASQ's factoid and list questions, read and scored.

The measures are those of BioASQ task B, phase B: strict accuracy for factoids, mean F1 for lists
(Tsatsaronis et al. 2015, section "Evaluation measures"; a mean over questions is for the caller to take).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ultramed_rl.evaluation.items import AnswerReading
from ultramed_rl.evaluation.reading.numbers import BOXED
from ultramed_rl.evaluation.reading.plain import clean, turns

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "ο": "omicron",
    "π": "pi", "ρ": "rho", "σ": "sigma", "ς": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega",
}  # fmt: skip
_LEAD = re.compile(
    r"\banswers?(?: \([^()\n]{1,40}\))?(?: is| are)? ?: ?|^#+ ?(?:final )?answers?$", re.I | re.MULTILINE
)
_MARKUP = re.compile(r"[*`$]+|__")
_POINT = re.compile(r"^(?:[-+•]|\d{1,2}[.)]) ")
_ARTICLE = re.compile(r"^(?:the|an?) (?=\S)", re.IGNORECASE)
_QUOTES = " \"'.,:"
_PLACEHOLDERS = {
    "name",
    "none",
    "unknown",
    "notmentioned",
    "notgiven",
    "na",
    "idontknow",
    "cannotbedetermined",
}
_KEPT = re.compile(r"(?<=\d)[.,](?=\d)|[^\W_]|[+%<>=]")


@dataclass(frozen=True)
class ListScore:
    """Shares from 0 to 1: of the names given, of the entities wanted, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def read_names(text: str) -> AnswerReading:
    """The names after the last "Answer:", each once: on its line between semicolons, or in the list below it.

    Commas part nothing, as names hold them. What later questions that the model asks itself add isn't read.
    """
    for turn in turns(clean(text)):
        leads = list(_LEAD.finditer(turn))
        names = _names(turn[leads[-1].end() :]) if leads else ()
        if names:
            return AnswerReading(names)
    return AnswerReading((), "none")


def score_factoid(given: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Strict accuracy: 1 where the first name given is one of those accepted, else 0."""
    wanted = {normalise_name(name) for names in expected for name in names} - {""}
    return float(bool(given) and normalise_name(given[0]) in wanted)


def score_list(given: Sequence[str], expected: Sequence[Sequence[str]]) -> ListScore:
    """How well names cover the wanted entities, each of which is found at most once.

    A second name of an entity is thus a name too many.

    Args:
        expected: the accepted names of each entity.

    Raises:
        ValueError: no entity is expected.
    """
    if not expected:
        raise ValueError("expected=() wants no entity, which nothing can answer; leave such questions out")
    wanted = [{normalise_name(name) for name in names} - {""} for names in expected]
    keys = [normalise_name(name) for name in given]
    matched = _count_matches([[i for i, names in enumerate(wanted) if key in names] for key in keys])
    precision = matched / len(given) if given else 0.0
    recall = matched / len(expected)
    return ListScore(precision, recall, 2 * matched / (len(given) + len(expected)))


def normalise_name(name: str) -> str:
    """What two spellings of a name share: letters and digits, with Greek letters written out.

    Case, articles, punctuation and spaces go, but not what parts two numbers ("1.5" isn't "15") nor the plus
    of "CD4+".
    """
    plain = _ARTICLE.sub("", unicodedata.normalize("NFKC", name).casefold().lstrip(_QUOTES))
    plain = "".join(_GREEK.get(character, character) for character in plain)
    return "".join(_KEPT.findall(re.sub(r"(?<=\d)[^\w.,]+(?=\d)", ".", plain)))


def _names(after: str) -> tuple[str, ...]:
    """The names on the rest of a line, or, where it is empty, on the next line or in the list below."""
    line, _, below = after.partition("\n")
    if not line.strip(" *_"):
        lines = below.split("\n") if below else []
        points = next((i for i, each in enumerate(lines) if not _POINT.match(each)), len(lines))
        line = ";".join(lines[: max(points, 1)])
    names = {normalise_name(name): name for name in map(_stripped, line.split(";")[::-1])}
    return tuple(name for key, name in reversed(names.items()) if key and key not in _PLACEHOLDERS)


def _stripped(name: str) -> str:
    """The name without a list's mark, markup, quotes, an article and a full stop."""
    plain = _POINT.sub("", _MARKUP.sub("", BOXED.sub(r"\1", name)).strip()).strip(_QUOTES)
    return _ARTICLE.sub("", plain)


def _count_matches(choices: Sequence[Sequence[int]]) -> int:
    """The most names that can be paired with entities of their own: augmenting paths (Kuhn 1955)."""
    owner: dict[int, int] = {}

    def place(name: int, tried: set[int]) -> bool:
        for entity in choices[name]:
            if entity not in tried:
                tried.add(entity)
                if entity not in owner or place(owner[entity], tried):
                    owner[entity] = name
                    return True
        return False

    return sum(place(name, set()) for name in range(len(choices)))
