"""Documents to passages: hand-written Markdown part by part, and the texts of open-medicine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ultramed_rl.config.factory import Paragraphs
from ultramed_rl.data.factory.paragraphs import Part, count_words, cut_paragraphs, read_parts
from ultramed_rl.data.sources import read_rows

TABLE = "| drug | dose |\n|---|---|\n| allopurinol | 100 mg |"


def cut(text: str, least: int = 3, most: int = 12, **options: Any) -> tuple[list[str], dict[str, int]]:
    left_out: Counter[str] = Counter()
    config = Paragraphs(least_words=least, most_words=most, **options)
    rows = cut_paragraphs([{"path": "a.md", "text": text}], config, left_out)
    return [row["text"] for row in rows], dict(left_out)


def test_parts_stand_under_their_headings_until_one_of_the_same_level() -> None:
    text = "# Gout\nhi\n\n## Drugs ##\none\n### **Old**\ntwo\n## Diet\nthree\nfour\n\nLast\n====\nend"
    assert list(read_parts(text)) == [
        Part("hi", ("Gout",)),
        Part("one", ("Gout", "Drugs")),
        Part("two", ("Gout", "Drugs", "Old")),
        Part("three\nfour", ("Gout", "Diet")),
        Part("end", ("Last",)),
    ]


def test_signs_that_only_look_like_headings_are_text() -> None:
    text = "#hashtag\n\n```\n# comment\n\nx = 1\n```\n\n- item\n---\nafter\n\nline one\nline two\n---\nend"
    assert [part.text for part in read_parts(text)] == [
        "#hashtag",
        "```\n# comment\n\nx = 1\n```",
        "- item",
        "after",
        "line one\nline two",
        "end",
    ]
    assert all(part.path == () for part in read_parts(text))


def test_comments_and_carriage_returns_leave_no_trace() -> None:
    assert [part.text for part in read_parts("a\r\nb\r\n\r\n<!-- to\n\ndo -->c")] == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("text", "words"), [(TABLE, 5), ("- 5 mg\n- **now**", 3), ("a — b", 2), ("```\n```", 0)]
)
def test_words_are_runs_with_a_letter_or_digit(text: str, words: int) -> None:
    assert count_words(text) == words


def test_passages_get_ids_by_document_and_place() -> None:
    rows = [
        {"path": "gout/drugs.md", "text": "One two three.\n\nFour five six."},
        {"path": "b.txt", "text": ""},
    ]
    assert list(cut_paragraphs(rows, Paragraphs(least_words=3, name="om"), Counter())) == [
        {"id": "om,gout/drugs_1", "text": "One two three.", "source": "gout/drugs.md"},
        {"id": "om,gout/drugs_2", "text": "Four five six.", "source": "gout/drugs.md"},
    ]


def test_headings_are_put_before_the_text_or_left_out() -> None:
    text = "# Gout\n## Drugs\nOne two three."
    assert cut(text) == (["Gout > Drugs\n\nOne two three."], {})
    assert cut(text, headings=False) == (["One two three."], {})
    assert cut("One two three.") == (["One two three."], {})


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("one\n\ntwo\n\nthree four\n\nfive six seven", ["one\n\ntwo\n\nthree four", "five six seven"]),
        ("one two three\n\nfour", ["one two three\n\nfour"]),
        ("one two three:\n\nfour five six", ["one two three:\n\nfour five six"]),
        ("**one two three:**\n\nfour five six", ["**one two three:**\n\nfour five six"]),
        (f"one two three\n\n{TABLE}", [f"one two three\n\n{TABLE}"]),
        (f"{TABLE}\n\none two three", [f"{TABLE}\n\none two three"]),
    ],
)
def test_what_says_too_little_alone_is_joined(text: str, passages: list[str]) -> None:
    assert cut(text) == (passages, {})


def test_nothing_is_joined_beyond_the_most_words() -> None:
    ten = "a b c d e f g h i j"
    assert cut(f"{ten}\n\nk l\n\n{ten}") == ([ten, f"k l\n\n{ten}"], {})
    assert cut(f"{ten}\n\nk l\n\n{ten} n") == ([f"{ten}\n\nk l", f"{ten} n"], {})
    assert cut(f"{ten} k\n\nl m\n\n{ten} n") == ([f"{ten} k", f"{ten} n"], {"too_short": 1})
    assert cut(f"{ten}\n\n{TABLE}") == ([ten], {"table": 1})


def test_short_sections_side_by_side_are_joined_under_what_is_above_them() -> None:
    text = "# Gout\n## Drugs\n### A\none two\n### B\nthree four"
    assert cut(text) == (["Gout > Drugs\n\n### A\n\none two\n\n### B\n\nthree four"], {})
    assert cut(text, headings=False) == ([], {"too_short": 2})
    more = "Gout\n\n## Drugs\n\n### A\n\none two\n\n### B\n\nthree four\n\n## Diet\n\nfive"
    assert cut(f"{text}\n## Diet\nfive") == ([more], {})
    # B's neighbour is Drugs' next section, not the first one within that.
    assert cut(f"{text}\n## Diet\n### C\nfive")[1] == {"too_short": 1}
    assert cut("# A\none two\n# B\nthree four") == ([], {"too_short": 2})


def test_an_introduction_is_joined_with_the_first_section_below_it() -> None:
    assert cut("# Gout\nIn short:\n## Drugs\none two three")[0] == [
        "Gout\n\nIn short:\n\n## Drugs\n\none two three"
    ]


def test_what_is_too_long_is_cut_at_items_or_sentences_into_even_parts() -> None:
    sentences = [f"This is sentence number {word}." for word in ("one", "two", "three", "four")]
    passages, left_out = cut(" ".join(sentences))
    assert (passages, left_out) == ([" ".join(sentences[:2]), " ".join(sentences[2:])], {})
    items = [f"- item {n} has\n  five words" for n in range(4)]
    assert cut("\n".join(items), most=10)[0] == ["\n".join(items[:2]), "\n".join(items[2:])]
    assert cut("Take 1.5 mg of it, e.g. today. Then stop it.", most=8)[0] == [
        "Take 1.5 mg of it, e.g. today.",
        "Then stop it.",
    ]


@pytest.mark.parametrize(
    "text",
    ["word " * 13, TABLE + "\n| a | b |" * 4, "```\n" + "word\n" * 13 + "```"],
    ids=["sentence", "table", "code"],
)
def test_what_cannot_be_cut_is_left_out_and_counted(text: str) -> None:
    assert cut(f"{text}\n\none two three") == (["one two three"], {"too_long": 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("---\ntitle: Gout\ntags: [a]\n---\n", "front_matter"),
        ("+++\ntitle = 'Gout'\n+++\n", "front_matter"),
        ("# References\n\nSmith wrote much about gout.\n\n# Next\n", "references"),
        ("# 7. Further reading:\n\n## Books\n\nAll about gout and more.\n\n# Next\n", "references"),
        ("1. Li J. Ann Med. 2009;150(9):604-12.\n2. Ho K. Gout. doi:10.1000/182\n\n", "references"),
        ("[Home page](../a.md) | [The next one](b.md)\n\n", "links"),
        ("- ![a red toe](toe.png)\n- <https://example.org/gout>\n- https://example.org\n\n", "links"),
        ("[gout]: https://example.org/gout 'A page'\n\n".replace(" 'A page'", ""), "links"),
        ("> **OpenMedicine Calculator:** `calculate_gout` is available for this.\n\n", "note"),
        (f"# Doses\n\n{TABLE}\n\n# Next\n", "table"),
        ("***\n\n", ""),
    ],
)
def test_what_is_no_text_to_learn_from_is_left_out_by_reason(text: str, reason: str) -> None:
    passages, left_out = cut(f"{text}one two three", headings=False)
    assert passages == ["one two three"] and left_out == ({reason: 1} if reason else {})


@pytest.mark.parametrize(
    "text",
    [
        "--- one two three",
        "---\n\none two three\n\n---",
        "See [the guideline](a.md) on gout.",
        "Trials (Li, JAMA 2007;298:1641) say so.\nIt helps against gout.",
        "# Sources of infection\none two three",
        "# Reference values\none two three",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    passages, left_out = cut(text)
    assert len(passages) == 1 and not left_out


@pytest.mark.parametrize(
    "row", [{"text": "x"}, {"path": "a.md"}, {"path": "", "text": "x"}, {"path": 1, "text": "x"}]
)
def test_a_row_that_is_no_document_is_refused_in_one_line(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^row .*\bpath .*\btext; .*\.md .*\.txt ") as error:
        list(cut_paragraphs([row], Paragraphs(), Counter()))
    assert "\n" not in str(error.value)


def test_ultramedicals_paragraphs_are_documents_by_their_ids() -> None:
    row = {"id": "Harrison_1.2", "title": "Harrison", "content": "one two three four"}
    (passage,) = cut_paragraphs([row], Paragraphs(least_words=3), Counter())
    assert passage == {"id": "Paragraph,Harrison_1.2_1", "text": row["content"], "source": "Harrison_1.2"}


def test_two_documents_whose_passages_would_share_ids_are_refused() -> None:
    rows = [{"path": "a/b.md", "text": "x"}, {"path": "a/b.txt", "text": "y"}]
    with pytest.raises(ValueError, match=r"'a/b\.txt': "):
        list(cut_paragraphs(rows, Paragraphs(), Counter()))


def test_the_config_says_what_to_exchange_and_which_pattern_is_none() -> None:
    with pytest.raises(ValidationError, match=r"least_words=9: .*most_words=8;"):
        Paragraphs(least_words=9, most_words=8)
    with pytest.raises(ValidationError, match=r"notes\.0\n.*type=pattern\]"):
        Paragraphs(notes=["("])
    assert cut("Note: this.\n\none two three", notes=["note:"]) == (["one two three"], {"note": 1})


BLOCKS = st.sampled_from(
    ["# A", "## B", "### C", "one", "one two three", "- x\n- y", TABLE, "```\nz\n```", "w " * 20]
)


@given(st.lists(BLOCKS, max_size=15), st.booleans())
def test_every_passage_has_its_length_and_no_text_is_in_two(blocks: list[str], headings: bool) -> None:
    text = "\n\n".join(blocks)
    passages, left_out = cut(text, headings=headings)
    bodies = [passage.split("\n\n") for passage in passages]
    kept = [part for body in bodies for part in body if part in blocks and not part.startswith("#")]
    assert all(kept.count(part) <= blocks.count(part) for part in kept)
    if not headings:
        assert all(3 <= count_words(passage) <= 12 for passage in passages)
        assert sum(map(count_words, passages)) <= sum(part.words for part in read_parts(text))
    lost = {"too_short", "too_long", "table"}
    assert lost >= {*left_out} and bool(passages or left_out) == any(not b.startswith("#") for b in blocks)


def test_the_guidelines_give_passages_and_lose_little() -> None:
    rows = list(read_rows("package://open_medicine/guidelines/content/**/*.md"))
    left_out: Counter[str] = Counter()
    passages = list(cut_paragraphs(rows, Paragraphs(), left_out))
    assert 1200 < len(passages) == len({passage["id"] for passage in passages})
    assert {passage["source"] for passage in passages} == {row["path"] for row in rows}
    assert all("available via MCP" not in passage["text"] for passage in passages)
    bodies = [passage["text"].split("\n\n", 1) for passage in passages]
    titles = {row["path"]: row["text"].split("\n")[0].removeprefix("# ") for row in rows}
    assert all(
        above.startswith(titles[passage["source"]])
        for passage, (above, _) in zip(passages, bodies, strict=True)
    )
    assert left_out["note"] == 78 and {*left_out} == {"note", "too_short", "table"}
    parts = sum(part.words for row in rows for part in read_parts(row["text"]))
    assert sum(count_words(body) for _, body in bodies) > 0.97 * parts
