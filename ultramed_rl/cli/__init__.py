"""`ultramed-rl <command> CONFIG [section.key=value ...]`: parse and validate first, then load what computes.

Exit codes: 0 done, 1 the run failed, 2 the config or command line is wrong, 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import sys

# Each of these adds its commands; --help shows them in this order.
from ultramed_rl.cli import runs  # isort: skip
from ultramed_rl.cli import repeat  # isort: skip
from ultramed_rl.cli import evaluations  # isort: skip
from ultramed_rl.cli import reading  # isort: skip
from ultramed_rl.cli import push  # isort: skip
from ultramed_rl.cli import jobs  # isort: skip
from ultramed_rl.cli import doctor  # isort: skip
from ultramed_rl.cli.program import app
from ultramed_rl.tracking.heartbeat import take_sigterm

__all__ = ["app", "doctor", "evaluations", "jobs", "main", "push", "reading", "repeat", "runs"]


def main() -> None:
    """Entry point."""
    take_sigterm()
    sys.exit(app())
