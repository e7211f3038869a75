"""A run's copy at a URL: what is finished in its folder is published there, and a fresh machine goes on from it.

folder -- publish --> URL        (a thread, every few seconds; files first, then the index that names them)
folder <--- pull ---- URL        (before a run is taken up)
"""

from ultramed_rl.store.remote.copy import RemoteCopy, check_url
from ultramed_rl.store.remote.reading import at_hand

__all__ = ["RemoteCopy", "at_hand", "check_url"]
