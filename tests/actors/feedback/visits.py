"""Somebody who looks at the rating page in a browser, and what is done on it with a keyboard alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal

from playwright import sync_api
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect

from pipeline.feedback.records import Task

PATIENCE_MS = 20_000
WIDE, PHONE = sync_api.ViewportSize(width=1280, height=820), sync_api.ViewportSize(width=390, height=844)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
expect.set_options(timeout=PATIENCE_MS)


class Visit:
    """A tab in a browser of somebody's own; `troubles` are what nobody would see in it."""

    def __init__(self, browser: Browser, address: str, *, bypass_csp: bool = False):
        self.context = browser.new_context(locale="en-US", viewport=WIDE, bypass_csp=bypass_csp)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.troubles: list[str] = []
        self.judgements: list[Any] = []
        self.address = address
        self.context.on("request", lambda request: self._asks(request.method, request.url, request.post_data_json))
        self.page.on("console", self._says)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))
        self.page.on("dialog", self._stops)

    def enter(self, token: str) -> Page:
        """By the address that a rater is sent."""
        self.page.goto(f"{self.address}/#invitation={token}")
        expect(self.page.locator("#logout")).to_be_visible()
        assert token not in self.page.url
        return self.page

    def _asks(self, method: str, url: str, body: Any) -> None:
        if not url.startswith((f"{self.address}/", "data:")):
            self.troubles.append(f"request: {url}")
        if (method, url) == ("POST", f"{self.address}/api/judgements"):
            self.judgements.append(body)

    def _says(self, message: ConsoleMessage) -> None:
        # That nobody is logged in yet is no trouble; the browser writes every 401 down.
        if message.type in ("error", "warning") and message.location["url"] != f"{self.address}/api/me":
            self.troubles.append(f"console: {message.text}")

    def _stops(self, dialog: Dialog) -> None:
        if dialog.type != "beforeunload":
            self.troubles.append(f"dialog: {dialog.message}")
        dialog.accept()


def comes(page: Page, task: Task) -> list[str]:
    """Waits for an item of this kind; the texts of its answers, as they are shown."""
    expect(page.locator(f"#completions[data-task={task}] #completion-0")).to_be_visible()
    expect(page.locator("#actions")).to_have_attribute("aria-busy", "false")
    return page.locator("#completions .text").all_text_contents()


def press(page: Page, *keys: str | int) -> None:
    for key in keys:
        page.keyboard.press(str(key))


def prefer(page: Page, answer: str) -> None:
    press(page, comes(page, Task.PAIR).index(answer) + 1)


def correct(page: Page, answer: str, text: str) -> None:
    """Goes to the answer, writes over it and comes back, all by keyboard."""
    press(page, *["ArrowRight"] * (comes(page, Task.PAIR).index(answer) + 1), "c", "Control+a")
    page.keyboard.insert_text(text)
    press(page, "Escape")


def rank(page: Page, *best_first: str) -> None:
    texts = comes(page, Task.RANKING)
    press(page, *(texts.index(answer) + 1 for answer in best_first), "Enter")


def rate(page: Page, points: Mapping[str, str]) -> None:
    press(page, *(digit for answer in comes(page, Task.RATING) for digit in points[answer]), "Enter")


def is_done(page: Page) -> None:
    expect(page.locator("#nothing")).to_be_visible()


def kept_picture(page: Page, path: Path, name: str) -> None:
    """A picture of the page; where POLYPHONY_SCREENSHOTS names a directory, one for the documentation there too."""
    page.screenshot(path=path / name)
    if directory := os.environ.get("POLYPHONY_SCREENSHOTS"):
        page.locator("#status:not(.fresh)").wait_for()  # Else what was said last lies over the answers.
        page.screenshot(path=Path(directory) / name, animations="disabled")


def findings(page: Page) -> dict[str, list[str]]:
    """Rules of axe-core that are broken seriously or critically, with where, in each look."""
    page.evaluate(AXE)
    found: dict[str, list[str]] = {}
    for scheme, size in product(SCHEMES, (WIDE, PHONE)):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size(size)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for rule in result["violations"]:
            if rule["impact"] in ("serious", "critical"):
                found[f"{rule['id']}, {scheme}, {size['width']} px"] = [node["html"] for node in rule["nodes"]]
    return found
