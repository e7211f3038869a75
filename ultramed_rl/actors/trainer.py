"""A training rank as a Ray actor: what the policy and the reward model's training share, and the latter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import nn

from ultramed_rl.actors.deepspeed_setup import (
    EngineSpec,
    build_host_adam,
    deepspeed_config,
    join_ranks,
    loading_context,
    open_store,
    sharing_ranks,
)
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.tasks import RankingTask, Sums, Task
from ultramed_rl.actors.work import TrainingPlace, Worker
from ultramed_rl.config.models import Model
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.config.stages import BradleyTerry, LogExp
from ultramed_rl.learning.batching import (
    MicroBatch,
    count_steps,
    epoch_batches,
    learning_rate,
    ordered_batches,
    shard_batch,
    step_progress,
)
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.learning.costs import ModelShape, published_peak
from ultramed_rl.models.load import PolicyModel, RewardModel, is_packed, load_reward, model_shape
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.records import PreferenceGroup

_PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices by whose product MFU is measured


def plan_batches(
    count: int, training: Optimization, place: TrainingPlace
) -> tuple[Sequence[Sequence[int]], int]:
    """The batches of a training on so many samples, and how many steps its schedule has."""
    size = training.batch_size
    if place.most is not None:
        return ordered_batches(count, size), count_steps(place.most, size, 1)
    batches = epoch_batches(count, size, training.epochs, place.seed)[: place.max_steps]
    return batches, len(batches)


class TrainWorker(Worker):
    """One DeepSpeed rank. Methods named with `collective` in their docstring run on all ranks at once."""

    engine: Engine
    tokenizer: ChatTokenizer
    shape: ModelShape
    task: Task
    held_out: Task | None = None
    peaks: dict[str, float] | None = None  # FLOP/s by the metric that is a share of it

    def __init__(self, rank: int, world_size: int, seed: int) -> None:
        self.rank, self.world_size, self.seed = rank, world_size, seed

    def rendezvous(self) -> tuple[str, int]:
        """This rank's address, at which it listens from now on, for the ranks to meet."""
        self.store = open_store(self.world_size)
        return self.store.host, self.store.port

    def build(
        self,
        load: Callable[[], PolicyModel | RewardModel],
        model: Model,
        spec: EngineSpec,
        address: tuple[str, int],
    ) -> None:
        """Join the other ranks, load, and wrap in DeepSpeed. Collective."""
        self.device = spec.device
        join_ranks(self.rank, self.world_size, *address, spec.device)
        if spec.group.offload_optimizer:
            build_host_adam()  # which may fail: before a model is loaded
        torch.manual_seed(self.seed)
        self._zero3 = loading_context(deepspeed_config(spec))
        module = load()
        module.share_rows(sharing_ranks(spec.group.sequence_parallel))
        self.tokenizer = chat_tokenizer(model)
        if spec.group.zero_stage != 3:
            module.to(spec.device)
        module.train()
        self.engine = Engine(module, spec)
        self.shape = model_shape(self.engine.module.lm)

    def set_task(self, task: Task, held_out: Task | None = None) -> None:
        """What `train` learns and `evaluate` measures from here on."""
        self.task, self.held_out = task, held_out
        self.engine.skipped_steps = 0

    def train(
        self, training: Optimization, place: TrainingPlace, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, float]]:
        """Optimizer steps [start, stop) of the task, all by default; yields each one's metrics. Collective.

        Batches and rates are functions of the step, so it does not matter in how many calls they are taken.
        Raises NonFiniteError: with the batch's ids; a non-finite loss never becomes a gradient, and a non-finite
        gradient never moves a weight.
        """
        if self.peaks is None:
            self.peaks = peak_flops(self.engine.device, self.engine.spec.precision)
        batches, steps = plan_batches(len(self.task.lengths), training, place)
        for step in range(start, len(batches) if stop is None else stop):
            progress = step_progress(step, steps, place.index, place.rounds)
            rate = learning_rate(
                progress, peak=training.learning_rate, warmup=training.warmup, shape=training.schedule
            )
            started = time.perf_counter()
            metrics = self._step(batches[step], training.micro_batch_tokens, rate, first=step == 0)
            seconds = time.perf_counter() - started
            own = metrics["flops"] / (seconds * self.world_size)
            shares = {name: own / peak for name, peak in self.peaks.items()}
            head = {"step": step, "samples": len(batches[step]), "learning_rate": rate}
            yield {**head, **metrics, **shares, "seconds": seconds}

    def _step(self, batch: Sequence[int], budget: int, rate: float, first: bool) -> dict[str, float]:
        micro_batches = self._shard(self.task.lengths, batch, budget)
        sums = Sums(self.task.sums, self.engine.device)
        losses = self.task.losses(batch, micro_batches, sums, first)
        names = [self.task.sample_id(i) for i in batch]
        norm, totals = self.engine.step(losses, len(micro_batches), rate, names, sums)
        work = {"grad_norm": norm, "tokens": totals["tokens"], "flops": totals["flops"]}
        return self.task.metrics(totals) | work

    @torch.no_grad()
    def evaluate(self, budget: int) -> Iterator[dict[str, float]]:
        """The held-out task's metrics, over all of its samples at once, as the last item; before it an empty one after
        each pass, as a sign of life. Collective."""
        task = self.held_out
        assert task is not None, "there is no held-out data"
        every = range(len(task.lengths))
        sums = Sums(task.sums, self.engine.device)
        for _ in task.losses(every, self._shard(task.lengths, every, budget), sums, False):
            yield {}
        totals = self.engine.total(sums.values).tolist()
        yield task.metrics(dict(zip(sums.names, totals, strict=True)))

    @property
    def _packed(self) -> bool:
        """Whether a forward pass computes its samples end to end, not as padded rows."""
        return is_packed(self.engine.module.lm)

    def _shard(self, lengths: Sequence[int], batch: Sequence[int], budget: int) -> list[MicroBatch]:
        """This rank's part of a batch, which is that of all ranks that share its micro-batches."""
        sharing = self.engine.spec.group.sequence_parallel
        shards = shard_batch(batch, lengths, budget, self.world_size // sharing, padded=not self._packed)
        return shards[self.rank // sharing]

    def save_state(self, directory: str, moments: bool = True) -> None:
        """Write what `load_state` needs to go on from exactly here: weights and optimizer, or without Adam's `moments` what
        bfloat16 rounds away. Collective."""
        self.engine.save_state(directory, moments)

    def load_state(self, directory: str, skipped: int = 0) -> None:
        """Go on from what `save_state` wrote, after so many skipped steps of the same task. Collective."""
        self.engine.load_state(directory)
        self.engine.skipped_steps = skipped

    def save(self, directory: str) -> None:
        """Write a Hugging Face checkpoint. Collective."""
        self.engine.save(directory, self.tokenizer)

    def offload(self) -> None:
        self.engine.offload()

    def reload(self) -> None:
        self.engine.reload()


class RewardTrainWorker(TrainWorker):
    """One rank of the reward model's training."""

    def load(
        self,
        model: Model,
        spec: EngineSpec,
        address: tuple[str, int],
        trainable_layers: int | None = None,
    ) -> None:
        """Load a starting model with a one-label head, of which perhaps only the last layers are trained. Collective."""

        def load() -> RewardModel:
            module = load_reward(model.path, spec.precision, trust_remote_code=model.trust_remote_code)
            if trainable_layers is not None:
                _freeze_below(module, trainable_layers)
            return module

        self.build(load, model, spec, address)

    def learn_ranking(
        self,
        groups: Sequence[PreferenceGroup],
        objective: BradleyTerry | LogExp,
        max_length: int,
        held_out: Sequence[PreferenceGroup] | None = None,
    ) -> None:
        """Set the task: each group's better answers above its worse ones. Raises ValueError: groups that cannot be
        learnt from, with their ids, before anything is computed."""

        def task(groups: Sequence[PreferenceGroup]) -> RankingTask:
            check_groups(groups, self.shape.vocab, max_length, paired=True)
            return RankingTask(self.engine, self.shape, groups, objective)

        self.set_task(task(groups), task(held_out) if held_out else None)


def _freeze_below(module: RewardModel, layers: int) -> None:
    """Leave only the last `layers` decoder layers, the final norm and the head trainable."""
    decoder = module.lm.get_decoder()
    decoder.requires_grad_(False)
    parts = [*decoder.children()]
    stack = next(place for place, part in enumerate(parts) if isinstance(part, nn.ModuleList))
    for part in (*parts[stack][-layers:], *parts[stack + 1 :]):  # the norm comes after its layers
        part.requires_grad_(True)


def peak_flops(device: torch.device, precision: str) -> dict[str, float]:
    """FLOP/s that metrics are shares of. `mfu_measured`: of a square matrix product in this precision on this process's
    cores or GPU; it holds for shared cores and for power-capped GPUs. `mfu`: of the GPU as its maker says, or where that
    isn't known or not of this precision the measured one."""
    measured = _measure_peak(device, precision)
    published = None
    if device.type == "cuda" and precision == "bfloat16":
        published = published_peak(torch.cuda.get_device_name(device))
    return {"mfu": published or measured, "mfu_measured": measured}


def _measure_peak(device: torch.device, precision: str) -> float:
    """The median of seven, after one that isn't counted. About a second."""
    size = _PEAK_SIZE[device.type]
    left = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    seconds = []
    for _ in range(8):
        _finish(device)
        started = time.perf_counter()
        left @ left
        _finish(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / median(seconds[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
