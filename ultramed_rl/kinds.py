"""The kinds of stages: one record each, and all that the rest of the system knows of a kind by its name.

Code is named as "module:name" and loaded when it is asked for: the table is below everything that it names, and the
command line reads it without loading a config class or torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

VERDICT = "verdict.json"  # of a run in rounds
Made = Literal["a model", "a file", "a comparison", "a folder of files"]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage, of a recipe or alone."""

    config: str  # its config, a subclass of `AnyConfig`
    run: str  # runs it: (config, *, resume), with what it makes in the run's folder
    plan: str  # lays its roles over the devices: (config) to a `Plan`
    models: str  # (config) to each model that it names, and how that is looked at, as in `models/checks.py`
    report: str  # the template of its report: one of report/html, or a path
    output: str  # what it makes, in the run's folder; `manifest` beside it says that it is done
    makes: Made  # what a recipe's later stages may take it for
    command: str  # its words on the command line; `{config}` stands for the config
    # Of its command, with an example; empty where a module of `cli/` has the command, with options of its own.
    help: str = ""
    card: str = ""  # what it makes, in the words of its model or data card
    in_rounds: bool = False  # whether each of its rounds has an output

    @property
    def config_class(self) -> type[Any]:
        config: type[Any] = load(self.config)
        return config

    @property
    def manifest(self) -> str:
        return Path(self.output).with_suffix(".json").name

    def output_of(self, config: Any) -> Path:
        """Where the output of a config's run is; of one in rounds, that of the round which its verdict names, else of the
        last."""
        folder: Path = config.run.folder.absolute()
        if not self.in_rounds:
            return folder / self.output
        verdict = folder / VERDICT
        if verdict.is_file():
            return folder / str(json.loads(verdict.read_text(encoding="utf-8"))["checkpoint"])
        return folder / "rounds" / f"{config.run.rounds - 1:03d}" / self.output


def load(name: str) -> Any:
    """What "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


_CHECKS, _PLAN = "ultramed_rl.models.checks", "ultramed_rl.cluster.plan"
KINDS: dict[str, StageKind] = {
    "online": StageKind(
        config="ultramed_rl.config.run:RunConfig",
        run="ultramed_rl.online.run:run",
        plan=f"{_PLAN}:plan_online",
        models=f"{_CHECKS}:online_models",
        report="online.html.jinja",
        output="checkpoint",
        makes="a model",
        in_rounds=True,
        command="run",
        help="""Run online rounds: sample, score, select pairs, train, sync, evaluate.

        Example: ultramed-rl run configs/quickstart.yaml run.name=mine run.seed=1
        """,
    ),
    "sft": StageKind(
        config="ultramed_rl.config.stages:SftConfig",
        run="ultramed_rl.stages.run:run_stage",
        plan=f"{_PLAN}:plan_training",
        models=f"{_CHECKS}:trained_models",
        report="training.html.jinja",
        output="model",
        makes="a model",
        command="sft",
        card="supervised fine-tuning: only what the assistant wrote is learnt",
        help="""Fine-tune on conversations; only the assistant's turns are trained on.

        Example: ultramed-rl sft configs/sft/ultramedical-8b.yaml training.max_steps=20
        """,
    ),
    "reward": StageKind(
        config="ultramed_rl.config.stages:RewardConfig",
        run="ultramed_rl.stages.run:run_stage",
        plan=f"{_PLAN}:plan_training",
        models=f"{_CHECKS}:reward_models",
        report="training.html.jinja",
        output="model",
        makes="a model",
        command="reward",
        card="reward model: one number for a chat that ends with an answer, higher is better",
        help="""Train a reward model on ranked answers.

        Example: ultramed-rl reward configs/reward/ultramedrm-8b.yaml --resume
        """,
    ),
    "preference": StageKind(
        config="ultramed_rl.config.stages:PreferenceConfig",
        run="ultramed_rl.stages.run:run_stage",
        plan=f"{_PLAN}:plan_training",
        models=f"{_CHECKS}:trained_models",
        report="training.html.jinja",
        output="model",
        makes="a model",
        command="preference",
        card="offline preference learning",
        help="""Train on offline preferences with DPO, KTO or another objective.

        Example: ultramed-rl preference configs/preference/ultramedical-8b-dpo.yaml objective.beta=0.05
        """,
    ),
    "contrasts": StageKind(
        config="ultramed_rl.config.stages:ContrastsConfig",
        run="ultramed_rl.stages.contrasts:make_contrasts",
        plan=f"{_PLAN}:plan_sampling",
        models=f"{_CHECKS}:sampled_models",
        report="counts.html.jinja",
        output="pairs.parquet",
        makes="a file",
        command="contrasts",
        card="Preference pairs out of one policy's own answers: coherent over incoherent, complete over cut off, on topic "
        "over another question's answer, right over wrong. They say nothing of medical quality.",
        help="""Make preference pairs from a policy's own answers, where you have no preference data.

        Example: ultramed-rl contrasts configs/contrasts/quickstart.yaml contrasts.prompts=32
        """,
    ),
    "evaluate": StageKind(
        config="ultramed_rl.config.stages:EvaluateConfig",
        run="ultramed_rl.stages.evaluate:evaluate_policies",
        plan=f"{_PLAN}:plan_sampling",
        models=f"{_CHECKS}:compared_models",
        report="evaluate.html.jinja",
        output="results.json",
        makes="a comparison",
        command="evaluate",
    ),
    "reward_bench": StageKind(
        config="ultramed_rl.config.stages:RewardBenchConfig",
        run="ultramed_rl.stages.reward_bench:bench_reward",
        plan=f"{_PLAN}:plan_scoring",
        models=f"{_CHECKS}:reward_models",
        report="reward_bench.html.jinja",
        output="reward_bench.json",
        makes="a comparison",
        command="reward-bench",
    ),
    "data": StageKind(
        config="ultramed_rl.config.factory:DataConfig",
        run="ultramed_rl.stages.data.run:make_data",
        plan=f"{_PLAN}:plan_generators",
        models=f"{_CHECKS}:generator_models",
        report="counts.html.jinja",
        output="records",
        makes="a folder of files",
        command="data {config.step.type}",
    ),
}
