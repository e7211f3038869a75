"""Rollout engines behind verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ultramed_rl.actors.options import OptionRequest
from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker, SamplingRequest
from ultramed_rl.actors.weight_sync import transfer_backend
from ultramed_rl.cluster.group import WorkerGroup, wait
from ultramed_rl.cluster.placement import Placement, connect, reserve
from ultramed_rl.cluster.plan import Plan, make_plan
from ultramed_rl.config import SamplingConfig
from ultramed_rl.config.precision import resolve_precision
from ultramed_rl.models.offline import resolve_model
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, OptionLogprobs

Advance = Callable[[int], None]


class SamplingCrew:
    """Owns the engines of one run. Groups start when first needed and stay until `stop`."""

    rollout: WorkerGroup

    def __init__(self, config: SamplingConfig, tokenizer: ChatTokenizer | None) -> None:
        """Without a tokenizer the engines weigh options and answer nothing."""
        self.cluster, self.model = config.cluster, config.policy
        self.stop_token = None if tokenizer is None else tokenizer.end_id
        self._starting: list[Any] = []
        self.plan: Plan = make_plan(config)
        self.turns = self.plan.layout == "colocated"
        connect(config.cluster)
        self.placement: Placement = reserve(self.plan, config.cluster)

    def start_rollout(self, model: str, version: int) -> None:
        """Start the vLLM engines with this checkpoint's weights."""
        self.begin_rollout(model, version)
        self._finish_rollout()

    def begin_rollout(self, model: str, version: int) -> None:
        """Begin to start the engines; `start_learners` waits for them.

        Engines that share GPUs with the learners are waited for at once: they measure free memory.
        """
        self.rollout = self._launch("rollout", RolloutWorker, lambda m: (m.rank,))
        arguments = self.engine_arguments(model)
        self._starting = self.rollout.start("start", arguments, self.stop_token, version)
        if arguments.sleeps:
            self._finish_rollout()

    def _finish_rollout(self) -> None:
        if self._starting:
            wait(self._starting)
            self._starting = []
            if self.turns:
                self.rollout.call("offload")

    def stop(self) -> None:
        """End all actors and give the devices back."""
        for group in self.groups.values():
            group.stop()
        self.placement.release()

    @property
    def groups(self) -> dict[str, WorkerGroup]:
        """The groups that have started, by role."""
        return {"rollout": self.rollout} if hasattr(self, "rollout") else {}

    @property
    def policy_precision(self) -> str:
        return resolve_precision(self.model.precision, self.cluster.device)

    def _launch(self, role: str, worker: type, arguments: Callable[[Any], tuple[Any, ...]]) -> WorkerGroup:
        members = next(r.members for r in self.plan.roles if r.role == role)
        return WorkerGroup.launch(worker, members, self.placement, arguments, takes_turns=self.turns)

    def engine_arguments(self, model: str) -> EngineArguments:
        """How a rollout engine of this run is started."""
        cluster, group = self.cluster, self.cluster.rollout
        cache = None if group.kv_cache_gib is None else int(group.kv_cache_gib * 2**30)
        return EngineArguments(
            model=resolve_model(model),
            device=cluster.device,
            precision=self.policy_precision,
            max_length=self.model.max_length,
            max_num_seqs=group.max_num_seqs,
            tensor_parallel=group.tensor_parallel,
            enforce_eager=group.enforce_eager,
            kv_cache_bytes=cache,
            memory_fraction=group.memory_fraction,
            transfer_backend=transfer_backend(cluster.device, self.plan.layout),
            sleeps=self.turns and cluster.device == "cuda",
            trust_remote_code=self.model.trust_remote_code,
        )

    # -- generate ------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[SamplingRequest], version: int, advance: Advance
    ) -> list[Completion]:
        """Completions in the order of requests, all of policy `version`; none lost, none doubled."""
        found: dict[str, list[Completion]] = {}
        for completions in self.stream_completions(requests, version):
            found[completions[0].prompt_id] = completions
            advance(len(completions))
        return [completion for request in requests for completion in found[request.prompt.prompt_id]]

    def stream_completions(
        self, requests: Sequence[SamplingRequest], version: int
    ) -> Iterator[list[Completion]]:
        """Each prompt's n completions as soon as an engine has them; none lost, none doubled."""
        missing = {request.prompt.prompt_id: request.n for request in requests}
        assert len(missing) == len(requests), "a prompt stands twice"
        for completions in self._stream("generate", requests):
            assert missing.pop(completions[0].prompt_id, None) == len(completions), "lost or doubled answers"
            _check_version([c.policy_version for c in completions], version)
            yield completions
        assert not missing, f"prompts without their completions: {sorted(missing)}"

    def stream_options(self, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]:
        """Each question's options with their logprobs, as soon as an engine has them."""
        missing = {request.question_id for request in requests}
        assert len(missing) == len(requests), "a question stands twice"
        for scored in self._stream("score_options", requests):
            missing.remove(scored.question_id)
            _check_version([scored.policy_version], version)
            yield scored
        assert not missing, f"questions without an answer: {sorted(missing)}"

    def _stream(self, method: str, requests: Sequence[Any]) -> Iterator[Any]:
        """Deal requests to the engines in turn; what they yield, as it comes."""
        count = len(self.rollout)
        shards = [(list(requests[rank::count]),) for rank in range(count)]
        with self.rollout.awake():
            for _, item in self.rollout.stream(method, shards):
                yield item


def _check_version(found: Sequence[int], expected: int) -> None:
    stale = set(found) - {expected}
    assert not stale, f"answers of policy {sorted(stale)}, expected {expected}"
