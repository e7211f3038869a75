"""A stage's store: samples by index, and the states, best weights and metrics that a killed one goes on from."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config import ConfigError, SftConfig, parse_config
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, TokenizedChat
from ultramed_rl.store import SampleFile, StageDirectory, write_samples

# -- samples by index --------------------------------------------------------------------------------------


def chat(number: int, tokens: int) -> TokenizedChat:
    ids = tuple(range(number, number + tokens))
    return TokenizedChat(
        f"c{number}", ids, tuple(i % 2 == 0 for i in ids), "Exam" if number % 3 else "messages"
    )


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 3) | st.integers(254, 258) | st.integers(510, 514),
    st.lists(st.integers(0, 40), min_size=1, max_size=7),
    st.data(),
)
def test_samples_come_back_by_index(count: int, lengths: list[int], data: st.DataObject) -> None:
    """Around the border of the file's batches of 256, in any order, and in another process."""
    wanted = [chat(i, lengths[i % len(lengths)]) for i in range(count)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "samples.arrow"
        assert write_samples(iter(wanted), TokenizedChat, path) == count
        samples: SampleFile[TokenizedChat] = SampleFile(path, TokenizedChat)
        assert len(samples) == count and bool(samples) == bool(count)
        assert list(samples) == wanted
        if count:
            places = data.draw(st.lists(st.integers(-count, count - 1), max_size=5))
            places += [i for i in (0, 255, 256, 511, 512, -1, -count) if -count <= i < count]
            assert [samples[i] for i in places] == [wanted[i] for i in places]
        for outside in (count, -count - 1):
            with pytest.raises(IndexError):
                samples[outside]
        piece = slice(*data.draw(st.tuples(*[st.none() | st.integers(-600, 600)] * 2)))
        assert list(samples[piece]) == wanted[piece]
        sent = pickle.dumps(samples)
        assert len(sent) < 1000, "its records travelled instead of its path"
        assert list(pickle.loads(sent)) == wanted


def test_preference_groups_come_back_too(tmp_path: Path) -> None:
    prompt = Prompt("p", ({"role": "user", "content": "何? 🩺"},), (1, 2, 3), None, "MedQA")
    answers = tuple(Completion("p", i, f"answer {i}", (5, i), "reference", 0.0, 0) for i in range(3))
    groups = [
        PreferenceGroup(prompt, answers, (2.0, 1.0, -0.5), 2),
        PreferenceGroup(prompt, answers[:1], (0.0,), 0),
    ]
    write_samples(groups, PreferenceGroup, tmp_path / "groups.arrow")
    assert list(SampleFile(tmp_path / "groups.arrow", PreferenceGroup)) == groups


# -- the directory -----------------------------------------------------------------------------------------


def config(root: Path, **run: str) -> SftConfig:
    data = {"sources": [{"uri": "/nowhere.jsonl"}]}
    settings = {
        "run": {"name": "stage", "directory": str(root), **run},
        "model": {"path": "/m"},
        "training": {"learning_rate": 1e-3},
        "data": data,
    }
    return parse_config(settings, kind=SftConfig)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StageDirectory]:
    with StageDirectory.open(config(tmp_path), resume=False) as opened:
        yield opened


def save(store: StageDirectory, folder: str, at: int, **numbers: float) -> None:
    def write(directory: Path) -> dict[str, float]:
        (directory / "weights").write_text(f"{folder} {at}")
        return numbers

    store.save(folder, at, write)


def save_state(store: StageDirectory, step: int, best_step: int) -> None:
    save(store, "states", step, step=step, best_step=best_step, best_loss=0.1, waited=0)


def kept(store: StageDirectory, folder: str) -> list[str]:
    return sorted(p.name for p in (store.path / folder).iterdir() if p.is_dir())


def test_only_the_newest_state_is_kept(store: StageDirectory) -> None:
    assert store.newest("states") is None
    for step in (4, 8, 100):  # 100 is after 8 in numbers, and so it is in names
        save_state(store, step, best_step=0)
        found = store.newest("states")
        assert found is not None
        assert found[0].name == f"step-{step:09d}" and found[1]["step"] == step
        assert (found[0] / "weights").read_text() == f"states {step}"
        assert kept(store, "states") == [f"step-{step:09d}"]


