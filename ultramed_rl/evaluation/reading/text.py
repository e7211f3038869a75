"""Model output as plain text, and what it says where there are no options: a number, or names.

Names are scored as in BioASQ's task B, phase B: strict accuracy for factoids, F1 for lists (Tsatsaronis et al. 2015,
section "Evaluation measures"; a mean over questions is for the caller to take).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from ultramed_rl.evaluation.items import AnswerReading

_THOUGHT = re.compile(r"[<◁](?P<closes>/?)(?:think|thinking|thought|reasoning)[>▷]", re.IGNORECASE)
_PUNCTUATION = str.maketrans(
    dict.fromkeys("’‘´′", "'")
    | dict.fromkeys("“”„«»「」『』", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    | dict.fromkeys("—―", " - ")
    | {"。": ". ", "、": ",", "【": "[", "】": "]", "\x08": "\\b"}
)
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}")
_MARKER = re.compile(r"<\|(?!im_start|start_header_id)[^|<>\n]{1,30}\|>|</?s>|<br ?/?>")
_TURN = re.compile(
    r"^[ #*>-]*(?:question|problem|user|human|q|instruction|input)(?: ?\d+)?[* ]*:"
    r"|^#+ ?question\b|<\|(?:im_start|start_header_id)\|>|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)


# "B12", "CD4", "COVID-19", "3rd", ranges ("5-10"), ratios ("120/80") and times ("8:30") hold no plain number.
_AFTER = r"(?!\d|[.,/:]\d|\s*[-–—−]\s*\d|(?:st|nd|rd|th)\b)"
_DIGITS = r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_POWER = r"(?:\s*[x×]\s*10\s*\^\s*\{?[-+−]?\d+\}?)?"
NUMBER = re.compile(rf"(?<![\w.,/:^–—−-])(?>{_DIGITS}{_POWER}){_AFTER}")
_MARKED = re.compile(
    r"(?:\banswer\s*(?:is|would\s+be|:|=)|####)[\s*_$(:=]*"
    rf"(?:(?:about|approximately|approx\.?|roughly|around|~|≈)\s*)?[$€£]?(?P<number>{NUMBER.pattern})",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"[\s*)]*(?:[^\W\d]{{1,10}}\s+)?(?:or|to|and)\s+{NUMBER.pattern}")
_RANGE = re.compile(r"\d\s*[-–—−]\s*\d")
_TIMES_TEN = re.compile(r"[x×]\s*10\s*\^\s*\{?([-+]?\d+)\}?")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
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


def clean(text: str) -> str:
    """The text without thoughts, fonts and markers, in ASCII punctuation, single spaces, and no empty lines.

    Bold stays, as `**`. Thoughts that never end leave nothing behind them.
    """
    thoughts_end = max([0, *(match.end() for match in _THOUGHT.finditer(text) if match["closes"])])
    said = _THOUGHT.split(text[thoughts_end:], maxsplit=1)[0]
    text = unicodedata.normalize("NFKC", said.translate(_PUNCTUATION)).translate(_PUNCTUATION)
    text = _MARKER.sub("\n", re.sub(r"</?(?:b|strong)>", "**", text))
    text = _FONT.sub(r"\1", _FONT.sub(r"\1", text))
    text = re.sub(r"\\[()\[\],;]|~", " ", text)
    text = re.sub(r"(?<![\\\w])boxed\{|\\fbox\{", r"\\boxed{", text)
    text = re.sub(r"[^\S\n]+", " ", "\n".join(text.splitlines()))
    return re.sub(r"^\* ", "- ", re.sub(r"\n\s+", "\n", text).strip(), flags=re.MULTILINE)


def turns(text: str) -> list[str]:
    """The parts between questions: a small model goes on with questions of its own, and answers them."""
    starts = [0, *(match.start() for match in _TURN.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(starts)]


# -- numbers -----------------------------------------------------------------------------------------------


def to_float(text: str) -> float | None:
    """The value of a match of `NUMBER`, or None where it overflows."""
    plain = text.replace("−", "-").replace(",", "")
    mantissa, power = _TIMES_TEN.sub("", plain).strip(), _TIMES_TEN.search(plain)
    if power and "e" in mantissa.lower():
        return None
    value = float(f"{mantissa}e{int(power[1][:6])}" if power else mantissa)
    return value if math.isfinite(value) else None


def only_number(text: str) -> float | None:
    """The one number in a text; None where there is none, another, or a range."""
    if _RANGE.search(text):
        return None
    numbers = {to_float(match[0]) for match in NUMBER.finditer(text)}
    return numbers.pop() if len(numbers) == 1 else None


def read_number(answer: str) -> float | None:
    """The number that an answer ends with, or None for none and for a choice of several ("5 or 10", "5-10").

    It is the last boxed one, else the last "answer is ..." or "#### ...", else the only one on the last line.
    """
    boxed = BOXED.findall(answer)
    if boxed:
        return only_number(boxed[-1])
    marked = list(_MARKED.finditer(answer))
    if marked:
        return None if _ANOTHER.match(answer, marked[-1].end()) else to_float(marked[-1]["number"])
    lines = [line for line in answer.splitlines() if line.strip()]
    return only_number(lines[-1]) if lines else None


def read_reference_number(reference: str) -> float | None:
    """The number of a reference that is one: "42", "81 mg", "The answer is 4.5.".

    None for other prose, in which a number is no answer.
    """
    if _MARKED.search(reference) or BOXED.search(reference):
        return read_number(reference)
    starts = NUMBER.match(reference.strip().lstrip("$€£~≈ "))
    return only_number(reference) if starts and len(reference.split()) <= 4 else None


# -- names -------------------------------------------------------------------------------------------------


def read_names(text: str) -> AnswerReading:
    """The names after the last "Answer:", each once: on its line between semicolons, or in the list below it.

    Commas part nothing, as names hold them. What later questions that the model asks itself add isn't read.
    """
    for turn in turns(clean(text)):
        leads = list(_LEAD.finditer(turn))
        line, _, below = turn[leads[-1].end() :].partition("\n") if leads else ("", "", "")
        if not line.strip(" *_"):  # on the next line, or in the list below
            lines = below.split("\n") if below else []
            points = next((i for i, each in enumerate(lines) if not _POINT.match(each)), len(lines))
            line = ";".join(lines[: max(points, 1)])
        names: dict[str, str] = {}
        for part in line.split(";")[::-1]:
            bare = _POINT.sub("", _MARKUP.sub("", BOXED.sub(r"\1", part)).strip())
            name = _ARTICLE.sub("", bare.strip(_QUOTES))
            names[normalise_name(name)] = name
        given = tuple(n for key, n in reversed(names.items()) if key and key not in _PLACEHOLDERS)
        if given:
            return AnswerReading(given)
    return AnswerReading((), "none")


def score_factoid(given: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Strict accuracy: 1 where the first name given is one of those accepted, else 0."""
    wanted = {normalise_name(name) for names in expected for name in names} - {""}
    return float(bool(given) and normalise_name(given[0]) in wanted)


