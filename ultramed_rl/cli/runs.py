"""Commands that run one config: online rounds and the offline stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ultramed_rl.cli.dry_run import show_run
from ultramed_rl.cli.exits import WRONG, carry_out, check, fail, resume_command
from ultramed_rl.cli.options import ConfigPath, DryRun, Json, Order, Overrides, Quiet, Resume, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.kinds import KINDS
from ultramed_rl.tracking.console import speaking

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document


def add_command(kind: str) -> None:
    """The command of a kind whose options are those of every run."""

    def run_kind(
        config_path: ConfigPath,
        overrides: Overrides = None,
        resume: Resume = False,
        dry_run: DryRun = False,
        quiet: Quiet = False,
        json: Json = False,
    ) -> None:
        with speaking(manner_of(quiet, json)):
            run_alone(Order(config_path, tuple(overrides or ()), resume, dry_run), kind)

    run_kind.__doc__ = KINDS[kind].help
    command(KINDS[kind].command)(run_kind)


for _kind in KINDS:
    if KINDS[_kind].help:
        add_command(_kind)


def run_alone(order: Order, expected: str) -> None:
    """Check, then run one stage, or say what would be done."""
    document = read_order(order)
    config = check_config(document, expected)
    if order.dry_run:
        show_run(config, order.resume, document)
        return
    check_named(config, order, document)

    def run() -> dict[str, Any]:
        from ultramed_rl.recipes.run import run_config

        output = run_config(config, order.resume)
        return {"output": output, "directory": config.run.url or str(config.run.folder)}

    carry_out(run, resume_command(command_of(config), order.config_path, order.overrides, order.flags))


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
        fail(document.tell(f"type={config.type!r}: use ultramed-rl {command_of(config)}"), WRONG)
    check(lambda: check_runnable(config), document)
    return config


def check_named(config: Any, order: Order, document: Document) -> None:
    """What the config names is there; exits with code 2 where it isn't. A run that goes on may need it no more."""
    from ultramed_rl.recipes.inputs import check_inputs

    if not (order.resume or order.flags):
        check(lambda: check_inputs(config), document)


def command_of(config: Any) -> str:
    """The command that runs a config or recipe of this type."""
    return "recipe" if config.type == "recipe" else KINDS[config.type].command.format(config=config)
