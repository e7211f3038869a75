"""What all tests have in common."""

from __future__ import annotations

import signal

from hypothesis import settings

# A busy machine is no failure: no example has a time limit.
settings.register_profile("ultramed_rl", deadline=None)
settings.load_profile("ultramed_rl")

# A suite that a shell runs in the background ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
