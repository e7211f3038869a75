"""What must hold of a model before anything is started with it: its kind, its files, its length, its adapters.

Files are looked at where they are on this machine; whoever loads the model looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultramed_rl.config import AnyConfig, ContrastsConfig, DataConfig, EvaluateConfig, RewardBenchConfig
from ultramed_rl.config.base import Problems
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.config.rewards import Reward
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import BenchedModel, PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.kinds import KINDS, load
from ultramed_rl.models.checkpoint import ModelSource, check_weights, empty_model, weight_files
from ultramed_rl.models.configs import check_length, decoder_config, longest_sequence, read_config
from ultramed_rl.models.lora import attach_lora
from ultramed_rl.models.offline import resolve_model

# The key of a model, its path, and how it is looked at.
NamedModel = tuple[str, str, Callable[[], None]]
HEAD = "score."  # of transformers' classifiers over decoders


def policy_source(path: str, *, trust_remote_code: bool = False) -> ModelSource:
    """A causal language model to be loaded.

    Raises:
        ValueError: it isn't there, or is an encoder, whose tokens see those after them.
    """
    from transformers import AutoModelForCausalLM

    config = read_config(path, trust_remote_code=trust_remote_code)
    # transformers would load BERT as a causal model without a word.
    if hasattr(config, "add_cross_attention") and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"model {path!r}: is a {config.model_type}, an encoder; name a causal language model"
        )
    return ModelSource(resolve_model(path), path, config, AutoModelForCausalLM, trust_remote_code)


def reward_source(path: str, *, trained: bool, trust_remote_code: bool = False) -> ModelSource:
    """A `num_labels=1` classifier to be loaded; a language model, which gets a head, unless a `trained` one is wanted.

    Raises:
        ValueError: it isn't there, has more than one label, or would have a random head.
    """
    from transformers import AutoModelForSequenceClassification

    config = read_config(path, trust_remote_code=trust_remote_code)
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    if trained and not classifies:
        raise ValueError(
            f"reward model {path!r}: is a {', '.join(config.architectures or ['model'])} without a trained head; "
            "name a num_labels=1 sequence classifier, or train one: ultramed-rl reward"
        )
    if classifies and config.num_labels != 1:
        raise ValueError(
            f"reward model {path!r}: has {config.num_labels} labels; a reward model has num_labels=1"
        )
    config.num_labels = 1
    fresh = () if classifies else (HEAD,)
    factory = AutoModelForSequenceClassification
    return ModelSource(resolve_model(path), path, config, factory, trust_remote_code, fresh)


def check_models(config: AnyConfig, *, local: bool = False) -> None:
    """Look at every model that a config names.

    Args:
        local: only at those whose files are at hand; another's config is asked of the hub.

    Raises:
        Problems: what is wrong with them, a line each, after the key of the model.
    """
    problems = []
    for key, path, look in load(KINDS[config.type].models)(config):
        if local and not Path(path).expanduser().is_dir():
            continue
        try:
            look()
        except ValueError as error:
            said = str(error)
            problems.append(said if said.startswith(f"{key.partition('.')[0]}.") else f"{key}: {said}")
    if problems:
        raise Problems(problems)


def online_models(config: RunConfig) -> Iterator[NamedModel]:
    """Of an online run: what is trained, and what scores."""
    yield "policy.path", config.policy.path, partial(check_policy_model, config.policy, "policy")
    if config.reward.train is not None:
        yield "policy.path", config.policy.path, _reward_check(config.policy, "policy", trained=False)
    yield from _scoring_models(config.reward, config.policy.max_length)


def trained_models(config: SftConfig | PreferenceConfig) -> Iterator[NamedModel]:
    """Of a stage that trains a policy."""
    yield "model.path", config.model.path, partial(check_policy_model, config.model, "model")


def reward_models(config: RewardConfig | RewardBenchConfig) -> Iterator[NamedModel]:
    """Of a stage that trains a reward model, or measures a trained one."""
    trained = isinstance(config, RewardBenchConfig)
    yield "model.path", config.model.path, _reward_check(config.model, "model", trained=trained)


def sampled_models(config: ContrastsConfig) -> Iterator[NamedModel]:
    """Of a stage that samples one policy."""
    yield "policy.path", config.policy.path, partial(check_sampled_model, config.policy.path, config.policy)


def compared_models(config: EvaluateConfig) -> Iterator[NamedModel]:
    """Of a comparison: policies, and what scores them."""
    for name, path in config.policies.items():
        yield f"policies.{name}", path, partial(check_sampled_model, path, config.policy)
    if config.reward is not None:
        yield from _scoring_models(config.reward, config.policy.max_length)


def generator_models(config: DataConfig) -> Iterator[NamedModel]:
    """Of a stage of the data factory: its own engines'."""
    for name, engine in config.engines.items():
        path = engine.policy.path
        yield f"generators.{name}.path", path, partial(check_sampled_model, path, engine.policy)


