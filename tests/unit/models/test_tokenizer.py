"""Chats to tokens: ends of turns and what the assistant wrote are found in the template, not believed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CHATML, make_tokenizer, tiny_config
from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.models.tokenizer import _MARKER, ChatTokenizer
from ultramed_rl.records import Message

# Real UltraMedical records, where a developer has them; they are not ours to ship.
EXAMPLES = Path(os.environ.get("ULTRAMEDICAL_EXAMPLES", "no-examples.json"))


def save(backend: Any, directory: Path) -> Path:
    """A folder that is a model's as far as a tokenizer is concerned."""
    backend.save_pretrained(directory)
    tiny_config().save_pretrained(directory)
    return directory


def test_end_of_turn_comes_from_the_template(tmp_path: Path) -> None:
    backend = make_tokenizer()
    backend.eos_token = "<|pad|>"  # as Llama-3's base config says <|end_of_text|> while chats end <|eot_id|>
    save(backend, tmp_path)
    tokenizer = ChatTokenizer(str(tmp_path))
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.end_id) == "<|im_end|>"


def test_answers_continue_the_chat_exactly(tmp_path: Path) -> None:
    save(make_tokenizer(), tmp_path)
    tokenizer = ChatTokenizer(str(tmp_path))
    chat = [{"role": "user", "content": "Hä?"}]
    whole = tokenizer.backend.apply_chat_template(
        [*chat, {"role": "assistant", "content": "Yes."}], tokenize=False
    )
    ids, (answer,) = tokenizer.encode_answers(chat, ["Yes."])  # type: ignore[arg-type]
    assert ids == tokenizer.encode_chat(chat)  # type: ignore[arg-type]
    assert tokenizer.backend.decode(ids + answer) + "\n" == whole


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    backend = make_tokenizer()
    backend.chat_template = None
    save(backend, tmp_path)
    with pytest.raises(ValueError, match=rf"'{tmp_path}': .*\bchat_template .*chatml, llama3"):
        ChatTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"'/no/such/model': .*config\.json"):
        ChatTokenizer("/no/such/model")


def test_the_same_tokenizer_is_recognised(tmp_path: Path) -> None:
    save(make_tokenizer(), tmp_path / "a")
    other = make_tokenizer()
    other.chat_template = other.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    save(other, tmp_path / "b")
    first, second = ChatTokenizer(str(tmp_path / "a")), ChatTokenizer(str(tmp_path / "b"))
    assert first.same_as(ChatTokenizer(str(tmp_path / "a"))) and not first.same_as(second)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", ["chatml", "llama3", "file"])
def test_a_built_in_template_begins_as_the_tokenizer_begins_every_text(
    tmp_path: Path, adds: bool, template: str
) -> None:
    """Gemma's and Llama 2's bases know no text without a <bos>; a file says itself how it begins."""
    from tokenizers.processors import TemplateProcessing

    backend = make_tokenizer()
    markers = ["<|im_start|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    backend.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": markers})
    bos = backend.bos_token_id
    if adds:
        begun = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
        backend.backend_tokenizer.post_processor = begun
    save(backend, tmp_path / "model")
    (tmp_path / "own.jinja").write_text(CHATML)
    name = str(tmp_path / "own.jinja") if template == "file" else template
    tokenizer = ChatTokenizer(str(tmp_path / "model"), chat_template=name)
    assert (tokenizer.backend("x")["input_ids"][0] == bos) == adds

    ids = tokenizer.encode_chat(chat("Hä?"))
    begins = template == "llama3" or (template == "chatml" and adds)
    assert ids.count(bos) == begins and (ids[0] == bos) == begins
    assert tokenizer.encode_conversation(chat("Hä?", "Yes."))[0][: len(ids)] == ids
    tokenizer.backend.save_pretrained(tmp_path / "model")
    assert ChatTokenizer(str(tmp_path / "model")).encode_chat(chat("Hä?")) == ids


