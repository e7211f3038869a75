"""What gives answers a reward: terms without a model, a reward model's own tokens, and the table of scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tiny import make_policy, make_reward, make_tokenizer
from ultramed_rl.cluster.transport import RayScheduler
from ultramed_rl.config.rewards import Reward
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Message, Prompt, ScoredCompletion
from ultramed_rl.store.tables import read_records, write_records
from ultramed_rl.workers.scorers import Scorers

PROMPTS = [
    Prompt("a", (Message(role="user", content="How many?"),), (9, 9, 9), "The answer is 3."),
    Prompt("b", (Message(role="user", content="Which?"),), (8, 8)),
]


def completion(name: str, sample: int, text: str, tokens: int, reason: str = "stop") -> Completion:
    return Completion(name, sample, text, tuple(range(7, 7 + tokens)), reason, -1.0, 0)


# -- terms alone -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(str(make_policy(tmp_path_factory.mktemp("policy"))))


def score(
    policy: ChatTokenizer, answers: list[Completion], **reward: Any
) -> tuple[list[ScoredCompletion], int]:
    """The scores, and how many answers the progress was told of."""
    told: list[int] = []
    scored = Scorers(Reward.model_validate(reward), policy).score(
        PROMPTS, answers, told.append, RayScheduler()
    )
    return scored, sum(told)


LENGTH = {"type": "length", "low": 4, "high": 6, "falloff": 4, "weight": 2.0}
ANSWER = {"type": "answer", "kind": "number", "right": 1.0, "wrong": -1.0, "missing": -0.5, "weight": 0.5}


def test_terms_are_summed_by_weight_and_shown(policy: ChatTokenizer) -> None:
    answers = [
        completion("b", 0, "no reference", 5),
        completion("a", 0, "The answer is 3.", 5),
        completion("a", 1, "The answer is 4.", 8),  # 2 of 4 tokens outside: 1 - 2/4
        completion("a", 2, "unsure", 99),
    ]
    scored, told = score(policy, answers, terms=[LENGTH, ANSWER])
    assert [s.completion for s in scored] == answers and told == 4
    assert [s.terms for s in scored] == [
        {"length": 1.0, "answer": 0.0},
        {"length": 1.0, "answer": 1.0},
        {"length": 0.5, "answer": -1.0},
        {"length": 0.0, "answer": -0.5},
    ]
    assert [s.reward for s in scored] == [2.0, 2.5, 2 * 0.5 - 0.5, -0.25]


def test_one_term_is_the_reward_itself(policy: ChatTokenizer) -> None:
    (scored,), told = score(policy, [completion("a", 0, "x", 9)], terms=[{"type": "length", "free": 7}])
    assert (scored.reward, scored.terms, told) == (-2.0, {}, 1)


def test_a_slope_of_length_is_taken_off_and_the_raw_reward_kept(policy: ChatTokenizer) -> None:
    answers = [completion("a", 0, "x", 9), completion("a", 1, "x", 3)]
    free = {"type": "length", "free": 7}
    scored, _ = score(policy, answers, terms=[free], length_slope=0.25)
    assert [(s.reward, s.terms) for s in scored] == [(-4.25, {"raw": -2.0}), (-0.75, {"raw": 0.0})]
    # One that is to be fitted isn't known yet.
    scored, _ = score(policy, answers, terms=[{**free, "name": "free"}, LENGTH], length_slope="fit")
    assert scored[0].reward == scored[0].terms["raw"] and [*scored[0].terms] == ["free", "length", "raw"]


def test_no_answers_give_no_scores(policy: ChatTokenizer) -> None:
    assert score(policy, [], terms=[LENGTH]) == ([], 0)


def test_a_missing_secret_shows_before_anything_starts(
    policy: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    http = {"type": "http", "url": "http://127.0.0.1:1/", "token_env": "NO_SUCH_TOKEN"}
    with pytest.raises(ValueError, match="token_env='NO_SUCH_TOKEN'"):
        Scorers(Reward.model_validate({"terms": [http]}), policy)


# -- what a reward model reads -----------------------------------------------------------------------------


def test_a_reward_model_with_the_policys_tokens_reads_them(policy: ChatTokenizer, tmp_path: Path) -> None:
    reward = Reward(path=str(make_reward(tmp_path / "reward")))
    (reader,) = Scorers(reward, policy).readers
    assert reader.shared and reader.ours
    answers = [completion("a", 0, "x", 3), completion("a", 1, "y", 2)]
    group = reader.read(PROMPTS[0], answers)
    assert (group.prompt, group.answers) == ((9, 9, 9), [(7, 8, 9), (7, 8)])


def test_a_reward_model_with_other_tokens_reads_the_text(policy: ChatTokenizer, tmp_path: Path) -> None:
    """An answer that ended by itself ends there too; one that was cut off doesn't. An empty one would leave the
    model nothing to read."""
    path = make_reward(tmp_path / "reward")
    other = make_tokenizer()
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    other.chat_template = template + "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    other.save_pretrained(path)
    (reader,) = Scorers(Reward(path=str(path)), policy).readers
    assert reader.ours and not reader.shared
    answers = [
        completion("b", 0, "yes", 50),
        completion("b", 1, "yes", 50, "length"),
        completion("b", 2, "", 0, "length"),
    ]
    group = reader.read(PROMPTS[1], answers)
    decode = reader.tokenizer.backend.decode
    assert decode(list(group.prompt)) == "<|im_start|>user: Which?<|im_end|><|im_start|>assistant: "
    assert [decode(list(a)) for a in group.answers] == ["yes<|im_end|>", "yes", "<|im_end|>"]


# -- the table ---------------------------------------------------------------------------------------------


def test_terms_come_back_from_parquet(tmp_path: Path) -> None:
    scored = [
        ScoredCompletion(completion("a", 0, "x", 2), 1.25, {"model_1": 0.5, "model_2": -0.0, "längd": 0.75}),
        ScoredCompletion(completion("a", 1, "y", 2), -1.0),
        ScoredCompletion(completion("a", 2, "z", 2), -math.inf, {"model_1": -math.inf}),
    ]
    write_records(scored, ScoredCompletion, tmp_path / "scored.parquet")
    assert read_records(ScoredCompletion, tmp_path / "scored.parquet") == scored
    first = pq.read_table(tmp_path / "scored.parquet").to_pylist()[0]
    assert dict(first["terms"])["model_1"] == 0.5 and first["reward"] == 1.25


def test_a_term_without_a_number_stays_nan(tmp_path: Path) -> None:
    scored = [ScoredCompletion(completion("a", 0, "x", 2), math.nan, {"judge": math.nan, "length": 1.0})]
    write_records(scored, ScoredCompletion, tmp_path / "scored.parquet")
    (found,) = read_records(ScoredCompletion, tmp_path / "scored.parquet")
    assert math.isnan(found.reward) and math.isnan(found.terms["judge"]) and found.terms["length"] == 1.0
