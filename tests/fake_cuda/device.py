"""A torch without CUDA whose "cuda:0" holds FakeTensors, and what waits for it. `load` comes before torch is imported."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

SOURCE = Path(__file__).with_name("device.cpp")


def why_not() -> str | None:
    """Why there can be no fake GPU here, or None."""
    if sys.platform != "linux":
        return f"no fake GPU on {sys.platform}: the guard is loaded as Linux loads libraries"
    if shutil.which("g++") is None:
        return "no fake GPU without a C++ compiler (g++)"
    if (_torch() / "lib" / "libtorch_cuda.so").exists():
        return "this torch has CUDA of its own: pytest -m gpu where there is a GPU"
    return None


def build() -> Path:
    """The compiled guard, kept beside other temporary files for this torch; some ten seconds the first time."""
    torch = _torch()
    # It holds the path of what it was linked to: another checkout's is another library.
    linked = f"{importlib.metadata.version('torch')} {torch}"
    key = hashlib.sha256(SOURCE.read_bytes() + linked.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ultramed_rl-fake-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            headers = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
            links = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
            unfinished = library.with_suffix(".tmp")
            command = ["g++", "-O0", "-w", "-shared", "-fPIC", "-std=c++20", *headers, str(SOURCE), *links]
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(library)
    return library


def load() -> None:
    """Let the torch that is imported next take "cuda" for its accelerator."""
    assert "torch" not in sys.modules, "torch looks for its hooks once"
    ctypes.CDLL(str(build()), mode=os.RTLD_NOW | os.RTLD_GLOBAL)


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


@contextmanager
def fake_gpu(answers: dict[str, Callable[[int], Sequence[float]]]) -> Iterator[Counter[str]]:
    """Within it tensors on "cuda" are fake, and those on the host are real. Gives how often the host waited for the device,
    by "how where": a place is the innermost function of this project, or the library's that was called.

    Args:
        answers: what a `tolist` in this function reads, given the number of values; ones where nothing is said.
    """
    import torch
    import torch.nn.attention.varlen  # registers its kernel
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    aten = torch.ops.aten
    waits: Counter[str] = Counter()
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, torch.ops.torch_attn._varlen_attn)
    shaped_by_values = (aten.nonzero, aten.masked_select, aten.bincount, aten._unique2, aten.unique_dim)

    def note(how: str) -> str:
        where = _place()
        waits[f"{how} {where}"] += 1
        return where

    class FakeGPU(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            leaves = tree_leaves((args, kwargs))
            tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
            sent = any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves)
            if not sent and not any(isinstance(x, FakeTensor) for x in tensors):
                with unset_fake_temporarily():
                    return function(*args, **kwargs)
            packet = function.overloadpacket
            if packet in (aten._to_copy, aten.copy_):
                self.watch_copy(packet, args, kwargs)
            if packet is aten._local_scalar_dense:
                note("item")
                kind = args[0].dtype
                return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
            masks = args[1] if packet in (aten.index, aten.index_put, aten.index_put_) else ()
            if packet in shaped_by_values or any(m is not None and m.dtype == torch.bool for m in masks):
                raise AssertionError(f"{function} in {_place()}: its size depends on values of the GPU")
            if packet in products:  # torch's rules for fakes let a GPU's kernel multiply what it refuses
                kinds = {x.dtype for x in args[:3] if isinstance(x, torch.Tensor)}
                assert len(kinds) == 1, f"{function} of {kinds} in {_place()}"
            # What is copied comes from the host, and a GPU's kernel takes its scalars from there.
            allowed = lambda x: sent or x.dim() == 0
            faked = lambda x: mode.from_tensor(x) if allowed(x) and not isinstance(x, FakeTensor) else x
            args, kwargs = tree_map_only(torch.Tensor, faked, (args, kwargs))
            return function(*args, **kwargs)

        def watch_copy(self, packet: Any, args: Any, kwargs: Any) -> None:
            """A copy that the host waits for: to it, or to the GPU unless it said `non_blocking`."""
            if packet is aten._to_copy:
                source, target = args[0].device, kwargs.get("device", args[0].device)
                waiting = not kwargs.get("non_blocking", False)
            else:
                source, target = args[1].device, args[0].device
                waiting = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if source.type == "cuda" and torch.device(target).type == "cpu":
                note("to host")
            elif source.type == "cpu" and torch.device(target).type == "cuda" and waiting:
                note("blocking copy")

    def tolist(tensor: FakeTensor) -> Any:
        where = note("tolist")
        values = answers.get(where, lambda count: [1.0] * count)(tensor.numel())
        return torch.tensor(values, dtype=torch.float64).reshape(tensor.shape).tolist()

    driver: dict[str, Any] = {
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "NVIDIA H100 80GB HBM3",
        "max_memory_allocated": lambda *_: 2**30,
        "synchronize": lambda *_: note("synchronize"),
    }
    with patch.multiple(torch.cuda, **driver), patch.object(FakeTensor, "tolist", tolist), mode, FakeGPU():
        yield waits


def _place() -> str:
    """actors/engine.py:Engine.step: the innermost function of this project or of a library that computes for it."""
    frame = sys._getframe(2)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_qualname
        for package in ("ultramed_rl", "benchmarks", "transformers", "peft"):
            if f"/{package}/" in file and "/tests/" not in file:
                inner = file.rsplit(f"/{package}/", 1)[-1]
                return f"{'' if package == 'ultramed_rl' else package + '/'}{inner}:{function}"
        frame = frame.f_back  # type: ignore[assignment]
    return threading.current_thread().name


def move(module: Any) -> Any:
    """`module.to("cuda")`, as it ends on a GPU: what is a parameter or a buffer goes, tied weights stay tied."""
    import torch

    moved: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    fake = parameter.detach().to("cuda", non_blocking=True)
                    moved[id(parameter)] = torch.nn.Parameter(fake, parameter.requires_grad)
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to("cuda", non_blocking=True)
    return module
