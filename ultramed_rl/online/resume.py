"""Which weights a run that is started or taken up again begins with."""

from __future__ import annotations

from ultramed_rl.config import RunConfig
from ultramed_rl.store import RunDirectory


def latest_checkpoint(config: RunConfig, store: RunDirectory) -> tuple[str, int]:
    """The newest policy on disk and its version; the starting policy is version 0.

    Raises:
        ValueError: it isn't what was written, or the answers that it was trained on are gone, which only the policy before
            it can give again.
    """
    committed = store.committed_rounds()
    index = store.last_checkpoint(min(committed + 1, config.run.rounds))
    if config.run.overlap:
        _check_answered(config, store, committed, 0 if index is None else index + 1)
    if index is None:
        return config.policy.path, 0
    if not store.round(index).finished("scored"):
        raise ValueError(
            f"{store.round(index).path}: has a checkpoint, and not the answers that it was trained on; put "
            "scored.parquet and scored.json back, or delete the folder to make the round again"
        )
    return str(store.round(index).directory("checkpoint")), index + 1


def _check_answered(config: RunConfig, store: RunDirectory, committed: int, version: int) -> None:
    """A round's answers are of the policy before, which nobody has when the round before has ended."""
    needed = [(committed, "scored"), (version, "scored")]
    if config.reference.update != "initial":
        needed.append((committed, "reference"))
    for index, name in needed:
        if 0 < index < config.run.rounds and not store.round(index).finished(name):
            raise ValueError(
                f"{store.round(index).path}: lacks {name}, which is of policy {index - 1} (run.overlap=1); put {name}.parquet "
                f"and {name}.json back, or delete this folder and {store.round(index - 1).path} to make both rounds again"
            )


def reference_path(config: RunConfig, store: RunDirectory) -> str:
    """The reference that the round in progress is trained against."""
    committed = store.committed_rounds()
    if committed and config.reference.update == "previous":
        return str(store.round(committed - 1).directory("checkpoint"))
    if committed and config.reference.update == "ema":
        return str(store.round(committed - 1).directory("reference_model"))
    return config.policy.path
