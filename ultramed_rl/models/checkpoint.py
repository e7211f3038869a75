"""Whether a checkpoint is what its config.json says: names and sizes before a weight is loaded, values after it.

transformers fills what is missing with random numbers, leaves out what it doesn't know, and only logs both. Its own
loader, with renamings and merged experts, is asked here too, but with the files' headers for weights and a model on the
meta device: a second for 70 billion parameters. The same look serves every way of loading, and whoever only asks whether a
model can be loaded (`checks.py`); under ZeRO-3 the loader by itself would tell of missing weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultramed_rl.models.files import (
    INDEX,
    SINGLE,
    decoder_config,
    find_weight_files,
    read_config,
    resolve_model,
    shown,
    split_revision,
    stored_shapes,
)

# Buffers that older checkpoints hold and today's models compute, if they use them.
_COMPUTED = {"inv_freq", "masked_bias", "position_ids"}
_FIX = "copy the checkpoint again, whole and with its own config.json"


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint, and as what it is to be loaded."""

    path: str  # a directory or hub id, as `resolve_model` gives it
    name: str  # how the config calls it
    config: Any
    factory: Any  # one of transformers' Auto classes
    trust_remote_code: bool = False
    # Beginnings of names that may be missing, since they begin at random, or are never used. Where there are any, another
    # task's head may lie there unused.
    fresh: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """The branch, tag or commit of a hub id."""
        return split_revision(self.name)[1] or "main"


def policy_source(path: str, *, trust_remote_code: bool = False) -> ModelSource:
    """A causal language model to be loaded. Raises ValueError: it isn't there, or is an encoder, whose tokens see
    those after them."""
    from transformers import AutoModelForCausalLM

    config = read_config(path, trust_remote_code=trust_remote_code)
    # transformers would load BERT as a causal model without a word.
    if hasattr(config, "add_cross_attention") and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"model {path!r}: is a {config.model_type}, an encoder; name a causal language model"
        )
    return ModelSource(resolve_model(path), path, config, AutoModelForCausalLM, trust_remote_code)


def reward_source(path: str, *, trained: bool, trust_remote_code: bool = False) -> ModelSource:
    """A `num_labels=1` classifier to be loaded; a language model, which gets a head, unless a `trained` one is
    wanted. Raises ValueError: it isn't there, has more than one label, or would have a random head."""
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
    fresh = () if classifies else ("score.",)  # the head of transformers' classifiers over decoders
    factory = AutoModelForSequenceClassification
    return ModelSource(resolve_model(path), path, config, factory, trust_remote_code, fresh)


def check_head(model: Any, name: str) -> None:
    """Raise ValueError for a classifier that isn't read by one linear layer at an answer's last token."""
    width = decoder_config(model.config).hidden_size
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.in_features != width:
        raise ValueError(
            f"reward model {name!r}: a {type(model).__name__} has no linear layer `score` over a decoder's hidden "
            "states; name a classifier made from a causal language model"
        )


def weight_files(source: ModelSource) -> list[Path]:
    """The safetensors files of a local checkpoint or a hub id, downloaded if need be; none where there are none."""
    if Path(source.path).is_dir():
        return find_weight_files(Path(source.path))
    from transformers.utils import cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    # As `from_pretrained` does: of the config's own revision, out of the cache where it is there.
    commit = getattr(source.config, "_commit_hash", None)
    pinned = {"revision": source.revision, "_commit_hash": commit}
    how = {"_raise_exceptions_for_missing_entries": False, **pinned}
    single = cached_file(source.path, SINGLE, **how)
    index = cached_file(source.path, INDEX, **how) if single is None else None
    files = [single] if index is None else get_checkpoint_shard_files(source.path, index, **pinned)[0]
    return [Path(file) for file in files if file is not None]


def expected_model(source: ModelSource, files: Sequence[Path], dtype: torch.dtype = torch.float32) -> Any:
    """The model as it would be loaded in this type from these files, on the meta device: names and sizes without weights.
    Without files as its config describes it.

    Raises:
        ValueError: transformers has no such model of this architecture; or the files' weights are not those of the model,
            by name and size, with the first names of each fault and how many there are.
    """
    try:
        with torch.device("meta"), _plain_loading():
            empty = source.factory.from_config(source.config, trust_remote_code=source.trust_remote_code)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        kind, factory = source.config.model_type, source.factory.__name__
        words = f"transformers has no {factory} for {kind!r}; name another model"
        raise ValueError(f"model {source.name!r}: {words}") from None
    # What a quantizer has packed has other names and sizes than the plain model's.
    if not files or getattr(empty.config, "quantization_config", None) is not None:
        return empty
    weights = {name: torch.empty(shape, device="meta") for name, shape in stored_shapes(files).items()}
    try:
        with _plain_loading():
            loaded, info = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=weights,
                device_map="meta",
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except RuntimeError as error:
        raise ValueError(
            f"model {source.name!r}: weights that belong together, such as experts', do not fit together "
            f"({' '.join(str(error).split())[:200]}); {_FIX}"
        ) from None
    refuse_gaps(source, loaded, info)
    for pair in loaded.all_tied_weights_keys.items():
        _check_tied(source, pair, weights.keys(), files)
    return loaded


