"""Model output as plain text, and what it says where there are no options: a number, or names.

Names are scored as in BioASQ's task B, phase B: strict accuracy for factoids, F1 for lists (Tsatsaronis et al. 2015,
section "Evaluation measures"; a mean over questions is for the caller to take).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise, takewhile

from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ultramed_rl.evaluation.items import AnswerReading

_THOUGHT = re.compile(r"[<◁](?P<closes>/?)(?:think|thinking|thought|reasoning)[>▷]", re.IGNORECASE)
_PUNCTUATION = str.maketrans(
    dict.fromkeys("’‘´′", "'")
    | dict.fromkeys("“”„«»「」『』", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    | dict.fromkeys("—―", " - ")
    | {"。": ". ", "、": ",", "【": "[", "】": "]", "\x08": "\\b", "→": "->"}
    | dict.fromkeys("✅✓✔☑\ufe0f")
)
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
    r"(?:\banswer\s*(?:is|would\s+be|:|=)|####)[\s*_$(:=]*(?:not \S+ but )?"
    rf"(?:(?:about|approximately|approx\.?|roughly|around|~|≈)\s*)?[$€£]?(?P<number>{NUMBER.pattern})",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"[\s*)]*(?:[^\W\d]{{1,10}}\s+)?(?:or|to|and)\s+{NUMBER.pattern}")
_RANGE = re.compile(r"\d\s*[-–—−]\s*\d")
_TIMES_TEN = re.compile(r"[x×]\s*10\s*\^\s*\{?([-+]?\d+)\}?")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_GREEK = {
    letter: unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
    for letter in "αβγδεζηθικλμνξοπρσςτυφχψω"
}
_LEAD = re.compile(r"(?im)\banswers?\"?(?: \(.{1,40}?\))?(?: is| are)? ?: ?|^#+[\w ]* answers?$|<answer>")
_SAID = re.compile(r"\banswers? (?:is|are) ", re.IGNORECASE)
# "The genes are ...", and what is said of a name.
_ASIDE = re.compile(r"^(?:\w+ ){1,4}(?:is|are) (?=\w)|(?:(?<=\w\w\w)\. (?=[A-Z]\w* [a-z])|,? which |</).*")
_MARKUP = re.compile(r"[*`$]+|__")
_POINT = re.compile(r"^(?:[-+•]|(?:\d{1,2}|[a-z])[.)]) ")
# A line that may be a name, amid others: no sentence.
_NAME_LINE = re.compile(
    r"(?!(?:the|this|these|those|it|they|we|i|so|thus|as|in|because|note|however|explanation)\b)"
    r"[^\s.!?:]+(?:\.\S+)?(?: [^\s.!?:]+(?:\.\S+)?){0,5}$",
    re.IGNORECASE,
)
_AND = re.compile(r",?\s+(?:and|or|&|as well as)\s+(?![^()]*\))|,\s+(?![^()]*\))|\s+/\s+")
_BRACKETS = re.compile(r"\s*[(\[](?:also (?:known as|called) |aka |i\.e\.,? |or )?([^()\[\]]*)[)\]]")
_ARTICLE = re.compile(r"^(?:the|an?) (?=\S)", re.IGNORECASE)
_QUOTES = " \"'.,:"
_PLACEHOLDERS = {"name", "none", "unknown", "notmentioned", "notgiven", "na", "idontknow", "cannotbedetermined"}  # fmt: skip
_KEPT = re.compile(r"(?<=\d)[.,](?=\d)|[^\W_]|[+%<>=]")

# What is written in many ways, in one.
_PLAIN = (
    (r"<\|(?!im_start|start_header_id)[^|<>\n]{1,30}\|>|</?s>|<br ?/?>", "\n"),
    (r"</?(?:b|strong)>", "**"),
    *2 * ((r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}", r"\1"),),  # nested
    (r"~~[^~\n]+~~", ""),  # struck out
    (r"\\[()\[\],;]|[^\S\n]|~", " "),
    (r"(?<![-|])--+(?![-|>])", " - "),
    (r"(?<![\\\w])boxed\{|\\fbox\{", r"\\boxed{"),
    (r"^\| ?| ?\|$", ""),  # of a table
    (r" +", " "),
    (r"\n\s+", "\n"),
    (r"(?<=\b[A-Z])([)\]]?)[.!?] Or (?=[(\[]?[A-Z]\b(?![\w'+-]))", r"\1 or "),
    (r"\b(?i:(?:no|(?:without|beyond)(?: an?y?)?) (?:doubt|question)|for sure)\b", "clearly"),
    (r"(?i:(?:[.,;!]+ ?|- )(?:or rather|i mean|(?:oh,? )?no,? wait|wait,? no|actually,? no|nope)\b[ ,:.]*)", ". Correction: "),
    (r"(?:\b(?i:is|could|would|can|must) (?:it|this|that|the answer)(?: be)? )?(\(?\b[A-Z]\)?)\? Yes\b", r"\1 is correct"),
    (r"^\* ", "- "),
)  # fmt: skip


def clean(text: str) -> str:
    """The text without thoughts, fonts and markers, in ASCII punctuation, single spaces, and no empty lines.

    Bold stays, as `**`. Thoughts that never end leave nothing behind them.
    """
    thoughts_end = max([0, *(match.end() for match in _THOUGHT.finditer(text) if match["closes"])])
    said = _THOUGHT.split(text[thoughts_end:], maxsplit=1)[0]
    text = unicodedata.normalize("NFKC", said.translate(_PUNCTUATION)).translate(_PUNCTUATION)
    text = "\n".join(text.splitlines())
    for pattern, plain in _PLAIN:
        text = re.sub(pattern, plain, text, flags=re.MULTILINE)
    return text.strip()


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
    return only_number(re.sub(r"^[^,;]*= ", "", lines[-1])) if lines else None


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
    """The names after the last "Answer:", each once: on its line between semicolons, or one a line from there on, with
    bullets or without. Where there is no "Answer:", those in the last box.

    A name with commas stays whole, as many names hold them (see `score_list`). What later questions that the model
    asks itself add isn't read.
    """
    for turn in turns(clean(text)):
        opened = BOXED.sub(r"\1", turn)
        *_, lead = None, *(list(_LEAD.finditer(opened)) or list(_SAID.finditer(opened)))
        said = opened[lead.end() :] if lead else ["", *BOXED.findall(turn)][-1]
        lines = [_MARKUP.sub("", line).strip(" _") for line in said.lstrip(" *_\n").split("\n")]
        if ";" in lines[0]:
            lines = lines[:1]
        listed = _POINT if _POINT.match(lines[0]) else _NAME_LINE
        names: dict[str, str] = {}
        said = ";".join([lines[0], *takewhile(listed.match, lines[1:])])
        for part in re.split(r"[;•]|(?<=\w) \d[.)] ", said):
            name = _ARTICLE.sub("", _ASIDE.sub("", _POINT.sub("", part.strip())).strip(_QUOTES))
            names.setdefault(normalise_name(name), name)
        given = tuple(name for key, name in names.items() if key and key not in _PLACEHOLDERS)
        if given:
            return AnswerReading(given)
    return AnswerReading((), "none")


def score_factoid(given: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Strict accuracy: 1 where the first name given (see `score_list`) is one of those accepted, else 0."""
    wanted = set().union(*(spellings(name) for names in expected for name in names))
    first = _parted(given[:1], wanted)[:1]
    return float(bool(first) and not wanted.isdisjoint(spellings(first[0])))


