"""What must hold of a model before anything is started with it: its kind, its files, its length, its adapters.

Files are looked at where they are on this machine; whoever loads the model looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ultramed_rl.config import AnyConfig, ContrastsConfig, DataConfig, EvaluateConfig, RewardBenchConfig
from ultramed_rl.config.base import Problems
from ultramed_rl.config.cluster import ReplicaGroup, TrainerGroup
from ultramed_rl.config.judge_models import JudgeEngine
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.config.rewards import Reward
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import BenchedModel, PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.kinds import KINDS, load
from ultramed_rl.models.attention import check_sharing
from ultramed_rl.models.checkpoint import (
    ModelSource,
    check_head,
    expected_model,
    policy_source,
    reward_source,
    weight_files,
)
from ultramed_rl.models.files import check_length, decoder_config, longest_sequence, read_config
from ultramed_rl.models.lora import attach_lora

# The key of a model, its path, and how it is looked at.
NamedModel = tuple[str, str, Callable[[], None]]


def check_models(config: AnyConfig, *, local: bool = False) -> None:
    """Look at every model that a config names; if `local`, only at those whose files are at hand: another's config is asked
    of the hub. Raises Problems: what is wrong with them, a line each, after the key of the model."""
    problems = []
    for key, path, look in load(KINDS[config.type].models)(config):
        if local and not Path(path).expanduser().is_dir():
            continue
        try:
            look()
        except ValueError as error:
            names_key = str(error).startswith(f"{key.partition('.')[0]}.")
            problems.append(str(error) if names_key else f"{key}: {error}")
    if problems:
        raise Problems(problems)


def online_models(config: RunConfig) -> Iterator[NamedModel]:
    """Of an online run: what is trained, what scores, and what judges."""
    yield "policy.path", config.policy.path, partial(check_policy_model, config.policy, "policy")
    if config.reward.train is not None:
        yield "policy.path", config.policy.path, _reward_check(config.policy, "policy", trained=False)
    yield from _scoring_models(config.reward, config.cluster.reward, config.policy.max_length)
    cluster, policy = config.cluster, (config.policy.path, config.policy.trust_remote_code)
    yield from _shared_model("policy", cluster.policy, *policy)
    if config.objective.uses_reference and config.policy.lora is None:
        yield from _shared_model("reference", cluster.reference, *policy)
    length = ("policy.max_length", config.policy.max_length)
    for judge in config.evaluation.models:
        trust = judge.trust_remote_code
        look = partial(check_reward_model, judge.path, trained=True, trust_remote_code=trust, length=length)
        yield f"evaluation.judges, {judge.name}", judge.path, look
        yield from _shared_model("judge", cluster.judge, judge.path, trust)
    yield from _judge_engines(config.judge_engines)


def trained_models(config: SftConfig | PreferenceConfig) -> Iterator[NamedModel]:
    """Of a stage that trains a policy."""
    yield "model.path", config.model.path, partial(check_policy_model, config.model, "model")
    yield from _shared_model(
        "trainer", config.cluster.trainer, config.model.path, config.model.trust_remote_code
    )


def reward_models(config: RewardConfig | RewardBenchConfig) -> Iterator[NamedModel]:
    """Of a stage that trains a reward model, or measures a trained one."""
    trained = isinstance(config, RewardBenchConfig)
    yield "model.path", config.model.path, _reward_check(config.model, "model", trained=trained)
    model = (config.model.path, config.model.trust_remote_code)
    if isinstance(config, RewardBenchConfig):
        yield from _shared_model("reward", config.cluster.reward, *model)
    else:
        yield from _shared_model("trainer", config.cluster.trainer, *model)


def sampled_models(config: ContrastsConfig) -> Iterator[NamedModel]:
    """Of a stage that samples one policy."""
    yield "policy.path", config.policy.path, partial(check_sampled_model, config.policy.path, config.policy)


def compared_models(config: EvaluateConfig) -> Iterator[NamedModel]:
    """Of a comparison: policies, and what scores them."""
    for name, path in config.policies.items():
        yield f"policies.{name}", path, partial(check_sampled_model, path, config.policy)
    if config.reward is not None:
        yield from _scoring_models(config.reward, config.cluster.reward, config.policy.max_length)
    yield from _judge_engines(config.judge_engines)


def generator_models(config: DataConfig) -> Iterator[NamedModel]:
    """Of a stage of the data factory: its own engines'."""
    for name, engine in config.engines.items():
        path = engine.policy.path
        yield f"generators.{name}.path", path, partial(check_sampled_model, path, engine.policy)


