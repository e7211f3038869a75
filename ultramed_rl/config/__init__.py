"""What a run is: run.py has an online run, section by section, stages.py and factory.py the other kinds of stages.

Their sections: models, rewards, objectives, rounds, benchmarks, cluster, and the factory's steps; limits.py has the kinds of
values. The way there: a file's text (document.py), a config (load.py), a recipe's stages (recipe.py). Loads no torch.
"""

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
