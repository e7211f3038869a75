"""A report page holds its texts and figures, escaped, and nothing that asks the network or runs a text."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from ultramed_rl.tracking.page import clean_text, figure_text, page_html

ATTACK = "</script><script>alert(1)</script>"
ODD = f"{ATTACK} \ud800 \x00 \u202e & \"quoted\" 'single'"


class Reader(HTMLParser):
    """Elements, and text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside not in ("script", "style") else ""


Write = Callable[..., str]


@pytest.fixture
def page(tmp_path: Path) -> Write:
    """Makes the page of a template's text."""

    def write(template: str, title: str = "t", **values: Any) -> str:
        file = tmp_path / "page_of_test.html.jinja"
        file.write_text(f'{{% from "parts.html.jinja" import fact, figure, table %}}{template}')
        return page_html(file, title, **values)

    return write


def section(content: str, heading: str = "h") -> str:
    return f'{{% call page.section("{heading}") %}}{content}{{% endcall %}}'


def figures(html: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def own_script(html: str) -> bytes:
    (found,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return found.encode()


def test_paragraphs_and_tables_come_out_in_order_with_their_words(page: Write) -> None:
    table = '{{ table(rows, [("Set", "{name}"), ("Rows", "{rows:,}")]) }}'
    sections = section(f"<p>before</p>{table}<p>after</p>", "First") + section(" \n ", "Empty")
    rows = [{"name": "MedQA", "rows": 9343}, {"name": "PubMedQA", "rows": None}]
    html = page(sections + section("x", "Second"), "Title", rows=rows)
    assert Reader(html).text.split() == [
        *("Title", "Title", "First", "before", "Set", "Rows", "MedQA", "9,343", "PubMedQA", "–"),
        *("after", "Second", "x"),
    ]
    assert "<script" not in html and "script-src 'none'" in html, "a page without figures needs no plotly.js"


def test_no_text_becomes_a_tag_wherever_it_stands(page: Write) -> None:
    plot = go.Figure(go.Bar(x=[ODD], y=[1], text=[ODD]))
    content = '<p>{{ odd }}</p>{{ table([(odd, odd)], [(odd, "{0}"), (odd, "{1}")]) }}{{ figure(plot) }}'
    html = page(f"{{% call page.section(odd) %}}{content}{{% endcall %}}", ODD, odd=ODD, plot=plot)
    html.encode("utf-8")
    assert "\x00" not in html and "<script>alert" not in html and "\u202e" not in html
    reader = Reader(html)
    assert [tag for tag, _ in reader.tags].count("script") == 3  # the figures, plotly.js, the page's own
    assert (
        reader.text.count("</script><script>alert(1)</script> \ufffd \ufffd \ufffd & \"quoted\" 'single'")
        == 8
    )
    assert figures(html)[0]["data"][0]["text"][0].startswith(ATTACK)


def test_figures_keep_their_numbers_and_leave_their_colours_to_the_page(page: Write) -> None:
    first = go.Figure(go.Bar(x=["a", "b"], y=[1.5, None]), layout={"title": {"text": "T"}})
    other = go.Figure(go.Scatter(x=[1], y=[float("nan")]))
    html = page(section("{{ figure(first) }}{{ figure(other) }}"), first=first, other=other)
    shown, blank = figures(html)
    assert shown["data"][0]["y"] == [1.5, None] and blank["data"][0]["y"] == [None]
    assert shown["layout"] == {"title": {"text": "T"}}
    assert [a["id"] for tag, a in Reader(html).tags if a.get("class") == "figure"] == ["figure-0", "figure-1"]


def test_plotly_is_inlined_once_and_nothing_is_fetched(page: Write) -> None:
    twice = section("{{ figure(plot) }}", "a") + section("{{ figure(plot) }}{{ figure(plot) }}", "b")
    html = page(twice, plot=go.Figure(go.Bar(y=[1])))
    packed = re.findall(r'<script type="application/gzip" id="library">(.*?)</script>', html)
    assert len(packed) == 1 and html.count("plotly.js v") == 0 and len(html) < 2_200_000
    library = gzip.decompress(b64decode(packed[0]))
    assert library.count(b"plotly.js v") == 1 and b"\r" not in library
    tags = Reader(html).tags
    assert not any(tag in ("link", "img", "iframe", "object") or "src" in found for tag, found in tags)
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "http" not in policy
    scripts = policy.split("script-src ")[1].split(";")[0]
    digests = {
        f"'sha256-{b64encode(sha256(found).digest()).decode()}'" for found in (library, own_script(html))
    }
    assert set(scripts.split()) == digests, "no other script may run"
    assert "prefers-color-scheme: dark" in html and 'content="width=device-width' in html


def test_a_label_is_one_cut_line_that_plotly_reads_no_tag_in() -> None:
    assert figure_text("a  <b>\n&\x00") == "a &lt;b&gt; &amp;�"
    assert figure_text("abcdef", most=4) == "abc…" and figure_text("abcd", most=4) == "abcd"
    assert figure_text("<one> two three", width=9) == "&lt;one&gt; two<br>three"


@given(st.text(st.characters(), max_size=60), st.integers(0, 20))
def test_any_text_can_be_written_and_shown(text: str, width: int) -> None:
    clean_text(text).encode("utf-8")
    label = figure_text(text, 30, width)
    label.encode("utf-8")
    assert not re.search(r"[<>]", label.replace("<br>", ""))
    assert clean_text(clean_text(text)) == clean_text(text)


def test_a_name_that_no_value_has_is_our_own_mistake(page: Write) -> None:
    for content in ("{{ unknown }}", '{{ table([row], [("Set", "{unknown}")]) }}'):
        with pytest.raises((UndefinedError, AttributeError), match="unknown"):
            page(section(content), row=object())


def test_every_kind_of_part_is_escaped_and_a_widgets_data_ends_no_script(page: Write, tmp_path: Path) -> None:
    (tmp_path / "w.js").write_text("document.title = 'w';")
    parts = '<p class="note">{{ odd }}</p><dl>{{ fact(odd, odd, odd) }}</dl>{{ odd | number("words") }}'
    widget = "<div id='w'></div>{{ page.add_widget('w', [odd]) }}"
    html = page(section(parts + widget, ""), odd=ODD, subtitle=ODD, footer=ODD)
    html.encode("utf-8")
    assert "<script>alert" not in html and "\u202e" not in html
    assert Reader(html).text.count("</script><script>alert(1)</script>") == 7
    (data,) = re.findall(r'<script type="application/json" id="w-data">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data) == [ODD]


def test_long_pages_have_links_to_their_sections(page: Write) -> None:
    sections = [section("text", f"Part {n}") for n in range(5)]
    html = page("".join([*sections, section("first", "")]))
    links = [a["href"] for tag, a in Reader(html).tags if tag == "a"]
    assert links == [f"#{a['id']}" for tag, a in Reader(html).tags if tag == "section" and a]
    assert len(links) == 5 and html.index("first") < html.index("<nav") < html.index("<h2>")
    assert "<nav" not in page("".join(sections[:4]))
