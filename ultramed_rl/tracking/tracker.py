"""Metrics: `metrics.jsonl` always, and beside it those who show them: wandb, online or into a directory that `wandb sync` sends
later, and TensorBoard's event files (`tensorboard --logdir RUN/tensorboard`). Tracking never stops a run."""

from __future__ import annotations

import json
import os
import secrets
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from ultramed_rl.config.secrets import read_secret
from ultramed_rl.tracking.console import tell
from ultramed_rl.tracking.heartbeat import note_link
from ultramed_rl.tracking.round_files import AnswerSample, Made, made_by_stage, made_in_round, round_samples
from ultramed_rl.tracking.wandb_place import WandbPlace, sweep_trial

if TYPE_CHECKING:  # the command line tells of progress before it knows of configs
    from ultramed_rl.config.run import RunName, Tracking
    from ultramed_rl.store.work_directory import WorkDirectory
    from ultramed_rl.tracking.verdict import RunVerdict

Kind = Literal["step", "round", "evaluation", "data"]
Event = Literal["failure", "stall", "verdict"]
LEVELS: dict[Event, str] = {"failure": "ERROR", "stall": "WARN", "verdict": "INFO"}  # as wandb calls them
# The axis and the prefix under which each kind is shown.
PANELS: dict[Kind, tuple[str, str]] = {
    "step": ("policy_step", "train"),
    "round": ("round", "round_metrics"),
    "evaluation": ("policy_step", "held_out"),
    "data": ("data_step", "data"),
}
INSTALL = "pip install 'ultramed_rl[tensorboard]'"
_ATTEMPTS = 3
_METRICS, _SHOWN, _ALERTS = "metrics", "samples and artifacts", "alerts"
_STAGING = "WANDB_DATA_DIR"
_TITLE, _TEXT = 63, 2000  # characters of an alert that wandb takes, and that a chat shows
_WEBHOOK_S = 10.0


class TrackedConfig(Protocol):
    """A config of any kind that is tracked."""

    @property
    def type(self) -> str: ...
    @property
    def run(self) -> RunName: ...
    @property
    def tracking(self) -> Tracking: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class Alerted(Protocol):
    """One who is told of a failure, a stall and a verdict. May raise, as a `Backend`."""

    name: str

    def alert(self, event: Event, title: str, text: str) -> None: ...


class Backend(Alerted, Protocol):
    """One who shows what is tracked: metrics, samples of a round, and what a round or a stage made and out of what. Any of
    these may raise: it is retried, and the run goes on without."""

    def start(self) -> None: ...
    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None: ...
    def show(self, samples: Sequence[AnswerSample], step: int) -> None: ...
    def keep(self, made: Sequence[Made]) -> None: ...
    def judge(self, verdict: RunVerdict) -> None: ...
    def finish(self, failed: bool) -> None: ...


