"""Chat templates that are broken or hostile: one line with their place, in time; and all others as transformers has them."""

from __future__ import annotations

import importlib.util
import threading
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CHATML, make_tokenizer, tiny_config
from ultramed_rl.models import rendering
from ultramed_rl.models.rendering import UnfitTemplate, read_template, render_chat
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Message

QUESTION = [Message(role="user", content="x")]
TURNS = "{% for a in range(99999) %}{% for b in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = STEP %}{% endfor %}{{ n.x OUT }}"
)


def growing(start: str, step: str, out: str = "") -> str:
    return GROWING.replace("START", start).replace("STEP", step).replace("OUT", out)


# What each fails with, by the name of its error.
BROKEN = {
    "{{ nothing.x }}": "UndefinedError",
    "{{ nothing() }}": "UndefinedError",
    "{{ messages + 1 }}": "TypeError",
    "{{ messages[0]['content'] + 1 }}": "TypeError",
    "{{ messages | sum }}": "TypeError",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ 'x' | nofilter }}": "TemplateAssertionError",
    "{% if %}": "TemplateSyntaxError",
    "{% include 'other' %}": "TypeError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}": "RecursionError",
    "{% for i in x %}" * 30 + "{% endfor %}" * 30: "SyntaxError",
    "{{ 'x'.encode('nonsense') }}": "LookupError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}": "RecursionError",
    "x" * (2**20 + 1): "ValueError",
}
ENDLESS = {
    "{% for i in range(10 ** 12) %}{% endfor %}": "OverflowError",
    f"{TURNS}{ENDS}": "TimeoutError",
    f"{TURNS}{{% set x = 1 %}}{ENDS}": "TimeoutError",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}" + ENDS: "TimeoutError",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": "TimeoutError",
    "{% set big = 'x' * 100000 %}" + TURNS + "{% if 'zz' in big %}{% endif %}" + ENDS: "TimeoutError",
    growing("['a']", "[n.x, n.x]"): "TimeoutError",
    growing("['a']", "[n.x, n.x]", "| tojson"): "TimeoutError",
    growing("2", "n.x * n.x"): "OverflowError",
    "{{ 9 ** 99999999 }}": "OverflowError",
}
HUGE = [
    f"{TURNS}many words{ENDS}",
    "{% set x %}" + TURNS + "many words" + ENDS + "{% endset %}{{ x }}",
    "{% set x %}{% for a in range(99999) %}{{ 'y' * 1000 }}{% endfor %}{% endset %}",
    growing("'a'", "n.x + n.x"),
    growing("'a'", "n.x ~ n.x"),
    growing("['a']", "n.x + n.x"),
    "{{ 'x' * 10 ** 12 }}",
    "{{ 10 ** 12 * 'x' }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 'x'.center(10 ** 11) }}",
    "{{ 'x'.zfill(10 ** 11) }}",
    "{{ '\t'.expandtabs(10 ** 11) }}",
    "{{ (1).to_bytes(10 ** 11, 'big') }}",
    "{{ 'x' | center(10 ** 11) }}",
    "{{ 'x\n' | indent(10 ** 11) }}",
    "{{ messages | tojson(indent=10 ** 11) }}",
    "{{ range(9) | batch(10 ** 11, 'x') | list }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '%*d' % (10 ** 11, 1) }}",
    "{{ '%*d' | format(10 ** 11, 1) }}",
    "{{ '{:>99999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10 ** 11) }}",
    "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "{{ ('x' * 10000).join(range(10000) | map('string')) }}",
    "{{ range(10000) | map('replace', '1', 'x' * 10000) | join }}",
    "{% set big = 'x' * 500000 %}{% for a in range(99999) %}{% set y = big[1:] %}{% endfor %}",
]


def fault(template: Any) -> str:
    backend = make_tokenizer()
    backend.chat_template = template
    with pytest.raises(UnfitTemplate) as caught:
        render_chat(backend, QUESTION)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value).partition(":")[0]


@pytest.mark.parametrize("template", BROKEN, ids=lambda template: template[:40])
def test_a_broken_template_is_one_kind_of_error(template: str) -> None:
    assert fault(template) == BROKEN[template]


@pytest.mark.parametrize("template", [["a"], {"tool_use": "x"}, None])
def test_what_is_no_template_is_one_too(template: Any) -> None:
    assert fault(template) in ("TypeError", "ValueError")


@pytest.mark.parametrize("template", ENDLESS, ids=lambda template: template[:60])
def test_a_template_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(rendering, "MOST_SECONDS", 0.1)
    assert fault(template) == ENDLESS[template]


