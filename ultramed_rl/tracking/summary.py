"""The table of rounds, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Metrics = dict[str, float]
Columns = Sequence[tuple[str, str]]  # a heading, and the format of a row's cell under it

_ROUNDS: Columns = [
    ("round", "{round:.0f}"),
    ("pairs", "{pairs:.0f}"),
    ("margin", "{margin_mean:.2f}"),
    ("loss", "{loss_first:.3f}>{loss_last:.3f}"),
    ("acc", "{implicit_accuracy:.2f}"),
    ("KL", "{kl_to_reference:.2f}"),
    ("reward", "{reward_mean:.2f}"),
    ("held-out", "{eval_reward_mean:.2f}"),
    ("vs start (95 %)", "{eval_change:+.2f} [{eval_change_low:+.2f}, {eval_change_high:+.2f}]"),
    ("wins", "{eval_win_rate:.2f}"),
    ("tokens", "{eval_length_mean:.0f}"),
    ("ended", "{eval_finished_share:.2f}"),
    ("sync s", "{sync_seconds:.1f}"),
    ("s", "{seconds:.0f}"),
]
_POLICIES: Columns = [
    ("policy", "{name}"),
    ("reward", "{reward_mean:.2f}"),
    ("vs first (95 %)", "{change:+.2f} [{change_low:+.2f}, {change_high:+.2f}]"),
    ("wins", "{win_rate:.2f}"),
    ("tokens", "{length_mean:.0f}"),
    ("ended", "{finished_share:.2f}"),
]
_SUBSETS: Columns = [
    ("subset", "{name}"),
    ("accuracy", "{accuracy:.2%}"),
    ("95 %", "[{low:.1%}, {high:.1%}]"),
    ("pairs", "{pairs:.0f}"),
    ("ties", "{ties:.0f}"),
    ("not finite", "{non_finite:.0f}"),
    ("too long", "{too_long:.0f}"),
    ("without", "{missing}"),
]


def render_rounds(rows: Sequence[Metrics]) -> str:
    """Rounds as a table of plain text. `reward` is of the round's samples, the next columns are held out."""
    return render_table(_ROUNDS, rows)


def render_comparison(policies: Mapping[str, Metrics]) -> str:
    """Policies on the same held-out prompts, each against the first."""
    return render_table(_POLICIES, [{"name": name, **metrics} for name, metrics in policies.items()])


def render_subsets(rows: Sequence[Mapping[str, Any]]) -> str:
    """A reward model's accuracy by subset, and the averages under them."""
    return render_table(_SUBSETS, rows)


def render_table(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as plain text; a dash where a row lacks what a format names."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*[_cell(template, row) for _, template in columns])
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _cell(template: str, row: Mapping[str, Any]) -> str:
    try:
        return template.format(**row)
    except KeyError:
        return "-"


def verdict(last: Metrics) -> str:
    """What the last round's held-out evaluation says, honest about its uncertainty."""
    change, low, high = last["eval_change"], last["eval_change_low"], last["eval_change_high"]
    interval = f"95 % interval {low:+.3f} to {high:+.3f}, wins {last['eval_win_rate']:.0%}"
    detail = f"{change:+.3f} against the starting policy ({interval})"
    if low > 0:
        return f"The held-out reward rose: {detail}."
    if high < 0:
        return f"The held-out reward fell: {detail}."
    return f"The held-out reward did not move measurably: {detail}."
