"""Online iterative preference learning for specialised language models, on Ray.

              +------------------------------ one round ------------------------------+
    prompts --> rollout engines --> reward model --> pair selection --> reference     |
    (data)      (vLLM, version k)   (scores)         (chosen, rejected) (logprobs)    |
                      ^                                                     |         |
                      |                                                     v         |
                      +--------- weights of version k+1 ---------- policy (DeepSpeed) |
              +-----------------------------------------------------------------------+
                      store: every artifact, atomically, with the digest of its inputs

Read `online/controller.py` first: it is this figure in code. `config/` says what a run is, `workers/` are the groups that it
calls, `scheduling/` who of them computes what next, `cluster/` where they run, `actors/` what each does, `learning/` the maths,
`data/` where prompts come from, `store/` what is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultramed_rl.config import RunConfig, load_config, parse_config
    from ultramed_rl.online.run import RunResult, run

__version__ = "0.1.0"
__all__ = ["RunConfig", "RunResult", "load_config", "parse_config", "run"]


def __getattr__(name: str) -> Any:
    """Load on first use, so that `import ultramed_rl` costs no torch."""
    if name in ("RunConfig", "load_config", "parse_config"):
        from ultramed_rl import config

        return getattr(config, name)
    if name in ("RunResult", "run"):
        from ultramed_rl.online import run as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
