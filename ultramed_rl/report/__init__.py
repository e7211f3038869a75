"""Reports of runs, each as one HTML file: what a run came to, and how several compare.

run directory --> what its files hold (RunReader, answers, online_run, contents) --> a template of html/ --> page

A sentence, a figure's place or a column of a table is a line of the template.
"""

from ultramed_rl.report.build import write_report
from ultramed_rl.report.comparison import write_comparison

__all__ = ["write_comparison", "write_report"]
