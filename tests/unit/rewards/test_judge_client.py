"""Asking a judge on engines, which another thread serves, and grades weighed by probability: by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.rewards.test_http import chat, serving
from ultramed_rl.config.rewards import JudgeTerm, Scale
from ultramed_rl.records import ChatRequest, Completion, Message, Prompt, TokenChoice
from ultramed_rl.rewards.judge import Judge, expected_grade
from ultramed_rl.rewards.judge_client import JudgeClient, JudgeReply, NoReply, settle

FIVE = Scale(low=1.0, high=5.0)


@contextmanager
def served(client: JudgeClient, answer: Callable[[ChatRequest], JudgeReply | NoReply]) -> Iterator[None]:
    """Within, a thread answers what the client asks engines."""
    over = threading.Event()

    def serve() -> None:
        while not over.wait(0.001):
            for request, future in client.requests.take():
                settle(future, answer(request))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def judge(**section: Any) -> Judge:
    return Judge(JudgeTerm.model_validate({"engine": "policy", **section}))


def grades(term: Judge, count: int, answer: Callable[[ChatRequest], JudgeReply | NoReply]) -> list[float]:
    prompt = Prompt("p", (Message(role="user", content="p?"),))
    with served(term.judge, answer):
        return term.score(
            [prompt], [Completion("p", i, f"text {i}", (1,), "stop", 0.0, 0) for i in range(count)]
        )


def test_engines_are_asked_as_an_api_is() -> None:
    asked: list[ChatRequest] = []

    def answer(request: ChatRequest) -> JudgeReply:
        asked.append(request)
        text = request.messages[0]["content"]
        return JudgeReply(f"Grade: {10 if 'text 0' in text else 1}")

    assert grades(judge(), 2, answer) == [1.0, 0.0]
    assert {(r.temperature, r.max_tokens) for r in asked} == {(0.0, 256)}
    assert all(r.seed is not None for r in asked)


def test_samples_are_drawn_apart_and_the_same_each_time() -> None:
    seeds: list[set[int | None]] = []
    for _ in range(2):
        seen: list[int | None] = []

        def answer(request: ChatRequest, seen: list[int | None] = seen) -> JudgeReply:
            seen.append(request.seed)
            return JudgeReply("Grade: 7")

        grades(judge(samples=3, temperature=1.0), 2, answer)
        assert len(set(seen)) == 6
        seeds.append(set(seen))
    assert seeds[0] == seeds[1]


def test_a_reply_that_cannot_be_read_is_asked_for_otherwise() -> None:
    """The likeliest tokens would be the same again."""
    warmth: list[float] = []

    def answer(request: ChatRequest) -> JudgeReply:
        warmth.append(request.temperature)
        return JudgeReply("Hm." if len(warmth) == 1 else "Grade: 10")

    assert grades(judge(), 1, answer) == [1.0] and warmth == [0.0, 0.7]


def test_what_engines_cannot_answer_has_no_grade() -> None:
    def answer(request: ChatRequest) -> JudgeReply | NoReply:
        return NoReply("too long") if "text 0" in request.messages[0]["content"] else JudgeReply("Grade: 1")

    first, *others = grades(judge(), 3, answer)
    assert math.isnan(first) and others == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"'policy': 1 of 1 .*'too long'"):
        grades(judge(), 1, answer)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("<think>Grade: 2</think>\nGrade: 9", "Grade: 9"),
        ("Grade: 2</think>Grade: 9", "Grade: 9"),
        ("[THINK]Grade: 2[/THINK]Grade: 9", "Grade: 9"),
        ("<think>Grade: 2, or", ""),
        ("Grade: 9", "Grade: 9"),
    ],
)
def test_a_thought_is_cut(reply: str, read: str) -> None:
    client = judge(retries=0).judge
    with served(client, lambda _: JudgeReply(reply)):
        (found,) = client.ask_for(["?"], lambda said: said.text)
    assert found.text == read


def choices(*tokens: tuple[str, dict[str, float]]) -> JudgeReply:
    """A reply with these tokens and their probabilities."""
    found = [TokenChoice(t, {k: math.log(p) for k, p in own.items()}) for t, own in tokens]
    return JudgeReply("".join(token for token, _ in tokens), tuple(found))


def test_the_expected_grade_is_by_probability() -> None:
    """0.6 x 4, 0.2 x 5, 0.1 x 3 over 0.9; 7 is no grade here, and a word is none."""
    likely = {" 4": 0.5, "4": 0.1, " 5": 0.2, " 3": 0.1, " 7": 0.05, " four": 0.05}
    reply = choices(("Fine", {"Fine": 1.0}), (".\n", {}), ("Grade", {}), (":", {}), (" 4", likely))
    assert expected_grade(reply, FIVE) == pytest.approx((0.6 * 4 + 0.2 * 5 + 0.1 * 3) / 0.9)


def test_the_place_of_the_grade_is_found() -> None:
    """Not that of its maximum, nor another number's."""
    tokens = [
        ("5", {"5": 1.0}),
        (" drugs", {}),
        ("\n", {}),
        ("Grade: ", {}),
        ("2", {"2": 0.5, "1": 0.5}),
        ("/", {}),
    ]
    assert expected_grade(choices(*tokens, ("5", {"5": 1.0})), FIVE) == pytest.approx(1.5)


@pytest.mark.parametrize("reply", [JudgeReply("Grade: 4"), choices(("Grade: ", {}), ("4.5", {"4.5": 1.0}))])
def test_without_logprobs_or_a_whole_grade_nothing_is_expected(reply: JudgeReply) -> None:
    assert expected_grade(reply, FIVE) is None


def test_an_api_gives_its_logprobs() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(request["json"])
        reply = chat("Grade: 4")
        likely = [{"token": "4", "logprob": math.log(0.75)}, {"token": "2", "logprob": math.log(0.25)}]
        content = [
            {"token": "Grade: ", "logprob": 0.0, "top_logprobs": []},
            {"token": "4", "logprob": math.log(0.75), "top_logprobs": likely},
        ]
        reply["choices"][0]["logprobs"] = {"content": content}
        return 200, reply

    config = {"model": "j", "base_url": "", "scale": {"low": 1.0, "high": 5.0}, "grade": "expected"}
    with serving(answer) as url:
        term = Judge(JudgeTerm.model_validate({**config, "base_url": f"{url}/v1"}))
        prompt = Prompt("p", (Message(role="user", content="p?"),))
        found = term.score([prompt], [Completion("p", 0, "x", (1,), "stop", 0.0, 0)])
    assert found == pytest.approx([(3.5 - 1) / 4])
    assert (bodies[0]["logprobs"], bodies[0]["top_logprobs"]) == (True, 20)


def test_a_judge_whose_grades_are_alike_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    term = judge()

    def answer(request: ChatRequest) -> JudgeReply:
        return JudgeReply("Grade: 3" if "text 25\n" in request.messages[0]["content"] else "Grade: 8")

    for _ in range(5):
        grades(term, 32, answer)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "97 %" in told and "64" in told and "(8)" in told


def test_a_judge_that_tells_answers_apart_is_not(caplog: pytest.LogCaptureFixture) -> None:
    given = iter(range(80))
    grades(judge(), 80, lambda _: JudgeReply(f"Grade: {1 + next(given) % 10}"))
    assert not caplog.records
