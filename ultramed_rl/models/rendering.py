"""A chat as text, by its model's template: a program that somebody else wrote.

It runs in Jinja's sandbox with what transformers gives to templates. The sandbox has no limits, so they are here: the
processor's time, and the characters and items of all that is made on the way. Both are looked at in every turn of a
loop, call, filter and output, and before what makes much of little ('x' * 10**12). A template that never ends is left
wherever it is, in any thread; and whatever it fails with becomes one kind of error.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from functools import lru_cache, wraps
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, Template, TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ultramed_rl.config.document import why_unreadable
from ultramed_rl.records import Message

MOST_SECONDS = 5.0  # of the processor, for one chat; real templates take milliseconds
MOST_MADE = 2**26  # characters and items made on the way to one chat
# What a template that has a clock reads: a chat must give the same tokens tomorrow, when a run is taken up again. It is the
# date that Llama 3's template takes itself where there is no clock.
_DATE = datetime(2024, 7, 26)
MOST_SOURCE = 2**20  # characters of a template
_MOST_BITS = 2**14  # of a number
_TURN, _JOINED, _SLICED = "a turn", "joined parts", "a slice"  # filters that no template can name
_FORMATS = {"%", "format", "format_map"}
_TEMPLATE_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = ("chatml", "llama3")
T = TypeVar("T")


class UnfitTemplate(Exception):
    """A template that cannot render a chat, and why: one line."""


class _Budget(threading.local):
    """What the rendering in this thread has left: things to make, and the processor's time at which it ends."""

    made, turns, until = 0, 0, 0.0


_budget = _Budget()


def render_chat(tokenizer: Any, messages: Sequence[Message], *, generate: bool = False) -> str:
    """The chat as text, by the template of a tokenizer of transformers; if `generate`, with the generation prompt. Raises
    UnfitTemplate: the template refuses the chat, is none, fails, or goes beyond a limit."""
    _budget.made, _budget.until = MOST_MADE, time.thread_time() + MOST_SECONDS
    try:
        template = _compile(tokenizer.get_chat_template())
        given = {"messages": list(messages), "tools": None, "documents": None, "strftime_now": _DATE.strftime}
        return template.render(**tokenizer.special_tokens_map, **given, add_generation_prompt=generate)
    except Exception as error:  # a template can fail with anything
        words = " ".join(str(error).split())[:200]
        if type(error) is not TemplateError:  # by which a template says its own words (raise_exception)
            words = f"{type(error).__name__}: {words}".rstrip(": ")
        raise UnfitTemplate(words) from None


def read_template(name: str, key: str = "chat_template") -> str:
    """The text of a built-in chat template, or of a Jinja file. Raises ValueError: neither, or no Jinja; `key` is the
    config's name for it."""
    file = _TEMPLATE_FOLDER / f"{name}.jinja" if name in TEMPLATES else Path(name).expanduser()
    reason = why_unreadable(file)
    if reason is not None:
        raise ValueError(f"{key}={name!r}: {reason}, and none of {', '.join(TEMPLATES)}")
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > MOST_SOURCE:
            raise TemplateError(f"over {MOST_SOURCE} characters")
        Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(text)
    except (OSError, UnicodeDecodeError, TemplateError, RecursionError) as error:
        raise ValueError(f"{key}={name!r}: no Jinja template ({' '.join(str(error).split())})") from None
    return text


