"""Chat text to token ids and back, with the checks that keep generation and padding sound."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ultramed_rl.config.models import Model
from ultramed_rl.models.controls import ControlTokens
from ultramed_rl.models.files import load_part
from ultramed_rl.models.rendering import TEMPLATES, UnfitTemplate, read_template, render_chat
from ultramed_rl.records import Message
from ultramed_rl.thoughts import Thinking, marks_in
from ultramed_rl.token_ids import pack_ids

_MARKER = "ultramed answer probe"
_ALONE = "\ue000"  # a letter of nobody's, which no merge and no word takes in


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """A model's tokenizer, with or without a chat template. Raises ValueError where there is none."""
    from transformers import AutoTokenizer

    return load_part("tokenizer", AutoTokenizer, path, trust_remote_code)


def encode_continuations(
    tokenizer: Any, context: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a context and of the texts that may follow it, as lm-evaluation-harness splits them.

    Context and ending are encoded together, with the special tokens that the tokenizer puts by itself, and
    split after as many tokens as the context alone has; spaces at the context's end belong to the ending. Letters
    of a control token stay letters.
    """
    bare = context.rstrip()
    spaces = context[len(bare) :]
    texts = [bare, *(bare + spaces + ending for ending in endings)]
    start, *joined = tokenizer(texts, split_special_tokens=True)["input_ids"]
    return list(start), [list(ids[len(start) :]) for ids in joined]


class ChatTokenizer:
    """A tokenizer with a chat template and an end-of-turn token: one way from a chat to its tokens.

    A chat's tokens are those of its rendering, cut where a rollout would begin: what `encode_chat` gives is the
    beginning of what `encode_conversation` and `encode_answers` give. No text makes a control token, and an answer
    that the data ends with its end of turn ends once (`models/controls.py`).

    Raises:
        ValueError: the tokenizer is slow, has no chat template or no end-of-turn token, or its template cannot render a
            question (`rendering.py` has the limits); or, where it is to be learnt with, its template drops or rewrites
            answers, has no generation prompt, doesn't begin answers with it, or doesn't end them with a token.
    """

    def __init__(
        self,
        path: str,
        *,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        learns: bool = True,
        thinking: str | Sequence[str] = "template",
    ) -> None:
        """`chat_template`: one of TEMPLATES, or a Jinja file, instead of the tokenizer's own. `learns`: answers are
        learnt or preferred, so that all rules hold; a model that is only asked needs but a prompt and a stop.
        `thinking`: see `ModelSettings`."""
        self.template = chat_template
        self.backend: Any = load_tokenizer(path, trust_remote_code=trust_remote_code)
        if chat_template is not None:
            self.backend.chat_template = self._begun(chat_template)
        if not self.backend.chat_template:
            raise ValueError(
                f"model {path!r}: its tokenizer has no chat template; use an instruction-tuned model, or set "
                f"chat_template beside its path ({', '.join(TEMPLATES)}, or a Jinja file)"
            )
        if self.backend.eos_token_id is None:
            raise ValueError(
                f"model {path!r}: its tokenizer has no eos_token; set it in tokenizer_config.json"
            )
        if not self.backend.is_fast:
            raise self._refusal(
                "tokenizer is a slow one, in which a text cannot be kept from being a control token",
                "save it as a fast one (tokenizer.json)",
            )
        asked = [Message(role="user", content="x")]
        opened, before, after = self._frame(asked)
        self.thinking = self._thinking(thinking, opened)
        # What the generation prompt writes of a thought beyond what the template puts before an answer.
        self._opens = self.thinking.opened if self.thinking and opened != before else ""
        self.controls = ControlTokens(self.backend, self._render(asked) + after)
        known = set(self.controls.ids.values())
        end = next((i for i in self.controls.encode([after])[0] if i in known), self.backend.eos_token_id)
        self.end_id: int = end  # the token that the template puts after an answer
        # A built-in template's markers must be tokens, and not the letters that spell them.
        for marker in re.findall(r"<\|\w+\|>", before + after) if chat_template in TEMPLATES else ():
            if marker not in self.controls.ids:
                raise self._refusal(
                    f"tokenizer has no token {marker!r}, which the chat_template writes",
                    "add it to the tokenizer and the embeddings, or use the chat template of another family",
                )
        if learns:
            self.encode_answers(asked, [_MARKER])
        if chat_template is not None:
            # Whoever loads the checkpoint must stop where its answers were taught to end.
            self.backend.eos_token = self.backend.convert_ids_to_tokens(self.end_id)

    def same_as(self, other: ChatTokenizer) -> bool:
        """Whether both turn every chat into the same tokens."""
        return self._rules() == other._rules() and self.backend.get_vocab() == other.backend.get_vocab()

    def _rules(self) -> list[Any]:
        """What makes tokens of a chat beside the vocabulary: the template, its special tokens, how texts are split."""
        chat = [Message(role="user", content="x"), Message(role="assistant", content="y")]
        steps = [self.backend.backend_tokenizer.normalizer, self.backend.backend_tokenizer.pre_tokenizer]
        states = [step and step.__getstate__() for step in steps]
        return [self.backend.chat_template, self._render(chat), self.controls.ids, *states]

    def _begun(self, name: str) -> str:
        """A template's text; a built-in one begins a chat as the tokenizer begins every text that it encodes."""
        text = read_template(name)
        begins = self.backend("x")["input_ids"][0] == self.backend.bos_token_id
        return "{{ bos_token }}" + text if begins and name in TEMPLATES and "bos_token" not in text else text

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat with the generation prompt: what a rollout goes on from."""
        hidden = self._hide(messages)
        return self._encode_open(hidden, self._render(hidden, generate=True))

    def encode_conversation(
        self, messages: Sequence[Message], unlearnt: Collection[int] = ()
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole chat up to its last answer's end, and which of them the assistant wrote; the turns at the
        places `unlearnt` apart.

        The mask marks all that a policy writes after each generation prompt: the answer (with what the template
        puts before it, such as Mistral's space) and its end-of-turn token; where the template opens a thought, after the last
        one alone. What the template adds after the
        last end-of-turn token is left out, so that a chat's ids are those that a rollout would have given.

        Raises:
            ValueError: the template refuses the chat, changes earlier turns as the chat goes on, or doesn't hold an
                answer as it is.
        """
        assert messages and messages[-1]["role"] == "assistant", "a conversation ends with an answer"
        if (
            self._opens
        ):  # earlier answers stand there as the template leaves them, often without their thoughts
            asked, (answered,) = self.encode_answers(messages[:-1], [messages[-1]["content"]])
            last = len(messages) - 1 not in unlearnt
            return asked + answered, [False] * len(asked) + [last] * len(answered)
        hidden = self._hide(messages)
        text = self._render(hidden)
        borders, learnt = [], []
        for turn, message in enumerate(hidden):
            if message["role"] == "assistant":
                frame = self._frame(hidden[:turn])
                closed = self._render(hidden[: turn + 1])
                stop = self._check_answer(hidden[:turn], frame, message["content"], closed)
                if not text.startswith(closed[:stop]):
                    raise self._changes(turn + 1)
                borders.append(len(frame[0]))
                learnt.append(turn not in unlearnt)
        ids, *answers = self._encode_from(text, borders)
        mask = [False] * len(ids)
        for place, part in enumerate(answers, 1):
            written = self._end(part) + 1
            part = part[:written] if place == len(answers) else part
            ids += part
            mask += [learnt[place - 1]] * written + [False] * (len(part) - written)
        return ids, mask

    def encode_answers(
        self,
        messages: Sequence[Message],
        answers: Sequence[str],
        cut: Collection[int] = (),
        *,
        checked: bool = True,
    ) -> tuple[list[int], list[list[int]]]:
        """Token ids of a chat with the generation prompt, and of each answer to it with its end-of-turn token.

        Args:
            cut: places of answers that were cut off, and so have no end.
            checked: data's answers are refused where the template rewrites them, and lose an end of turn that they
                hold as text; a policy's are taken as they come.

        Raises:
            ValueError: the template refuses the chat, or, where it is `checked`, doesn't hold an answer as it is.
        """
        hidden = self._hide(messages)
        frame = self._frame(hidden)
        closings = []
        for place, answer in enumerate(answers):
            text = self.controls.hide(self.without_end(answer) if checked else answer)
            if self._opens:
                assert self.thinking is not None
                text = self.thinking.go_on(text)
                closings.append(text if place in cut else text + frame[2])
                continue
            closed = self._render([*hidden, Message(role="assistant", content=text)])
            if checked:
                self._check_answer(hidden, frame, text, closed)
            # A template that begins elsewhere with this answer rewrote it; the answer itself is still what was said.
            closing = closed[len(frame[0]) :] if closed.startswith(frame[0]) else text + frame[2]
            closings.append(closing.removesuffix(frame[2]) if place in cut else closing)
        encoded = enumerate(self._go_on(frame[0], closings))
        learnt = [ids if place in cut else ids[: self._end(ids) + 1] for place, ids in encoded]
        return self._encode_open(hidden, frame[0]), learnt

    def encode_whole(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of all that the template renders of each chat, with what follows its last end of turn."""
        hide = self.controls.hide
        hidden = [[Message(role=m["role"], content=hide(m["content"])) for m in chat] for chat in chats]
        return self.controls.encode([self._render(chat) for chat in hidden])

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text in which markers are control tokens, as in a chat that was rendered elsewhere."""
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def spell_out(self, answers: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Answers' tokens, with the letters of those control tokens that they hold before their end; without any, the
        answer itself."""
        end, packed = pack_ids([self.end_id]), [pack_ids(answer) for answer in answers]
        # Few hold any: one look at the tokens of all of them spares a look at each.
        held = self.controls.among(np.frombuffer(b"".join(packed), dtype=np.int32))
        if np.count_nonzero(held) == sum(one.endswith(end) for one in packed):
            return list(answers)
        spelt: list[Sequence[int]] = []
        for answer, whole in zip(answers, packed, strict=True):
            ids = np.frombuffer(whole.removesuffix(end), dtype=np.int32)
            held = self.controls.among(ids)
            pieces = (
                self.controls.spell(i) if odd else [i] for i, odd in zip(ids.tolist(), held, strict=True)
            )
            letters = [i for piece in pieces for i in piece]
            spelt.append([*letters, *answer[len(ids) :]] if held.any() else answer)
        return spelt

    def without_end(self, text: str) -> str:
        """An answer without the end of turn that it may hold as text at its end."""
        bare = text.rstrip().removesuffix(self.backend.convert_ids_to_tokens(self.end_id))
        return text if bare == text.rstrip() else bare.rstrip()

    def markers(self, messages: Sequence[Message], answers: Sequence[str] = ()) -> int:
        """How many control tokens stand in a chat's texts as letters, an answer's own end of turn apart."""
        texts = [*map(self._own_text, messages), *map(self.without_end, answers)]
        return sum(map(self.controls.count, texts))

    # -- from a rendering to tokens ------------------------------------------------------------------------

    def _hide(self, messages: Sequence[Message]) -> list[Message]:
        """The chat with stand-ins for the markers in its texts, and without ends of turns that answers hold."""
        return [Message(role=m["role"], content=self.controls.hide(self._own_text(m))) for m in messages]

    def _own_text(self, message: Message) -> str:
        """What a turn says."""
        text = message["content"]
        return self.without_end(text) if message["role"] == "assistant" else text

    def _encode_open(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of a chat's text with the generation prompt.

        It is cut where rollouts of its earlier turns would have begun, as far as the template only appends.
        """
        turns = (turn for turn, message in enumerate(messages) if turn and message["role"] == "assistant")
        opened = (self._render(messages[:turn], generate=True) for turn in turns)
        borders = [len(start) for start in opened if text.startswith(start)]
        return [token for part in self._encode_from(text, borders) for token in part]

    def _encode_from(self, text: str, borders: Sequence[int]) -> list[list[int]]:
        """Token ids of a rendered chat, cut at the borders, over which no token goes."""
        places = [0, *borders, len(text)]
        first = self.controls.encode([text[: places[1]]])
        return first + [self._go_on(text[:a], [text[a:b]])[0] for a, b in pairwise(places[1:])]

    def _go_on(self, start: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that follow another one, whose own ids stay what they are.

        They are what both together have more than the start. Where they would grow together (a line break that ends
        the one with a line break that begins the other), the text is encoded behind a letter that joins nothing.
        """
        start = start[self.controls.last(start) :]  # control tokens part texts: what is before doesn't matter
        before, *joined = self.controls.encode([start, *(start + text for text in texts)])
        return [
            ids[len(before) :] if ids[: len(before)] == before else self._set_apart(text)
            for text, ids in zip(texts, joined, strict=True)
        ]

    def _set_apart(self, text: str) -> list[int]:
        """Token ids of a text that doesn't begin its chat, and yet joins nothing before it."""
        stop = self.controls.first(text)
        parts = [_ALONE, _ALONE + text[:stop], text[stop:], text[:stop]]
        before, joined, after, plain = self.controls.encode(parts)
        return [*(joined[len(before) :] if joined[: len(before)] == before else plain), *after]

    def _end(self, ids: Sequence[int]) -> int:
        """The place of an answer's end-of-turn token."""
        if self.end_id not in ids:
            token = self.backend.convert_ids_to_tokens(self.end_id)
            raise self._refusal(
                f"chat template doesn't end an answer with the end-of-turn token {token!r}",
                "put it there, or answers would never learn to end",
            )
        return ids.index(self.end_id)

    # -- what a template does with an answer ---------------------------------------------------------------

    def _frame(self, context: Sequence[Message]) -> tuple[str, str, str]:
        """A chat with its generation prompt; all that is before an answer to it; and all after.

        An answer's bounds come from a rendering with a marker in its place: a search for the answer itself
        would find "assistant" in the header before it, or "end" in the token after it.
        """
        probe = self._render([*context, Message(role="assistant", content=_MARKER)])
        before, marker, after = probe.rpartition(_MARKER)
        if not marker:
            raise self._rewrites(_MARKER)
        return self._render(context, generate=True), before, after

    def _check_answer(
        self, context: Sequence[Message], frame: tuple[str, str, str], answer: str, closed: str
    ) -> int:
        """Where in the rendered chat an answer stops. Raises ValueError where it cannot be learnt."""
        opened, before, after = frame
        stop = len(closed) - len(after)
        if not closed.startswith(before):
            raise self._changes(len(context) + 1)
        if not (closed[len(before) : stop].strip() == answer.strip() and closed.endswith(after)):
            raise self._rewrites(self.controls.show(answer))
        if not before.startswith(opened):
            raise self._refusal(
                f"chat template doesn't begin an answer with its generation prompt {opened[-40:]!r}",
                "make both alike, or a rollout would start elsewhere than the data",
            )
        header = before[len(opened) :]
        if header.strip() and opened == self._render(context):
            raise self._refusal(
                f"chat template has no generation prompt, so that a rollout would have to write the header {header!r}",
                "add one under add_generation_prompt",
            )
        return stop

    def _thinking(self, setting: str | Sequence[str], opened: str) -> Thinking | None:
        """How reasoning is delimited; `opened`: a chat with the generation prompt, which may begin it."""
        marks = marks_in(self.backend.get_chat_template()) if isinstance(setting, str) else tuple(setting)
        if setting == "none" or marks is None:
            return None
        begin, end = marks
        begun = opened[opened.rfind(begin) :] if opened.rstrip().endswith(begin) else ""
        vocabulary = self.backend.get_vocab()
        return Thinking(begin, end, begun, (vocabulary.get(begin), vocabulary.get(end)))

    def _render(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        """The chat as text, with the generation prompt if `generate`."""
        try:
            return render_chat(self.backend, messages, generate=generate)
        except UnfitTemplate as error:
            roles = ", ".join(message["role"] for message in messages[:9])
            raise self._refusal(
                f"chat template cannot render a chat of {roles} ({error})",
                "mend it, use another, or leave out what it refuses",
            ) from None

    def _rewrites(self, answer: str) -> ValueError:
        return self._refusal(
            f"chat template drops or rewrites the assistant's text {answer[:40]!r}",
            "use a template that holds it as it is",
        )

    def _changes(self, turns: int) -> ValueError:
        return self._refusal(
            f"chat template changes the first {turns} turns as a chat goes on",
            "use a template that only appends, or chats of one answer each",
        )

    def _refusal(self, problem: str, fix: str) -> ValueError:
        named = "" if self.template is None else f", chat_template={self.template!r}"
        return ValueError(f"model {self.backend.name_or_path!r}{named}: its {problem}; {fix}")


def chat_tokenizer(model: Model, *, learns: bool = True) -> ChatTokenizer:
    """The tokenizer of a config's model."""
    return ChatTokenizer(
        model.path,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
        learns=learns,
        thinking=model.thinking,
    )
