"""Small tokenizers of the kinds that language models have, trained in a moment, and the templates that go with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny import CHATML, tiny_config
from ultramed_rl.models.tokenizer import ChatTokenizer

_CORPUS = [
    "The dose of aspirin is 100 mg a day.\n\nThe patient takes it with water. What is the dose?",
    "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nThe answer (A) is: yes.<|im_end|>\n",
    "[INST] What is aspirin? [/INST] It is a drug.\n\n\nThe end. <|user|>\nHello</s><|assistant|>\nThe",
    "user assistant system think answer question mg daily: (a) (b) - * 1. 2.\n\n  indented\n",
]


@dataclass(frozen=True)
class Template:
    """A chat template, and its tokens, the end of turn first."""

    text: str
    tokens: tuple[str, ...]
    before: str = ""  # what the policy writes between the generation prompt and the answer
    strips: bool = False  # its tokens take the spaces behind them in


TEMPLATES = {
    # Markers are letters; the end of turn is the tokenizer's eos token.
    "llama2": Template(
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] | trim }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}",
        ("</s>", "<s>"),
        before=" ",
    ),
    "chatml": Template(CHATML, ("<|im_end|>", "<|im_start|>")),
    "zephyr": Template(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("</s>",),
    ),
    "phi3": Template(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
        ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|endoftext|>"),
        strips=True,
    ),
    # The last answer gets an empty thinking block, which the generation prompt doesn't have.
    "qwen3": Template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_end|>", "<|im_start|>"),
        before="<think>\n\n</think>\n\n",
    ),
    # A header that ends in line breaks, with which a line break of the answer could grow together.
    "plain": Template(
        "{% for m in messages %}### {{ m['role'] }}:\n\n{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n\n{% endif %}",
        ("</s>",),
    ),
}
KINDS = ("bytes", "bytes_prefix", "always", "first", "never", "legacy", "unigram")


@cache
def _trained(kind: str) -> str:
    """The JSON of a tokenizer without special tokens but unk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind.startswith("bytes"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bytes_prefix")
        backend.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        backend.train_from_iterator(_CORPUS, trainer)
        return str(backend.to_str())
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        # No piece goes over a space, in training; afterwards nothing parts words, as in Llama's.
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(
            vocab_size=460, special_tokens=["<unk>", *fallback], show_progress=False
        )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts)
    backend.train_from_iterator([line for text in _CORPUS for line in text.split("\n")], trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = []  # a trainer takes the bytes for special tokens
    if kind == "legacy":  # as Llama-2's was converted first
        content["pre_tokenizer"] = None
        prepend = {"type": "Prepend", "prepend": "▁"}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        content["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    elif kind != "unigram":
        content["pre_tokenizer"] |= {"prepend_scheme": kind, "split": False}
    return json.dumps(content)


def make(kind: str, template: Template) -> Any:
    """transformers' tokenizer of a kind, with a template's tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained(kind))
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=template.tokens[0],
        unk_token=None if kind.startswith("bytes") else "<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(template.tokens[1:]),
        chat_template=template.text,
    )
    if template.strips:
        found.add_tokens([AddedToken(token, rstrip=True, special=True) for token in template.tokens])
    # No special ones: Qwen3's, and a run of line breaks as Gemma has them.
    found.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("\n\n\n")])
    return found


def load(directory: Path, kind: str, template: Template) -> ChatTokenizer:
    """It, read from a folder as a model's."""
    make(kind, template).save_pretrained(directory)
    tiny_config().save_pretrained(directory)
    return ChatTokenizer(str(directory))
