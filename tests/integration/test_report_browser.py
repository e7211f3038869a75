"""A report in a real browser: figures drawn, samples found, nothing fetched, at desktop, in the dark and on a phone.

Screenshots go to $ULTRAMED_RL_ARTIFACTS where it is set, to be kept and looked at.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report_run import Plan, make_run
from ultramed_rl.report.build import write_report
from ultramed_rl.report.comparison import write_comparison

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="SKIPPED: no chromium; `apt-get install chromium` (launch/test.sh does as root), CI has it",
)
ATTACK = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
PLAN = Plan(
    prompts=12,
    reward=lambda r, p, s: r + 0.1 * p + 0.5 * s + 0.3 * ((p * 7 + s * 3) % 5),
    tokens=lambda r, p, s: 20 + 3 * r + s + p % 4,
    text=lambda r, p, s: f"{ATTACK} \u200fالجواب {s} ACE inhibitor r{r}p{p} \x00 end" if s else "",
    prompt=lambda r, p: f"{ATTACK} What helps against disease {p}?" if p else "What is a unicorn?",
    held_out_reward=lambda version, p, s: version * (0.5 + 0.3 * p) - 0.4 * (p % 3),
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("ULTRAMED_RL_ARTIFACTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    one = make_run(root, PLAN, run__name="one")
    two = make_run(root, PLAN, run__name="two", objective__beta=0.3)
    return {
        "report": write_report(one),
        "comparison": write_comparison([one, two], root / "comparison.html"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Reading:
    """A page that is open, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **screen: Any) -> None:
        self.context = browser.new_context(**screen)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        # Not wait_for_function: the page's policy forbids the evaluation that it polls with.
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_drawn_without_an_error_or_a_request(
    browser: Any, pages: dict[str, Path], artifacts: Path, name: str, screen: str
) -> None:
    with Reading(browser, pages[name], **SCREENS[screen]) as reading:
        reading.page.screenshot(path=artifacts / f"{name}-{screen}.png", full_page=True)
        assert reading.said == []
        assert reading.asked == [pages[name].as_uri()], "everything is in the file"
        assert reading.page.title() != "owned"
        assert reading.evaluate("document.querySelectorAll('img, iframe').length") == 0
        figures = reading.evaluate("document.querySelectorAll('.figure').length")
        drawn = "[...document.querySelectorAll('.figure')].filter((f) => f.querySelector('svg.main-svg .trace, .points path, .violin'))"
        assert figures >= 5 and reading.evaluate(f"{drawn}.length") == figures
        widths = reading.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], "a page scrolls down only"
        assert (artifacts / f"{name}-{screen}.png").stat().st_size > 20_000


def test_figures_hold_the_runs_numbers_and_follow_the_scheme(browser: Any, pages: dict[str, Path]) -> None:
    with Reading(browser, pages["report"], **SCREENS["light"]) as reading:
        rewards = "document.getElementById('figure-0').data.map((trace) => trace.y.length)"
        assert reading.evaluate(rewards) == [8, 8, 8], "one value an answer, of the start and two policies"
        color = "document.getElementById('figure-0')._fullLayout.paper_bgcolor"
        light = reading.evaluate(color)
        reading.page.emulate_media(color_scheme="dark")
        ends = time.monotonic() + 30
        while reading.evaluate(color) == light and time.monotonic() < ends:
            reading.page.wait_for_timeout(50)
        assert reading.evaluate(color) == "#15171b"
        assert reading.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"
        assert reading.said == []


def test_the_sample_browser_searches_filters_orders_and_pages(browser: Any, pages: dict[str, Path]) -> None:
    with Reading(browser, pages["report"], **SCREENS["phone"]) as reading:
        page = reading.page
        count = page.locator("#samples-count")
        assert count.text_content() == "1 to 8 of 24"
        page.click("#samples-next")
        assert count.text_content() == "9 to 16 of 24"
        page.fill("#samples-search", "UNICORN")
        assert count.text_content() == "1 to 2 of 2" and page.locator("#samples-list mark").count() == 2
        page.select_option("#samples-round", "1")
        assert count.text_content() == "1 to 1 of 1"
        page.fill("#samples-search", "no such words")
        assert count.text_content() == "0 to 0 of 0" and page.locator(".sample").count() == 0
        page.fill("#samples-search", "")
        page.select_option("#samples-round", "all")
        page.select_option("#samples-order", "margin")
        margins = "[...document.querySelectorAll('.sample header .meta')].map((m) => m.textContent.match(/margin ([\\d.]+)/)?.[1])"
        found = [float(margin) for margin in reading.evaluate(margins) if margin]
        assert len(found) == 8 and found == sorted(found, reverse=True)
        page.select_option("#samples-kind", "none")
        assert count.text_content() == "0 to 0 of 0", "every prompt has a pair"
        assert reading.said == []


def test_samples_show_answers_as_text_with_their_marks(browser: Any, pages: dict[str, Path]) -> None:
    with Reading(browser, pages["report"], **SCREENS["light"]) as reading:
        first = reading.page.locator(".sample").nth(1)
        answers = first.locator(".answer")
        assert answers.count() == 4 and first.locator(".answer.chosen").count() == 1
        assert first.locator(".answer.rejected").count() == 1
        text = answers.first.locator(".text").text_content()
        assert text.startswith(ATTACK) and "\ufffd" in text and "الجواب" in text
        rewards = [float(node.text_content()) for node in first.locator(".answer b").all()]
        assert rewards == sorted(rewards, reverse=True)


def test_a_browser_without_decompression_says_so(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(pages["report"].as_uri())
    page.locator("#figure-0", has_text="newer").wait_for()
    assert page.locator("#samples-count").text_content() == "1 to 8 of 24", "the rest of the page works"
    context.close()
