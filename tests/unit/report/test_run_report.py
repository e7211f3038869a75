"""A report says what a run's files hold, with its uncertainty, in one safe file of under 5 MB."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report_run import Plan, make_run
from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.answers import within_correlation
from ultramed_rl.report.build import MOST_BYTES, MOST_CHARACTERS, write_report
from ultramed_rl.report.contents import ABSENT
from ultramed_rl.report.online_run import OnlineRun, read_online_run
from ultramed_rl.store import RunReader

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u200fabc\u202e \x00 &amp; <!--"
KEY_ATTACK = "</script><script>alert(1)</script><!--"  # what a key's text may be


class Reader(HTMLParser):
    """Text outside of scripts and styles, elements, the JSON blocks, and [tone, text] of each callout."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.blocks = "", list[tuple[str, dict[str, str | None]]](), dict[str, str]()
        self.callouts = list[list[str]]()
        self._block: str | None = None
        self._hidden = self._set_apart = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._hidden = tag in ("script", "style")
        kind, _, tone = (found.get("class") or "").partition(" ")
        if kind == "callout":
            self._set_apart = True
            self.callouts.append([tone, ""])
        self._block = found.get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._hidden, self._block = False, None
        self._set_apart = self._set_apart and tag != "div"
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self._block is not None:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data
        elif not self._hidden:
            data = re.sub(r"\s+", " ", data)  # as browsers do
            self.text += data
            if self._set_apart:
                self.callouts[-1][1] += data


def report(folder: Path, output: Path | None = None) -> Reader:
    return Reader(write_report(folder, output).read_text(encoding="utf-8"))


def samples(reader: Reader) -> list[dict[str, Any]]:
    return json.loads(reader.blocks["samples-data"])


def read(folder: Path) -> OnlineRun:
    return read_online_run(RunReader.of(folder))


# -- what it says ------------------------------------------------------------------------------------------


def test_a_clear_gain_is_called_one_with_its_interval_and_wins(tmp_path: Path) -> None:
    # After two rounds every one of 8 prompts gains 2 + 0.2 p: 2.7 on average, between 2 and 3.4.
    folder = make_run(tmp_path)
    first, last = read(folder).changes.values()
    assert last.reward.mean == pytest.approx(2.7) and 2.0 < last.reward.low < 2.7 < last.reward.high < 3.4
    assert first.reward.mean == pytest.approx(1.35) and last.wins.mean == 1.0 and last.prompts == 8
    assert last.wins.low == pytest.approx(8 / (8 + 1.959964**2)), "Wilson's bound where all are won"
    (tone, verdict), (caution, doubts), *_ = report(folder).callouts
    assert tone == "plain" and "evaluation.judges=[]" in verdict, "nobody has judged it"
    assert re.search(r"\+2\.700 .*95 %(?s:.*)\b8\b", verdict)
    assert caution == "warning" and re.search(r"\b8\b", doubts), "so few prompts are a reason for doubt"


def test_a_change_within_its_interval_is_not_called_a_gain(tmp_path: Path) -> None:
    noise = Plan(rounds=1, held_out_reward=lambda version, p, s: version * (1.0 if p % 2 else -0.9))
    tone, verdict = report(make_run(tmp_path, noise)).callouts[0]
    assert tone == "plain" and re.search(r"95 %(?s:.*)\b8\b", verdict)


def test_a_loss_is_called_one(tmp_path: Path) -> None:
    worse = Plan(rounds=1, held_out_reward=lambda version, p, s: -version * (1.0 + 0.1 * p))
    tone, verdict = report(make_run(tmp_path, worse)).callouts[0]
    assert tone == "bad" and "1.35" in verdict


JUDGES = [{"type": "likeness", "name": "near"}, {"type": "rule", "name": "skill", "ended": True}]


def judged(near: float, skill: float) -> Callable[[int], dict[str, float]]:
    """Both judges' changes after two rounds, a half after the first, with intervals of 0.02."""

    def of_round(index: int) -> dict[str, float]:
        found = {}
        for name, whole in (("near", near), ("skill", skill)):
            change = whole * (index + 1) / 2
            parts = {
                "mean": 0.5 + change,
                "change": change,
                "change_low": change - 0.01,
                "change_high": change + 0.01,
            }
            parts |= {"win_rate": 0.5 + change, "prompts": 8.0, "agreement": 0.625}
            found |= {f"judge_{name}_{key}": value for key, value in parts.items()}
        return found

    return of_round