def _scoring_models(reward: Reward, max_length: int) -> Iterator[NamedModel]:
    trust, length = reward.trust_remote_code, ("policy.max_length", max_length)
    for path in filter(None, reward.paths):
        look = partial(check_reward_model, path, trained=True, trust_remote_code=trust, length=length)
        yield "reward.path" if path == reward.path else "reward.ensemble.paths", path, look


def _reward_check(model: Model | BenchedModel, section: str, *, trained: bool) -> Callable[[], None]:
    length, trust = (f"{section}.max_length", model.max_length), model.trust_remote_code
    return partial(check_reward_model, model.path, trained=trained, trust_remote_code=trust, length=length)


def check_head(model: Any, name: str) -> None:
    """Raise ValueError for a classifier that isn't read by one linear layer at an answer's last token."""
    width = decoder_config(model.config).hidden_size
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.in_features != width:
        raise ValueError(
            f"reward model {name!r}: a {type(model).__name__} has no linear layer `score` over a decoder's hidden "
            "states; name a classifier made from a causal language model"
        )


def check_policy_model(model: Model, section: str) -> None:
    """A model that is to be trained, under its config's `section`.

    Raises:
        ValueError: it isn't what its config says, its positions don't reach `max_length`, or its adapters cannot be
            merged.
    """
    source = policy_source(model.path, trust_remote_code=model.trust_remote_code)
    longest = longest_sequence(decoder_config(source.config))
    check_length(model.max_length, longest, f"{section}.max_length", model.path)
    empty = _check_files(source)
    if model.lora is not None:
        try:
            attach_lora(empty, model.lora, model.path)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from None


def check_sampled_model(path: str, settings: ModelSettings) -> None:
    """A model that engines alone load: they know more architectures, and weights that a quantizer has packed.

    Raises:
        ValueError: it isn't what its config says, or its positions don't reach `max_length`.
    """
    source = policy_source(path, trust_remote_code=settings.trust_remote_code)
    longest = longest_sequence(decoder_config(source.config))
    check_length(settings.max_length, longest, "policy.max_length", path)
    if type(source.config) in source.factory._model_mapping:
        _check_files(source)


def check_reward_model(
    path: str, *, trained: bool, trust_remote_code: bool = False, length: tuple[str, int] | None = None
) -> None:
    """A reward model, or, unless it has to be `trained`, what one is to be made from.

    Args:
        length: the key and the number of tokens that it may have to read.

    Raises:
        ValueError: it isn't what its config says, cannot be read as a reward model, or its positions don't reach so far.
    """
    source = reward_source(path, trained=trained, trust_remote_code=trust_remote_code)
    if length is not None:
        check_length(length[1], longest_sequence(decoder_config(source.config)), length[0], path)
    check_head(_check_files(source), path)


def _check_files(source: ModelSource) -> Any:
    """The empty model; its files are right, if they are on this machine."""
    empty = empty_model(source)
    if not Path(source.path).is_dir():
        return empty
    files = weight_files(source)
    if not files:
        raise ValueError(
            f"model {source.name!r}: has no safetensors; save it as such, for pickles are not loaded"
        )
    return check_weights(source, empty, files, torch.float32)
