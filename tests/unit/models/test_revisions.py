"""A hub id that is pinned to a revision, read out of a hub's cache that the test lays out."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import make_policy
from ultramed_rl.models.checkpoint import policy_source, weight_files
from ultramed_rl.models.files import resolve_model, split_revision
from ultramed_rl.models.load import load_policy
from ultramed_rl.models.tokenizer import load_tokenizer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/name in two versions, without a network."""
    own = tmp_path / "hub" / "models--owner--name"
    (own / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(COMMITS.items()):
        (own / "refs" / name).write_text(commit)
        torch.manual_seed(seed)
        make_policy(own / "snapshots" / commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    return own


def first_weight(path: str) -> torch.Tensor:
    return next(iter(load_policy(path, "float32").lm.parameters())).detach()


@pytest.mark.parametrize("pinned", ["owner/name@v1", f"owner/name@{COMMITS['v1']}"])
def test_config_tokenizer_and_weights_are_those_of_the_revision(hub: Path, pinned: str) -> None:
    (file,) = weight_files(policy_source(pinned))
    assert COMMITS["v1"] in os.fspath(file)
    shutil.rmtree(hub / "snapshots" / COMMITS["main"])  # nothing of it is asked for
    own = hub / "snapshots" / COMMITS["v1"]
    assert torch.equal(first_weight(pinned), first_weight(str(own)))
    assert load_tokenizer(pinned).chat_template == load_tokenizer(str(own)).chat_template


def test_without_a_revision_it_is_the_newest(hub: Path) -> None:
    (file,) = weight_files(policy_source("owner/name"))
    assert COMMITS["main"] in os.fspath(file)


def test_a_revision_that_is_not_there_is_named(hub: Path) -> None:
    with pytest.raises(ValueError, match="owner/name@v2"):
        policy_source("owner/name@v2")


def test_what_follows_the_at_is_the_revision() -> None:
    assert split_revision("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert split_revision("owner/name") == ("owner/name", None)
    assert split_revision("hf://owner/name@v1:train") == ("hf://owner/name@v1:train", None)
    assert resolve_model("owner/name@v1") == "owner/name"


def test_a_folder_may_have_an_at_in_its_name_and_has_no_revision(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "mine@home")
    assert split_revision(str(folder)) == (str(folder), None)
    assert resolve_model(str(folder)) == str(folder)
    make_policy(tmp_path / "mine")
    for path in (f"{tmp_path}/mine@v1", "./mine@v1", "owner/name@"):
        with pytest.raises(ValueError, match=re.escape(path)):
            resolve_model(path)
