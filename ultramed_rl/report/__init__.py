"""Reports of runs, each as one HTML file: what a run came to, and how several compare.

run directory --> records read back (RunReader, answers, online_run) --> sections --> page
"""

from ultramed_rl.report.build import write_report
from ultramed_rl.report.comparison import write_comparison

__all__ = ["write_comparison", "write_report"]
