"""A reward model on pairs whose better answer is known: Medical RewardBench, RewardBench, or any others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.cluster import Devices, ReplicaGroup
from ultramed_rl.config.models import ModelSettings, Reward
from ultramed_rl.config.run import RunName, Tracking
from ultramed_rl.config.validate import Checked


class BenchedModel(ModelSettings):
    """The reward model: a trained `num_labels=1` classifier. `max_length` is of a prompt with one answer."""

    path: str
    micro_batch_tokens: int = Field(default=16384, gt=0)


class BenchmarkPairs(Section):
    """Rows with chosen and rejected answers behind a URI, see `ultramed_rl.data.benchmark_pairs`."""

    uri: str
    subset_column: str | None = Field(
        default=None, description="null: subset, label_type, type or category, the first that a row has"
    )
    limit: int | None = Field(default=None, gt=0, description="read at most so many rows")
    max_misfit_share: float = Field(
        default=0.05, ge=0.0, le=1.0, description="share of rows that may not fit"
    )
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse", description="a pair over model.max_length stops the run, or is dropped and counted"
    )


class ScoringCluster(Devices):
    """The devices of reward models that are alone on them; by default one."""

    devices_per_node: int = Field(default=1, gt=0)
    reward: ReplicaGroup = ReplicaGroup()


class RewardBenchConfig(Checked):
    """How often a reward model scores the chosen answer above the rejected one, by subset."""

    type: Literal["reward_bench"] = "reward_bench"
    run: RunName
    model: BenchedModel
    data: BenchmarkPairs
    cluster: ScoringCluster = ScoringCluster()
    tracking: Tracking = Tracking()

    @property
    def reward(self) -> Reward:
        """The model as what scores."""
        model = self.model
        return Reward(
            path=model.path,
            precision=model.precision,
            micro_batch_tokens=model.micro_batch_tokens,
            trust_remote_code=model.trust_remote_code,
            architecture=model.architecture,
        )


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the config file or None, overrides) out of `[CONFIG] [section.key=value ...]`."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def option_overrides(options: Mapping[str, str | int | None], *, alone: bool) -> list[str]:
    """A command's options as overrides.

    Args:
        options: values by their dotted keys, None where not given.
        alone: there is no config file, so that they say the type too, and the run is named after the model and
            the data unless it has a name.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if alone:
        given["type"] = "reward_bench"
        parts = [_slug(str(given[key])) for key in ("model.path", "data.uri") if key in given]
        given.setdefault("run.name", "-on-".join(parts) or "reward-bench")
    # JSON is YAML that says whether it is a text.
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def _slug(address: str) -> str:
    """The last part of a path or URI, without split or file ending, as part of a run's name."""
    last = re.split(r"[/\\]", address.rstrip("/"))[-1].partition(":")[0]
    stem = re.sub(r"\.(jsonl?|parquet|arrow)$", "", last)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"
