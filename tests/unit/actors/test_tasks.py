"""What a rank learns, against numbers worked out by hand or by transformers; and where a training stops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import make_policy, make_reward
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.tasks import ImitationTask, PreferenceTask, RankingTask, Sums, Task
from ultramed_rl.config.objectives import DPO, KTO, RAFT
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.batching import MicroBatch, count_steps, epoch_batches
from ultramed_rl.learning.objectives.bradley_terry import ranked_pairs
from ultramed_rl.learning.preference_data import PreferenceSet, read_reference, reference_answers
from ultramed_rl.models.load import load_policy, load_reward, model_shape
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, TokenizedChat
from ultramed_rl.stages.loop import is_due, next_event

# -- all pairs of a ranking --------------------------------------------------------------------------------


def rows(scores: Sequence[Sequence[float]]) -> list[tuple[int, int, float, int, float]]:
    """(better, worse, gap, group, weight) of each pair."""
    pairs = ranked_pairs(scores)
    columns = (pairs.better, pairs.worse, pairs.gap, pairs.group, pairs.weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_every_answer_is_compared_with_every_worse_one() -> None:
    third = pytest.approx(1 / 3)
    assert rows([[3.0, 1.0, 0.5], [1.0, 0.0]]) == [
        (0, 1, 2.0, 0, third),
        (0, 2, 2.5, 0, third),
        (1, 2, 0.5, 0, third),
        (3, 4, 1.0, 1, 1.0),  # the second group's answers come after the first's three
    ]


def test_ties_are_not_compared() -> None:
    """Of four answers in two ties of two, C(4, 2) - 2 = 4 pairs are left."""
    assert rows([[2.0, 2.0, 1.0, 1.0]]) == [
        (0, 2, 1.0, 0, 0.25),
        (0, 3, 1.0, 0, 0.25),
        (1, 2, 1.0, 0, 0.25),
        (1, 3, 1.0, 0, 0.25),
    ]


def test_the_order_of_answers_does_not_matter() -> None:
    assert rows([[0.0, 1.0]]) == [(1, 0, 1.0, 0, 1.0)]


def test_a_group_without_a_better_answer_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"\[1\]"):
        ranked_pairs([[1.0, 0.0], [1.0, 1.0]])


@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=2, max_size=5).filter(lambda s: len(set(s)) > 1), min_size=1
    )
)
def test_each_groups_weights_sum_to_one_and_better_is_better(scores: list[list[int]]) -> None:
    flat = [score for own in scores for score in own]
    totals = [0.0] * len(scores)
    for better, worse, gap, group, weight in rows(scores):
        assert flat[better] - flat[worse] == gap > 0
        totals[group] += weight
    assert totals == pytest.approx([1.0] * len(scores))


# -- a reward model's task ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_policy(root / "policy")
    make_reward(root / "reward")
    return root


def engine_of(module: Any) -> Any:
    """What tasks use of an engine: here without DeepSpeed around the module."""
    engine: Any = Engine.__new__(Engine)
    group = SimpleNamespace(zero_stage=0)
    engine.spec, engine.device = SimpleNamespace(group=group), torch.device("cpu")
    engine.backend = engine.module = module
    return engine


def group(name: str, rewards: tuple[float, ...], kind: str = "exam", first: int = 10) -> PreferenceGroup:
    """Answers of 3, 4, 5, ... tokens."""
    completions = tuple(
        Completion(name, k, "a", tuple(range(first + 7 * k, first + 7 * k + 3 + k)), "reference", 0.0, 0)
        for k in range(len(rewards))
    )
    return PreferenceGroup(Prompt(name, (), (1, 50, 51, 2), kind=kind), completions, rewards)


def run(task: Task, *micro_batches: MicroBatch) -> tuple[list[float], dict[str, float]]:
    """Each micro-batch's share of the loss, and the batch's metrics."""
    batch = [i for micro in micro_batches if not micro.filler for i in micro.indices]
    sums = Sums(task.sums)
    shares = [loss.item() for loss in task.losses(batch, micro_batches, sums, False)]
    return shares, task.metrics(dict(zip(sums.names, sums.values.tolist(), strict=True)))


GROUPS = [
    group("a", (2.0, 1.0, 0.5)),
    group("b", (1.0, 0.0), "notes", 90),
    group("c", (1.0, 0.0), "exam", 150),
]


def rewards_by_transformers(path: Path) -> list[list[float]]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @torch.no_grad()
    def reward(g: PreferenceGroup, c: Completion) -> float:
        return float(model(input_ids=torch.tensor([[*g.prompt.token_ids, *c.token_ids]])).logits)

    return [[reward(g, c) for c in g.completions] for g in GROUPS]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (BradleyTerry(), lambda c, r, gap: softplus(r - c)),
        (
            BradleyTerry(margin="score_difference", margin_scale=0.5, centering=0.01),
            lambda c, r, gap: softplus(r - c + 0.5 * gap) + 0.01 * (c + r) ** 2,
        ),
        (LogExp(), lambda c, r, gap: softplus(r - c)),
    ],
    ids=["plain", "margin and centering", "log_exp"],
)
def test_a_ranking_is_a_mean_over_prompts_of_means_over_pairs(
    models: Path, objective: Any, loss: Any
) -> None:
    module = load_reward(str(models / "reward"), "float32")
    task = RankingTask(engine_of(module), model_shape(module.lm), GROUPS, objective)
    a, b, c = rewards_by_transformers(models / "reward")
    expected = [
        (loss(a[0], a[1], 1.0) + loss(a[0], a[2], 1.5) + loss(a[1], a[2], 0.5)) / 3,
        loss(b[0], b[1], 1.0),
        loss(c[0], c[1], 1.0),
    ]
    (whole,), metrics = run(task, MicroBatch((0, 1, 2)))
    assert whole == pytest.approx(sum(expected) / 3, abs=1e-5) == metrics["loss"]
    # The same batch in parts, the last of them a filler that weighs nothing.
    shares, parted = run(task, MicroBatch((2,)), MicroBatch((0, 1)), MicroBatch((1,), filler=True))
    assert shares == pytest.approx([expected[2] / 3, (expected[0] + expected[1]) / 3, 0.0], abs=1e-5)
    assert parted == pytest.approx(metrics, abs=1e-5)

    gaps = [a[0] - a[1], a[0] - a[2], a[1] - a[2], c[0] - c[1], b[0] - b[1]]
    right = [float(gap > 0) for gap in gaps]
    assert metrics["accuracy"] == pytest.approx(sum(right) / 5)
    assert metrics["accuracy_exam"] == pytest.approx(sum(right[:4]) / 4)
    assert metrics["accuracy_notes"] == right[4]
    assert metrics["margin"] == pytest.approx(sum(gaps) / 5, abs=1e-5)
    assert metrics["reward_mean"] == pytest.approx(sum([*a, *b, *c]) / 7, abs=1e-5)
    assert [task.sample_id(i) for i in range(3)] == ["a:0>1>2", "b:0>1", "c:0>1"]
    assert task.lengths == [4 + 3 + 4 + 5, 4 + 3 + 4, 4 + 3 + 4]


def test_equal_rewards_are_half_right_and_one_kind_has_no_figure_of_its_own(models: Path) -> None:
    module = load_reward(str(models / "reward"), "float32")
    torch.nn.init.zeros_(module.lm.score.weight)
    task = RankingTask(engine_of(module), model_shape(module.lm), [GROUPS[0], GROUPS[2]], BradleyTerry())
    _, metrics = run(task, MicroBatch((0, 1)))
    assert metrics["loss"] == pytest.approx(math.log(2)) and metrics["accuracy"] == 0.5
    assert metrics["margin"] == metrics["reward_mean"] == 0.0
    assert not [name for name in metrics if name.startswith("accuracy_")]


# -- the policy's tasks ------------------------------------------------------------------------------------


def chat(name: str, tokens: int, learned: range) -> TokenizedChat:
    ids = tuple(3 + (7 * k + len(name)) % 250 for k in range(tokens))
    return TokenizedChat(name, ids, tuple(k in learned for k in range(tokens)))


def test_imitation_weighs_every_learned_token_alike(models: Path) -> None:
    """However the chats are cut into micro-batches; what isn't learned, and what comes first, counts nothing."""
    from transformers import AutoModelForCausalLM

    module = load_policy(str(models / "policy"), "float32")
    chats = [chat("short", 6, range(4, 6)), chat("long", 30, range(10, 30)), chat("all", 5, range(0, 5))]
    task = ImitationTask(engine_of(module), model_shape(module.lm), chats)
    assert task.lengths == [6, 30, 5] and task.targets == [2, 20, 4]
    assert task.sample_id(1) == "long"

    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    nll = []
    for c in chats:
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([c.token_ids])).logits[0].log_softmax(-1)
        learned = [k for k in range(1, len(c.token_ids)) if c.learned[k]]
        nll.append(-sum(float(logprobs[k - 1, c.token_ids[k]]) for k in learned))
    (whole,), metrics = run(task, MicroBatch((0, 1, 2)))
    assert whole == pytest.approx(sum(nll) / 26, abs=1e-4) == metrics["loss"]
    assert metrics["perplexity"] == pytest.approx(math.exp(sum(nll) / 26), rel=1e-4)
    assert metrics["learned_tokens"] == 26
    shares, parted = run(task, MicroBatch((1,)), MicroBatch((0, 2)), MicroBatch((0,), filler=True))
    assert shares == pytest.approx([nll[1] / 26, (nll[0] + nll[2]) / 26, 0.0], abs=1e-4)
    assert parted == pytest.approx(metrics, rel=1e-4)


