"""Rubrics: a judge's verdicts on the criteria that a prompt carries, and the points that an answer earns by them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramed_rl.config.benchmarks import Grader
from ultramed_rl.config.judge_models import POLICY
from ultramed_rl.config.rewards import RubricTerm
from ultramed_rl.config.rounds import RUBRIC_COLUMNS
from ultramed_rl.evaluation.rubrics import (
    Criterion,
    earned_share,
    read_rubric,
    read_verdicts,
    rubric_prompt,
    rubric_template,
)
from ultramed_rl.http.generator import ReplyStore
from ultramed_rl.http.session import ReplyRecord
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.judge_client import AlikeVerdicts, JudgeClient
from ultramed_rl.rewards.term import Scores, with_prompts
from ultramed_rl.store.digests import digest_inputs

logger = logging.getLogger(__name__)
_LEAST = 64  # verdicts from which on too many missing ones stop the run
_REMEMBERED = 2**17  # verdicts in memory
_WORDS = {True: "met", False: "not met"}
Verdicts = tuple[bool | None, ...]


@dataclass(frozen=True)
class AskedRubric:
    """An answer and the criteria that it is held against."""

    messages: Sequence[Message]
    answer: str
    criteria: Sequence[Criterion]


class RubricGrader:
    """Asks a judge which criteria answers meet, those of one answer together.

    A criterion that the reply has no verdict on is asked of alone, and then has none. A verdict that is known by the digest of
    judge, template, question, answer and criterion isn't asked for again.
    """

    def __init__(self, config: RubricTerm | Grader) -> None:
        """Raises ValueError: the key's variable isn't set, or the template cannot be used. RuntimeError: the cache cannot be
        opened. Connects to nothing."""
        self.config = config
        self.judge = JudgeClient(config)
        self.name = config.shown
        # What a policy that judges itself has said, it may not say with other weights.
        self._remembers = self.judge.engine != POLICY
        self.template = rubric_template(config.template)
        self._store = ReplyStore(Path(config.cache).expanduser(), "", self.name) if config.cache else None
        self._known: dict[str, bool] = {}
        self._said: Counter[bool | None] = Counter()  # verdicts so far; None for those that did not come
        self._alike = AlikeVerdicts(self.name)
        self._unread = ""  # the last reply without a verdict

    def grade(
        self, asked: Sequence[AskedRubric], advance: Callable[[int], None] | None = None
    ) -> list[Verdicts]:
        """Whether each criterion is met, by answer; None where the judge gave no verdict.

        Args:
            advance: told of each request that is done, from the calling thread.

        Raises:
            RuntimeError: the judge cannot be reached or refuses.
            ValueError: more than half of all criteria so far have no verdict.
        """
        digests = [[self._digest(one, c) for c in one.criteria] for one in asked]
        found: dict[str, bool] = {}
        for name in {name for names in digests for name in names}:
            if (known := self._find(name)) is not None:
                found[name] = known
        for size in (self.config.together, 1):
            parts, begun = [], set(found)
            for one, names in zip(asked, digests, strict=True):
                missing = [i for i, name in enumerate(names) if name not in begun]
                begun.update(names)
                parts += [(one, names, missing[i : i + size]) for i in range(0, len(missing), size)]
            prompts = [
                rubric_prompt(one.messages, one.answer, [one.criteria[i] for i in part], self.template)
                for one, _, part in parts
            ]
            replies = (
                self.judge.ask_for(prompts, lambda said: read_verdicts(said.text), advance) if prompts else []
            )
            for (_, names, part), reply in zip(parts, replies, strict=True):
                self._unread = self._unread if reply.value else reply.text
                for number, is_met in (reply.value or {}).items():
                    if 1 <= number <= len(part):
                        found[names[part[number - 1]]] = is_met
                        self._keep(names[part[number - 1]], is_met)
        verdicts = [tuple(found.get(name) for name in names) for names in digests]
        self._check(asked, verdicts)
        return verdicts

    def _check(self, asked: Sequence[AskedRubric], verdicts: Sequence[Verdicts]) -> None:
        said = self._said
        said.update(verdict for own in verdicts for verdict in own)
        missing = [
            criterion.text
            for one, own in zip(asked, verdicts, strict=True)
            for criterion, verdict in zip(one.criteria, own, strict=True)
            if verdict is None
        ]
        if missing:
            share = f"{said[None]} of {said.total()} criteria so far have no verdict"
            if said.total() >= _LEAST and 2 * said[None] > said.total():
                raise ValueError(
                    f"judge {self.name!r}: {share}, as {missing[0][:100]!r}, and a reply without any is "
                    f"{self._unread[-200:]!r}; raise max_tokens, lower together, or ask in the template for a line '1: met' or "
                    "'1: not met' for each"
                )
            logger.warning("rubric: %s, as %r; their answers have no reward", share, missing[0][:100])
        self._alike.see(_WORDS[v] for own in verdicts for v in own if v is not None)

    # -- what is known -------------------------------------------------------------------------------------

    def _digest(self, one: AskedRubric, criterion: Criterion) -> str:
        asked = [dict(message) for message in one.messages]
        return digest_inputs([self.name, self.template.template, asked, one.answer, criterion.text])

    def _find(self, digest: str) -> bool | None:
        if self._store is None or not self._remembers:
            return self._known.get(digest)
        said = self._store.find(bytes.fromhex(digest))
        return None if said is None else said == _WORDS[True]

    def _keep(self, digest: str, is_met: bool) -> None:
        if not self._remembers:
            return
        if self._store is not None:
            self._store.write(ReplyRecord(), bytes.fromhex(digest), _WORDS[is_met])
            return
        if len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[digest] = is_met


def rubric_of(prompt: Prompt, column: str | None) -> tuple[Criterion, ...]:
    """A prompt's criteria; none where it carries none. Raises ValueError: they cannot be used."""
    columns = prompt.columns
    names = RUBRIC_COLUMNS if column is None else (column,)
    value = next((columns[name] for name in names if columns.get(name) not in (None, "", [])), None)
    if value is None:
        return ()
    try:
        return read_rubric(value)
    except ValueError as error:
        asked = prompt.messages[-1]["content"][:60]
        raise ValueError(
            f"prompt {prompt.prompt_id} ({asked!r}): {error}; mend its rubric, or leave it out"
        ) from None


