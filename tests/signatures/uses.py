"""What our code asks of vLLM, DeepSpeed and flash-attn, read off its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ultramed_rl"
ROOMS = ("actors", "cluster", "models")
LIBRARIES = ("vllm", "deepspeed", "flash_attn", "flash_attn_interface")

_LLM, _ENGINE = "vllm.entrypoints.llm.LLM", "vllm.v1.engine.llm_engine.LLMEngine"
_DEEPSPEED = "deepspeed.runtime.engine.DeepSpeedEngine"
# Of what kind an expression of a file is, where syntax can't tell.
Kinds = dict[str, str | tuple[str, ...]]  # several: any of them may be called, and all must fit
_BACKEND: Kinds = {
    "backend": _DEEPSPEED,
    "self.backend": _DEEPSPEED,
    "self.backend.optimizer": "deepspeed_optimizer",
    "optimizer": "deepspeed_optimizer",
}
_ENGINES: Kinds = {
    "self.llm": _LLM,
    "llm": _LLM,
    "self.llm.llm_engine": _ENGINE,
    "engine": _ENGINE,
    "output": "vllm.outputs.RequestOutput",
    "answer": "vllm.outputs.CompletionOutput",
    "entry": "vllm.logprobs.Logprob",
}
KINDS: dict[str, Kinds] = {
    "actors/rollout.py": _ENGINES,
    "actors/options.py": _ENGINES,
    "actors/weight_sync.py": {"chunk": "vllm.distributed.weight_transfer.packed_tensor.PackedIpcChunk"},
    "actors/engine.py": _BACKEND,
    "actors/engine_state.py": _BACKEND,
    "actors/deepspeed_setup.py": {"backend": _DEEPSPEED},
    "models/kernels.py": {"import_module(FLASH[kernel])": ("flash_attn", "flash_attn_interface")},
    "actors/shared_memory.py": {
        "self.model": "vllm.distributed.weight_transfer.base.WeightTransferEngine.model",
        "self.model_config": "vllm.distributed.weight_transfer.base.WeightTransferEngine.model_config",
    },
}
# One of these: which, the ZeRO stage and the precision say.
ALTERNATIVES = {
    "deepspeed_optimizer": (
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
        "deepspeed.runtime.fp16.unfused_optimizer.FP16_UnfusedOptimizer",
        "torch.optim.optimizer.Optimizer",
    )
}
_TRANSFER = "vllm.distributed.weight_transfer"
# Functions whose dictionaries are theirs to read: their keys are names of these records, or constants of these modules.
DICTIONARIES: dict[str, tuple[str, ...]] = {
    "actors/weight_sync.py NcclSender.__init__": (f"{_TRANSFER}.nccl_common.NCCLWeightTransferInitInfo",),
    "actors/weight_sync.py IpcSender.__init__": (f"{_TRANSFER}.ipc_engine.IPCWeightTransferInitInfo",),
    "actors/rollout.py RolloutWorker._device_arguments": ("vllm.engine.arg_utils.EngineArgs",),
    "actors/rollout.py RolloutWorker._add": ("vllm.sampling_params.SamplingParams",),
    "actors/deepspeed_setup.py deepspeed_config": (
        "deepspeed.runtime.constants",
        "deepspeed.runtime.zero.config",
        "deepspeed.runtime.zero.config.DeepSpeedZeroConfig",
        "deepspeed.runtime.zero.offload_config.DeepSpeedZeroOffloadOptimizerConfig",
        "deepspeed.runtime.precision_config.DeepSpeedBF16Config",
    ),
    "actors/deepspeed_setup.py inference_config": (
        "deepspeed.runtime.constants",
        "deepspeed.runtime.zero.config",
        "deepspeed.runtime.zero.config.DeepSpeedZeroConfig",
        "deepspeed.runtime.zero.offload_config.DeepSpeedZeroOffloadParamConfig",
        "deepspeed.runtime.precision_config.DeepSpeedBF16Config",
    ),
}
# Whose further keywords go to whom.
FORWARDED = {"vllm.LLM": "vllm.engine.arg_utils.EngineArgs"}


@dataclass(frozen=True)
class Use:
    """A name of theirs in our code; of a call, what it is given."""

    where: str  # file:line
    name: str  # dotted, from the library on
    called: bool = False
    positional: int = 0
    keywords: tuple[str, ...] = ()
    open: bool = False  # with * or **: more may be given than is seen


# Of packages that are asked for by name when a model runs.
CHOSEN_LATER = tuple(
    Use("cluster.attention", f"{package}.flash_attn_varlen_func", called=True)
    for package in ("flash_attn", "flash_attn_interface")
)


def uses() -> Iterator[Use]:
    """All of our code's."""
    for room in ROOMS:
        for file in sorted((PACKAGE / room).glob("*.py")):
            place = f"{room}/{file.name}"
            yield from uses_of(ast.parse(file.read_text(encoding="utf-8")), place, KINDS.get(place, {}))