def test_a_number_that_is_not_finite_comes_back_as_nan(store: StageDirectory) -> None:
    save(store, "states", 4, best_loss=float("inf"), best_step=0)
    found = store.newest("states")
    assert found is not None and found[1]["best_loss"] != found[1]["best_loss"]


def test_a_half_written_state_is_none(store: StageDirectory) -> None:
    """A kill between the rename and the manifest leaves a folder that doesn't count."""
    save_state(store, 4, best_step=0)
    (store.path / "states" / "step-000000008").mkdir()
    found = store.newest("states")
    assert found is not None and found[0].name == "step-000000004"
    save_state(store, 8, best_step=0)
    assert kept(store, "states") == ["step-000000008"]


def test_a_damaged_state_is_refused(store: StageDirectory) -> None:
    save_state(store, 4, best_step=0)
    (store.path / "states" / "step-000000004" / "weights").write_text("cut off")
    kept = json.loads((store.path / "states" / "step-000000004.json").read_text())["digest"][:12]
    with pytest.raises(ValueError, match=rf"/step-000000004: .*\({kept}, .*[0-9a-f]{{12}}\)"):
        store.newest("states")


def test_the_best_weights_that_a_state_counts_on_stay_with_it(store: StageDirectory) -> None:
    """Saved at 4, killed at 7: better weights of step 6 are forgotten, and on resume step 6 may come out no
    better (GPUs add up in any order); then those of step 3 are still the best."""
    save(store, "best", 3)
    save_state(store, 4, best_step=3)
    save(store, "best", 6)
    assert kept(store, "best") == ["step-000000003", "step-000000006"]
    store.discard_after(4)
    assert kept(store, "best") == ["step-000000003"]
    save(store, "best", 6)
    save_state(store, 8, best_step=6)
    save(store, "best", 9)
    assert kept(store, "best") == ["step-000000006", "step-000000009"]
    newest = store.newest("best")
    assert newest is not None and newest[0].name == "step-000000009"
    store.discard_saved()
    assert store.newest("best") is None and store.newest("states") is None


def places(store: StageDirectory) -> list[tuple[str, int]]:
    """(kind, index) of each logged row."""
    rows = [json.loads(line) for line in (store.path / "metrics.jsonl").read_text().splitlines()]
    return [(name, row[name]) for row in rows for name in row if name.endswith("_index")]


def test_what_was_logged_after_a_state_is_forgotten(store: StageDirectory) -> None:
    rows = [("evaluation_index", 0), *(("step_index", i) for i in range(4)), ("evaluation_index", 4)]
    for name, index in [*rows, ("step_index", 4), ("step_index", 5), ("evaluation_index", 6)]:
        store.append_metrics({name: index, "loss": 1.0})
    with (store.path / "metrics.jsonl").open("a") as file:
        file.write('{"step_index": 6, "lo')  # the killed process's last line
    store.discard_after(4)
    assert places(store) == rows
    store.discard_after(0)
    assert places(store) == [], "the first evaluation is made again, so it would stand there twice"


# -- bad input ---------------------------------------------------------------------------------------------


def test_bad_input_can_be_mended_under_the_same_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), StageDirectory.open(config(tmp_path), resume=False) as store:
        (store.path / ".tmp-data").mkdir()
        raise ValueError("bad data")
    with StageDirectory.open(config(tmp_path, name="stage"), resume=False) as store:
        assert (store.path / "config.yaml").is_file() and not (store.path / ".tmp-data").exists()


def test_what_was_made_keeps_its_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), StageDirectory.open(config(tmp_path), resume=False) as store:
        store.artifacts.phase_directory("data", lambda directory: {})
        raise ConfigError(["found later"])
    with pytest.raises(ValueError, match="--resume"):
        StageDirectory.open(config(tmp_path), resume=False)
