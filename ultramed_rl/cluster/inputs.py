"""What stands behind the names in a config, by digests: a run that is taken up again must find the same. And which of them
a job on a cluster would not find.

models      config.json, tokenizer and index whole, of each file of weights its size and blocks: a second for 70 billion
            parameters; of a hub id the commit that the cache of this machine holds
rows        SHA-256 of the files; of a hub data set the commit
templates   SHA-256 of the file; so of a reward function's
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultramed_rl.config import AnyConfig
from ultramed_rl.config.base import texts_of
from ultramed_rl.config.rewards import FUNCTION
from ultramed_rl.data.sources import HUB, hub_parts, local_files
from ultramed_rl.models.files import OFFLINE_PREFIX, resolve_model, split_revision
from ultramed_rl.records import Message
from ultramed_rl.store.digests import digest_file, digest_inputs, digest_sampled

if TYPE_CHECKING:
    from ultramed_rl.data.prompts import PromptPool
    from ultramed_rl.models.tokenizer import ChatTokenizer

# By the last key: values that are files unless they have a scheme; and those that may be a hub id or a name instead.
FILE_KEYS = frozenset(
    [
        *("uri", "input", "sources", "exemplars_from", "judged", "labels", "template", "include_path"),
        *("difficulties", "meta"),
    ]
)
MODEL_KEYS = frozenset(
    {"path", "paths", "tokenizer", "embedder", "chat_template", "policies", "chat_templates"}
)
OFFLINE = "offline"  # a benchmark's rows out of installed packages
_HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIX = "an absolute path on a file system that all nodes see"
# What of a model's folder is read: not its card, nor what its training left beside it.
_READ = set(
    [".json", ".jinja", ".model", ".txt", ".tiktoken", ".py", ".safetensors", ".bin", ".pt", ".pth", ".gguf"]
)
_PROBE = (Message(role="user", content="Is this the same chat?"),)


def describe_inputs(config: AnyConfig) -> dict[str, str]:
    """By the config's dotted keys what is behind them; without those of which this machine cannot tell."""
    digests = {}
    for key, name, text in texts_of(config.to_mapping()):
        if name in MODEL_KEYS:
            digests[key] = describe_model(text)
        elif name in FILE_KEYS:
            digests[key] = _describe_rows(text)
    return {key: value for key, value in digests.items() if value}


def describe_pool(pool: PromptPool) -> str:
    """The prompts' ids in their order: what each round draws, and what is held out, follows from them."""
    ids = [prompt.prompt_id for prompt in pool.training], [prompt.prompt_id for prompt in pool.held_out]
    return f"{len(ids[0])} to train on and {len(ids[1])} held out, {digest_inputs(ids)}"


def describe_rendering(tokenizer: ChatTokenizer) -> str:
    """The tokens of a chat: they follow from the template, and from the library that renders it."""
    return digest_inputs((tokenizer.encode_chat(_PROBE), tokenizer.end_id))


def describe_model(name: str) -> str:
    """A model's folder, its hub id's commit, or the file of a template or a function; empty where this machine cannot tell."""
    if name.startswith(OFFLINE_PREFIX):
        name = resolve_model(name)
    elif name.startswith("package://"):
        from ultramed_rl.models.embedding import resolve_package

        name = resolve_package(name)
    path = Path(_file_of(name)).expanduser()
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READ and file.is_file())
        return digest_inputs([f"{file.name} {digest_sampled(file)}" for file in files])
    return _hub_commit("models", *split_revision(name))


def _describe_rows(uri: str) -> str:
    if uri.startswith(HUB):
        parts = hub_parts(uri)
        return _hub_commit("datasets", parts.repository, parts.revision)
    alone = Path(uri).expanduser()  # which may be no source of rows: a template, a sheet
    try:
        digests = [digest_file(file) for file in ([alone] if alone.is_file() else local_files(uri))]
    except ValueError:  # a name such as `offline`, or what is not there: who reads it says so
        return ""
    return digests[0] if len(digests) == 1 else digest_inputs([digests])


def _hub_commit(kind: str, name: str, revision: str | None) -> str:
    """The commit of a hub id: the one it is pinned to, or that this machine's cache would load without a network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if revision is not None and _COMMIT.fullmatch(revision):
        return f"commit {revision}"
    head = Path(HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}", "refs", revision or "main")
    return f"commit {head.read_text(encoding='utf-8').strip()}" if head.is_file() else ""


# -- paths of a job that runs elsewhere --------------------------------------------------------------------


def path_problems(config: Mapping[str, Any], working_dir: Path | None) -> list[str]:
    """What keeps a config's paths from meaning on the cluster what they mean here: one line each.

    Args:
        config: plain values, of a recipe with its stages.
        working_dir: the folder that is sent along, if any; relative paths must then lead into it.
    """
    problems, folder = [], working_dir or Path()
    for key, name, value in texts_of(config):
        # A hub id, or a name: nothing lies there.
        is_id = name in MODEL_KEYS and _HUB_ID.fullmatch(value) and not (folder / value).exists()
        if name not in FILE_KEYS | MODEL_KEYS or not is_relative(value) or value == OFFLINE or is_id:
            continue
        path = folder / _file_of(value)
        leaves = value.startswith("~") or os.path.normpath(value).startswith("..")
        if working_dir is None:
            problems.append(
                f"{key}={value!r}: a relative path, which does not exist on the cluster; give {_FIX}, or send the folder "
                "along with --working-dir DIR"
            )
        elif leaves or not (path.exists() or glob.glob(str(path), recursive=True)):
            problems.append(
                f"{key}={value!r}: not in --working-dir {working_dir}, from which the job reads it; give {_FIX}, or "
                "the folder that holds it"
            )
    return problems + lost_with_job(config["run"])


def lost_with_job(run: Mapping[str, Any]) -> list[str]:
    """What of a config's section `run` would be kept in a job's temporary folder, and go with it: one line each."""
    problems, lost = [], "a relative path, which lies in the job's temporary folder and goes with it"
    if is_relative(run["directory"]):
        problems.append(
            f"run.directory={run['directory']!r}: {lost}; give {_FIX}, as in run.directory=/shared/runs"
        )
    scratch = run.get("scratch", "~")
    if "://" in run["directory"] and is_relative(scratch) and not scratch.startswith("~"):
        problems.append(f"run.scratch={scratch!r}: {lost}; give {_FIX}")
    return problems


def _file_of(value: str) -> str:
    """A path without the function that it names in a file."""
    function = FUNCTION.fullmatch(value)
    return function["file"] if function else value


def is_relative(path: str) -> bool:
    """Whether a path depends on who reads it where: on the working directory, or on the home directory."""
    return "://" not in path and not path.startswith("/")