def uses_of(tree: ast.Module, place: str, kinds: Kinds) -> Iterator[Use]:
    """One file's."""
    names: Kinds = dict(_imports(tree)) | kinds
    for node in ast.walk(tree):
        where = f"{place}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and _theirs(node.module or ""):
            yield from (Use(where, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func) == "getattr":
            if isinstance(node.args[1], ast.Constant):
                yield from (Use(where, f"{n}.{node.args[1].value}") for n in _resolve(node.args[0], names))
        elif isinstance(node, ast.Call):
            keywords = tuple(k.arg for k in node.keywords if k.arg is not None)
            starred = any(isinstance(a, ast.Starred) for a in node.args) or len(keywords) < len(node.keywords)
            positional = sum(not isinstance(a, ast.Starred) for a in node.args)
            for name in _resolve(node.func, names):
                yield Use(where, name, True, positional, keywords, starred)
        elif isinstance(node, ast.Attribute) and _dotted(node) not in kinds:
            yield from (Use(where, name) for name in _resolve(node, names))


def subclasses() -> Iterator[tuple[str, str, dict[str, list[str]]]]:
    """Our classes that are of theirs: where, the base, and what each method takes."""
    for room in ROOMS:
        for file in sorted((PACKAGE / room).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names = dict(_imports(tree))
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                for base in (b.value if isinstance(b, ast.Subscript) else b for b in node.bases):
                    for name in _resolve(base, names):
                        own = (m for m in node.body if isinstance(m, ast.FunctionDef))
                        methods = {m.name: [a.arg for a in m.args.args] for m in own}
                        yield f"{room}/{file.name}:{node.lineno}", name, methods


def keys() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Of each function in `DICTIONARIES`: where a key stands, whose it must be, and the key."""
    for function, owners in DICTIONARIES.items():
        place, name = function.split()
        body = _function(ast.parse((PACKAGE / place).read_text(encoding="utf-8")), name.split("."))
        for node in ast.walk(body):
            found: list[ast.expr | None] = []
            if isinstance(node, ast.Dict):
                found = node.keys
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                found = [node.slice]
            for key in found:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield f"{place}:{node.lineno}", owners, key.value


def _function(tree: ast.AST, names: list[str]) -> ast.AST:
    for name in names:
        tree = next(n for n in ast.walk(tree) if getattr(n, "name", None) == name)
    return tree


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _theirs(node.module or ""):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _theirs(alias.name):
                    bound = alias.asname or alias.name.split(".")[0]
                    yield bound, alias.name if alias.asname else bound


def _theirs(module: str) -> bool:
    return module.split(".")[0] in LIBRARIES


def _dotted(node: ast.expr) -> str:
    """The text of a name, of attributes of one, or of a call's result and its attributes; else none."""
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Call) else ""


def _resolve(node: ast.expr, names: Kinds) -> list[str]:
    """The libraries' names of an expression: that of its longest known beginning, and the rest."""
    text = _dotted(node)
    known = [head for head in names if text == head or text.startswith(f"{head}.")]
    head = max(known, key=len, default="")
    if not head or "(" in text[len(head) :]:  # of a result nothing is known
        return []
    owners = names[head]
    return [owner + text[len(head) :] for owner in ([owners] if isinstance(owners, str) else owners)]
