"""Configs that between them take every way through a round, and what each run of them must come to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.simulated.engine import SimulatedEngine
from tests.simulated.outcome import Outcome
from tests.simulated.run import Ended, Simulation
from tests.simulated.scorers import numbers
from tests.simulated.trainers import SimulatedTrainer
from tests.simulated.weights import mix
from tests.tiny import make_policy, make_reward
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config import RunConfig
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import PreferenceGroup, Prompt, ReferenceLogprobs, SamplingRequest, ScoredCompletion

QUESTIONS = 32
ENGINES = {"engines": 2, "max_num_seqs": 4, "kv_cache_gib": 0.1, "enforce_eager": True}
SELECTIVE = {"min_margin": 1.9}
APART = {"cluster__layout": "disaggregated", "cluster__devices_per_node": 6, "cluster__rollout": ENGINES}


def make_models(root: Path) -> Path:
    """A policy's, a judge's and two reward models' folders, questions with answers, a benchmark's items, and what judges are
    asked."""
    make_policy(root / "policy")
    make_policy(root / "judge", seed=3)
    make_policy(root / "judge-2", seed=4)
    (root / "ask.txt").write_text("$question $answer")
    (root / "pair.txt").write_text("pair|$question|$answer_a|$answer_b")
    (root / "rubric.txt").write_text("rubric|$question|$answer|$criteria")
    make_reward(root / "reward")
    make_reward(root / "reward-2", seed=5)
    rows = [{"question": f"Is drug {i} safe?", "answer": "Yes." if i % 3 else None} for i in range(QUESTIONS)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = ((3, "names a dose"), (2, "warns"), (-4, "invents a study"))
    rubrics = [{"criterion": text, "points": own, "tags": ["axis:accuracy"]} for own, text in points]
    rows = [{"question": f"May I take drug {i}?", "rubrics": rubrics} for i in range(QUESTIONS)]
    (root / "rubrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [[{"role": "user", "content": f"How much of drug {i}?"}] for i in range(3)]
    rows = [{"prompt_id": f"q{i}", "prompt": own, "rubrics": rubrics} for i, own in enumerate(asked)]
    (root / "healthbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"prompt": own, "completion": "10 mg", "rubric": "names a dose"} for own in asked]
    rows = [{**row, "binary_labels": [True, i > 0]} for i, row in enumerate(said)]
    (root / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"{letter}. drug {place}" for place, letter in enumerate("ABCDE")]
    items = [
        {"question": f"Which drug {i}?", "options": "\n".join(options), "answer": options[i % 5]}
        for i in range(6)
    ]
    (root / "medqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return root


def cases(models: Path) -> dict[str, dict[str, Any]]:
    """Changes to the tiny run, by name."""
    two = {
        "paths": [str(models / "reward"), str(models / "reward-2")],
        "combine": "uncertainty",
        "penalty": 0.5,
    }
    terms = [{"type": "length", "free": 8, "weight": 0.01}]
    scored = {"precision": "float32", "micro_batch_tokens": 512}
    protocols = [
        {"type": "likelihood"},
        {"type": "greedy", "max_new_tokens": 8},
        {"type": "self_consistency", "samples": 3, "max_new_tokens": 8, "temperature": 1.0},
    ]
    benchmarks = {
        "tasks": [{"name": "medqa", "uri": str(models / "medqa.jsonl")}],
        "protocols": protocols,
        "contamination": None,
        "every": 2,
    }
    judges = [
        {"type": "reward_model", "path": str(models / "reward-2"), "precision": "float32"},
        {"type": "rule", "name": "vowel", "must_match": "[aeiou]"},
        {"type": "length", "free": 8},
    ]
    medqa = {"type": "benchmark", "name": "medqa", "task": "medqa", "protocol": "greedy"}
    own = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 1}
    return {
        "dpo": {},
        "streamed": {"cluster__sequential_phases": False, "cluster__rollout": ENGINES},
        "kto": {"objective": {"type": "kto"}, "cluster__sequential_phases": False},
        "previous": {"reference__update": "previous", "run__rounds": 3, "run__keep_checkpoints": 1},
        "ema, kept optimizer": {
            **APART,
            "reference__update": "ema",
            "training__optimizer_state": "keep",
            "training__schedule_scope": "run",
            "cluster__policy": {"ranks": 2, "zero_stage": 1},
        },
        "lora": {  # by ranks that share each pass
            "policy__lora": {"rank": 4},
            "objective": {"type": "nca"},
            "cluster__policy": {"ranks": 2, "zero_stage": 2, "sequence_parallel": 2},
            "cluster__sequential_phases": False,
        },
        "nf4": {"policy__lora": {"rank": 4, "quantize": "nf4"}, "training__optimizer_state": "keep"},
        "lora, adapters alone": {"policy__lora": {"rank": 4, "sync": "adapter"}, "checkpoint": {"every": 2}},
        "bfloat16": {"policy__precision": "bfloat16", "cluster__sequential_phases": False},
        "early": {
            **APART,
            "training__overlap_training": True,
            "checkpoint": {"every": 2},
            "cluster__policy": {"ranks": 1, "zero_stage": 0},
        },
        "overlap": {
            **APART,
            "run__overlap": 1,
            "run__rounds": 3,
            "reference__update": "previous",
            "run__keep_checkpoints": 1,
        },
        "overlap, lora, bfloat16, rare checkpoints": {
            **APART,
            "run__overlap": 1,
            "run__rounds": 4,
            "checkpoint": {"every": 3},
            "prompts__per_round": 4,
            "policy__lora": {"rank": 4},
            "policy__precision": "bfloat16",
            "cluster__policy": {"ranks": 2, "zero_stage": 1},
        },
        "overlap, kto": {**APART, "run__overlap": 1, "run__rounds": 3, "objective": {"type": "kto"}},
        "ensemble, term, near_low": {
            "reward": {"ensemble": two, "terms": terms, **scored},
            "pairs": {"rejected": "near_low", "max_length_ratio": 20.0},
            "cluster__sequential_phases": False,
        },
        "no reference, rules": {
            "objective": {"type": "simpo"},
            "reference": None,
            "reward": {"terms": [{"type": "format", "must_match": "[aeiou]"}, *terms]},
        },
        "reference answers": {
            "pairs": {"include_reference_answer": True},
            "prompts__sources": [
                {"type": "question", "uri": str(models / "questions.jsonl"), "answer_column": "answer"}
            ],
            "cluster__sequential_phases": False,
        },
        "refill": {"prompts__refill": 2.0, "pairs": SELECTIVE, "cluster__sequential_phases": False},
        "curriculum": {
            "prompts__reuse": True,
            "prompts__unpaired_every": 3,
            "prompts__refill": 1.5,
            "prompts__held_out": 20,
            "prompts__per_round": 4,
            "pairs": SELECTIVE,
            "run__rounds": 7,
            "cluster__sequential_phases": False,
        },
        "refill in turn": {
            "prompts__refill": 2.0,
            "pairs": SELECTIVE,
            "run__rounds": 3,
            "prompts__per_round": 4,
        },
        "rare checkpoints": {
            "checkpoint": {"every": 3},
            "evaluation__every": 2,
            "run__rounds": 4,
            "prompts__per_round": 4,
            "cluster__sequential_phases": False,
            "cluster__rollout": ENGINES,
        },
        "benchmarks": {"benchmarks": benchmarks, "policy__max_length": 384},
        "length slope": {
            "reward__length_slope": "fit",
            "reward__terms": terms,
            "cluster__sequential_phases": False,
        },
        "judges": {"evaluation__judges": judges, "cluster__sequential_phases": False},
        "overlap, judges": {
            **APART,
            "cluster__devices_per_node": 8,
            "run__overlap": 1,
            "run__rounds": 4,
            "prompts__per_round": 4,
            "evaluation__every": 2,
            "evaluation__samples": 2,
            "evaluation__judges": judges,
        },
        "benchmark judge, rare checkpoints": {
            "benchmarks": {**benchmarks, "protocols": protocols[:2]},
            "policy__max_length": 384,
            "run__rounds": 3,
            "checkpoint": {"every": 2},
            "evaluation__every": 2,
            "evaluation__judges": [medqa],
        },
        "shared GPUs, refill": {
            "cluster": {"device": "cuda", "devices_per_node": 2, "policy": {"ranks": 2}, "rollout": ENGINES},
            "reference__update": "previous",
            "prompts__refill": 1.5,
            "pairs": SELECTIVE,
            "run__rounds": 3,
            "evaluation__every": 2,
            "evaluation__judges": judges[1:],
        },
        "own reward model": {"reward": {"train": own, **scored}},
    }


def judge_cases(models: Path) -> dict[str, dict[str, Any]]:
    """More of them, whose reward is a judge's on engines. What is asked of it together follows from real threads' time, so that
    the numbers of calls do too, and nothing else."""
    engine = {"path": str(models / "judge"), "precision": "float32", "max_length": 512, "kv_cache_gib": 0.1}
    graded = {"type": "judge", "template": str(models / "ask.txt"), "max_tokens": 24}
    terms = [{"type": "length", "free": 8, "weight": 0.01}]
    grader = {"template": str(models / "rubric.txt"), "max_tokens": 24, "together": 2}
    by_rubric = {"type": "rubric", **grader}
    compared = {"type": "pairwise", "template": str(models / "pair.txt"), "max_tokens": 24}
    return {
        "judge on engines": {
            "reward": {"terms": [{**graded, "engine": engine}, *terms]},
            "cluster__sequential_phases": False,
        },
        "judges on engines, in turn": {
            "reward__terms": [{**graded, "engine": engine, "samples": 2, "temperature": 1.0}],
            "evaluation__judges": [{**graded, "engine": {**engine, "path": str(models / "judge-2")}}],
        },
        "pairwise": {
            "reward": {"terms": [{**compared, "engine": engine}]},
            "pairs": {"include_reference_answer": True},
            "prompts__sources": [
                {"type": "question", "uri": str(models / "questions.jsonl"), "answer_column": "answer"}
            ],
            "cluster__sequential_phases": False,
        },
        "knockout": {"reward": {"terms": [{**compared, "engine": engine, "tournament": "knockout"}]}},
        "rubrics, and a benchmark's": {
            "reward": {"terms": [{**by_rubric, "engine": engine}, *terms]},
            "prompts__sources": [{"type": "question", "uri": str(models / "rubrics.jsonl")}],
            "policy__max_length": 384,
            "benchmarks": {
                "tasks": [{"name": "healthbench", "uri": str(models / "healthbench.jsonl")}],
                "protocols": [{"type": "greedy", "max_new_tokens": 8}],
                "grader": {**grader, "engine": engine, "meta": str(models / "meta.jsonl")},
                "contamination": None,
            },
            "cluster__sequential_phases": False,
        },
        "policy judges itself": {
            "reward": {"terms": [{**graded, "engine": "policy"}]},
            "policy__max_length": 256,
            "cluster__sequential_phases": False,
        },
    }


class Cases:
    """Each case's unbroken run, made once, in folders under `path`."""

    def __init__(self, models: Path, path: Path) -> None:
        self.models, self.path = models, path
        self._known: dict[str, tuple[Outcome, Ended]] = {}

    def at(self, name: str, path: Path) -> Simulation:
        """A case to be run in this folder."""
        return Simulation(self.models, path, (cases(self.models) | judge_cases(self.models))[name])

    def unbroken(self, name: str) -> tuple[Outcome, Ended]:
        """What the case comes to, and how the run went."""
        if name not in self._known:
            simulation = self.at(name, self.path / name)
            ended = simulation.run()
            self._known[name] = simulation.outcome(), ended
        return self._known[name]


