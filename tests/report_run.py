"""Run directories as an online run leaves them, by the store's own writers: answers and rewards are given, no model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tiny import tiny_run
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.evaluation.metrics import (
    RoundMetrics,
    change_metrics,
    kl_to_reference,
    prompt_means,
    tokens_by_prompt,
)
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.store import RoundRecord, RunDirectory
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.atomic import write_json

# The reward and the tokens of a sample; of held-out prompts the round is the policy's version.
Number = Callable[[int, int, int], float]


@dataclass(frozen=True)
class Plan:
    """What a run's answers are, by (round or version, prompt, sample)."""

    rounds: int = 2
    prompts: int = 6
    held_out: int = 8
    samples: int = 4
    reward: Number = lambda r, p, s: r + 0.1 * p + 0.5 * s
    held_out_reward: Number = lambda version, p, s: version * (1.0 + 0.1 * p)
    tokens: Number = lambda r, p, s: 20 + s
    text: Callable[[int, int, int], str] = lambda r, p, s: f"answer {s} of round {r} to prompt {p}"
    prompt: Callable[[int, int], str] = lambda r, p: f"What helps against disease {p} in round {r}?"
    finish: str = "stop"
    details: Callable[[int, int, int], dict[str, float]] = lambda r, p, s: {}
    judged: Callable[[int], dict[str, float]] = lambda index: {}  # a round's metrics of judges


def make_run(root: Path, plan: Plan | None = None, **changes: object) -> Path:
    """Write a whole run of a plan; returns its folder. `changes` are of the config, as in `tiny_run`."""
    plan = plan or Plan()
    config = parse_config(tiny_run(root, run__rounds=plan.rounds, **changes))
    with RunDirectory.open(config, resume=False) as store:
        start = store.initial.phase("evaluation", lambda: _held_out(plan, 0), kind=ScoredCompletion)
        for index in range(plan.rounds):
            _make_round(config, store, store.round(index), plan, start)
        store.append_metrics({"round_index": plan.rounds, "peak_memory_policy": 3 * 2**30})
        _give_times(store.path)
        return store.path


def _give_times(folder: Path) -> None:
    """Phases that took as long as those of a run: on a fast machine these here take no time at all."""
    for path in folder.rglob("*.json"):
        manifest = read_json(path)
        if "seconds" in manifest:
            write_json(path, {**manifest, "seconds": 1.0 + len(path.stem)})


def _make_round(
    config: RunConfig, store: RunDirectory, record: RoundRecord, plan: Plan, start: Sequence[ScoredCompletion]
) -> None:
    index = record.index
    prompts = record.phase(
        "prompts", lambda: [_prompt(plan, index, p) for p in range(plan.prompts)], kind=Prompt
    )
    scored = [
        _answer(plan, index, prompt, p, s) for p, prompt in enumerate(prompts) for s in range(plan.samples)
    ]
    record.phase("completions", lambda: [s.completion for s in scored], kind=Completion)
    record.phase("scored", lambda: scored, kind=ScoredCompletion)
    selector = PairSelector(
        rejected="worst", min_margin=0.0, max_length_ratio=None, seed=config.run.seed, round_index=index
    )
    numbers, pairs = RoundMetrics(), []
    for prompt in prompts:
        answers = [s for s in scored if s.completion.prompt_id == prompt.prompt_id]
        numbers.add_answers(prompt, answers)
        pair = selector.choose(prompt, answers)
        if pair is not None:
            numbers.add_pair(pair)
            pairs.append(pair)
    record.phase("pairs", lambda: pairs, kind=PreferenceGroup)
    references = [
        ReferenceLogprobs(p.group_id, tuple(c.logprob - index for c in p.completions)) for p in pairs
    ]
    record.phase("reference", lambda: references, kind=ReferenceLogprobs)
    record.phase_directory("checkpoint", lambda folder: {"policy_steps": 1})
    after = record.phase("evaluation", lambda: _held_out(plan, index + 1), kind=ScoredCompletion)
    short, long = tokens_by_prompt(start), tokens_by_prompt(after)
    gaps = {prompt: long[prompt] - short[prompt] for prompt in long}
    change = change_metrics(prompt_means(start), prompt_means(after), 200, config.run.seed, gaps)
    metrics = {
        "round": float(index),
        **numbers.metrics(selector.audit),
        "kl_to_reference": kl_to_reference(record.path),
        **{f"eval_{name}": value for name, value in change.items()},
        **plan.judged(index),
        "seconds": 10.0,
        "tokens_per_second_completions": 100.0,
        "mfu": 0.4,
    }
    step = {"step": 0.0, "loss": 0.7 - 0.1 * index, "accuracy": 0.5, "implicit_margin": 0.1, "grad_norm": 1.0}
    store.append_metrics({"step_index": index + 1, "round": index, **step})
    store.append_metrics({"round_index": index, **metrics})
    record.commit(metrics)


def _prompt(plan: Plan, index: int, place: int) -> Prompt:
    messages = ({"role": "user", "content": plan.prompt(index, place)},)
    return Prompt(f"r{index}p{place}", messages, (1, 2, 3))  # type: ignore[arg-type]


def _answer(plan: Plan, index: int, prompt: Prompt, place: int, sample: int) -> ScoredCompletion:
    tokens = tuple(range(int(plan.tokens(index, place, sample))))
    text = plan.text(index, place, sample)
    completion = Completion(prompt.prompt_id, sample, text, tokens, plan.finish, -3.0, index)
    details = plan.details(index, place, sample)
    return ScoredCompletion(completion, plan.reward(index, place, sample), {}, details)


def _held_out(plan: Plan, version: int) -> list[ScoredCompletion]:
    found = []
    for place in range(plan.held_out):
        tokens = tuple(range(int(plan.tokens(version, place, 0))))
        text = plan.text(version, place, 0)
        completion = Completion(f"h{place}", 0, text, tokens, plan.finish, -2.0, version)
        found.append(ScoredCompletion(completion, plan.held_out_reward(version, place, 0)))
    return found