@pytest.mark.parametrize(
    ("near", "tone", "outcome"), [(0.3, "good", "rose"), (-0.3, "bad", "over-optimised")]
)
def test_the_first_line_is_the_verdict_of_reward_and_judges(
    tmp_path: Path, near: float, tone: str, outcome: str
) -> None:
    folder = make_run(tmp_path, Plan(judged=judged(near, 0.2)), evaluation__judges=JUDGES)
    run, reader = read(folder), report(folder)
    assert run.verdict is not None and run.verdict.outcome == outcome
    (found, verdict), *_ = reader.callouts
    assert found == tone and f"{near:+.3f}" in verdict and outcome in verdict
    assert ("near since round 0" in verdict) == (near < 0)
    assert run.judged["near"][0][1].mean == 0.0 and run.judged["near"][2] == (
        "policy 2",
        Interval(near, near - 0.01, near + 0.01),
    )
    # Policy 0 sampled in round 0, policy 1 in round 1: each pair's answers are a nat further from the reference.
    assert [kl for kl, _ in run.judged_by_kl["near"]] == [0.0, 1.0]
    assert [change.mean for _, change in run.judged_by_kl["near"]] == [0.0, near / 2]
    assert "63%" in reader.text or "62%" in reader.text, "the agreement"


def test_the_policy_that_is_kept_is_the_one_that_is_reported(tmp_path: Path) -> None:
    changes = {"evaluation__judges": JUDGES, "run__keep": "best", "run__keep_by": "near"}
    folder = make_run(tmp_path, Plan(judged=judged(-0.3, 0.2)), **changes)
    run = read(folder)
    assert run.policy.label == "policy 1" and run.verdict is not None and run.verdict.round == 0
    assert run.change is not None and run.change.reward.mean == pytest.approx(1.35)


def test_a_run_without_a_finished_round_has_a_report_that_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for commit in folder.glob("rounds/*/commit.json"):
        commit.unlink()
    ((tone, verdict),) = report(folder).callouts
    assert tone == "plain" and not re.search(r"\d", verdict)


def test_a_round_under_way_is_left_out_and_counted_as_missing(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "rounds" / "001" / "commit.json").unlink()
    tone, doubts = report(folder).callouts[1]
    assert len(read(folder).rounds) == 1 and tone == "warning" and "1 of 2 " in doubts


