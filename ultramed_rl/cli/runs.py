"""Commands that run one config: online rounds and the offline stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ultramed_rl.cli.dry_run import show_run
from ultramed_rl.cli.exits import WRONG, carry_out, check, fail, resume_command
from ultramed_rl.cli.options import ConfigPath, DryRun, Json, Order, Overrides, Quiet, Resume, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.tracking.console import speaking

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document

# By command: the type of its configs, and its help.
_COMMANDS = {
    "run": (
        "online",
        """Run online rounds: sample, score, select pairs, train, sync, evaluate.

        Example: ultramed-rl run configs/quickstart.yaml run.name=mine run.seed=1
        """,
    ),
    "sft": (
        "sft",
        """Fine-tune on conversations; only what the assistant wrote is learnt.

        Example: ultramed-rl sft configs/sft/ultramedical-8b.yaml training.max_steps=20
        """,
    ),
    "reward": (
        "reward",
        """Train a reward model on ranked answers.

        Example: ultramed-rl reward configs/reward/ultramedrm-8b.yaml --resume
        """,
    ),
    "preference": (
        "preference",
        """Learn offline preferences: DPO, KTO and the other objectives on answers that are there already.

        Example: ultramed-rl preference configs/preference/ultramedical-8b-dpo.yaml objective.beta=0.05
        """,
    ),
    "contrasts": (
        "contrasts",
        """Make preference pairs out of a policy's own answers, where no preference data is at hand.

        Example: ultramed-rl contrasts contrasts.yaml contrasts.prompts=64
        """,
    ),
}


def _add_command(name: str, kind: str, words: str) -> None:
    def run_config(
        config_path: ConfigPath,
        overrides: Overrides = None,
        resume: Resume = False,
        dry_run: DryRun = False,
        quiet: Quiet = False,
        json: Json = False,
    ) -> None:
        with speaking(manner_of(quiet, json)):
            run_alone(Order(config_path, tuple(overrides or ()), resume, dry_run), kind)

    run_config.__doc__ = words
    command(name)(run_config)


for _name, (_kind, _words) in _COMMANDS.items():
    _add_command(_name, _kind, _words)


def run_alone(order: Order, expected: str) -> None:
    """Check, then run one stage, or say what would be done."""
    document = read_order(order)
    config = check_config(document, expected)
    if order.dry_run:
        show_run(config, order.resume, document)
        return
    check_named(config, order, document)

    def run() -> dict[str, Any]:
        from ultramed_rl.recipes.run import RUNNERS

        output = RUNNERS[expected](config, order.resume)
        return {"output": output, "directory": config.run.url or str(config.run.folder)}

    carry_out(run, resume_command(command_of(expected), order.config_path, order.overrides, order.flags))


def read_order(order: Order) -> Document:
    """What the order's file and overrides say, not validated yet; exits with code 2 where they cannot be read."""
    from ultramed_rl.config.document import read_document

    return check(lambda: read_document(order.config_path, order.overrides))


def is_recipe(document: Document) -> bool:
    """Whether a document describes a recipe."""
    return bool(document.data.get("type") == "recipe")


def check_config(document: Document, expected: str) -> Any:
    """The config, valid, of the expected type and with a plan that fits; else exit with code 2."""
    from ultramed_rl.config.load import check_any
    from ultramed_rl.recipes.run import check_runnable

    config = check(lambda: check_any(document))
    if config.type != expected:
        fail(document.tell(f"type={config.type!r}: use ultramed-rl {command_of(config.type)}"), WRONG)
    check(lambda: check_runnable(config), document)
    return config


def check_named(config: Any, order: Order, document: Document) -> None:
    """What the config names is there; exits with code 2 where it isn't. A run that goes on may need it no more."""
    from ultramed_rl.recipes.inputs import check_inputs

    if not (order.resume or order.flags):
        check(lambda: check_inputs(config), document)


def command_of(kind: str) -> str:
    """The command that runs a config of this type."""
    return "run" if kind == "online" else kind.replace("_", "-")