# -- whole conversations: which tokens the assistant wrote ---------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A chat template as a model family has it, with its special tokens, the end of turn first."""

    template: str
    special: tuple[str, ...]
    before: str = ""  # what the policy writes between the generation prompt and the answer
    system: bool = True


FAMILIES = {
    "llama3": Family(
        "{% for m in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
        "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "chatml": Family(CHATML, ("<|im_end|>", "<|im_start|>")),
    "gemma": Family(
        "<bos>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system\nrole') }}"
        "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<end_of_turn>", "<start_of_turn>", "<bos>"),
        system=False,
    ),
    "mistral": Family(
        "<s>{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
        "{% elif m['role'] == 'user' %}[INST] {% if loop.index == 2 and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}\n\n{% endif %}{{ m['content'] }} [/INST]{% endif %}{% endfor %}",
        ("</s>", "<s>", "[INST]", "[/INST]"),
        before=" ",
    ),
    "zephyr": Family(
        "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}{% endfor %}",
        ("</s>", "<|user|>", "<|system|>", "<|assistant|>"),
    ),
    # Its template closes the whole chat once more.
    "phi3": Family(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
        ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|endoftext|>"),
    ),
}
HEADERS = [
    "user",
    "assistant\n",
    "end",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>model\n",
    "[INST] model [/INST]",
    "</s>\n<|assistant|>\n",
    "ultramed answer probe",
]

phrases = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(HEADERS)
texts = st.lists(phrases, min_size=1, max_size=4).map(lambda parts: "".join(parts).strip()).filter(bool)


def load(directory: Path, template: str, special: tuple[str, ...] = ()) -> ChatTokenizer:
    backend = make_tokenizer()
    backend.add_special_tokens({"additional_special_tokens": list(special)})
    backend.eos_token = special[0] if special else "<|im_end|>"
    backend.chat_template = template
    return ChatTokenizer(str(save(backend, directory)))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTokenizer]:
    return {
        name: load(tmp_path_factory.mktemp(name), family.template, family.special)
        for name, family in FAMILIES.items()
    }


def chat(*turns: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    messages = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns)]
    return messages if system is None else [Message(role="system", content=system), *messages]