def test_answers_that_were_pruned_are_said_to_be_missing(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for path in folder.rglob("*.parquet"):
        path.unlink()
    reader = report(folder)
    tone, verdict = reader.callouts[0]
    assert tone == "plain" and "95%" not in verdict and samples(reader) == []


def test_the_pair_audit_counts_ties_and_identical_answers(tmp_path: Path) -> None:
    # Prompt 0: all texts alike; prompt 1: one reward for all; four give pairs.
    plan = Plan(
        rounds=1,
        text=lambda r, p, s: "same" if p == 0 else f"{p} {s}",
        reward=lambda r, p, s: 1.0 if p == 1 else float(s),
    )
    folder = make_run(tmp_path, plan)
    (one,) = read(folder).rounds
    assert (one.dropped["identical"], one.dropped["tied"], len(one.pairs)) == (1, 1, 4)
    assert (
        one.pairs[0].chosen == ("r0p2", 3)
        and one.pairs[0].rejected == ("r0p2", 0)
        and one.pairs[0].margin == 3
    )
    found = samples(report(folder))
    assert [s["g"] for s in found] == [None, None, 3, 3, 3, 3]
    assert [a["m"] for a in found[2]["c"]] == ["chosen", "", "", "rejected"]


def test_verdicts_stand_under_their_answer(tmp_path: Path) -> None:
    plan = Plan(rounds=1, prompts=1, details=lambda r, p, s: {"rubric [+5] Names the dose": float(s % 2)})
    (sample,) = samples(report(make_run(tmp_path, plan)))
    assert [a["d"] for a in sample["c"]] == [[["rubric [+5] Names the dose", s % 2]] for s in (3, 2, 1, 0)]


@pytest.mark.parametrize(
    ("tokens", "slope", "flagged"),
    [
        (lambda r, p, s: 20 + 10 * r + s, 1.0, True),  # longer, and longer pays
        (lambda r, p, s: 60 - 20 * r + s, -1.0, True),  # shorter, and shorter pays
        (lambda r, p, s: 20 + 10 * r + s, -1.0, False),  # longer against its pay
        (lambda r, p, s: 100 + r + s, 1.0, False),  # longer pays, but nothing has grown
        (lambda r, p, s: 20 + 10 * r, 1.0, False),  # no length within a prompt to be paid for
    ],
)
def test_length_is_flagged_only_where_it_moved_the_way_that_pays(
    tmp_path: Path, tokens: Any, slope: float, flagged: bool
) -> None:
    plan = Plan(tokens=tokens, reward=lambda r, p, s: slope * s + 100.0 * p)
    folder = make_run(tmp_path, plan)
    check = read(folder).length
    assert check.flagged is flagged
    if not math.isnan(check.correlation):
        assert check.correlation == pytest.approx(slope), "within prompts, not between them"
    assert report(folder).callouts[-1][0] == ("warning" if flagged else "plain")


def test_a_reward_that_pays_for_length_is_a_reason_for_caution(tmp_path: Path) -> None:
    """Lengths of held-out answers stay, and samples score as they are long; a slope of the run's is told."""
    plan = Plan(tokens=lambda r, p, s: 20 + s, reward=lambda r, p, s: 1.0 * s)
    folder = make_run(tmp_path, plan, reward={"train": {}})
    model = {"name": "reward_model", "digest": "d", "seconds": 1.0}
    (folder / "initial" / "reward_model.json").write_text(
        json.dumps({**model, "metrics": {"accuracy": 0.75, "length_accuracy": 0.625}})
    )
    commit = folder / "rounds" / "001" / "commit.json"
    made = json.loads(commit.read_text())
    made["metrics"]["reward_length_slope"] = -0.125
    commit.write_text(json.dumps(made))
    page = report(folder)
    cautions = next(said for tone, said in page.callouts if tone == "warning")
    assert "+1.00" in cautions and "75.0%" in cautions and "62.5%" in cautions
    assert "-0.125" in page.text


def test_correlation_is_within_prompts(tmp_path: Path) -> None:
    # Within prompt 0 tokens 1, 3 and rewards 0, 2: products 2, squares 2 and 2. Prompt 1: tokens 11, 13, rewards 9, 7:
    # products -2, squares 2 and 2. Together 0 / 4, though all four rise together.
    plan = Plan(
        rounds=1,
        prompts=2,
        samples=2,
        tokens=lambda r, p, s: 1 + 10 * p + 2 * s,
        reward=lambda r, p, s: 2.0 * s if p == 0 else 9.0 - 2.0 * s,
    )
    (one,) = read(make_run(tmp_path, plan)).rounds
    groups = [one.answers[:2], one.answers[2:]]
    assert within_correlation(groups) == pytest.approx(0.0)
    assert within_correlation(groups[:1]) == pytest.approx(1.0)
    assert math.isnan(within_correlation([]))


def test_refused_empty_and_cut_answers_are_counted(tmp_path: Path) -> None:
    texts = ["I'm sorry, but I cannot help with that.", "  \n", "Take two a day.", "Sorrow is common."]
    folder = make_run(tmp_path, Plan(rounds=1, text=lambda r, p, s: texts[s], finish="length"))
    answers = read(folder).rounds[0].answers[:4]
    assert [a.refusal for a in answers] == [True, False, False, False]
    assert [a.empty for a in answers] == [False, True, False, False]
    assert "25.0%" in report(folder).text
    notes = [a["o"] for a in sorted(samples(report(folder))[0]["c"], key=lambda a: a["v"])]
    assert notes == [["cut off", "refusal"], ["cut off", "empty"], ["cut off"], ["cut off"]]


def test_a_reward_that_is_no_number_is_counted_and_never_drawn(tmp_path: Path) -> None:
    plan = Plan(rounds=1, reward=lambda r, p, s: math.nan if s == 0 else float(s))
    plan = Plan(
        rounds=1, reward=plan.reward, held_out_reward=lambda v, p, s: -math.inf if p == 0 and v else float(v)
    )
    reader = report(make_run(tmp_path, plan))
    tone, doubts = reader.callouts[1]
    assert tone == "warning" and "1 of 8 " in doubts
    assert samples(reader)[0]["c"][-1]["v"] is None and "NaN" not in reader.blocks["figures"]


def test_benchmarks_are_marked_by_the_tests_of_their_round(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for place, accuracy in (("initial", 0.25), ("rounds/001", 0.5)):
        score = {"items": 200, "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
        (folder / place / "benchmarks").mkdir()
        result = {"task": "medqa", "protocol": "greedy", "score": score}
        (folder / place / "benchmarks" / "results.json").write_text(
            json.dumps({"results": [result], "averages": {}})
        )
    commit = folder / "rounds" / "001" / "commit.json"
    content = json.loads(commit.read_text())
    content["metrics"]["bench_medqa_greedy_p"] = 0.004
    commit.write_text(json.dumps(content))
    text = report(folder).text
    assert "medqa, greedy (200)" in text and "25.0% (15% to 35%)" in text and "50.0%** (40% to 60%)" in text


def test_the_config_is_compared_and_the_environment_is_the_runs_own(tmp_path: Path) -> None:
    folder = make_run(tmp_path, objective__beta=0.77)
    reader = report(folder)
    assert "objective.beta" in reader.text and "0.77" in reader.text
    file = folder / "environment.json"
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps({**recorded, "time": "2001-01-01T00:00:00Z"}))
    assert "2001-01-01T00:00:00Z" in report(folder).text
    file.unlink()
    assert "2001-01-01T00:00:00Z" not in report(folder).text


def test_a_config_of_another_version_is_readable(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("max_grad_norm", "gradient_clip"))
    text = report(folder).text
    assert "training.gradient_clip" in text and ABSENT in text


# -- that it is safe and small -----------------------------------------------------------------------------


def test_no_answer_prompt_or_name_becomes_markup(tmp_path: Path) -> None:
    plan = Plan(text=lambda r, p, s: f"{ATTACK} {s}", prompt=lambda r, p: f"{ATTACK} {p}")
    folder = make_run(tmp_path, plan, tracking__tags=[KEY_ATTACK])
    page = write_report(folder).read_bytes()
    html = page.decode("utf-8")
    reader = Reader(html)
    assert "<script>alert" not in html and "<img" not in html and "\x00" not in html and "\u202e" not in html
    assert [tag for tag, _ in reader.tags if tag in ("img", "iframe", "link", "object")] == []
    assert not any(name.startswith("on") or name == "src" for _, found in reader.tags for name in found)
    shown = samples(reader)[0]["c"][0]["t"]
    assert (
        shown.startswith("</script><script>alert(1)</script><img") and "\ufffd" in shown and "\u200f" in shown
    )


def test_halves_of_surrogate_pairs_in_files_of_the_run_are_shown_as_unknown(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write('extra: "half \\ud800 <b>"\n')
    reader = report(folder)
    assert "half \ufffd <b>" in reader.text


def test_only_the_pages_own_scripts_may_run(tmp_path: Path) -> None:
    reader = report(make_run(tmp_path))
    policy = next(
        a["content"] or "" for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = re.search("script-src ([^;]*);", policy)
    assert scripts and len(re.findall("'sha256-", scripts[1])) == 3 and "unsafe" not in scripts[1]


def test_a_large_run_stays_under_5_mb_and_says_what_it_left_out(tmp_path: Path) -> None:
    long = "Ärzte 🩺 <b> & " * 600  # each of its characters takes up to 12 bytes of JSON

    def text(r: int, p: int, s: int) -> str:
        return f"{long}{r}{p}{s}"

    noise = random.Random(0)
    plan = Plan(prompts=150, samples=4, text=text, reward=lambda r, p, s: noise.random())
    output = write_report(make_run(tmp_path, plan))
    reader = Reader(output.read_text(encoding="utf-8"))
    shown = samples(reader)
    assert 3_000_000 < output.stat().st_size < MOST_BYTES
    assert f"{len(shown)} of 300 " in reader.text
    by_round = [sum(s["r"] == r for s in shown) for r in (0, 1)]
    assert abs(by_round[0] - by_round[1]) <= 1
    assert re.fullmatch(rf"(?s).{{{MOST_CHARACTERS}}}… \[[\d,]+ [^]]*\]", shown[0]["c"][0]["t"])


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    first = write_report(folder, tmp_path / "out" / "a.html").read_bytes()
    assert write_report(folder, tmp_path / "b.html").read_bytes() == first
    assert sorted(p.name for p in folder.iterdir() if "report" in p.name) == []


def test_reading_changes_nothing_in_the_runs_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write_report(folder, tmp_path / "page.html")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_what_is_no_run_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}/nothing: "):
        write_report(tmp_path / "nothing")
    make_run(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/runs: .*config\.yaml.*\(tiny\)"):
        write_report(tmp_path / "runs")