def _scoring_models(reward: Reward, group: ReplicaGroup, max_length: int) -> Iterator[NamedModel]:
    trust, length = reward.trust_remote_code, ("policy.max_length", max_length)
    for path in filter(None, reward.paths):
        look = partial(check_reward_model, path, trained=True, trust_remote_code=trust, length=length)
        yield "reward.path" if path == reward.path else "reward.ensemble.paths", path, look
        yield from _shared_model("reward", group, path, trust)


def _shared_model(
    role: str, group: TrainerGroup | ReplicaGroup, path: str, trust_remote_code: bool
) -> Iterator[NamedModel]:
    """Of processes that share each pass: they must be able to."""
    if group.sequence_parallel > 1:
        look = partial(_check_shared, role, group.sequence_parallel, path, trust_remote_code)
        yield f"cluster.{role}.sequence_parallel", path, look


def _check_shared(role: str, ranks: int, path: str, trust_remote_code: bool) -> None:
    config = read_config(path, trust_remote_code=trust_remote_code)
    own_code = trust_remote_code and hasattr(config, "auto_map")
    try:
        check_sharing(decoder_config(config), ranks, repr(path), packed=not own_code)
    except ValueError as error:
        raise ValueError(f"cluster.{role}.{error}") from None


def _judge_engines(engines: Mapping[str, JudgeEngine]) -> Iterator[NamedModel]:
    for key, engine in engines.items():
        look = partial(check_sampled_model, engine.path, engine, f"{key}: engine.max_length")
        yield f"{key}: engine.path", engine.path, look


def _reward_check(model: Model | BenchedModel, section: str, *, trained: bool) -> Callable[[], None]:
    length, trust = (f"{section}.max_length", model.max_length), model.trust_remote_code
    return partial(check_reward_model, model.path, trained=trained, trust_remote_code=trust, length=length)


def check_policy_model(model: Model, section: str) -> None:
    """A model that is to be trained, under its config's `section`. Raises ValueError: it isn't what its config says,
    its positions don't reach `max_length`, or its adapters cannot be merged."""
    source = policy_source(model.path, trust_remote_code=model.trust_remote_code)
    _check_reach(source, model.max_length, f"{section}.max_length")
    expected = _check_files(source)
    if model.lora is not None:
        try:
            attach_lora(expected, model.lora, model.path)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from None


def check_sampled_model(path: str, settings: ModelSettings, length: str = "policy.max_length") -> None:
    """A model that engines alone load: they know more architectures, and weights that a quantizer has packed.
    Raises ValueError: it isn't what its config says, or its positions don't reach `max_length`, whose key is `length`."""
    source = policy_source(path, trust_remote_code=settings.trust_remote_code)
    _check_reach(source, settings.max_length, length)
    if type(source.config) in source.factory._model_mapping:
        _check_files(source)


def check_reward_model(
    path: str, *, trained: bool, trust_remote_code: bool = False, length: tuple[str, int] | None = None
) -> None:
    """A reward model, or, unless it has to be `trained`, what one is to be made from. Raises ValueError: it isn't what its
    config says, cannot be read as a reward model, or its positions don't reach `length` (the key, and so many tokens)."""
    source = reward_source(path, trained=trained, trust_remote_code=trust_remote_code)
    if length is not None:
        _check_reach(source, length[1], length[0])
    check_head(_check_files(source), path)


def _check_reach(source: ModelSource, max_length: int, key: str) -> None:
    check_length(max_length, longest_sequence(decoder_config(source.config)), key, source.name)


def _check_files(source: ModelSource) -> Any:
    """The model on the meta device; its files are right, if they are on this machine."""
    here = Path(source.path).is_dir()
    files = weight_files(source) if here else []
    if here and not files:
        raise ValueError(
            f"model {source.name!r}: has no safetensors; save it as such, for pickles are not loaded"
        )
    return expected_model(source, files)
