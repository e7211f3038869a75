"""All checks, in the order in which one would mend things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cli.doctor.communication import check_gloo, check_nccl
from ultramed_rl.cli.doctor.devices import check_devices, cuda_devices
from ultramed_rl.cli.doctor.engines import check_deepspeed, check_flash_attention, check_vllm
from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.cli.doctor.places import check_disk, check_hub, check_offline_model
from ultramed_rl.cli.doctor.ports import check_machine_ports
from ultramed_rl.cli.doctor.ray_cluster import check_ray
from ultramed_rl.cli.doctor.telling import check_tensorboard, check_wandb
from ultramed_rl.cli.doctor.versions import check_packages, check_python

Check = Callable[[], Iterator[Finding]]


@dataclass(frozen=True)
class Patient:
    """What is checked for: perhaps a config, as YAML file and as loaded; None where it couldn't be, and why."""

    path: str | None = None
    config: Any = None
    problem: str = ""

    @classmethod
    def of(cls, path: str | None) -> Patient:
        """Read the config, if there is one; what is wrong with it is a finding of its own."""
        from ultramed_rl.config.document import read_document
        from ultramed_rl.config.load import check_any
        from ultramed_rl.config.recipe import check_recipe
        from ultramed_rl.recipes.run import check_runnable, plan_recipe

        if path is None:
            return cls()
        try:
            document = read_document(path)
            if document.data.get("type") == "recipe":
                recipe = check_recipe(document)
                plan_recipe(recipe)
                return cls(path, recipe)
            config = check_any(document)
            check_runnable(config)
            return cls(path, config)
        except (ValueError, OSError) as error:
            return cls(path, problem=str(error))

    @property
    def cluster(self) -> Any:
        """The config's cluster section, where it has one."""
        return getattr(self.config, "cluster", None)

    @property
    def run_folder(self) -> Path:
        """Where runs are kept."""
        run = getattr(self.config, "run", None)
        return run.folder.parent if run is not None else Path("runs")


def examine(patient: Patient) -> Iterator[Finding]:
    """Every finding as it comes; a check that breaks is itself a finding."""
    cuda = bool(cuda_devices())
    address = getattr(patient.cluster, "address", None)
    device = getattr(patient.cluster, "device", None)
    checks: dict[str, Check] = {
        "python": check_python,
        "packages": lambda: check_packages(cuda),
        "devices": lambda: check_devices(device, elsewhere=bool(address)),
        "gloo": check_gloo,
        "nccl": check_nccl,
        "vllm": check_vllm,
        "deepspeed": check_deepspeed,
        "flash-attn": check_flash_attention,
        "ray": lambda: check_ray(address),
        "ports": check_machine_ports,
        "disk": lambda: check_disk(patient.run_folder),
        "hub": check_hub,
        "model": check_offline_model,
        "wandb": check_wandb,
        "tensorboard": check_tensorboard,
        "config": lambda: _check_config(patient),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            said = f"the check itself broke: {type(error).__name__}: {error}"
            yield Finding(name, "fail", said, "report this line with `ultramed-rl --version`")


def _check_config(patient: Patient) -> Iterator[Finding]:
    if patient.path is None:
        return
    if patient.problem:
        first, *others = patient.problem.splitlines()
        more = f" (and {len(others)} more)" if others else ""
        yield Finding(
            "config", "fail", first + more, f"edit {patient.path}: `ultramed-rl plan` says the same"
        )
    else:
        yield Finding("config", "ok", f"{patient.path}: valid, and its plan fits")
