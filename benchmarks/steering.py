"""Somebody who steers `make people` by hand: a browser in which keys are pressed, by a preference that nobody is told.

    page of the run -> two answers -> the key of the one that ends in "for sure" (`benchmarks.people.is_liked`)
    samples of the run, ten steps at a time -> share of such answers

    make people                                                                              # in one terminal
    python -m benchmarks.steering 'http://localhost:8750/#invitation=…' --run runs/people    # in another

It judges for `--seconds` from the first item on, and prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from playwright.sync_api import Page, sync_playwright

from benchmarks.people import is_liked

STEPS = 10
"""As many are one figure."""
_PAUSE_S = 1.0
"""Between two judgements."""


@contextmanager
def rating(address: str) -> Generator[Page]:
    """The page, with somebody signed in who has chosen Rate."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, browsers)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(locale="en-US")
        page.goto(address)
        page.locator("#logout").wait_for()
        if page.locator("#view-rate").is_visible():  # Raters have no other view.
            page.locator("#view-rate").click()
        yield page
        browser.close()


def judge(page: Page, *, seconds: float, wait_s: float) -> int:
    """Prefers by `is_liked`, calls two alike a tie, and returns how often a key was pressed."""
    page.locator("#completion-0").wait_for(timeout=1000 * wait_s)
    until, num_pressed = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        is_open = page.locator("#completions").get_attribute("data-task") == "pair"
        if is_open and page.locator("#actions").get_attribute("aria-busy") == "false":
            first, second = map(is_liked, page.locator("#completions .text").all_text_contents())
            page.keyboard.press("0" if first == second else "1" if first else "2")
            num_pressed += 1
        time.sleep(_PAUSE_S)
    return num_pressed


def shares(samples: Path) -> dict[int, float]:
    """Of the completions that a run noted, the share that is liked, by the first of each ten steps."""
    liked: dict[int, list[bool]] = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        liked.setdefault(row["step"] // STEPS * STEPS, []).extend(map(is_liked, row["group"]))
    return {step: round(fmean(each), 3) for step, each in sorted(liked.items())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="what `make people` prints, with the invitation")
    parser.add_argument("--run", type=Path, default=Path("runs/people"), help="its run.directory")
    parser.add_argument("--seconds", type=float, default=400.0, help="how long to judge")
    parser.add_argument("--wait", type=float, default=1800.0, help="how long to wait for the first item, in seconds")
    options = parser.parse_args()
    with rating(options.address) as page:
        num_pressed = judge(page, seconds=options.seconds, wait_s=options.wait)
    found = shares(options.run / "samples.jsonl")
    print(json.dumps({"benchmark": "steering", "pressed": num_pressed, "share": found}))


if __name__ == "__main__":
    main()
