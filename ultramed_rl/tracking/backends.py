"""Who shows what is tracked beside `metrics.jsonl`: wandb, online or into a directory that `wandb sync` sends later, and
TensorBoard's event files (`tensorboard --logdir RUN/tensorboard`)."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ultramed_rl.tracking.heartbeat import note_link

if TYPE_CHECKING:  # the command line tells of progress before it knows of configs
    from ultramed_rl.config.run import RunName, Tracking


class TrackedConfig(Protocol):
    """A config of any kind that is tracked."""

    @property
    def type(self) -> str: ...
    @property
    def run(self) -> RunName: ...
    @property
    def tracking(self) -> Tracking: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


Kind = Literal["step", "round", "evaluation", "data"]
Mode = Literal["online", "offline"]
# The axis and the prefix under which each kind is shown.
PANELS: dict[Kind, tuple[str, str]] = {
    "step": ("policy_step", "train"),
    "round": ("round", "round_metrics"),
    "evaluation": ("policy_step", "held_out"),
    "data": ("data_step", "data"),
}
INSTALL = "pip install 'ultramed_rl[tensorboard]'"
_STAGING = "WANDB_DATA_DIR"


@dataclass(frozen=True)
class Sample:
    """One completion of a shown prompt. `chosen` is "chosen" or "rejected", or nothing where it made no pair."""

    round: int
    prompt_id: str
    prompt: str
    sample: int
    completion: str
    reward: float
    chosen: str
    tokens: int
    finish_reason: str
    policy_version: int


@dataclass(frozen=True)
class Made:
    """Something that a run made: `parents` are the digests of what it was made out of, by name.

    Of an online run: policy 0 -> completions -> pairs -> policy 1 -> ...
    """

    name: str
    kind: str  # model or dataset
    path: Path
    digest: str
    version: int
    parents: Mapping[str, str]
    numbers: Mapping[str, float]


class Backend(Protocol):
    """One who shows what is tracked. Any of these may raise: it is retried, and the run goes on without."""

    name: str

    def start(self) -> None: ...

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None: ...

    def show(self, samples: Sequence[Sample], step: int) -> None:
        """Samples of a round."""
        ...

    def keep(self, made: Sequence[Made]) -> None:
        """What a round or a stage made, and out of what."""
        ...

    def finish(self, failed: bool) -> None: ...


class WandbRun:
    """A run of wandb that goes on under the same id when the run is resumed.

    Artifacts are references with digests and parents in their metadata, which also an offline directory holds:
    policy-ID:v0 -> completions-ID -> pairs-ID -> policy-ID:v1. Files are copied and uploaded only for
    checkpoints and where `tracking.upload_checkpoints` says so.
    """

    name = "wandb"

    def __init__(self, directory: Path, config: TrackedConfig, mode: Mode) -> None:
        self.directory, self.config, self.mode = directory, config, mode
        self.run: Any = None

    def start(self) -> None:
        import wandb

        tracking = self.config.tracking
        # The same id on resume, so that wandb goes on with the same run.
        kept_id = self.directory / "wandb_run_id"
        if not kept_id.is_file():
            kept_id.write_text(secrets.token_hex(4))
        self.run = wandb.init(
            project=tracking.project,
            name=self.config.run.name,
            group=tracking.group,
            job_type=self.config.type,
            tags=tracking.tags,
            id=kept_id.read_text().strip(),
            resume="allow" if self.mode == "online" else None,
            dir=str(self.directory),
            mode=self.mode,
            config=self.config.model_dump(mode="json"),
            # Nothing of the machine or the code is collected: a secret could stand anywhere in them.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                # A network that is down costs a minute or two, never the run; offline files stay.
                init_timeout=30.0,
                finish_timeout=60.0,
            ),
        )
        for axis, prefix in PANELS.values():
            self.run.define_metric(f"{prefix}/*", step_metric=axis)
        note_link("wandb", self.run.url if self.mode == "online" else None)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None:
        axis, prefix = PANELS[kind]
        self.run.log({axis: step, **{f"{prefix}/{name}": value for name, value in metrics.items()}})

    def show(self, samples: Sequence[Sample], step: int) -> None:
        import wandb

        table = wandb.Table(columns=[field.name for field in fields(Sample)])
        for sample in samples:
            table.add_data(*astuple(sample))
        with staging_in(self.directory):
            self.run.log({PANELS["round"][0]: step, "samples": table})

    def keep(self, made: Sequence[Made]) -> None:
        with staging_in(self.directory):
            for item in made:
                self.run.log_artifact(
                    self._artifact(item), aliases=[f"version-{item.version}", item.digest[:12]]
                )

    def _artifact(self, item: Made) -> Any:
        import wandb

        artifact = wandb.Artifact(
            name=f"{item.name}-{self.run.id}",
            type=item.kind,
            description=", ".join(f"made from {name}" for name in item.parents),
            metadata={**asdict(item), "path": str(item.path)},
        )
        if item.kind == "model" and self.config.tracking.upload_checkpoints:
            artifact.add_dir(str(item.path))
        else:
            # Without a checksum no file is read: the digest that the run took of it is in the metadata.
            artifact.add_reference(item.path.absolute().as_uri(), name=item.path.name, checksum=False)
        return artifact

    def finish(self, failed: bool) -> None:
        note_link("wandb", None)
        if self.run is not None:
            self.run.finish(exit_code=int(failed))


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Files of artifacts wait within the run's directory, where an offline run needs them, not in a home."""
    before = os.environ.get(_STAGING)
    os.environ[_STAGING] = before or str(directory / "wandb" / "data")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_STAGING]


class TensorboardEvents:
    """Event files in RUN/tensorboard; a resumed run adds another one beside the first."""

    name = "tensorboard"

    def __init__(self, directory: Path, config: TrackedConfig) -> None:
        self.directory, self.config = directory / "tensorboard", config
        self.writer: Any = None

    def start(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"tracking.tensorboard=true needs the package tensorboard: {INSTALL}"
            ) from error
        self.writer = SummaryWriter(log_dir=str(self.directory))
        self.writer.add_text("config", _verbatim(json.dumps(self.config.model_dump(mode="json"), indent=1)))

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{PANELS[kind][1]}/{name}", value, step)
        self.writer.flush()

    def show(self, samples: Sequence[Sample], step: int) -> None:
        for sample in samples:
            head = f"reward {sample.reward:.4g} {sample.chosen}".rstrip()
            text = f"{sample.prompt}\n\n{sample.completion}"
            tag = f"samples/{sample.prompt_id}/{sample.sample}"
            self.writer.add_text(tag, f"{head}\n\n{_verbatim(text)}", step)

    def keep(self, made: Sequence[Made]) -> None:
        for item in made:
            lineage = {"digest": item.digest, "path": str(item.path), "parents": dict(item.parents)}
            text = _verbatim(json.dumps(lineage, indent=1))
            self.writer.add_text(f"lineage/{item.name}", text, item.version)

    def finish(self, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


def _verbatim(text: str) -> str:
    """As a block of code: what a model wrote is no markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def chosen_backends(directory: Path, config: TrackedConfig) -> list[Backend]:
    """Those that the config names; wandb's `auto` is online where a key is set."""
    backends: list[Backend] = []
    mode = config.tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode != "disabled":
        backends.append(WandbRun(directory, config, mode))
    return backends + ([TensorboardEvents(directory, config)] if config.tracking.tensorboard else [])