@pytest.mark.parametrize("template", HUGE, ids=lambda template: template[:60])
def test_a_template_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(rendering, "MOST_MADE", 2**20)
    tracemalloc.start()
    found = fault(template)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == "OverflowError" and peak < 32 * 2**20


def test_limits_hold_in_any_thread_and_for_each_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(
        rendering, "MOST_MADE", 400
    )  # what is multiplied counts when it is made, and when it is told
    backend, found = make_tokenizer(), list[str]()
    backend.chat_template = (
        "{{ messages[0].content * 50 }}{% if messages[0].content == 'x' %}" + TURNS + ENDS + "{% endif %}"
    )

    def work() -> None:
        for content in ("x", "yyy", "yyyyy"):
            try:
                found.append(render_chat(backend, [Message(role="user", content=content)]))
            except UnfitTemplate as error:
                found.append(str(error).partition(":")[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["OverflowError", "y" * 150, "OverflowError"]
    assert (rendering.MOST_SECONDS, rendering.MOST_MADE) == (0.1, 400)


def test_the_limits() -> None:
    assert (rendering.MOST_SECONDS, rendering.MOST_MADE) == (5.0, 67_108_864)


# -- at the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["model", "file"])
@pytest.mark.parametrize(
    "template", ["{{ messages + 1 }}", "{% if add_generation_prompt %}{{ x() }}{% endif %}" + CHATML]
)
def test_a_broken_template_shows_when_the_tokenizer_is_loaded(
    tmp_path: Path, where: str, template: str
) -> None:
    backend = make_tokenizer()
    backend.chat_template = template if where == "model" else CHATML
    backend.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(ValueError) as caught:
        ChatTokenizer(str(tmp_path), chat_template=str(file) if where == "file" else None)
    assert repr(str(tmp_path)) in str(caught.value) and "\n" not in str(caught.value)
    assert (f"chat_template={str(file)!r}" in str(caught.value)) == (where == "file")


@pytest.mark.parametrize("source", [b"\xff\xfe", b"{{ " + b"(" * 5000, b"{% if %}", b"x" * (2**20 + 1)])
def test_a_file_that_is_no_template_is_told_by_its_key(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "mine.jinja").write_bytes(source)
    with pytest.raises(ValueError, match=r"reward\.chat_template=.*mine\.jinja") as caught:
        read_template(str(tmp_path / "mine.jinja"), "reward.chat_template")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# -- as transformers renders -------------------------------------------------------------------------------

TRL = importlib.util.find_spec("trl")
TEMPLATES = {
    "chatml": CHATML,
    "joined": "{{ '' ~ messages[0].content ~ 1 ~ none ~ messages[1:] }}{{ bos_token }}{{ nothing }}{{ tools }}",
    "filters": "{{ messages | map(attribute='content') | join(', ') }}{{ messages | length }}{{ messages | tojson(indent=2) }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'a-b'.split('-', 1) | last | upper }}",
    "loops": "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}"
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "formats": "{{ '%s: %5.1f' % (messages[0].role, 2) }}{{ '{} {:>4}'.format('a', 3) }}{{ 7 % 3 }}{{ 2 ** 8 * 'ab' | length }}",
    "macros": "{% macro f(m, n=2) %}{{ m.content * n }}{{ caller() if caller }}{% endmacro %}{{ f(messages[0]) }}"
    "{% call f(messages[0], n=1) %}!{% endcall %}{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.role %}{% endfor %}{{ ns.x }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}
if TRL is not None and TRL.submodule_search_locations:  # templates of real models
    for path in sorted(Path(TRL.submodule_search_locations[0]).glob("chat_templates/*.jinja")):
        TEMPLATES[path.stem] = path.read_text()
CHATS = [
    [("user", "Hi")],
    [("user", "Hä?  "), ("assistant", " <think>\nso\n</think>\n\nJa {{ x }}")],
    [("system", "Be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "<b>d</b>")],
    [("assistant", "b")],
    [("user", "a"), ("user", "c")],
    [("user", "a"), ("tool", "{}")],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_other_templates_give_what_transformers_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_DATE", datetime.now())
    backend = make_tokenizer()
    backend.chat_template = TEMPLATES[name]
    for turns in CHATS:
        for generate in (False, True):
            chat = [Message(role=role, content=content) for role, content in turns]
            try:
                expected = backend.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
            except Exception as error:
                with pytest.raises(UnfitTemplate, match=" ".join(str(error).split())[:20].replace("(", ".")):
                    render_chat(backend, chat, generate=generate)
            else:
                assert render_chat(backend, chat, generate=generate) == expected