class _Generation(Extension):
    """What transformers adds to Jinja: {% generation %} marks what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def _compile(source: str) -> Template:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if len(source) > MOST_SOURCE:
        raise ValueError(f"a template of {len(source)} characters; {MOST_SOURCE} are the most")
    theirs: Environment = _compile_jinja_template("").environment
    ours = _Bounded(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
        finalize=_written,
    )
    ours.globals.update(theirs.globals)
    del ours.globals["lipsum"]  # as many words as it is asked for
    ours.filters = {name: _charging(name, filter) for name, filter in theirs.filters.items()}
    ours.filters |= {_TURN: _turn, _JOINED: _joined, _SLICED: _charged}
    return ours.from_string(_Counted(ours).visit(ours.parse(source)))


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox in which all that is made is charged."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            power = abs(right) if operator == "**" else 1
            if left.bit_length() * power + right.bit_length() > _MOST_BITS:
                raise OverflowError(f"a number of over {_MOST_BITS} bits")
        elif operator == "*":
            _check_ahead("*", *((right, left) if isinstance(left, int) else (left, right)))
        elif operator == "%":
            _check_ahead("%", left, *(right if isinstance(right, tuple) else (right,)))
        return _charged(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(called, "__wrapped__", called)  # the sandbox has wrapped str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int):
            args = tuple(map(_as_list, args))
            _check_ahead(name, owner, *args, *kwargs.values())
        return _charged(super().call(context, called, *args, **kwargs))


class _Counted(NodeTransformer):
    """Puts a turn into a template's loops and macros, and has what ~ and slices make charged."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def _with_turn(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        literals = sum(len(literal.data) for literal in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        turn = self._filter(_TURN, nodes.Const(1 + literals), node)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:  # which may skip the body
            node.test = nodes.Or(self._filter(_TURN, nodes.Const(1), node), node.test, lineno=node.lineno)
        return node

    visit_For = visit_Macro = visit_CallBlock = _with_turn

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(_JOINED, nodes.List(node.nodes), node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(_SLICED, node, node) if isinstance(node.arg, nodes.Slice) else node

    def _filter(self, name: str, value: nodes.Expr, place: nodes.Node) -> nodes.Filter:
        filter = nodes.Filter(value, name, [], [], None, None, lineno=place.lineno)
        filter.set_environment(self.environment)
        return filter


@pass_context
def _turn(_: Context, made: int) -> None:
    """Of a loop, or the beginning of a macro, with so many characters of text in it."""
    _charge(made)


@pass_context
def _joined(_: Context, parts: Sequence[Any]) -> str:
    """What the operator ~ makes."""
    _charge(sum(map(_size, parts)))
    return "".join(map(str, parts))


def _charging(name: str, operation: Callable[..., T]) -> Callable[..., T]:
    """A filter in which all that is made is charged."""
    first = int(hasattr(operation, "jinja_pass_arg"))  # the value comes behind the environment, or the like

    @wraps(operation)
    def run(*args: Any, **kwargs: Any) -> T:
        head, value, parameters = args[:first], _as_list(args[first]), args[first + 1 :]
        _check_ahead(name, value, *parameters, *kwargs.values())
        return _charged(operation(*head, value, *parameters, **kwargs))

    return run


def _check_ahead(name: str, value: Any, *parameters: Any) -> None:
    """Look whether what an operation may make at most is left."""
    numbers = [abs(number) for number in parameters if isinstance(number, int)]
    sizes = [1, *map(_size, parameters)]
    if name in _FORMATS and isinstance(value, str):  # fields, and their widths
        made = (value.count("%") + value.count("{")) * sum(sizes)
        made += sum(map(int, re.findall(r"\d{1,12}", value)))
        made += sum(numbers) if re.search(r"\*|\{[^{}]*\{", value) else 0
    else:
        made = max(1, _size(value)) * max(sizes + numbers)
    if made > _budget.made:
        raise OverflowError(
            f"{name} could make {made} characters or items; {MOST_MADE} are the most for a chat"
        )


def _written(value: Any) -> Any:
    """What becomes a part of the text."""
    _charge(_size(value))
    return value


def _charged(value: T) -> T:
    """What was made: of a list, its items, which were there before."""
    _charge(len(value) if isinstance(value, Sized) and not isinstance(value, Undefined) else 1)
    return value


def _charge(made: int) -> None:
    _budget.made -= made
    _budget.turns += 1
    if _budget.made < 0:
        raise OverflowError(f"over {MOST_MADE} characters or items")
    if not _budget.turns % 64 and time.thread_time() > _budget.until:
        raise TimeoutError(f"over {MOST_SECONDS:g} s")


def _size(value: Any) -> int:
    """Characters and items of a value and of all that it holds; counts no further than what is left."""
    if isinstance(value, str | bytes):
        return len(value)
    size, held = 0, [value]
    while held and size <= _budget.made:
        part = held.pop()
        size += len(part) if isinstance(part, str | bytes) else 1
        if isinstance(part, Mapping):
            held += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set):
            _charge(0)
            held += part
    return size


def _as_list(value: Any) -> Any:
    """What is made item by item, as a list, so that its size is known."""
    return list(islice(value, MOST_MADE)) if isinstance(value, Iterator) else value
