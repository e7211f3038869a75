"""Chat text to token ids and back, with the checks that keep generation and padding sound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ultramed_rl.config.models import Model
from ultramed_rl.models.offline import resolve_model
from ultramed_rl.records import Message

_MARKER = "ultramed answer probe"
# What a template that has a clock reads: a chat must give the same tokens tomorrow, when a run is taken up again. It is the
# date that Llama 3's template takes itself where there is no clock.
_DATE = datetime(2024, 7, 26)
_TEMPLATE_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = ("chatml", "llama3")


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """A model's tokenizer, with or without a chat template. Raises ValueError where there is none."""
    from transformers import AutoTokenizer

    source = resolve_model(path)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model {path!r}: its tokenizer cannot be loaded ({reason}); "
            "give a checkpoint directory, or a hub id that this machine can reach"
        ) from None


def encode_continuations(
    tokenizer: Any, context: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a context and of the texts that may follow it, as lm-evaluation-harness splits them.

    Context and ending are encoded together, with the special tokens that the tokenizer puts by itself, and
    split after as many tokens as the context alone has; spaces at the context's end belong to the ending.
    """
    bare = context.rstrip()
    spaces = context[len(bare) :]
    start, *wholes = tokenizer([bare, *(bare + spaces + ending for ending in endings)])["input_ids"]
    return list(start), [list(whole[len(start) :]) for whole in wholes]


class ChatTokenizer:
    """A tokenizer with a chat template and an end-of-turn token.

    Raises:
        ValueError: the tokenizer lacks a chat template or an end-of-turn token.
    """

    def __init__(
        self, path: str, *, trust_remote_code: bool = False, chat_template: str | None = None
    ) -> None:
        """`chat_template`: one of TEMPLATES, or a Jinja file, instead of the tokenizer's own."""
        self.backend: Any = load_tokenizer(path, trust_remote_code=trust_remote_code)
        if chat_template is not None:
            self.backend.chat_template = read_template(chat_template)
        if not self.backend.chat_template:
            raise ValueError(
                f"model {path!r}: its tokenizer has no chat template; use an instruction-tuned model, or set "
                f"chat_template beside its path ({', '.join(TEMPLATES)}, or a Jinja file)"
            )
        if self.backend.eos_token_id is None:
            raise ValueError(
                f"model {path!r}: its tokenizer has no eos_token; set it in tokenizer_config.json"
            )
        self.end_id: int = self.end_of_turn()
        if chat_template is not None:
            # Whoever loads the checkpoint must stop where its answers were taught to end.
            self.backend.eos_token = self.backend.convert_ids_to_tokens(self.end_id)

    def same_as(self, other: ChatTokenizer) -> bool:
        """Whether both turn every chat into the same tokens."""
        return (
            self.backend.chat_template == other.backend.chat_template
            and self.backend.get_vocab() == other.backend.get_vocab()
        )

    def end_of_turn(self) -> int:
        """The token that the chat template puts after an assistant's answer."""
        probe = self._render([Message(role="user", content="x"), Message(role="assistant", content=_MARKER)])
        _, found, after = probe.rpartition(_MARKER)
        if not found:
            raise self._refusal(
                f"chat template drops or rewrites the assistant's text {_MARKER!r}",
                "use one that holds it as it is",
            )
        tail = self.encode_text(after)
        special = set(self.backend.all_special_ids) | set(self.backend.added_tokens_decoder)
        return next((token for token in tail if token in special), self.backend.eos_token_id)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat with the generation prompt."""
        return self.encode_text(self._render(messages, generate=True))

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a whole chat up to its last answer's end, and which of them the assistant wrote.

        The mask marks all that a policy writes after each generation prompt: the answer (with what the template
        puts before it, such as Mistral's space) and its end-of-turn token. What the template adds after the
        last end-of-turn token is left out, so that a chat's ids are those that a rollout would have given.

        Raises:
            ValueError: the template refuses the chat, changes earlier turns as the chat goes on, doesn't begin
                an answer with its generation prompt, doesn't hold the answer as it is, or doesn't end it with
                the end-of-turn token; or a slow tokenizer, which cannot tell where in the text a token is.
        """
        if not self.backend.is_fast:
            raise self._refusal(
                "tokenizer is a slow one without character offsets", "save it as a fast one (tokenizer.json)"
            )
        assert messages and messages[-1]["role"] == "assistant", "a conversation ends with an answer"
        text = self._render(messages)
        answers = [
            self._find_answer(text, messages[: turn + 1])
            for turn, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = list(encoded["input_ids"]), _ends(encoded["offset_mapping"])
        mask = [False] * len(ids)
        size = 0
        for start, stop, tail_stop in answers:
            first = next(i for i, end in enumerate(ends) if end > start)
            after = (i for i, end in enumerate(ends) if stop < end <= tail_stop and ids[i] == self.end_id)
            size = next(after, -1) + 1
            if not size:
                token = self.backend.convert_ids_to_tokens(self.end_id)
                raise self._refusal(
                    f"chat template doesn't end an answer with the end-of-turn token {token!r}",
                    "put it there, or answers would never learn to end",
                )
            mask[first:size] = [True] * (size - first)
        return ids[:size], mask[:size]

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of an assistant's answer with its end-of-turn token."""
        return [*self.encode_text(text), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def _find_answer(self, text: str, messages: Sequence[Message]) -> tuple[int, int, int]:
        """Where in the whole chat's text the last of `messages` starts and stops, and where its turn does.

        The answer's bounds come from a rendering with a marker in its place: a search for the answer itself
        would find "assistant" in the header before it, or "end" in the token after it.
        """
        *context, answer = messages
        opened = self._render(context, generate=True)
        closed = self._render(messages)
        probe = self._render([*context, Message(role="assistant", content=_MARKER)])
        before, _, after = probe.rpartition(_MARKER)
        stop = len(closed) - len(after)
        if not (text.startswith(closed[:stop]) and closed.startswith(before)):
            raise self._refusal(
                f"chat template changes the first {len(messages)} turns as a chat goes on",
                "use a template that only appends, or chats of one answer each",
            )
        same = closed[len(before) : stop].strip() == answer["content"].strip()
        if not (same and closed.endswith(after)):
            raise self._refusal(
                f"chat template drops or rewrites the assistant's text {answer['content'][:40]!r}",
                "use a template that holds it as it is",
            )
        if not before.startswith(opened):
            raise self._refusal(
                f"chat template doesn't begin an answer with its generation prompt {opened[-40:]!r}",
                "make both alike, or a rollout would start elsewhere than the data",
            )
        if before[len(opened) :].strip() and opened == self._render(context):
            raise self._refusal(
                f"chat template has no generation prompt, so that a rollout would have to write the header "
                f"{before[len(opened) :]!r}",
                "add one under add_generation_prompt",
            )
        # What ends a whole chat (Phi-3 adds its eos token) may be missing after an earlier turn.
        common = takewhile(lambda pair: pair[0] == pair[1], zip(after, text[stop:], strict=False))
        return len(opened), stop, stop + sum(1 for _ in common)

    def _render(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        """The chat as text, with the generation prompt if `generate`."""
        try:
            return str(
                self.backend.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=generate,
                    strftime_now=_DATE.strftime,
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise self._refusal(
                f"chat template refuses a chat of {roles} ({' '.join(str(error).split())})",
                "leave out what it refuses, or use another template",
            ) from None

    def _refusal(self, problem: str, cure: str) -> ValueError:
        return ValueError(f"model {self.backend.name_or_path!r}: its {problem}; {cure}")


def chat_tokenizer(model: Model) -> ChatTokenizer:
    """The tokenizer of a config's model."""
    return ChatTokenizer(
        model.path, trust_remote_code=model.trust_remote_code, chat_template=model.chat_template
    )


def read_template(name: str) -> str:
    """The text of a built-in chat template, or of a Jinja file.

    Raises:
        ValueError: neither.
    """
    file = _TEMPLATE_FOLDER / f"{name}.jinja" if name in TEMPLATES else Path(name).expanduser()
    if not file.is_file():
        raise ValueError(f"chat_template={name!r}: no such file, and none of {', '.join(TEMPLATES)}")
    return file.read_text(encoding="utf-8")


def _ends(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Where each token ends in the text, given tokenizers' offsets.

    A token that is only a space may come with nothing between its offsets, and so does a space that a
    tokenizer puts before a word by itself: the one ends where the offsets say, the other counts as the next
    character, being a part of what follows it.
    """
    ends: list[int] = []
    reached = 0
    for start, stop in offsets:
        ends.append(max(stop, min(start, reached) + 1))
        reached = max(reached, stop)
    return ends
