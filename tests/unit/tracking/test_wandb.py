"""Where wandb is told: the config first, then wandb's own variables and files; and what its offline file says of that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tiny import tiny_run
from tests.wandb_file import finished_file, read_records
from ultramed_rl.cli import app
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.config.run import Tracking
from ultramed_rl.store import RunDirectory
from ultramed_rl.tracking import Tracker
from ultramed_rl.tracking.wandb_place import WandbPlace, find_wandb_key

KEY = "0123456789abcdef" * 2 + "deadbeef"  # as long as a real one
SWEEP = {"WANDB_SWEEP_ID": "sw33p", "WANDB_RUN_ID": "tr1al"}


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables of wandb nor a home with its key."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("wanted", "variables", "netrc", "mode"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "", "online"),
        ("auto", {}, f"machine api.wandb.ai login user password {KEY}", "online"),
        ("auto", {}, f"machine example.com login user password {KEY}", "offline"),
        ("auto", {}, "machine api.wandb.ai login", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://wandb.lab:8080"}, f"machine wandb.lab:8080 login u password {KEY}", "online"),
        ("auto", {"WANDB_BASE_URL": "https://wandb.lab:8080"}, f"machine api.wandb.ai login u password {KEY}", "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_MODE": "online"}, "", "online"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": KEY}, "", "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "", "disabled"),
        ("offline", {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "", "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "", "online"),
    ],
)  # fmt: skip
def test_the_mode(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any,
    variables: dict[str, str],
    netrc: str,
    mode: str,
) -> None:
    (tmp_path / "netrc").write_text(netrc + "\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert WandbPlace.of(Tracking(wandb=wanted)).mode == mode
    assert KEY not in find_wandb_key()


def test_a_mode_that_wandb_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(ValueError, match=r"^WANDB_MODE='of-line': .*\boffline\b.*tracking\.wandb$"):
        WandbPlace.of(Tracking())
    assert WandbPlace.of(Tracking(wandb="offline")).mode == "offline"


def test_project_and_entity_are_the_configs_then_wandbs_then_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WandbPlace.of(Tracking()) == WandbPlace("offline", "ultramed_rl", None)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert WandbPlace.of(Tracking()) == WandbPlace("offline", "theirs", "team")
    assert WandbPlace.of(Tracking(project="mine", entity="me")) == WandbPlace("offline", "mine", "me")


# -- what its offline file says ----------------------------------------------------------------------------


def told(settings: RunConfig, *, resume: bool = False) -> list[Any]:
    """The records of a run of the real wandb."""
    with RunDirectory.open(settings, resume) as store, Tracker(store, settings) as tracked:
        tracked.log({"loss": 0.5}, step=1, kind="step")
        tracked.alert("stall", "nothing has finished for 60 s")
    return read_records(finished_file(store.path))


def one(records: list[Any], kind: str) -> Any:
    (found,) = [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]
    return found


def test_the_variables_reach_the_run_and_the_alert_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    records = told(parse_config(tiny_run(tmp_path, tracking__wandb="offline")))
    run, alert = one(records, "run"), one(records, "alert")
    kept = next(tmp_path.rglob("wandb_run_id")).read_text()
    assert (run.project, run.entity, run.display_name, run.run_id) == ("theirs", "team", "tiny", kept)
    assert (alert.title, alert.text) == (
        "stall: tiny",
        "nothing has finished for 60 s",
    ) and alert.level == "WARN"


@pytest.mark.parametrize("wanted", [False, True])
def test_system_metrics_are_a_choice(tmp_path: Path, wanted: bool) -> None:
    import wandb

    settings = parse_config(tiny_run(tmp_path, tracking__wandb="offline", tracking__system_metrics=wanted))
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings):
        assert wandb.run is not None and wandb.run.settings.x_disable_stats != wanted


def test_a_trial_of_a_sweep_is_the_run_that_its_agent_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name, value in SWEEP.items():
        monkeypatch.setenv(name, value)
    settings = parse_config(tiny_run(tmp_path, tracking__wandb="offline"))
    wandb.teardown()  # it reads its variables once in a process
    try:
        run = one(told(settings), "run")
    finally:
        wandb.teardown()
    assert (run.run_id, run.sweep_id) == ("tr1al", "sw33p")
    assert next(tmp_path.rglob("wandb_run_id")).read_text() == "tr1al"


def test_each_trial_of_a_sweep_is_a_run_of_its_own_and_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planned(*overrides: str) -> str:
        found = CliRunner().invoke(
            app, ["run", "configs/quickstart.yaml", *overrides, "--resume", "--dry-run"]
        )
        assert found.exit_code == 0, found.output
        return found.output.splitlines()[0]

    assert "runs/quickstart:" in planned()
    for name, value in SWEEP.items():
        monkeypatch.setenv(name, value)
    assert planned("objective.beta=0.2").startswith("quickstart-tr1al (online) in runs/quickstart-tr1al:")
    assert planned("run.name=mine").startswith("mine-tr1al (online) ")
