"""The rules by which each role's pool works, out of a config."""

from __future__ import annotations

import math

from ultramed_rl.cluster.dispatch import DispatchRules
from ultramed_rl.cluster.pool import FaultRules, PoolRules
from ultramed_rl.config.cluster import Faults

_WAVES = 2  # full batches that a worker is given at once, so that the next is there when one is done


def engine_rules(faults: Faults, max_num_seqs: int) -> PoolRules:
    """Engines: room is counted in sequences, requests outlast a turn, stragglers are copied."""
    dispatch = DispatchRules(_WAVES * max_num_seqs, faults.attempts)
    return PoolRules(dispatch, fault_rules(faults), depth=2, lasting=True)


def scorer_rules(
    faults: Faults, batch_tokens: int, actors: int, upstream: str, *, ranks: bool = False
) -> PoolRules:
    """Replicas: room is counted in tokens; `actors` in lockstep share one turn.

    One turn at a time: while it is computed, the next one's requests gather. `ranks` of a policy are not the pool's
    to replace.
    """
    dispatch = DispatchRules(_WAVES * batch_tokens * actors, faults.attempts, copy_after=math.inf)
    rules = fault_rules(faults, 0) if ranks else fault_rules(faults)
    return PoolRules(dispatch, rules, depth=1, lasting=False, upstream=(upstream,), ranks=ranks)


def fault_rules(faults: Faults, restarts: int | None = None) -> FaultRules:
    """The config's rules; `restarts` in place of its number."""
    allowed = faults.restarts if restarts is None else restarts
    return FaultRules(allowed, faults.hang_s, faults.start_s, faults.allow_fewer_workers)
