"""Telling people and programs: metrics, progress, the status of a run, the table of rounds."""

from ultramed_rl.tracking.console import Progress
from ultramed_rl.tracking.heartbeat import watched
from ultramed_rl.tracking.tables import render_rounds
from ultramed_rl.tracking.tracker import Tracker

__all__ = ["Progress", "Tracker", "render_rounds", "watched"]