def score_list(given: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """F1, 0 to 1, of names against the wanted entities: the harmonic mean of the shares of names that are wanted and of
    entities that are named.

    Each entity is found at most once, so that its second name is one too many. A name that isn't wanted is parted at
    commas, "and" and "or" where a part is ("a, b and c").

    Args:
        expected: the accepted names of each entity.

    Raises:
        ValueError: no entity is expected.
    """
    if not expected:
        raise ValueError("expected=() wants no entity, which nothing can answer; leave such questions out")
    wanted = [set().union(*map(spellings, names)) for names in expected]
    names = _parted(given, set().union(*wanted))
    if not names:
        return 0.0
    answers = csr_array([[bool(keys & spellings(name)) for keys in wanted] for name in names])
    matched = int((maximum_bipartite_matching(answers) >= 0).sum())
    return 2 * matched / (len(names) + len(expected))


def _parted(names: Sequence[str], wanted: set[str]) -> list[str]:
    """The names, those that aren't wanted parted where a part is; each once."""
    parted: dict[str, str] = {}
    for name in names:
        parts = [part for part in _AND.split(name) if normalise_name(part)]
        whole = spellings(name) & wanted or not any(spellings(part) & wanted for part in parts)
        parted |= {normalise_name(part): part for part in ([name] if whole else parts)}
    return list(parted.values())


def spellings(name: str) -> set[str]:
    """What a name is compared by: itself, and of "aspirin (ASA): a salicylate" also "aspirin" and "ASA"."""
    outside = _BRACKETS.sub("", name)
    forms = (name, outside, re.split(r": | - ", outside)[0], *_BRACKETS.findall(name))
    return {normalise_name(form) for form in forms} - {""}


def normalise_name(name: str) -> str:
    """What two spellings of a name share: letters and digits, with Greek letters written out.

    Case, articles, punctuation and spaces go, but not what parts two numbers ("1.5" isn't "15") nor the plus
    of "CD4+".
    """
    plain = _ARTICLE.sub("", unicodedata.normalize("NFKC", name).casefold().lstrip(_QUOTES))
    plain = "".join(_GREEK.get(character, character) for character in plain)
    return "".join(_KEPT.findall(re.sub(r"(?<=\d)[^\w.,]+(?=\d)", ".", plain)))