def check_run(simulation: Simulation, outcome: Outcome) -> None:
    """Answers are those of the round's weights, once each; numbers those of the reference; weights those that follow from
    the pairs, learnt once in their order."""
    config = simulation.config
    learner = _Learner(config)
    start = learner.rank.weights
    policies, references_of = [start], [start]  # by version
    used: set[str] = set()
    for index in range(config.run.rounds):
        given: list[Prompt] = outcome.of(index, "prompts")
        prompts = given[: outcome.of(index, "asked")]
        names = {prompt.prompt_id for prompt in prompts}
        assert len(names) == len(prompts), "a prompt was asked twice"
        assert config.prompts.reuse or not names & used, "a prompt was used twice"
        used |= names
        version = max(index - config.run.overlap, 0)
        _check_answers(config, outcome, index, prompts, version, policies[version])
        pairs: list[PreferenceGroup] = outcome.of(index, "pairs")
        if prompts != given:
            assert len(pairs) == config.prompts.per_round, "too few prompts were asked"
            assert pairs[-1].prompt == prompts[-1], "one was asked in vain"
        references = None
        if config.objective.uses_reference:
            reference = learner.rank.base if config.policy.lora else references_of[version]
            references = _check_references(outcome, index, pairs, reference)
        learner.learn(index, prompts, pairs, references)
        saved = [i for i in range(config.run.rounds) if _ends(config, i, config.checkpoint.every)]
        kept = index in saved[-(config.run.keep_checkpoints or config.run.rounds) :]
        assert ("checkpoint" in outcome.folders[f"{index:03d}"]) == kept
        assert not kept or outcome.of(index, "checkpoint") == learner.rank.weights, f"round {index}"
        policies.append(learner.rank.weights)
        references_of.append(_next_reference(config, references_of[-1], policies[-1]))
    _check_passes(config, outcome)
    assert learner.rank.weights != start
    steps = [(row["round"], row["step"]) for row in outcome.log if "step_index" in row]
    assert steps == learner.steps, "a step was logged twice, or not at all"
    evaluated = [i for i in range(config.run.rounds) if _ends(config, i, config.evaluation.every)]
    assert [r["round_index"] for r in outcome.log if "eval_win_rate" in r] == evaluated