def refuse_gaps(source: ModelSource, model: Any, info: Mapping[str, Any]) -> None:
    """Raise ValueError for what transformers' loading info of a model tells."""
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    # Of the base model, with prefix or without; where a head is fresh, another task's may lie there unused.
    ours = {model.base_model_prefix, *dict(model.base_model.named_children())}
    kinds = {
        "missing": [name for name in info["missing_keys"] if not name.startswith(source.fresh)],
        "unknown to its model": [
            name
            for name in info["unexpected_keys"]
            if name not in computed and name.rpartition(".")[2] not in _COMPUTED
            if not source.fresh or name.partition(".")[0] in ours
        ],
        "of another size": [
            f"{name} {'x'.join(map(str, stored))} for {'x'.join(map(str, expected))}"
            for name, stored, expected in info["mismatched_keys"]
        ],
    }
    faults = [f"{len(names)} {kind} ({shown(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise ValueError(f"model {source.name!r}: weights are {' and '.join(faults)}; {_FIX}")


def check_finite(model: nn.Module, name: str) -> None:
    """Raise ValueError with the names of a loaded model's weights that hold NaN or infinity.

    Under ZeRO-3 each rank looks at its own part. Weights in 4 bits are never NaN: see `check_finite_files`.
    """
    parts = ((path, _own_part(parameter)) for path, parameter in model.named_parameters())
    _refuse_broken(chain(parts, kept_buffers(model)), name)


def check_finite_files(files: Iterable[Path], name: str) -> None:
    """Like `check_finite`, of the files' own numbers."""
    _refuse_broken(read_weights(files), name)


def kept_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What belongs to a checkpoint and is no parameter, such as the bias of DeepSeek-V3's router."""
    for path, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                yield f"{path}.{leaf}" if path else leaf, buffer


@torch.no_grad()
def restore_buffers(model: Any, plain: Any, files: Iterable[Path]) -> None:
    """Give buffers back the precision that they have without ZeRO-3, and the values.

    DeepSpeed's `zero.Init` rounds all that a module makes to the weights' precision. Rotary frequencies in bfloat16
    are off by up to 2^-9: after some hundred tokens queries and keys are turned elsewhere than in an engine. `plain`:
    the same model, as `expected_model` returns it.
    """
    from transformers import PreTrainedModel

    dtypes = {name: buffer.dtype for name, buffer in plain.named_buffers()}
    changed: dict[str, torch.Tensor] = {}
    modules: dict[str, nn.Module] = {}
    for name, buffer in [*model.named_buffers()]:
        if buffer.dtype != dtypes[name]:
            path, _, leaf = name.rpartition(".")
            modules[path] = model.get_submodule(path)
            changed[name] = modules[path]._buffers[leaf] = buffer.to(dtypes[name])
    owners: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    for path, module in modules.items():
        # transformers' own way to compute them; weights that were loaded are marked, and stay as they are.
        owner = max((n for n in owners if not n or f"{path}.".startswith(f"{n}.")), key=len)
        owners[owner]._init_weights(module)
    for name, tensor in read_weights(files, changed.keys()):
        changed[name].copy_(tensor)


def read_weights(
    files: Iterable[Path], names: Collection[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The stored weights of these names, or all, one at a time."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if names is None or name in names:
                    yield name, opened.get_tensor(name)


def _check_tied(
    source: ModelSource, pair: tuple[str, str], stored: Collection[str], files: Iterable[Path]
) -> None:
    """Two weights that the config ties may both be stored, but only alike: engines would read one of them."""
    if not set(pair) <= set(stored):
        return
    first, second = (tensor for _, tensor in read_weights(files, pair))
    if not torch.equal(first, second):
        raise ValueError(
            f"model {source.name!r}: {pair[0]} and {pair[1]} differ, and its config ties them; set "
            "tie_word_embeddings to false in its config.json"
        )


def _own_part(parameter: nn.Parameter) -> torch.Tensor:
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    start = torch.distributed.get_rank() * part.numel()
    return part[: max(0, parameter.ds_numel - start)]  # behind the last number there is only padding


def _refuse_broken(weights: Iterable[tuple[str, torch.Tensor]], name: str) -> None:
    numbers = ((path, tensor) for path, tensor in weights if tensor.is_floating_point() and tensor.numel())
    # One pass without a copy: a NaN or an infinity anywhere is in the minimum or the maximum.
    broken = [path for path, tensor in numbers if not all(math.isfinite(float(x)) for x in tensor.aminmax())]
    if broken:
        raise ValueError(
            f"model {name!r}: {len(broken)} weights are not finite ({shown(broken)}); the training that made it "
            "diverged, or the file is damaged: use another checkpoint"
        )


@contextmanager
def _plain_loading() -> Iterator[None]:
    """Within it transformers loads as if there were no ZeRO-3, and says nothing of it."""
    from transformers.integrations import deepspeed
    from transformers.utils import logging

    shows_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    reference = deepspeed._hf_deepspeed_config_weak_ref
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