class Tracker:
    """Logs the metrics of optimizer steps and of rounds, and shows what a round left. A context manager.

    Args:
        backends: who shows it; by default those that the config names.

    Raises:
        ValueError: an environment variable lacks, or holds what it can't.
    """

    def __init__(
        self, store: WorkDirectory, config: TrackedConfig, backends: Sequence[Backend] | None = None
    ) -> None:
        self.store, self.config = store, config
        if backends is None:
            backends, place = [], WandbPlace.of(config.tracking)
            if place.mode != "disabled":
                backends.append(WandbRun(store.path, config, place))
            if config.tracking.tensorboard:
                backends.append(TensorboardEvents(store.path, config))
        self._backends = list(backends)
        webhook = read_secret(config.tracking.webhook_env, "tracking.webhook_env")
        self._alerted: list[Alerted] = [*self._backends, *([Webhook(webhook)] if webhook else [])]
        self._given_up: set[tuple[Alerted, str]] = set()
        self._last_alert = ""

    def __enter__(self) -> Tracker:
        for backend in self._backends:
            self._attempt(backend, "start", backend.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # an interruption is none
            self.alert("failure", str(error))
        for backend in self._backends:
            if kind is None:
                made = partial(made_by_stage, self.store.path, self._start)
                self._attempt(backend, "keep what was made", partial(self._keep, backend, made), _SHOWN)
            self._attempt(backend, "finish", partial(backend.finish, kind is not None))

    def log(self, metrics: dict[str, float], step: int, kind: Kind) -> None:
        """Log the metrics of an optimizer step, of a round, or of an evaluation after `step` steps."""
        self.store.append_metrics({f"{kind}_index": step, **metrics})
        tell("metrics", kind=kind, index=step, metrics=metrics)
        for backend in self._backends:
            self._attempt(backend, "log", partial(backend.log, kind, step, metrics))
            folder = self.store.path / "rounds" / f"{step:03d}"
            if kind == "round" and folder.is_dir():  # a line about the whole run has none
                made = partial(made_in_round, folder, step, self._start)
                self._attempt(backend, "show samples", partial(self._show, backend, folder, step), _SHOWN)
                self._attempt(backend, "keep artifacts", partial(self._keep, backend, made), _SHOWN)

    def judge(self, verdict: RunVerdict, *, last: bool = False) -> None:
        """Tell how the run stands by reward and judges; as an alert at its end, and before where the reward rose and a judge
        fell."""
        tell("verdict", **verdict.to_json())
        for backend in self._backends:
            self._attempt(backend, "tell the verdict", partial(backend.judge, verdict))
        if last or verdict.outcome == "over-optimised":
            self.alert("verdict", str(verdict))

    def alert(self, event: Event, text: str) -> None:
        """Tell those who are told of such events by `tracking.alert`, what is the same once."""
        if event not in self.config.tracking.alert or text == self._last_alert:
            return
        self._last_alert = text
        title = f"{event}: {self.config.run.name}"[:_TITLE]
        for one in self._alerted:
            self._attempt(one, "tell an alert", partial(one.alert, event, title, text[:_TEXT]), _ALERTS)

    def _show(self, backend: Backend, folder: Path, index: int) -> None:
        prompts = self.config.tracking.sample_prompts
        if samples := round_samples(folder, index, self.config.run.seed, prompts):
            backend.show(samples, index)

    def _keep(self, backend: Backend, made: Callable[[], Sequence[Made]]) -> None:
        backend.keep(made())

    @property
    def _start(self) -> str:
        """The model that the run began with; nothing where it has none."""
        model = getattr(self.config, "policy", None) or getattr(self.config, "model", None)
        return str(getattr(model, "path", "") or "")

    def _attempt(self, backend: Alerted, what: str, action: Callable[[], object], of: str = _METRICS) -> None:
        """Do it, three times if need be. What fails then is one warning, and left alone from then on: metrics, and with them
        all of a backend, or samples and artifacts, or alerts, for themselves."""
        from tenacity import Retrying, stop_after_attempt, wait_random_exponential

        if self._given_up & {(backend, _METRICS), (backend, of)}:
            return
        wait = wait_random_exponential(0.1, max=2)
        try:
            Retrying(stop=stop_after_attempt(_ATTEMPTS), wait=wait, reraise=True)(action)
        except Exception as error:
            self._given_up.add((backend, of))
            failed = f"{backend.name} failed to {what} ({error})"
            warnings.warn(f"{failed}; going on without its {of}: the run's folder has them all", stacklevel=2)


class WandbRun:
    """A run of wandb that goes on under the same id when the run is resumed: in a sweep, its trial's.

    Artifacts are references with digests and parents in their metadata, which also an offline directory holds:
    policy-ID:v0 -> completions-ID -> pairs-ID -> policy-ID:v1. Files are copied and uploaded only for
    checkpoints and where `tracking.upload_checkpoints` says so.
    """

    name = "wandb"

    def __init__(self, directory: Path, config: TrackedConfig, place: WandbPlace) -> None:
        self.directory, self.config, self.place = directory, config, place
        self.run: Any = None

    def start(self) -> None:
        import wandb

        tracking, place = self.config.tracking, self.place
        # The same id on resume, so that wandb goes on with the same run.
        kept_id = self.directory / "wandb_run_id"
        if not kept_id.is_file():
            kept_id.write_text(sweep_trial() or secrets.token_hex(4))
        self.run = wandb.init(
            entity=place.entity,
            project=place.project,
            name=self.config.run.name,
            group=tracking.group,
            job_type=self.config.type,
            tags=tracking.tags,
            id=kept_id.read_text().strip(),
            resume="allow" if place.mode == "online" else None,
            dir=str(self.directory),
            mode=place.mode,
            config=self.config.model_dump(mode="json"),
            # Nothing of the machine or the code is collected: a secret could stand anywhere in them.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=not tracking.system_metrics,
                x_save_requirements=False,
                # A network that is down costs a minute or two, never the run; offline files stay.
                init_timeout=30.0,
                finish_timeout=60.0,
            ),
        )
        for axis, prefix in PANELS.values():
            self.run.define_metric(f"{prefix}/*", step_metric=axis)
        note_link("wandb", self.run.url if place.mode == "online" else None)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None:
        axis, prefix = PANELS[kind]
        self.run.log({axis: step, **{f"{prefix}/{name}": value for name, value in metrics.items()}})

    def show(self, samples: Sequence[AnswerSample], step: int) -> None:
        import wandb

        table = wandb.Table(columns=[field.name for field in fields(AnswerSample)])
        for sample in samples:
            table.add_data(*astuple(sample))
        with self._staging():
            self.run.log({PANELS["round"][0]: step, "samples": table})

    def keep(self, made: Sequence[Made]) -> None:
        import wandb

        with self._staging():
            for item in made:
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
                    uri = item.path.absolute().as_uri()
                    artifact.add_reference(uri, name=item.path.name, checksum=False)
                self.run.log_artifact(artifact, aliases=[f"version-{item.version}", item.digest[:12]])

    def judge(self, verdict: RunVerdict) -> None:
        self.run.summary.update({"verdict": verdict.outcome, "verdict_words": str(verdict)})

    def alert(self, event: Event, title: str, text: str) -> None:
        self.run.alert(title=title, text=text, level=LEVELS[event])

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Files of artifacts wait within the run's directory, where an offline run needs them, not in a home."""
        before = os.environ.get(_STAGING)
        os.environ[_STAGING] = before or str(self.directory / "wandb" / "data")
        try:
            yield
        finally:
            if before is None:
                del os.environ[_STAGING]

    def finish(self, failed: bool) -> None:
        note_link("wandb", None)
        if self.run is not None:
            self.run.finish(exit_code=int(failed))


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

    def show(self, samples: Sequence[AnswerSample], step: int) -> None:
        for sample in samples:
            head = f"reward {sample.reward:.4g} {sample.chosen}".rstrip()
            text = _verbatim(f"{sample.prompt}\n\n{sample.completion}")
            self.writer.add_text(f"samples/{sample.prompt_id}/{sample.sample}", f"{head}\n\n{text}", step)

    def keep(self, made: Sequence[Made]) -> None:
        for item in made:
            lineage = {"digest": item.digest, "path": str(item.path), "parents": dict(item.parents)}
            text = _verbatim(json.dumps(lineage, indent=1))
            self.writer.add_text(f"lineage/{item.name}", text, item.version)

    def judge(self, verdict: RunVerdict) -> None:
        self.writer.add_text("verdict", _verbatim(str(verdict)), verdict.round)

    def alert(self, event: Event, title: str, text: str) -> None:
        self.writer.add_text("alerts", _verbatim(f"{title}\n{text}"))

    def finish(self, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


class Webhook:
    """A chat's address that takes {"text": ...}. It is a secret: nobody names it."""

    name = "webhook"

    def __init__(self, address: str) -> None:
        """Raises ValueError where it is no web address."""
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError(
                "tracking.webhook_env: its variable must hold a web address, as in https://host/path"
            )
        self._address = address

    def alert(self, event: Event, title: str, text: str) -> None:
        body = json.dumps({"text": f"{title}\n{text}"}).encode()
        request = urllib.request.Request(self._address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_WEBHOOK_S):
            pass


def _verbatim(text: str) -> str:
    """As a block of code: what a model wrote is no markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