def check_rubrics(scorers: Iterable[object], prompts: Sequence[Prompt]) -> None:
    """Look at what terms and judges by rubric need of the prompts, before anything is asked. Raises ValueError: a rubric that cannot
    be used, or none on any prompt."""
    for scorer in scorers:
        if isinstance(scorer, RubricTerm):
            _check_rubrics(scorer, prompts)


def _check_rubrics(config: RubricTerm, prompts: Sequence[Prompt]) -> None:
    counts = [len(rubric_of(prompt, config.column)) for prompt in prompts]
    if not any(counts):
        named = config.column or " or ".join(RUBRIC_COLUMNS)
        raise ValueError(
            f"rubric {config.name!r}: none of {len(counts)} prompts has criteria in column {named}; name their column in "
            "prompts.sources.columns and as its column"
        )
    if without := counts.count(0):
        logger.warning(
            "%s: %d of %d prompts carry no rubric; their answers get 0", config.name, without, len(counts)
        )


class RubricReward:
    """Points of the criteria that an answer meets, over all positive points of its prompt's rubric (arXiv 2507.17746, with
    HealthBench's signed points, arXiv 2505.08775). Where a prompt has no rubric, all its answers get 0, which leaves their
    order to the other terms."""

    def __init__(self, config: RubricTerm) -> None:
        self.config = config
        self.grader = RubricGrader(config)
        self.judge = self.grader.judge

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """0 to 1, or below 0 without `clip`; NaN where a criterion has no verdict. Each verdict is kept, 1 for met.

        Raises:
            RuntimeError: the judge cannot be reached or refuses.
            ValueError: more than half of all criteria so far have no verdict.
        """
        rubrics = {prompt.prompt_id: rubric_of(prompt, self.config.column) for prompt in prompts}
        pairs = with_prompts(prompts, completions)
        asked = [AskedRubric(p.messages, c.text, rubrics[p.prompt_id]) for p, c in pairs]
        scores = Scores.empty(len(asked))
        for place, (one, verdicts) in enumerate(zip(asked, self.grader.grade(asked), strict=True)):
            said = [(c, v) for c, v in zip(one.criteria, verdicts, strict=True) if v is not None]
            scores.details[place] = {
                f"{self.config.name} [{c.points:+g}] {c.text}": float(v) for c, v in said
            }
            if len(said) == len(one.criteria):
                share = earned_share(one.criteria, [v for _, v in said]) if said else 0.0
                scores.values[place] = min(1.0, max(0.0, share)) if self.config.clip else share
        return scores