def score_list(given: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """F1, 0 to 1, of names against the wanted entities: the harmonic mean of the shares of names that are wanted and of
    entities that are named.

    Each entity is found at most once, so that its second name is one too many.

    Args:
        expected: the accepted names of each entity.

    Raises:
        ValueError: no entity is expected.
    """
    if not expected:
        raise ValueError("expected=() wants no entity, which nothing can answer; leave such questions out")
    wanted = [{normalise_name(name) for name in names} - {""} for names in expected]
    choices = [[i for i, names in enumerate(wanted) if key in names] for key in map(normalise_name, given)]
    owner: dict[int, int] = {}  # the name that each entity is found by: augmenting paths (Kuhn 1955)

    def place(name: int, tried: set[int]) -> bool:
        for entity in choices[name]:
            if entity not in tried:
                tried.add(entity)
                if entity not in owner or place(owner[entity], tried):
                    owner[entity] = name
                    return True
        return False

    matched = sum(place(name, set()) for name in range(len(choices)))
    return 2 * matched / (len(given) + len(expected))


def normalise_name(name: str) -> str:
    """What two spellings of a name share: letters and digits, with Greek letters written out.

    Case, articles, punctuation and spaces go, but not what parts two numbers ("1.5" isn't "15") nor the plus
    of "CD4+".
    """
    plain = _ARTICLE.sub("", unicodedata.normalize("NFKC", name).casefold().lstrip(_QUOTES))
    plain = "".join(_GREEK.get(character, character) for character in plain)
    return "".join(_KEPT.findall(re.sub(r"(?<=\d)[^\w.,]+(?=\d)", ".", plain)))