def _next_reference(config: RunConfig, reference: str, policy: str) -> str:
    if config.reference.update == "ema":
        return mix(reference, policy, config.reference.ema_decay)
    return policy if config.reference.update == "previous" else reference


def _ends(config: RunConfig, index: int, every: int) -> bool:
    return (index + 1) % every == 0 or index + 1 == config.run.rounds


class _Learner:
    """The policy's weights as they must be."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.steps = config, list[tuple[int, int]]()
        self.rank = SimulatedTrainer(0, 1, 0)
        spec: Any = SimpleNamespace(precision=config.policy.precision)
        self.rank.load(config.policy, spec, ("here", 0))

    def learn(self, index: int, prompts: Any, pairs: Any, references: Any) -> None:
        config, seed = self.config, self.config.run.seed
        self.rank.start_round(config.training.optimizer_state == "reset")
        self.rank.learn_preferences(pairs, references, config.objective, 0)
        whole = config.training.schedule_scope == "run"
        place = TrainingPlace(
            index if whole else 0,
            config.run.rounds if whole else 1,
            derive_seed(seed, "batches", index),
            most=config.prompts.per_round if config.training.overlap_training else None,
        )
        count = len(list(self.rank.train(config.training, place)))
        self.steps += [(index, step) for step in range(count)]


def _check_answers(
    config: RunConfig, outcome: Outcome, index: int, prompts: list[Prompt], version: int, weights: str
) -> None:
    engine = SimulatedEngine(0)
    engine.weights, engine.policy_version = weights, version
    sampling, expected = config.sampling, {}
    for prompt in prompts:
        seed = derive_seed(config.run.seed, index, prompt.prompt_id)
        request = SamplingRequest(prompt, sampling.n, 1.0, 1.0, sampling.max_new_tokens, seed)
        expected |= {completion.completion_id: completion for completion in engine.answer(request)}
    scored: list[ScoredCompletion] = outcome.of(index, "scored")
    own = [s.completion for s in scored if s.completion.finish_reason != "reference"]
    assert len(own) == len(expected), "answers lost or doubled"
    assert {completion.completion_id: completion for completion in own} == expected


def _check_passes(config: RunConfig, outcome: Outcome) -> None:
    """With a curriculum nobody is asked while another is due in an earlier pass."""
    every = config.prompts.unpaired_every
    if every is None:
        return
    rounds = range(config.run.rounds)
    due = {prompt.prompt_id: 0 for index in rounds for prompt in outcome.of(index, "prompts")}
    for index in rounds:
        given = [prompt.prompt_id for prompt in outcome.of(index, "prompts")]
        passes = [due[name] for name in given]
        assert passes == sorted(passes) and passes[-1] <= min(
            n for name, n in due.items() if name not in given
        )
        paired = {pair.prompt.prompt_id for pair in outcome.of(index, "pairs")}
        earliest = min(due.values())
        for name in given[: outcome.of(index, "asked")]:
            due[name] = min(due[name], earliest + 1) + (1 if name in paired else every)
    assert len(set(due.values())) > 1 and max(due.values()) > every, "no prompt was passed over"


def _check_references(
    outcome: Outcome, index: int, pairs: list[PreferenceGroup], weights: str
) -> list[ReferenceLogprobs]:
    found = {reference.group_id: reference for reference in outcome.of(index, "reference")}
    assert len(found) == len(outcome.of(index, "reference")) == len(pairs)
    for pair in pairs:
        group = AnswerGroup(pair.prompt.token_ids, [c.token_ids for c in pair.completions])
        assert list(found[pair.group_id].logprobs) == numbers(weights, group)
    return [found[pair.group_id] for pair in pairs]