def test_a_policy_that_is_its_own_reference_has_a_loss_of_ln_2(models: Path) -> None:
    module = load_policy(str(models / "policy"), "float32")
    engine, shape = engine_of(module), model_shape(module.lm)
    pairs = [replace(g, completions=g.completions[:2], rewards=g.rewards[:2]) for g in GROUPS]
    unknown = [ReferenceLogprobs(g.group_id, (0.0, 0.0)) for g in pairs]

    def task(references: list[ReferenceLogprobs]) -> PreferenceTask:
        return PreferenceTask(engine, shape, PreferenceSet.at_hand(pairs, references, 64), DPO(beta=0.5))

    # Against a reference that gives every answer probability one, a log-ratio is the policy's own logprob.
    (_,), metrics = run(task(unknown), MicroBatch((0, 1, 2)))
    assert metrics["implicit_margin"] == pytest.approx(
        0.5 * (metrics["chosen_logratio"] - metrics["rejected_logratio"])
    )
    own = [logprobs_by_transformers(models / "policy", g) for g in pairs]
    assert metrics["chosen_logratio"] == pytest.approx(sum(c for c, _ in own) / 3, abs=1e-3)
    # One more token costs about ln 259, so the shorter, chosen answers lead.
    assert metrics["accuracy"] == 1.0 and metrics["loss"] < 0.2

    itself = [ReferenceLogprobs(g.group_id, x) for g, x in zip(pairs, own, strict=True)]
    (loss,), metrics = run(task(itself), MicroBatch((0, 1, 2)))
    assert loss == pytest.approx(math.log(2), abs=1e-4) == metrics["loss"]
    assert metrics["implicit_margin"] == pytest.approx(0.0, abs=1e-4)


