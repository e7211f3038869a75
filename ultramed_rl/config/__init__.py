"""What a run is: one file per group of sections, strict load, overrides, dump. Loads no torch."""

from ultramed_rl.config.base import ConfigError
from ultramed_rl.config.factory import DataConfig, EngineConfig
from ultramed_rl.config.load import (
    SamplingConfig,
    config_difference,
    dump_config,
    load_any,
    load_config,
    parse_config,
)
from ultramed_rl.config.run import AnyConfig, RunConfig
from ultramed_rl.config.stages import (
    ContrastsConfig,
    EvaluateConfig,
    PreferenceConfig,
    RewardBenchConfig,
    RewardConfig,
    SftConfig,
)

__all__ = [
    "AnyConfig",
    "ConfigError",
    "ContrastsConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "PreferenceConfig",
    "RewardBenchConfig",
    "RewardConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "config_difference",
    "dump_config",
    "load_any",
    "load_config",
    "parse_config",
]
