"""What a run is: run.py has an online run, section by section, stages.py and factory.py the other kinds of stages.

Their sections: models, rewards, objectives, rounds, benchmarks, cluster, and the factory's steps; limits.py has the kinds of
values. The way there: a file's text (document.py), a config (load.py), a recipe's stages (recipe.py). Loads no torch.
"""

from ultramed_rl.config.base import ConfigError as ConfigError
from ultramed_rl.config.factory import DataConfig as DataConfig
from ultramed_rl.config.factory import EngineConfig as EngineConfig
from ultramed_rl.config.load import SamplingConfig as SamplingConfig
from ultramed_rl.config.load import config_difference as config_difference
from ultramed_rl.config.load import dump_config as dump_config
from ultramed_rl.config.load import load_any as load_any
from ultramed_rl.config.load import load_config as load_config
from ultramed_rl.config.load import parse_config as parse_config
from ultramed_rl.config.run import AnyConfig as AnyConfig
from ultramed_rl.config.run import RunConfig as RunConfig
from ultramed_rl.config.stages import ContrastsConfig as ContrastsConfig
from ultramed_rl.config.stages import EvaluateConfig as EvaluateConfig
from ultramed_rl.config.stages import PreferenceConfig as PreferenceConfig
from ultramed_rl.config.stages import RewardBenchConfig as RewardBenchConfig
from ultramed_rl.config.stages import RewardConfig as RewardConfig
from ultramed_rl.config.stages import SftConfig as SftConfig
