"""Tiny models and questions, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import make_policy, make_questions, make_reward


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `policy/`, `reward/` and `questions.jsonl`."""
    root = tmp_path_factory.mktemp("tiny")
    make_policy(root / "policy")
    make_reward(root / "reward")
    make_questions(root / "questions.jsonl")
    return root


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    """A Ray of this test's own."""
    import ray

    yield
    ray.shutdown()
