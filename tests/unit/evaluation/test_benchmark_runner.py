"""A suite's questions, from rows on disk through engines that answer by rule to a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tokenizer, tiny_config
from tests.unit.rewards.test_http import asked, chat, serving
from ultramed_rl.config.benchmarks import Benchmarks, ContaminationCheck
from ultramed_rl.config.judge_models import StatementJudge
from ultramed_rl.config.rewards import AnswerTerm
from ultramed_rl.evaluation.contamination import check_readable
from ultramed_rl.evaluation.runner import AnswerPlace, AskedPolicy, BenchmarkRunner
from ultramed_rl.evaluation.suite import check_task, load_suite
from ultramed_rl.evaluation.tasks import TASKS
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import (
    Completion,
    OptionLogprobs,
    OptionRequest,
    Prompt,
    SamplingRequest,
    ScoredCompletion,
)
from ultramed_rl.rewards.benchmark_judges import StatementGrader, judge_statements
from ultramed_rl.rewards.rules import AnswerMatch
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress

DRUGS = ("aspirin", "valium", "insulin", "codeine")
DECISIONS = ("yes", "no", "maybe")


@dataclass
class Engines:
    """Finds the option that the question names, by its text; the last question's answers come first."""

    calls: list[str] = field(default_factory=list)

    def stream_options(self, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]:
        self.calls.append("options")
        for request in reversed(requests):
            context = make_tokenizer().decode(request.context)
            if "Abstract:" in context:
                chosen = DECISIONS.index(context.rpartition("really ")[2].split("?")[0])
            else:
                wanted = context.partition("Which is ")[2].split("?")[0]
                chosen = [line[3:] for line in context.splitlines() if line[1:3] == ". "].index(wanted)
            values = tuple(-1.0 if k == chosen else -2.0 - k for k in range(len(request.options)))
            yield OptionLogprobs(request.question_id, values, version)

    def stream_completions(
        self, requests: Sequence[SamplingRequest], version: int
    ) -> Iterator[list[Completion]]:
        self.calls.append("completions")
        for request in reversed(requests):
            text = request.prompt.messages[-1]["content"]
            wanted = text.partition("Which is ")[2].split("?")[0]
            letters = {line[3:]: line[0] for line in text.splitlines() if line[1:3] == ". "}
            said = f"So, the answer is {letters.get(wanted, '?')}."
            name = request.prompt.prompt_id
            yield [Completion(name, i, said, (i,), "stop", 0.0, version) for i in range(request.n)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def suite_tasks(tmp_path: Path) -> list[dict[str, str]]:
    """Six drugs of which four are named after their key, and three abstracts of which two are."""
    drugs = []
    for i, named in enumerate(("aspirin", "valium", "insulin", "codeine", "aspirin", "valium")):
        key = named if i < 4 else "codeine"
        options = {letter: drug for letter, drug in zip("ABCD", DRUGS, strict=True)}
        answer = "ABCD"[DRUGS.index(key)]
        drugs.append(
            {"question": f"Which is {named}?", "options": options, "answer_idx": answer, "id": str(i)}
        )
    abstracts = [
        {"QUESTION": f"Is it really {said}?", "CONTEXTS": ["Rats."], "final_decision": key, "id": said}
        for said, key in (("yes", "yes"), ("no", "no"), ("maybe", "no"))
    ]
    return [
        {"name": "medqa", "uri": write_rows(tmp_path / "medqa.jsonl", drugs)},
        {"name": "pubmedqa", "uri": write_rows(tmp_path / "pubmedqa.jsonl", abstracts)},
    ]


@pytest.fixture
def tokenizer(tmp_path: Path) -> ChatTokenizer:
    make_tokenizer().save_pretrained(tmp_path / "policy")
    tiny_config().save_pretrained(tmp_path / "policy")
    return ChatTokenizer(str(tmp_path / "policy"))


def runner_of(tasks: list[Any], protocols: list[Any], **settings: Any) -> BenchmarkRunner:
    config = Benchmarks.model_validate({"tasks": tasks, "protocols": protocols, **settings})
    return BenchmarkRunner(config, load_suite(config, 1), 1, 4096, Progress())


def ask(
    runner: BenchmarkRunner, policy: AskedPolicy, folder: Path, engines: Engines, version: int = 0
) -> AskedPolicy:
    """The policy with what it gave."""
    asked = replace(policy)
    runner.ask(asked, AnswerPlace(ArtifactFolder(folder), version), lambda: engines)
    return asked


PROTOCOLS = [
    {"type": "likelihood"},
    {"type": "greedy", "max_new_tokens": 16},
    {"type": "self_consistency", "samples": 2, "max_new_tokens": 16},
]


def test_answers_in_any_order_are_graded_as_their_own_questions(
    suite_tasks: list[dict[str, str]], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    runner = runner_of(suite_tasks, PROTOCOLS, orders=2)
    policy = runner.prepare("p", "p", tokenizer)
    assert len(policy.options) == len(policy.prompts) == 6 * 3 + 3, "only medqa's options may be moved"
    report = runner.report(ask(runner, policy, tmp_path / "run", Engines()))
    found = {(r.task, r.protocol): r for r in report.results}
    for protocol in ("likelihood", "greedy", "self_consistency"):
        assert found["medqa", protocol].score.accuracy == pytest.approx(4 / 6), protocol
    assert found["pubmedqa", "likelihood"].score.accuracy == pytest.approx(2 / 3)
    positions = found["medqa", "greedy"].positions
    assert positions is not None and (positions.orders, positions.consistency) == (3, 1.0)
    assert found["pubmedqa", "likelihood"].positions is None
    assert found["medqa", "self_consistency"].samples == 12


def test_what_is_answered_starts_no_engine_and_serves_no_other_version(
    suite_tasks: list[dict[str, str]], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    runner = runner_of(suite_tasks, PROTOCOLS[:2])
    policy = runner.prepare("p", "p", tokenizer)
    first = ask(runner, policy, tmp_path / "run", Engines())
    idle = Engines()
    assert ask(runner, policy, tmp_path / "run", idle) == first and first.greedy and idle.calls == []
    with pytest.raises(ValueError, match=r"\([0-9a-f]{12}, [a-z]+ [0-9a-f]{12}\)"):
        ask(runner, policy, tmp_path / "run", idle, version=1)


def test_scorers_never_see_the_key(
    suite_tasks: list[dict[str, str]], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    runner = runner_of(suite_tasks[:1], PROTOCOLS[2:])
    policy = ask(runner, runner.prepare("p", "p", tokenizer), tmp_path / "run", Engines())
    term = AnswerMatch(AnswerTerm(type="answer"))

    def score(prompts: Sequence[Prompt], samples: Sequence[Completion]) -> list[ScoredCompletion]:
        values = term.score(prompts, samples)
        return [ScoredCompletion(sample, value) for sample, value in zip(samples, values, strict=True)]

    runner.reward(policy, AnswerPlace(ArtifactFolder(tmp_path / "run")), score)
    assert [scored.completion for scored in policy.rewards] == policy.samples
    assert {scored.reward for scored in policy.rewards} == {0.0}, "reranking would be an oracle"


def test_without_tasks_a_base_model_is_asked_nothing(tmp_path: Path) -> None:
    config = Benchmarks.model_validate({"general": {"tasks": ["mmlu"]}})
    runner = BenchmarkRunner(config, load_suite(config, 1), 1, 4096, Progress())
    policy = runner.prepare("base", str(tmp_path / "nothing"), None)
    report = runner.report(ask(runner, policy, tmp_path / "run", Engines()))
    assert (report.results, report.metrics) == ((), {})


@pytest.mark.parametrize(
    ("task", "protocols", "expected"),
    [
        ("bioasq_list", ["likelihood"], "greedy"),
        ("kqa", ["likelihood", "self_consistency"], "greedy"),
        ("kqa", ["likelihood", "greedy"], None),
        ("bioasq_factoid", ["self_consistency"], None),
        ("pubmedqa", ["likelihood"], None),
    ],
)
def test_a_task_that_no_protocol_asks_is_refused(
    task: str, protocols: list[str], expected: str | None
) -> None:
    judge = {"model": "j", "base_url": "http://127.0.0.1:9/v1"}
    tasks = [{"name": task, "uri": "rows.jsonl"}]
    config = Benchmarks.model_validate({"tasks": tasks, "protocols": protocols, "judge": judge})
    if expected is None:
        assert check_task(config, config.tasks[0]) is TASKS[task]
        return
    with pytest.raises(
        ValueError, match=rf"'{task}': benchmarks\.protocols=\[{', '.join(protocols)}\] .*\b{expected}\b"
    ):
        check_task(config, config.tasks[0])


def test_a_judge_is_asked_once_and_its_verdicts_can_be_read(
    tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"Question": f"Is {drug} safe?", "Must_have": [f"{drug} is", "good"], "Nice_to_have": ["dose"]}
        for drug in ("aspirin", "valium")
    ]
    tasks = [{"name": "kqa", "uri": write_rows(tmp_path / "kqa.jsonl", rows)}]
    named = {"model": "j", "base_url": "http://127.0.0.1:9/v1"}
    runner = runner_of(tasks, PROTOCOLS[1:2], judge=named)
    policy = runner.prepare("p", "p", tokenizer)
    answered = runner.judged(ask(runner, policy, tmp_path / "run", Engines()), "statements")
    cut = Completion(answered[1][1].prompt_id, 0, "Yes\u2028indeed", (1,), "length", 0.0, 0)
    answered[1] = (answered[1][0], cut)
    seen: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        text = asked(request)
        seen.append(text)
        return 200, chat(
            "Verdict: entailed" if "aspirin is" in text or "dose" in text else "Verdict: neutral"
        )

    with serving(answer) as url:
        judge = StatementGrader(StatementJudge(model="j", base_url=f"{url}/v1"))
        place = AnswerPlace(ArtifactFolder(tmp_path / "run"), suffix="-p")
        first = judge_statements(judge, answered, place, Progress(), 0)
        # Of aspirin's two statements one is entailed, of valium's none.
        assert first.comprehensiveness is not None and first.comprehensiveness.mean == pytest.approx(0.25)
        assert len(seen) == 6
        assert judge_statements(judge, answered, place, Progress(), 0) == first
        assert len(seen) == 6, "a judge that costs money was asked again"
    assert re.search(r"\b1 of 2 .*\bmax_new_tokens\b", capsys.readouterr().out)
    lines = (tmp_path / "run" / "statements-p" / "verdicts.jsonl").read_text(encoding="utf-8").split("\n")
    kept = [json.loads(line) for line in lines if line]
    assert kept[0]["must_have_verdicts"] == ["entailed", "neutral"] and kept[1]["cut"] is True


def test_sources_that_cannot_be_searched_are_told_before_an_engine_starts(tmp_path: Path) -> None:
    odd = write_rows(tmp_path / "odd.jsonl", [{"content": "x"}])
    good = write_rows(tmp_path / "good.jsonl", [{"prompt": "x"}])
    check_readable(ContaminationCheck(embedder=None, sources=[good]))
    with pytest.raises(ValueError, match=r"benchmarks\.contamination\.sources=.*odd\.jsonl"):
        check_readable(ContaminationCheck(embedder=None, sources=[good, odd]))
    with pytest.raises(ValueError, match="/none':"):
        check_readable(ContaminationCheck(embedder=str(tmp_path / "none")))
