"""People's labels of pairs: a sheet that doesn't give the judge's choice away, and the labels read back.

pairs --> sheet.csv: pair_id, prompt, first, second --> people --> labels.csv: pair_id, preferred --> majority
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ultramed_rl.data.factory.bench import Side, pair_id
from ultramed_rl.data.factory.step import Row
from ultramed_rl.learning.seeds import seeded_number

SHEET_COLUMNS = ("pair_id", "prompt", "first", "second")
LABEL_COLUMNS = ("pair_id", "preferred")
PREFERRED = ("first", "second", "tie", "chosen", "rejected")


def sheet_rows(pairs: Iterable[Row], seed: int) -> Iterator[dict[str, str]]:
    """What a person is shown of each pair: SHEET_COLUMNS. Which side is first is drawn by the pair's id, so that
    `read_labels` with the same seed knows it again."""
    for pair in pairs:
        name = pair_id(pair)
        first = first_side(name, seed)
        second = "rejected" if first == "chosen" else "chosen"
        texts = (pair["prompt"], pair[first][-1]["content"], pair[second][-1]["content"])
        yield dict(zip(SHEET_COLUMNS, (name, *texts), strict=True))


def first_side(name: str, seed: int) -> Side:
    """The side of a pair that stands first on the sheet."""
    return "chosen" if seeded_number(seed, "sheet", name) % 2 else "rejected"


def read_labels(path: str | Path, seed: int, counts: Counter[str]) -> dict[str, Side]:
    """The preferred side of each pair that has a majority, by pair_id, from a CSV file.

    It has the columns pair_id and preferred, any others besides, and a row for each person and pair. `preferred` is
    first or second (of the sheet of this seed), chosen or rejected (of the pair), or tie. A tie is a vote for neither
    side: a side needs more votes than the other.

    Args:
        counts: gains labels (rows), labelled (pairs), conflicts (pairs whose people differ), undecided (pairs left
            out for want of a majority).

    Raises:
        ValueError: an unreadable file, one without these columns, or a row with another value.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for number, row in enumerate(_read_csv(path), start=2):
        name, preferred = (str(row[column] or "").strip() for column in LABEL_COLUMNS)
        if not name or preferred.lower() not in PREFERRED:
            raise ValueError(
                f"{path}, line {number}: pair_id={name!r:.60}, preferred={preferred!r:.20}; name a pair, and one of "
                f"{', '.join(PREFERRED)}"
            )
        votes[name][_side(name, preferred.lower(), seed)] += 1
    found = {name: side for name, vote in votes.items() if (side := _majority(vote)) is not None}
    counts.update(
        labels=sum(vote.total() for vote in votes.values()),
        labelled=len(votes),
        conflicts=sum(len(vote) > 1 for vote in votes.values()),
        undecided=len(votes) - len(found),
    )
    return found


def _side(name: str, preferred: str, seed: int) -> str:
    if preferred not in ("first", "second"):
        return preferred
    chosen_first = first_side(name, seed) == "chosen"
    return "chosen" if chosen_first == (preferred == "first") else "rejected"


def _majority(vote: Counter[str]) -> Side | None:
    if vote["chosen"] == vote["rejected"]:
        return None
    return "chosen" if vote["chosen"] > vote["rejected"] else "rejected"


def _read_csv(path: str | Path) -> Iterator[dict[str, str | None]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {*LABEL_COLUMNS} <= {*columns}:
                raise ValueError(
                    f"{path}: its columns are {', '.join(columns)}; labels need {' and '.join(LABEL_COLUMNS)}"
                )
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); save the labels as CSV in UTF-8") from None
