"""What all tests have in common."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure: no example has a time limit.
settings.register_profile("ultramed_rl", deadline=None)
settings.load_profile("ultramed_rl")