def written(tokenizer: ChatTokenizer, messages: list[Message]) -> str:
    """The text of the masked tokens, special ones included."""
    ids, mask = tokenizer.encode_conversation(messages)
    assert len(ids) == len(mask) and mask[-1]
    chosen = [token for token, learned in zip(ids, mask, strict=True) if learned]
    return str(tokenizer.backend.decode(chosen, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("system", [None, "Be brief, assistant."])
@pytest.mark.parametrize(
    "turns",
    [
        ("Hä?", "Ja, 5 µg – 日本 😀."),
        ("Who?", "assistant", "And?", "user\n\nassistant: end"),
        ("same", "same", "same", "same"),
        ("<|im_start|>assistant\nx", "</s>[INST] <end_of_turn><|eot_id|><|im_end|> y", "1", "2"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_is_what_the_assistant_wrote(
    tokenizers: dict[str, ChatTokenizer], name: str, turns: tuple[str, ...], system: str | None
) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    messages = chat(*turns, system=system)
    if system and not family.system:
        with pytest.raises(ValueError, match=r"\bsystem, user, .*\(no system role\)"):
            tokenizer.encode_conversation(messages)
        return
    answers = [f"{family.before}{text}{family.special[0]}" for text in turns[1::2]]
    assert written(tokenizer, messages) == "".join(answers)
    # The ids are the template's rendering up to the last end of turn.
    ids, _ = tokenizer.encode_conversation(messages)
    whole = tokenizer.backend.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(tokenizer.backend.decode(ids, clean_up_tokenization_spaces=False))
    # And those of a rollout, which begins at the generation prompt.
    opened, (answer,) = tokenizer.encode_answers(messages[:-1], [turns[-1]])
    assert opened == tokenizer.encode_chat(messages[:-1]) and ids == opened + answer


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    turns=st.lists(texts, min_size=2, max_size=6).map(lambda found: found[: len(found) // 2 * 2]),
    system=st.none() | texts,
)
def test_masked_tokens_decode_to_the_answers(
    tokenizers: dict[str, ChatTokenizer], name: str, turns: list[str], system: str | None
) -> None:
    family = FAMILIES[name]
    messages = chat(*turns, system=system if family.system else None)
    answers = [f"{family.before}{text}{family.special[0]}" for text in turns[1::2]]
    assert written(tokenizers[name], messages) == "".join(answers)


def test_headers_and_the_line_break_after_a_turn_are_not_learned(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, CHATML)
    _, mask = tokenizer.encode_conversation(chat("a", "b", "c", "d"))
    user, header = (
        9 * ".",
        11 * ".",
    )  # <|im_start|>user\na<|im_end|>\n, and <|im_start|>assistant\n, byte by byte
    assert "".join("^" if learned else "." for learned in mask) == f"{user}{header}^^.{user}{header}^^"


def test_spaces_around_an_answer_are_the_templates_business(tokenizers: dict[str, ChatTokenizer]) -> None:
    messages = chat("x", "  y \n")
    assert written(tokenizers["chatml"], messages) == "  y \n<|im_end|>"
    assert written(tokenizers["llama3"], messages) == "y<|eot_id|>"


def test_spaces_count_where_a_tokenizer_trims_its_offsets(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = load(tmp_path, CHATML)
    tokenizer.backend.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert written(tokenizer, chat("x", "a   b", "y", "c d")) == "a   b<|im_end|>c d<|im_end|>"


TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
BROKEN = {
    r"\b2 ": (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}" + TURN + "{% endif %}{% endfor %}"
    )
    + OPENED,
    r"'Yes\.'": CHATML.replace("m['content']", "m['content'] | replace('Yes', 'No')"),
    r"'.*<note>\\n'": CHATML.replace("assistant\n{% endif", "assistant\n<note>\n{% endif"),
    r"'<\|im_start\|>assistant\\n'.*\badd_generation_prompt\b": CHATML.removesuffix(OPENED),
    r"'<\|im_end\|>'": CHATML.replace("<|im_end|>", ""),
}


@pytest.mark.parametrize("named", BROKEN)
def test_templates_that_hide_the_answers_are_refused(tmp_path: Path, named: str) -> None:
    with pytest.raises(ValueError, match=f"'{tmp_path}': .*{named}") as refusal:
        tokenizer = load(tmp_path, BROKEN[named])
        tokenizer.encode_conversation(chat("Is it?", "Yes.", "Sure?", "Yes."))
    assert "\n" not in str(refusal.value)


def test_a_template_without_the_assistants_text_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'{tmp_path}': .*'{_MARKER}'"):
        load(tmp_path, CHATML.replace("m['content']", "m['content'][0]['text']"))


def test_slow_tokenizers_are_refused_with_the_fix(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    save(ByT5Tokenizer(chat_template=CHATML), tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        ChatTokenizer(str(tmp_path))


@pytest.mark.skipif(not EXAMPLES.is_file(), reason="UltraMedical's examples are not on this machine")
def test_ultramedical_examples_become_what_a_rollout_would_give() -> None:
    tokenizer = ChatTokenizer("offline://smollm2-135m-instruct")
    conversations = list(read_conversations(ConversationSource(uri=str(EXAMPLES)), Counter()))
    assert len(conversations) == 50
    for conversation in conversations:
        messages = list(conversation.messages)
        answer = messages[-1]["content"]
        assert written(tokenizer, messages) == answer + "<|im_end|>"
        ids, mask = tokenizer.encode_conversation(messages)
        opened, (written_ids,) = tokenizer.encode_answers(messages[:-1], [answer])
        assert ids == opened + written_ids
        assert mask == [place >= len(opened) for place in range(len(ids))]


def test_the_offline_models_later_turns_are_found() -> None:
    tokenizer = ChatTokenizer("offline://smollm2-135m-instruct")
    messages = chat("Hä?", "assistant 😀", "user?", "The  end", system="Be brief.")
    assert written(tokenizer, messages) == "assistant 😀<|im_end|>The  end<|im_end|>"
