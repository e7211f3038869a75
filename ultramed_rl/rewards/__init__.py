r"""Scorers of the loop: terms over the same prompts and completions, summed by weight.

    prompts      --> rules.py  right answer, length, form --\
    completions  --> http.py   a reward server            --+--> term.py --> one reward a completion
                 --> judge.py  a language model's grade   --+
                 --> rubric.py  the criteria that are met --+
                 --> function.py  a function of your own  --/

It asks them all, in a thread of its own. `judge_client.py` asks language models, behind an API or on the
run's own engines.
Judges of held-out answers are of the same form, and are not summed; likeness.py is one of them alone.

`server.py` is the other end of `http.py`: this project's reward model behind OpenRLHF's protocol. To add a
term: its file here, its section in `ultramed_rl.config.rewards`, its line in `TERMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ultramed_rl.config.judges import Likeness, RuleCheck
from ultramed_rl.config.rewards import RewardTerm
from ultramed_rl.rewards.function import PythonFunction
from ultramed_rl.rewards.http import RewardClient
from ultramed_rl.rewards.judge import Judge
from ultramed_rl.rewards.likeness import AnswerLikeness
from ultramed_rl.rewards.pairwise import PairwiseJudge
from ultramed_rl.rewards.rubric import RubricReward
from ultramed_rl.rewards.rules import AnswerLength, AnswerMatch, FormatRules
from ultramed_rl.rewards.term import (
    Columns,
    Scores,
    Term,
    TermScorer,
    combine_members,
    score_terms,
    weighted_sum,
)

__all__ = [
    "TERMS",
    "Columns",
    "Scores",
    "Term",
    "TermScorer",
    "combine_members",
    "make_term",
    "score_terms",
    "weighted_sum",
]

# (the term's section, the policy's ChatTokenizer) to the term
TERMS: Mapping[str, Callable[[Any, Any], Term]] = {
    "answer": lambda config, _: AnswerMatch(config),
    "length": lambda config, _: AnswerLength(config),
    "format": lambda config, _: FormatRules(config),
    "http": RewardClient,
    "judge": lambda config, _: Judge(config),
    "pairwise": lambda config, _: PairwiseJudge(config),
    "rubric": lambda config, _: RubricReward(config),
    "python": lambda config, _: PythonFunction(config),
    "rule": lambda config, _: FormatRules(config),
    "likeness": lambda config, _: AnswerLikeness(config),
}


def make_term(config: RewardTerm | RuleCheck | Likeness, tokenizer: Any = None) -> Term:
    """The scorer that a config section describes; an http term without a tokenizer of its own needs the policy's. Opens no
    connection. Raises ValueError: a secret's environment variable isn't set, or a template or tokenizer cannot be used."""
    return TERMS[config.type](config, tokenizer)
