"""The whole run, and the rules that span sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field

from ultramed_rl.config.base import Section, key
from ultramed_rl.config.benchmarks import RoundBenchmarks, room_rules
from ultramed_rl.config.cluster import Cluster, EngineGroup, SamplingCluster
from ultramed_rl.config.judge_models import POLICY, JudgeEngine, JudgeModel, own_engines
from ultramed_rl.config.judges import REWARD, Evaluation, benchmark_rules, likeness_rules, other_model_rules
from ultramed_rl.config.limits import (
    Address,
    Few,
    FewOrZero,
    Label,
    Name,
    Seconds,
    Seed,
    Tag,
    TermName,
    Unique,
    Variable,
)
from ultramed_rl.config.models import LoRA, Model, ModelSettings, Reference
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.rewards import Reward
from ultramed_rl.config.rounds import (
    Checkpoints,
    Optimization,
    PairRule,
    Prompts,
    Sampling,
    Training,
)


class RunName(Section):
    """Name and place of a run, and the seed of all its random choices."""

    name: Name = Field(description="the run's folder under `directory`")
    directory: Address = key(
        "runs",
        "where runs are kept: a folder, on a cluster one that all nodes see; or a URL such as s3://bucket/runs, "
        "which gets a copy of what is made in `scratch`",
    )
    scratch: Address = key(
        "~/.cache/ultramed_rl/runs",
        "where runs work whose `directory` is a URL; on several nodes, a file system that all nodes see",
    )
    publish_every_s: Seconds = key(30.0, "where `directory` is a URL, seconds between two copies")
    seed: Seed = key(42, "of all random choices")

    def problems(self) -> Iterator[str]:
        if re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", self.directory):
            yield (
                f"directory={self.directory!r}: neither a folder nor a URL; a URL has two slashes, as in "
                "s3://bucket/runs"
            )

    @property
    def url(self) -> str | None:
        """Where the run's copy is kept; None where `directory` is a folder."""
        return f"{self.directory.rstrip('/')}/{self.name}" if "://" in self.directory else None

    @property
    def folder(self) -> Path:
        """Where the run works: under `directory`, or under `scratch` by the parts of the URL."""
        if self.url is None:
            return Path(self.directory) / self.name
        scheme, _, path = self.url.partition("://")
        parts = [quote(part, safe="") for part in (scheme, *path.split("/")) if part.strip(".")]
        return Path(self.scratch).expanduser().joinpath(*parts)

    @property
    def place(self) -> str:
        """What names it to others: its URL, else its folder."""
        return self.url or str(self.folder)


class AnyConfig(Section):
    """What the configs of all kinds of stages have; `ultramed_rl/kinds.py` lists them."""

    type: str
    run: RunName