def test_shared_lengths_and_weights_are_those_of_plain_sequences(models: Path) -> None:
    """LD-DPO's log-ratios up to the shorter answer's length, and WPO's weights, of two packed groups."""
    module = load_policy(str(models / "policy"), "float32")
    pairs = [replace(g, completions=g.completions[:2], rewards=g.rewards[:2]) for g in GROUPS[:2]]
    asked = [reference_answers(pairs, i, "cut", 64) for i in range(2)]
    shortest = [min(len(c.token_ids) for c in pair.completions) for pair in pairs]
    references = []
    for pair, answers in zip(pairs, asked, strict=True):
        numbers = [-3.0 - k for k in range(len(answers.answers))]
        references.append(read_reference(pair.group_id, 2, numbers))
    objective = DPO(beta=0.5, ld_alpha=0.3, policy_weighted=True)
    data = PreferenceSet.at_hand(pairs, references, 64)
    task = PreferenceTask(engine_of(module), model_shape(module.lm), data, objective)
    ((_, packed, logprobs),) = task._passes([MicroBatch((0, 1))], data.answers_of)
    answers = task._answers((0, 1), packed, logprobs)
    weights, shared = [], []
    for pair, reference, count in zip(pairs, references, shortest, strict=True):
        for place, completion in enumerate(pair.completions):
            values, collisions = values_by_transformers(models / "policy", pair, place)
            weights.append(
                math.exp(sum(v - c for v, c in zip(values, collisions, strict=True)) / len(values))
            )
            longer = len(completion.token_ids) > count
            known = reference.beside if longer else reference.logprobs[place]
            assert known is not None
            shared.append(sum(values[:count]) - known)
    assert answers.weights is not None and answers.shared is not None
    assert answers.weights.tolist() == pytest.approx(weights, rel=1e-4)
    assert answers.shared.tolist() == pytest.approx(shared, abs=1e-3)
    (_,), metrics = run(task, MicroBatch((0, 1)))
    assert math.isfinite(metrics["loss"])


def test_raft_computes_the_chosen_answers_alone(models: Path) -> None:
    module = load_policy(str(models / "policy"), "float32")
    pairs = [replace(g, completions=g.completions[:2], rewards=g.rewards[:2]) for g in GROUPS]
    data = PreferenceSet.at_hand(pairs, None, 64, chosen_only=True)
    task = PreferenceTask(engine_of(module), model_shape(module.lm), data, RAFT())
    (loss,), metrics = run(task, MicroBatch((0, 1, 2)))
    own = [logprobs_by_transformers(models / "policy", g)[0] / len(g.chosen.token_ids) for g in pairs]
    assert loss == pytest.approx(-sum(own) / 3, abs=1e-4) == metrics["loss"]
    assert metrics.keys() == {"loss", "chosen_logratio"}
    ((_, packed, _),) = task._passes([MicroBatch((0, 1, 2))], data.answers_of)
    assert len(packed.answers) == 3


