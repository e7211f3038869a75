"""JSON in replies: repaired where only one reading is possible."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ultramed_rl.http.json_reply import UnusableReply, fit, read_json

# -- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (' \n[1, 2.5, "x", null, true] ', [1, 2.5, "x", None, True]),
        ("7", 7),
        ('"x"', "x"),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n7\n```", 7),
        ('Here it is:\n```JSON\n{"a": 1}\n```\nI hope it helps.', {"a": 1}),
        ('Sure! {"a": {"b": [1]}} Done.', {"a": {"b": [1]}}),
        ('<think>Perhaps {"a": 2}?</think>\n{"a": 1}', {"a": 1}),
        ('{"a": [1, 2,], "b": 3,}', {"a": [1, 2], "b": 3}),
        ('{"a": "x",\n}', {"a": "x"}),
        ('{"a": "line\nline\ttab"}', {"a": "line\nline\ttab"}),
        ('{"a": "[,] {,} ,]",}', {"a": "[,] {,} ,]"}),
        ('{"a": "say \\",]\\"",}', {"a": 'say ",]"'}),
        ('{"a": "</think>"}', {"a": "</think>"}),
        ('{"a": "```x```"}', {"a": "```x```"}),
        ('{"\\ud83d\\ude00": "é"}', {"😀": "é"}),
        ("{}", {}),
    ],
)
def test_replies_with_one_reading_are_read(text: str, value: Any) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "{'a': 1}",  # Python's quotes
        "['a' 'b']",
        '{"a": 1',
        '{"a": {"b": 1}',  # the inner object is whole, the answer isn't
        '[{"a": 1}, {"b": 2}',
        '[{"a": 1}, {"b',
        '{"a": "x}',
        '{"a": 1} {"a": 2}',
        '{"a": 1}\n{"a"',
        '{"a": 1}, or [2]',
        'As [1] says: {"a": 1}',
        '```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```',
        '{"a": 1, "text": "```json\n{"b": 2}\n```"',
        '{"a": 1, "a": 2}',
        "[1,,2]",
        "[,]",
        "{,}",
        "[1 2]",
        '{"a": 1,, }',
        '{"a":,}',
        "{a: 1}",
        '{"a": NaN}',
        "[Infinity]",
        "[1e999]",
        '["\\ud800"]',
        "[" * 100_000,
        "[" * 5000 + "]" * 5000,
        "[" + "9" * 5000 + "]",
        '<think>{"a": 1}',
    ],
    ids=lambda text: text[:30],
)
def test_replies_with_none_or_several_readings_are_refused(text: str) -> None:
    with pytest.raises(UnusableReply):
        read_json(text)


# Numbers that a float holds exactly, so that equal means equal.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(max_size=8)
    | st.sampled_from([0.5, "</think>"])
)
KEYS = st.text(max_size=5) | st.just("</think>")
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CONTAINERS = st.lists(NESTED, max_size=4) | st.dictionaries(KEYS, NESTED, max_size=4)
AROUND = st.text(st.characters(exclude_characters="[]{}<>`", exclude_categories=["Cs"]), max_size=20)
STYLES = st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}])


def encodable(value: Any) -> bool:
    return not re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))


@given(CONTAINERS.filter(encodable), STYLES, AROUND, AROUND, st.booleans())
@example(["a</think>b"], {}, "So: ", "", False)
def test_words_and_fences_around_a_value_do_not_change_it(
    value: Any, style: Any, before: str, after: str, fenced: bool
) -> None:
    text = json.dumps(value, **style)
    text = f"```json\n{text}\n```" if fenced else text
    assert read_json(f"{before}{text}{after}") == value


@given(CONTAINERS.filter(encodable), STYLES, st.data())
def test_a_value_that_was_cut_off_is_never_closed(value: Any, style: Any, data: Any) -> None:
    """Nor is any whole part of it taken for the answer."""
    text = json.dumps(value, **style)
    assume("</think>" not in text)  # what follows it is the answer to reasoning that looks like a cut value
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(UnusableReply):
        read_json("So: " + text[:cut])


def with_commas(value: Any) -> str:
    """JSON with a comma after every last item."""
    if isinstance(value, dict) and value:
        return "{" + "".join(f"{json.dumps(k)}: {with_commas(v)}," for k, v in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[" + "".join(f"{with_commas(item)}," for item in value) + " ]"
    return json.dumps(value)


@given(CONTAINERS.filter(encodable))
@example(["</think>"])
@example({"</think>": [], "0": None})
def test_commas_after_last_items_are_dropped_and_nothing_else(value: Any) -> None:
    assert read_json(with_commas(value)) == value


@given(st.text() | st.text(st.sampled_from(list('[]{},:"\\ \n1ae-`'))))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = read_json(text)
    except UnusableReply:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value


# -- schemas -----------------------------------------------------------------------------------------------

GRADE = json.dumps({"type": "object", "properties": {"grade": {"type": "integer", "maximum": 5}}})


def test_what_fits_is_rewritten_plainly() -> None:
    assert fit('```\n{"grade":5, "why": "é\n",}\n```', GRADE) == '{"grade": 5, "why": "é\\n"}'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"grade": 6}', r"\$\.grade: 6 .*\b5\b"),
        ('{"grade": "5"}', r"\$\.grade: '5' .*'integer'"),
        ("[5]", r"\$: \[5\] .*'object'"),
        ('{"grade": 5', r"JSON \(.*\b11 .*\b11\)"),
    ],
)
def test_what_does_not_fit_is_named(text: str, named: str) -> None:
    with pytest.raises(UnusableReply, match=named):
        fit(text, GRADE)


@pytest.mark.parametrize("schema", ["{", '{"type": "int"}', "[]"])
def test_a_schema_that_is_none_is_the_callers_error(schema: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"schema={schema!r}: ")):
        fit("{}", schema)


def test_a_reply_nested_beyond_reason_is_refused() -> None:
    for depth in (300, 600, 900, 990, 3000):
        with pytest.raises(UnusableReply):
            fit("[" * depth + "]" * depth, GRADE)
