"""A run's copy at a URL: what a run makes in its folder is published there, and a fresh machine goes on from it.

folder --snapshot--> plan --publisher--> URL        (a thread, every few seconds; data first, then what names it)
folder <-------------- pull ------------ URL        (before a run is taken up)
"""

from ultramed_rl.store.remote.mirror import Mirror, check_url
from ultramed_rl.store.remote.reading import at_hand

__all__ = ["Mirror", "at_hand", "check_url"]
