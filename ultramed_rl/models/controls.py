"""Text is never a control token: what only a chat template may write, and how the same letters in a text stay text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PRIVATE = 0xE000  # the first of Unicode's private characters: no normaliser changes them, no text needs them
# An added token that is no special one may be a marker, or a run of spaces, which every text may hold.
_BRACKETED = re.compile(r"[<\[{(|｜].+[>\]})|｜]")


class ControlTokens:
    """The control tokens of a fast tokenizer: its special tokens, and other added ones that a template writes.

    A chat is encoded in two steps. `hide` puts stand-ins in the place of markers in the texts, before the template
    has them; `encode` takes the rendered chat. Without a stand-in that is the tokenizer's own work. With one, it is
    that of a copy whose control tokens have names that no text holds: there the template's markers are written by
    those names, and the texts' own markers come back as the letters that they are. Whatever else the tokenizer does
    (splits, merges, spaces before words) is done by the same code in both.
    """

    def __init__(self, backend: Any, template: str) -> None:
        """`backend`: transformers' fast tokenizer; `template`: what its template writes around turns."""
        added = backend.added_tokens_decoder
        self.ids: dict[str, int] = {
            token.content: index
            for index, token in added.items()
            if token.special or (_BRACKETED.fullmatch(token.content) and token.content in template)
        }
        named = zip(backend.all_special_tokens, backend.all_special_ids, strict=True)
        self.ids |= {text: index for text, index in named if backend.convert_ids_to_tokens(index) == text}
        # By id; the last one stands for all above.
        self._held = np.zeros(max(self.ids.values()) + 2, dtype=bool)
        self._held[list(self.ids.values())] = True
        self._backend = backend
        self._copy: Any = None
        self._tag = "".join(chr(_PRIVATE + secrets.randbelow(6400)) for _ in range(12))
        self._names = {text: f"{self._tag}n{place}." for place, text in enumerate(self.ids)}
        self._stand_ins = {text: f"{self._tag}t{place}." for place, text in enumerate(self.ids)}
        self._letters = {stand_in: text for text, stand_in in self._stand_ins.items()}
        self._firsts = sorted({text[0] for text in self.ids if text})
        self._marker, self._stand_in = _any_of(self.ids), _any_of(self._letters)
        # A marker that is looked for in normalised text may come of letters that don't look like it.
        tokens = [added[index] for index in self.ids.values() if index in added]
        self._always = backend.backend_tokenizer.normalizer is not None and any(t.normalized for t in tokens)

    def count(self, text: str) -> int:
        """How often a text holds the letters of a control token."""
        # A look for single letters is thirty times as fast as one for several that a marker may begin with.
        return len(self._marker.findall(text)) if any(first in text for first in self._firsts) else 0

    def hide(self, text: str) -> str:
        """The text with stand-ins for its markers; without any, itself."""
        return self._marker.sub(lambda match: self._stand_ins[match[0]], text)

    def part(self, text: str) -> str:
        """The text with a space in each marker, for those who take all letters of a marker for the token."""
        return self._marker.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def show(self, text: str) -> str:
        """Undo `hide`."""
        return self._stand_in.sub(lambda match: self._letters[match[0]], text)

    def among(self, token_ids: np.ndarray) -> np.ndarray:
        """Of each id whether it is a control token's."""
        return self._held.take(token_ids, mode="clip")

    def spell(self, token: int) -> list[int]:
        """The tokens of a control token's letters."""
        text = next(text for text, index in self.ids.items() if index == token)
        return self.encode([self.hide(text)])[0]

    def last(self, text: str) -> int:
        """Where the last control token of a rendered chat begins; 0 where there is none."""
        return max((marker.start() for marker in self._marker.finditer(text)), default=0)

    def first(self, text: str) -> int:
        """Where the first one begins; the text's length where there is none."""
        marker = self._marker.search(text)
        return marker.start() if marker else len(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered chats, or of their parts, in which the texts' own markers are hidden."""
        if not texts:
            return []
        if not self._always and not any(self._tag in text for text in texts):
            return [list(ids) for ids in self._backend(list(texts), add_special_tokens=False)["input_ids"]]
        if self._copy is None:
            self._copy = _renamed(self._backend, self._names)
            moved = {t: i for t, i in self.ids.items() if self._copy.token_to_id(self._names[t]) != i}
            assert not moved, f"a copy of the tokenizer has other ids for {moved}"
        named = [self.show(self._marker.sub(lambda match: self._names[match[0]], text)) for text in texts]
        return [list(e.ids) for e in self._copy.encode_batch(named, add_special_tokens=False)]


def _any_of(texts: Mapping[str, Any]) -> re.Pattern[str]:
    """Finds the longest of them first, as tokenizers do; nothing where there are none."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _renamed(backend: Any, names: Mapping[str, str]) -> Any:
    """A copy of the tokenizer in which these tokens are called otherwise, so that no merge leads to them either."""
    content = json.loads(backend.backend_tokenizer.to_str())
    content |= {"post_processor": None, "truncation": None, "padding": None}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    else:  # Unigram's pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    return type(backend.backend_tokenizer).from_str(json.dumps(content))