def test_the_longer_answer_is_cut_as_short_as_the_other() -> None:
    pair = replace(GROUPS[0], completions=GROUPS[0].completions[:2], rewards=GROUPS[0].rewards[:2])
    chosen, rejected = (list(c.token_ids) for c in pair.completions)
    assert len(chosen) < len(rejected)
    cut = rejected[: len(chosen)]
    assert [list(a) for a in reference_answers([pair], 0, "cut", 64).answers] == [chosen, rejected, cut]
    assert [list(a) for a in reference_answers([pair], 0, "none", 64).answers] == [chosen, rejected]


@torch.no_grad()
def values_by_transformers(path: Path, pair: PreferenceGroup, place: int) -> tuple[list[float], list[float]]:
    """Of each token of an answer its logprob, and log sum_v pi(v)^2 where it stands."""
    from transformers import AutoModelForCausalLM

    model, prompt = AutoModelForCausalLM.from_pretrained(path).eval(), pair.prompt.token_ids
    ids = [*prompt, *pair.completions[place].token_ids]
    logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(prompt), len(ids))
    collisions = (2 * logprobs).logsumexp(-1)
    return [float(logprobs[k - 1, ids[k]]) for k in places], [float(collisions[k - 1]) for k in places]


@pytest.mark.parametrize("labels", [(1, 0, 1), (1, 1, 1), (0, 0, 0)])
def test_single_answers_are_measured_by_their_labels(
    models: Path, labels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_policy(str(models / "policy"), "float32")
    engine, shape = engine_of(module), model_shape(module.lm)
    monkeypatch.setattr(engine, "total", lambda values: values)  # one rank
    singles = [
        replace(g, completions=g.completions[:1], rewards=(float(label),), desirable=label)
        for g, label in zip(GROUPS, labels, strict=True)
    ]
    references = [ReferenceLogprobs(g.group_id, (0.0,), 0.0) for g in singles]
    data = PreferenceSet.at_hand(singles, references, 64)
    _, metrics = run(PreferenceTask(engine, shape, data, KTO(beta=0.5)), MicroBatch((0, 1, 2)))
    own = [logprobs_by_transformers(models / "policy", g)[0] for g in singles]
    for side, kind in (("chosen", 1), ("rejected", 0)):
        values = [value for value, label in zip(own, labels, strict=True) if label == kind]
        if values:
            assert metrics[f"{side}_logratio"] == pytest.approx(sum(values) / len(values), abs=1e-3)
        else:
            assert f"{side}_logratio" not in metrics and "implicit_margin" not in metrics


@torch.no_grad()
def logprobs_by_transformers(path: Path, pair: PreferenceGroup) -> tuple[float, ...]:
    from transformers import AutoModelForCausalLM

    model, prompt = AutoModelForCausalLM.from_pretrained(path).eval(), pair.prompt.token_ids
    found = []
    for completion in pair.completions:
        ids = [*prompt, *completion.token_ids]
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[k - 1, ids[k]]) for k in range(len(prompt), len(ids))))
    return tuple(found)


def test_sums_know_their_names() -> None:
    sums = Sums(("loss", "units"))
    sums.add(loss=torch.tensor(1.5), units=2)
    sums.add(loss=0.25)
    assert sums.values.tolist() == [1.75, 2.0]
    with pytest.raises(ValueError):
        sums.add(los=1.0)


# -- where a training stops --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "most", "steps"),
    [(20, 4, 1, None, 5), (21, 4, 1, None, 6), (21, 4, 3, None, 18), (21, 4, 3, 7, 7), (3, 4, 2, 99, 2)],
)
def test_steps_by_hand(count: int, batch: int, epochs: int, most: int | None, steps: int) -> None:
    """An epoch's last batch may be small; epochs don't share one."""
    assert count_steps(count, batch, epochs, most) == steps
    assert len(epoch_batches(count, batch, epochs, 0)[:most]) == steps


def stops(steps: int, evaluate: int | None, save: int | None) -> Iterator[int]:
    place = 0
    while place < steps:
        place = next_event(place, steps, evaluate, save)
        yield place


def test_events_by_hand() -> None:
    assert list(stops(10, 3, 4)) == [3, 4, 6, 8, 9, 10]
    assert list(stops(6, 3, 3)) == [3, 6]
    assert list(stops(5, None, None)) == [5]
    assert list(stops(5, 7, None)) == [5]
    assert [step for step in range(1, 10) if is_due(step, 4)] == [4, 8]
    assert not is_due(4, None)


@given(st.integers(1, 40), st.none() | st.integers(1, 50), st.none() | st.integers(1, 50))
def test_no_event_is_passed_over(steps: int, evaluate: int | None, save: int | None) -> None:
    found = list(stops(steps, evaluate, save))
    due = {step for step in range(1, steps + 1) if is_due(step, evaluate) or is_due(step, save)}
    assert found == sorted(due | {steps})
