"""Where a policy's reasoning ends: in texts, in tokens, and in what follows a template that opens it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import CHATML, make_policy
from ultramed_rl.config.rewards import FormatTerm, LengthTerm
from ultramed_rl.evaluation.metrics import AnswerMetrics
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.models.reading import RewardReader
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Message, Prompt, ScoredCompletion
from ultramed_rl.rewards import make_term, score_terms
from ultramed_rl.thoughts import Thinking, after_thoughts, marks_in

USUAL, OPENED = Thinking("<think>", "</think>"), Thinking("<think>", "</think>", "<think>\n")
ASKED = (Message(role="user", content="Which drug?"),)
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


@pytest.mark.parametrize(
    ("text", "usual", "opened"),
    [
        ("A", None, "all"),  # of a template that opens the thought, it never ended
        ("<think>x</think>A", "A", "A"),
        ("x</think>A", "A", "A"),
        ("<think>x", "all", "all"),
        ("<think>x</think>", "all", "all"),
        ("<think>x</think>y</think>A", "A", "A"),
        ("<think>x</think>A <think>y", "all", "all"),
        ("", None, "all"),
    ],
)
def test_the_answer_follows_the_last_end_of_a_thought(text: str, usual: str | None, opened: str) -> None:
    for thinking, wanted in ((USUAL, usual), (OPENED, opened)):
        start = thinking.answer_start(text)
        assert (None if start is None else text[start:] or "all") == wanted


@given(st.lists(st.sampled_from(["a", "b ", "<think>", "</think>", "\n", "薬"]), max_size=12))
def test_tokens_and_characters_part_at_the_same_place(pieces: list[str]) -> None:
    """Here a token is a character, or a mark."""
    text, ids = "".join(pieces), [ord(p[0]) if len(p) == 1 else 1000 + i for i, p in enumerate(pieces)]
    for thinking in (USUAL, OPENED):
        tokens, start = thinking.split(text, ids, lambda some: "".join(pieces[: len(some)]))
        assert "".join(pieces[:tokens]) == text[:start]
        assert (tokens, start) == (0, 0) or thinking.answer_start(text) == start


def test_a_special_token_ends_a_thought_though_no_text_shows_it() -> None:
    thinking = Thinking("[THINK]", "[/THINK]", ids=(7, 8))
    decode = lambda ids: "".join("xyzAB"[i] for i in ids if i < 5)
    assert thinking.split("xyA", [7, 0, 1, 8, 3], decode) == (4, 2)
    assert thinking.split("xy", [7, 0, 1], decode) == (3, 2)  # it doesn't end
    assert thinking.split("AB", [3, 4], decode) == (0, 0)


def test_replies_lose_their_thoughts() -> None:
    assert after_thoughts("<think>B</think> A ") == "A" and after_thoughts("<think>B") == ""
    assert (
        marks_in("{{ x.split('</think>')[-1] }}") == ("<think>", "</think>") and marks_in("{{ x }}") is None
    )


# -- templates ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def opening(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    file = tmp_path_factory.mktemp("template") / "opens.jinja"
    # As DeepSeek's and Qwen's do it: earlier thoughts are taken away.
    file.write_text(OPENS.replace("m['content']", "m['content'].split('</think>')[-1]"))
    return ChatTokenizer(str(policy), chat_template=str(file))


def test_marks_are_those_of_the_setting_or_of_the_template(policy: Path, opening: ChatTokenizer) -> None:
    assert ChatTokenizer(str(policy)).thinking is None
    assert opening.thinking is not None and opening.thinking.opened == "<think>\n"
    mine = ChatTokenizer(str(policy), thinking=["[[", "]]"]).thinking
    assert mine is not None and (mine.begin, mine.end, mine.opened) == ("[[", "]]", "")
    unread = ChatTokenizer(str(policy), chat_template=opening.template, thinking="none", learns=False)
    assert unread.thinking is None


def test_data_goes_on_where_the_template_opens_a_thought(opening: ChatTokenizer) -> None:
    asked = opening.encode_chat(ASKED)
    decode = opening.backend.decode
    assert decode(asked).endswith("<think>\n")
    for answer in ("<think>\nx</think>A", "<think>x</think>A", "x</think>A"):
        prompt, (written,) = opening.encode_answers(ASKED, [answer])
        assert prompt == asked and decode(written) == "x</think>A<|im_end|>"
    prompt, (written,) = opening.encode_answers(ASKED, ["A"])
    assert prompt == asked and decode(written) == "\n</think>\n\nA<|im_end|>"
    chat = [*ASKED, Message(role="assistant", content="<think>x</think>A")]
    ids, learnt = opening.encode_conversation(chat)
    assert decode([i for i, own in zip(ids, learnt, strict=True) if own]) == "x</think>A<|im_end|>"
    again = [*chat, *ASKED, Message(role="assistant", content="B")]
    ids, learnt = opening.encode_conversation(again)
    assert decode(ids).count("x</think>") == 0 and sum(learnt) == len(written)


# -- who reads what ----------------------------------------------------------------------------------------


def completion(thought: str, answer: str, tokens: tuple[int, int], sample: int = 0) -> Completion:
    ids = tuple(range(5, 5 + sum(tokens)))
    return Completion("p", sample, thought + answer, ids, "stop", 0.0, 0, tokens[0], len(thought))


def test_scorers_get_the_answer_unless_they_ask_for_all() -> None:
    said = completion("<think>maybe 2</think>\n", "aspirin", (6, 2))
    terms = {
        "own": make_term(FormatTerm(must_match="maybe")),
        "all": make_term(FormatTerm(must_match="maybe", reads="all")),
        **{of: make_term(LengthTerm(free=0, of=of)) for of in ("answer", "thought")},
        "tokens": make_term(LengthTerm(free=0, of="all")),
    }
    found = score_terms(terms, [Prompt("p", ASKED)], [said])
    values = {name: scores.values[0] for name, scores in found.items()}
    assert values == {"own": -1.0, "all": 0.0, "answer": -2.0, "thought": -6.0, "tokens": -8.0}


def test_reward_models_read_the_answer_after_its_prompt(policy: Path) -> None:
    tokenizer = ChatTokenizer(str(policy))
    prompt = Prompt("p", ASKED, tokenizer.encode_chat(ASKED))
    answers = [completion("<think>x</think>", "A", (4, 1))]
    group = RewardReader(tokenizer).read(prompt, answers)
    assert [tokenizer.backend.decode(ids) for ids in group.answers] == ["A<|im_end|>"]
    assert list(group.prompt) == list(prompt.token_ids)
    assert RewardReader(tokenizer, thoughts=True).read(prompt, answers).answers == [answers[0].token_ids]


def test_an_answer_that_is_all_thought_is_none() -> None:
    lost, good = completion("<think>x", "", (3, 0), 0), completion("<think>x</think>", "A", (4, 1), 1)
    assert lost.answer == "" and lost.without_thought().token_ids == ()
    rule = PairSelector(rejected="worst", min_margin=0.0, max_length_ratio=None, seed=0, round_index=0)
    pair = rule.choose(Prompt("p", ASKED), [ScoredCompletion(lost, 9.0), ScoredCompletion(good, 1.0)])
    assert pair is None and rule.counts == {"tied": 1}  # what says nothing is never chosen
    metrics = AnswerMetrics([ScoredCompletion(lost, 0.0), ScoredCompletion(good, 1.0)]).metrics()
    wanted = {"all_thought_share": 0.5, "empty_share": 0.5, "thought_share": 1.0, "thought_length_mean": 3.5}
    assert {name: metrics[name] for name in wanted} == wanted
    assert not re.findall(
        "thought",
        str(AnswerMetrics([ScoredCompletion(Completion("p", 0, "A", (1,), "stop", 0, 0), 1)]).metrics()),
    )
