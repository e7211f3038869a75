"""AlpacaEval 2, instructions whose answers a judge sets beside a baseline's (Dubois et al. 2024, arXiv 2404.04475).

`alpaca_eval_gpt4_baseline.json`, which the authors give out on the hub, holds 805 rows: `instruction`, `output` (GPT-4 Turbo's)
and `dataset`. Items are called by their places, since the difficulties and gamed verdicts in the authors' `df_gamed.csv`
(`difficulties` of the task) name them so.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Item, Row, Task


def read_row(row: Row) -> Item:
    """An instruction with the baseline's answer."""
    return Item(
        "", row.question("instruction"), subject=row.optional("dataset"), beside=(row.text("output"),)
    )


ALPACA_EVAL = Task(
    "alpaca_eval", (), read_row, lambda item: item.question.strip(), form="preference", numbered=True
)
