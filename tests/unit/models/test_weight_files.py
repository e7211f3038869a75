"""Weight files that are whole, cut, pointers, or not there: told by their headers, with their paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ultramed_rl.models.files import find_weight_files, shown, stored_shapes

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16060522496\n"


def write(folder: Path, names: tuple[str, ...] = ("model.safetensors",)) -> list[Path]:
    """A weight [2, 3] and one [4] in each file; several are listed in an index."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        save_file(
            {f"layer.{number}.weight": torch.ones(2, 3), f"layer.{number}.bias": torch.ones(4)}, folder / name
        )
    if len(names) > 1:
        index = {f"layer.{number}.weight": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return [folder / name for name in names]


def test_shapes_are_read_from_the_headers_of_one_file_or_several(tmp_path: Path) -> None:
    (single,) = write(tmp_path / "one")
    assert find_weight_files(tmp_path / "one") == [single]
    assert stored_shapes([single]) == {"layer.0.weight": (2, 3), "layer.0.bias": (4,)}
    parts = write(tmp_path / "two", ("a.safetensors", "b.safetensors"))
    assert find_weight_files(tmp_path / "two") == parts
    assert stored_shapes(parts)["layer.1.bias"] == (4,) and len(stored_shapes(parts)) == 4
    assert find_weight_files(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 7, 40, -1])
def test_a_cut_file_is_named(tmp_path: Path, kept: int) -> None:
    (file,) = write(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(ValueError) as refusal:
        stored_shapes([file])
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    if kept == -1:
        assert f"{len(whole) - 1} bytes of {len(whole)}" in str(refusal.value)


@pytest.mark.parametrize(
    "content", [POINTER, b"\x00" * 64, b"PK\x03\x04" * 50, b"\x02" + b"\x00" * 7 + b"[]"]
)
def test_what_is_no_weight_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        stored_shapes([file])
    assert str(file) in str(refusal.value)
    assert ("git lfs pull" in str(refusal.value)) == (content is POINTER)


def test_an_index_whose_files_are_not_there_names_them(tmp_path: Path) -> None:
    for file in write(tmp_path, ("a.safetensors", "b.safetensors", "c.safetensors"))[1:]:
        file.unlink()
    with pytest.raises(ValueError) as refusal:
        find_weight_files(tmp_path)
    for part in (
        str(tmp_path / "model.safetensors.index.json"),
        "2 of its 3",
        "b.safetensors, c.safetensors",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize("content", [POINTER, b"{", b"[]", b"{}", b'{"weight_map": 3}'])
def test_what_is_no_index_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        find_weight_files(tmp_path)
    assert str(tmp_path / "model.safetensors.index.json") in str(refusal.value)


def test_many_names_are_shown_by_their_first() -> None:
    assert shown(["b", "a"]) == "a, b"
    assert shown(["d", "b", "a", "c", "e"]) == "a, b, c, and 2 more"