class Run(RunName):
    """An online run's name, place and length."""

    rounds: Few = key(3, "how many rounds the run has")
    overlap: Annotated[int, Field(ge=0, le=1)] = key(
        0,
        "1: a round's answers are sampled from the weights before the last round's training, while that goes "
        "on (one policy behind); engines and policy wait for each other once a round",
    )
    keep_checkpoints: Few | None = key(
        None,
        "checkpoints of the last so many rounds, and the best one's where keep is best; null: every round's",
    )
    keep: Literal["best", "last"] = key(
        "last",
        "whose policy is the run's: the last round's, or that of the evaluated round that keep_by rates highest",
    )
    keep_by: TermName | None = key(None, "for keep=best: the name of one of evaluation.judges, or reward")
    stop: Few | None = key(
        None,
        "end the run when the same judge has fallen, by its interval, in so many evaluated rounds in a row; null: never",
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if (self.keep == "best") != (self.keep_by is not None):
            yield (
                f"keep_by={self.keep_by}: goes with run.keep=best and is needed there, say run.keep_by=reward; here "
                f"run.keep={self.keep}"
            )


class Tracking(Section):
    """Where metrics, samples and what the run made are told besides `metrics.jsonl`, which is always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = key(
        "auto",
        "auto: WANDB_MODE, else online where WANDB_API_KEY or ~/.netrc has a key, and offline elsewhere",
    )
    entity: Label | None = key(None, "the wandb team or user; null: WANDB_ENTITY, else the key's own")
    project: Label | None = key(None, "the wandb project; null: WANDB_PROJECT, else ultramed_rl")
    group: Label | None = key(None, "the wandb group; null: none")
    tags: list[Tag] = key([], "the wandb run's tags")
    system_metrics: bool = key(
        False, "wandb also gets the use of GPUs, CPU, memory, disk and network of the driver's machine"
    )
    alert: Annotated[list[Literal["failure", "stall", "verdict"]], Unique] = key(
        ["failure", "stall", "verdict"], "what wandb and the webhook are told of, besides metrics"
    )
    webhook_env: Variable | None = key(
        None,
        'environment variable that holds the address of a webhook: it gets {"text": ...} by POST, as Slack and Mattermost '
        "take it",
    )
    tensorboard: bool = key(False, "event files in RUN/tensorboard; needs the extra ultramed_rl[tensorboard]")
    sample_prompts: FewOrZero = key(4, "prompts of a round shown with all their completions and scores")
    upload_checkpoints: bool = key(False, "wandb gets checkpoints whole; false: their places and digests")


class RunConfig(AnyConfig):
    """An online run: every section of the YAML file."""

    type: Literal["online"] = "online"
    run: Run
    policy: Model
    reference: Reference = Reference()
    reward: Reward
    prompts: Prompts
    sampling: Sampling = Sampling()
    pairs: PairRule = PairRule()
    objective: Objective = Field(description="the preference objective that rounds train on")
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoints = Checkpoints()
    benchmarks: RoundBenchmarks | None = None
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    def to_mapping(self) -> dict[str, Any]:
        """Without the defaults that would be refused if a user had written them."""
        data = super().to_mapping()
        if not self.objective.uses_reference:
            del data["reference"]
        if self.objective.listwise:
            del data["pairs"]["rejected"]
        return data

    def problems(self) -> Iterator[str]:
        yield from length_rules(self.prompts, self.policy, self.sampling.max_new_tokens, "sampling")
        if self.benchmarks is not None:
            yield from room_rules(self.benchmarks, self.policy.max_length)
        yield from self._objective_rules()
        yield from self._reference_and_lora_rules()
        yield from quantize_rules("policy", self.policy.lora, "policy", self.cluster.policy.zero_stage)
        yield from self._overlap_rules()
        yield from self._judge_rules()
        yield from device_rules(self.cluster, self.policy.precision, self.judge_engines)

    @property
    def judge_engines(self) -> dict[str, JudgeEngine]:
        """By the keys that name them, engines of judges: each is a role of the run."""
        judges: dict[str, Any] = {f"reward.terms, {term.name}": term for term in self.reward.terms}
        judges |= {f"evaluation.judges, {judge.name}": judge for judge in self.evaluation.judges}
        return own_engines(judges | (self.benchmarks.judges if self.benchmarks else {}))

    def _judge_rules(self) -> Iterator[str]:
        """What ends a run early, or chooses its policy, goes by judges that there are and rounds whose policy is kept."""
        yield from benchmark_rules(self.evaluation, self.benchmarks)
        yield from likeness_rules(self.evaluation.judges, self.prompts.sources, "evaluation.judges")
        for term in self.reward.terms:
            if not isinstance(term, JudgeModel) or term.engine != POLICY:
                continue
            if self.policy.max_length <= term.max_tokens:
                yield (
                    f"policy.max_length={self.policy.max_length}: leaves no room for what the policy is asked as judge "
                    f"{term.name!r} beside max_tokens={term.max_tokens}; raise it or lower max_tokens"
                )
        yield from other_model_rules(self.evaluation.judges, self.reward, "evaluation.judges")
        names, run = [judge.name for judge in self.evaluation.judges], self.run
        if run.keep_by not in (None, REWARD, *names):
            yield f"run.keep_by={run.keep_by!r}: must be one of {', '.join([REWARD, *names])}; name one of evaluation.judges"
        if run.stop is not None and not names:
            yield f"run.stop={run.stop}: no judge can fall; add one to evaluation.judges, or set run.stop=null"
        chosen = [
            f"run.{name}={getattr(run, name)}"
            for name in ("keep", "stop")
            if getattr(run, name) not in ("last", None)
        ]
        if chosen and self.evaluation.every % self.checkpoint.every:
            yield (
                f"checkpoint.every={self.checkpoint.every}: {' and '.join(chosen)} may take the policy of any evaluated round "
                f"(evaluation.every={self.evaluation.every}); use checkpoint.every=1, or a divisor of evaluation.every"
            )

    def _objective_rules(self) -> Iterator[str]:
        objective = self.objective
        if not objective.uses_reference and "reference" in self.model_fields_set:
            yield (
                f"reference: objective.type={objective.type} has no reference model; remove the section (or override: "
                "reference=null)"
            )
        if objective.listwise and "rejected" in self.pairs.model_fields_set:
            yield (
                f"pairs.rejected={self.pairs.rejected!r}: objective.type={objective.type} takes all answers of a prompt; "
                "remove the key (or override: pairs.rejected=null)"
            )
        yield from kl_rules(objective, self.training)

    def _reference_and_lora_rules(self) -> Iterator[str]:
        """A reference that moves is made of the round's checkpoint, and is a model of its own, whole on each replica; that of
        adapters is the model below them."""
        update, cluster = self.reference.update, self.cluster
        if update != "initial" and self.policy.lora is not None:
            yield (
                f"reference.update={update!r}: a LoRA policy's reference is its base model; use "
                "reference.update=initial or policy.lora=null"
            )
        if update != "initial" and self.checkpoint.every != 1:
            yield (
                f"checkpoint.every={self.checkpoint.every}: reference.update={update} makes each round's reference of its "
                "checkpoint; use checkpoint.every=1 or reference.update=initial"
            )
        if update == "ema" and cluster.reference.shard:
            yield (
                "cluster.reference.shard=true: a sharded reference cannot average (reference.update=ema); set one of "
                "both otherwise"
            )
        turns = cluster.layout == "colocated" and cluster.device == "cuda"
        if turns and self.policy.lora is not None and cluster.policy.zero_stage == 3:
            yield (
                "cluster.policy.zero_stage=3: a LoRA policy cannot leave its GPUs at this stage; use zero_stage <= 2 or "
                "cluster.layout=disaggregated"
            )

    def _overlap_rules(self) -> Iterator[str]:
        """What goes on beside generation needs devices and weights that nobody else uses."""
        cluster, training, objective = self.cluster, self.training, self.objective
        steps = rounds = ""  # why steps, and why the next round's answers, cannot go on beside it
        if cluster.layout != "disaggregated":
            steps = rounds = (
                f"cluster.layout={cluster.layout} gives the policy no devices of its own; use disaggregated"
            )
        elif cluster.runs_phases_in_turn:
            steps = rounds = (
                "cluster.sequential_phases=true lets nothing go on beside generation; set it to false"
            )
        elif training.epochs > 1:
            steps = f"training.epochs={training.epochs} needs all pairs before the second one; use 1"
        elif self.policy.lora is not None:
            steps = "a LoRA policy is its own reference, and busy with that; set policy.lora to null"
        elif objective.kl == "mismatched":
            steps = f"objective.type={objective.type} needs other prompts' answers, all of them; use another"
        if training.overlap_training and steps:
            yield f"training.overlap_training=true: {steps}, or training.overlap_training=false"
        if training.overlap_training and not rounds:
            rounds = "training.overlap_training=true keeps the policy busy with the round that is generated; set it to false"
        if self.run.overlap and rounds:
            yield f"run.overlap=1: {rounds}, or run.overlap=0"


def length_rules(prompts: Prompts, policy: ModelSettings, max_new_tokens: int, section: str) -> Iterator[str]:
    """Prompt and answer together must fit the policy's length."""
    room = policy.max_length - max_new_tokens
    if prompts.max_prompt_tokens > room:
        yield (
            f"prompts.max_prompt_tokens={prompts.max_prompt_tokens}: with {section}.max_new_tokens={max_new_tokens} it "
            f"exceeds policy.max_length={policy.max_length}; at most {max(room, 0)} fit: shorten one or raise "
            "policy.max_length"
        )


def kl_rules(objective: Objective, training: Optimization) -> Iterator[str]:
    """A KL over the batch is of several pairs."""
    if objective.kl != "none" and training.batch_size < 2:
        yield (
            f"training.batch_size={training.batch_size}: {objective.type} estimates a KL over the batch and needs at "
            "least 2 pairs; raise it"
        )


def quantize_rules(name: str, lora: LoRA | None, group: str, zero_stage: int) -> Iterator[str]:
    """4-bit weights stay whole on each rank of `cluster.{group}`."""
    if lora is not None and lora.quantize and zero_stage == 3:
        yield (
            f"{name}.lora.quantize={lora.quantize!r}: 4-bit weights cannot be partitioned; use "
            f"cluster.{group}.zero_stage <= 2"
        )


def device_rules(
    cluster: Cluster | SamplingCluster, precision: str, judges: Mapping[str, JudgeEngine]
) -> Iterator[str]:
    """Rules of engines on CPU, and of 8-bit ones: the policy's, whose own `precision` this is, and judges' by their keys."""
    groups: dict[str, tuple[EngineGroup, str]] = {
        "cluster.rollout": (cluster.rollout, cluster.rollout.precision or precision)
    }
    groups |= {f"{name}: engine": (engine, engine.precision) for name, engine in judges.items()}
    for name, (group, rounded) in groups.items():
        if cluster.device == "cpu" and group.kv_cache_gib is None:
            yield f"{name}.kv_cache_gib=null: must be set on cluster.device=cpu, say 1.0"
        if group.quantization and cluster.device == "cpu":
            yield f"{name}.quantization={group.quantization}: needs cluster.device=cuda; set it to null"
        elif group.quantization and rounded == "float32":
            yield (
                f"{name}.quantization={group.quantization}: engines compute in float32, from which vLLM rounds none; "
                f"set {name}.precision=bfloat16"
            )
