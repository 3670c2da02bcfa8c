"""The rating page in a browser: people judge by keyboard, nothing that was written acts, and nothing is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Route, expect, sync_playwright

from actors.feedback.app import PAGE_VERSION
from pipeline.feedback.records import Candidate, EventKind, Item, Judged, Judgement, JudgementKind, RaterRole, Task
from pipeline.feedback.versions import RewardVersion, Trigger
from pipeline.records import MediaKind
from tests.actors.feedback.showing import (
    CRITERIA,
    FALLS,
    NOISE,
    RIGHT,
    RISES,
    SLIDES,
    STANDS,
    WRONG,
    film,
    item,
    offer_one_of_each,
    picture,
    tone,
)
from tests.actors.feedback.visits import (
    Visit,
    comes,
    correct,
    findings,
    is_done,
    kept_picture,
    prefer,
    press,
    rank,
    rate,
)
from tests.feedback.office import Office

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to open the rating page")

HOSTILE = (
    "<script>window.hacked = 1</script><img src='http://elsewhere.invalid/x.png' onerror='window.hacked = 1'>"
    "<svg onload='alert(1)'></svg><a href='javascript:window.hacked = 1'>here</a> ${alert(1)} {{alert(1)}}"
)


@pytest.fixture(scope="module")
def files() -> Mapping[MediaKind, bytes]:
    return {MediaKind.IMAGE: picture(), MediaKind.AUDIO: tone(), MediaKind.VIDEO: film()}


# Who looks at it.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Visiting = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visiting]:
    for _ in range(100):  # The address is known a moment before anybody listens there.
        with suppress(requests.ConnectionError):
            requests.get(address, timeout=20)
            break
        time.sleep(0.05)
    with ExitStack() as stack:

        def opened(*, bypass_csp: bool = False) -> Visit:
            found = Visit(browser, address, bypass_csp=bypass_csp)
            stack.callback(found.context.close)
            return found

        yield opened


def invited(office: Office, name: str = "ada", role: RaterRole = RaterRole.RATER) -> str:
    return office.register.invite(name, role, days=1)


def said(office: Office) -> dict[str, list[tuple[str | None, str, Mapping[str, Any]]]]:
    """What lies in the store: rater, kind and content of each judgement that stands, by prompt."""
    return {
        judged.item.prompt_id: [(each.rater, each.kind.value, each.content) for each in judged.judgements]
        for judged in office.store.judged()
    }


def rating(*points: int) -> dict[str, int]:
    return dict(zip(CRITERIA, points, strict=True))


# People judge.


def test_two_raters_judge_by_keyboard_alone_and_the_administrator_sees_them_agree(
    office: Office, visit: Visiting, files: Mapping[MediaKind, bytes], tmp_path: Path
) -> None:
    offer_one_of_each(office, files)
    ada, bo, admin = visit(), visit(), visit()
    page = ada.enter(invited(office))
    comes(page, Task.PAIR)
    expect(page.locator("#messages img")).to_have_js_property("naturalWidth", 640)
    kept_picture(page, tmp_path, "feedback.png")
    correct(page, WRONG, HOSTILE)
    prefer(page, WRONG)
    comes(page, Task.RANKING)
    press(page, "u")
    prefer(page, RIGHT)
    comes(page, Task.RANKING)
    expect(page.locator("#messages audio")).to_have_js_property("duration", 2)
    page.screenshot(path=tmp_path / "ranking.png")
    rank(page, FALLS, RISES, NOISE)
    comes(page, Task.RATING)
    expect(page.locator("#messages video")).to_have_js_property("videoWidth", 160)
    page.screenshot(path=tmp_path / "rating.png")
    rate(page, {SLIDES: "5435", STANDS: "1255"})
    is_done(page)

    page = bo.enter(invited(office, "bo"))
    prefer(page, RIGHT)
    rank(page, NOISE, RISES, FALLS)
    rate(page, {SLIDES: "4444", STANDS: "1111"})
    is_done(page)

    assert said(office) == {
        "house": [
            ("ada", "correction", {"place": 1, "text": HOSTILE}),
            ("ada", "pair", {"chosen": 0}),
            ("bo", "pair", {"chosen": 0}),
        ],
        "tone": [("ada", "ranking", {"ranks": [2, 1, 3]}), ("bo", "ranking", {"ranks": [2, 3, 1]})],
        "square": [
            ("ada", "rating", {"ratings": [rating(5, 4, 3, 5), rating(1, 2, 5, 5)]}),
            ("bo", "rating", {"ratings": [rating(4, 4, 4, 4), rating(1, 1, 1, 1)]}),
        ],
    }
    stand = [each for judged in office.store.judged() for each in judged.judgements]
    assert {each.page_version for each in stand} == {PAGE_VERSION}
    assert all(each.latency_s is not None and 0 < each.latency_s < 120 for each in stand)
    # Else the places above would say nothing of how they go from the page to the store.
    assert any(list(each.order) != sorted(each.order) for each in stand)

    page = admin.page
    page.goto(admin.address)
    page.locator("#invitation").fill(invited(office, "root", RaterRole.ADMIN))
    press(page, "Enter")
    for name in ("ada", "bo"):
        expect(page.locator(f"[data-rater={name}] td").first).to_have_text("3 0 skipped")
    expect(page.locator("#judgements-num")).to_contain_text("71 withdrawn")
    # Labels are (0, 0) of the pair and (1, 2) of the ranking: 2 of 4 pairs of labels differ, by chance 10 of 12 would.
    # So alpha is 1 - (2/4) / (10/12).
    expect(page.locator("#agreement-alpha strong")).to_have_text("0.40")
    page.screenshot(path=tmp_path / "overview.png", full_page=True)
    assert [each.troubles for each in (ada, bo, admin)] == [[], [], []]


def test_the_administrator_sees_who_is_set_aside_and_why_and_which_versions_people_prefer(
    office: Office, visit: Visiting
) -> None:
    admin = visit()
    for name in ("ada", "bo", "cy"):
        invited(office, name)
    # Of 60 pairs the newer version's answer is better in 40. Two see that; one always takes what was shown first,
    # which is the worse one.
    for number in range(60):
        versions = tuple(Candidate(f"by {version}", weights_version=version) for version in (0, 5))
        pair = replace(item(Task.PAIR, str(number), "Which?"), candidates=versions, run="run", step=5)
        better = int(number < 40)
        chosen = {"ada": better, "bo": better, "cy": 1 - better}
        order = (1 - better, better)
        office.store.bring([Judged(pair, tuple(_judgement(pair, name, one, order) for name, one in chosen.items()))])
    before, after = ({"num": 10, "accuracy": each, "brier": 0.2} for each in (0.5, 0.75))
    first = RewardVersion(1, 0, Trigger.COUNT, 1e6, 1e6, 40, after, before, True, {"num": 20, "accuracy": 0.25})
    for version in (first, replace(first, number=2, num_judgements=60, held_out=before, is_accepted=False)):
        office.versions.add(version)
    page = admin.enter(invited(office, "root", RaterRole.ADMIN))
    fitted = page.locator("#versions-table [data-version='1'] td")
    for place, text in {0: "40", 1: "0.250", 2: "0.500 → 0.750", 4: "+0.250", 6: "judges"}.items():
        expect(fitted.nth(place)).to_have_text(text)
    expect(page.locator("#versions-table [data-version='2'] td").nth(6)).to_have_text("not better: left out")
    bad, good = page.locator("[data-rater=cy]"), page.locator("[data-rater=ada]")
    expect(bad).to_have_attribute("data-aside", "true")
    expect(good).to_have_attribute("data-aside", "false")
    expect(bad.locator("td").nth(3)).to_have_text("100 % p < 0.001, n = 60")
    expect(bad.locator("td").nth(5)).to_have_text("0.03 60 shared")
    expect(good.locator("td").nth(5)).to_have_text("0.97 60 shared")
    expect(bad.locator(".why")).to_contain_text("reliability 0.03 by 60 items that others have judged too")
    # Of 120 comparisons the newer version won 80, and half a one more each: 80.5 to 40.5.
    newer = page.locator("#strengths-table [data-version='5'] td")
    expect(newer.nth(0)).to_have_text("120")
    expect(newer.nth(1)).to_contain_text("0.34 95 % interval 0.15 to 0.53")
    expect(newer.nth(2)).to_have_text("67 %")
    expect(page.locator("#strengths-table [data-version='0'] td").nth(0)).to_have_text("120")
    assert admin.troubles == []


def _judgement(pair: Item, rater: str, chosen: int, order: tuple[int, int]) -> Judgement:
    key = f"{rater}-{pair.prompt_id}"
    return Judgement(key, pair.id, rater, JudgementKind.PAIR, {"chosen": chosen}, 1e6, order=order)


# Nothing acts that somebody wrote.


@pytest.mark.parametrize("is_guarded", [True, False], ids=["under the policy", "without the policy"])
def test_scripts_in_prompts_answers_and_corrections_are_text_and_ask_nobody_for_anything(
    office: Office, visit: Visiting, is_guarded: bool
) -> None:
    pair = item(Task.PAIR, "a", HOSTILE, HOSTILE, f"{HOSTILE} again", uncertainty=1)
    office.store.offer([pair, item(Task.RANKING, "b", HOSTILE, HOSTILE, "b", "c")])
    # The server's policy stops scripts; without it there is only the page.
    guest = visit(bypass_csp=not is_guarded)
    page = guest.enter(invited(office))
    assert sorted(comes(page, Task.PAIR)) == [HOSTILE, f"{HOSTILE} again"]
    assert page.locator("#messages .said").all_text_contents() == [HOSTILE]
    correct(page, HOSTILE, f"{HOSTILE} corrected")
    prefer(page, HOSTILE)
    assert HOSTILE in comes(page, Task.RANKING)
    press(page, "s")
    page.keyboard.insert_text(HOSTILE)
    press(page, "Enter")
    is_done(page)
    press(page, "u")
    comes(page, Task.RANKING)
    press(page, "u")
    place = comes(page, Task.PAIR).index(HOSTILE)
    expect(page.locator(f"#correction-{place}")).to_have_value(f"{HOSTILE} corrected")
    page.locator("#language").click()
    expect(page.locator("#completions .text").nth(place)).to_have_text(HOSTILE)
    assert said(office) == {"a": [("ada", "correction", {"place": 0, "text": f"{HOSTILE} corrected"})]}
    assert page.evaluate("window.hacked === undefined") and guest.troubles == []


# Nothing is lost, and nothing counts twice.


def test_a_judgement_whose_answer_is_lost_is_sent_again_with_its_key_and_counts_once(
    office: Office, visit: Visiting
) -> None:
    office.store.offer([item(Task.PAIR, name, "Which?", RIGHT, WRONG) for name in "ab"])
    guest = visit()
    page = guest.enter(invited(office))
    comes(page, Task.PAIR)

    def lose(route: Route) -> None:
        assert route.fetch().ok
        route.abort()

    page.route("**/api/judgements", lose, times=1)
    first = page.locator("#item").get_attribute("data-presentation")
    prefer(page, RIGHT)
    expect(page.locator("#trouble")).to_be_visible()
    assert list(said(office).values()) == [[("ada", "pair", {"chosen": 0})]]
    expect(page.locator("#item")).not_to_have_attribute("data-presentation", str(first))
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text("Saved")
    assert len(guest.judgements) == 2 and guest.judgements[0] == guest.judgements[1]
    assert list(said(office).values()) == [[("ada", "pair", {"chosen": 0})]]
    expect(page.locator("#progress-text")).to_have_text("1 judged · 1 left")


def test_judgements_that_wait_for_the_server_outlive_a_reload(office: Office, visit: Visiting) -> None:
    office.store.offer([item(Task.PAIR, "a", "Which?", RIGHT, WRONG)])
    guest = visit()
    page = guest.enter(invited(office))
    correct(page, WRONG, "It is dry.")
    page.reload()
    place = comes(page, Task.PAIR).index(WRONG)
    expect(page.locator(f"#correction-{place}")).to_have_value("It is dry.")
    page.route("**/api/judgements", lambda route: route.abort())
    prefer(page, RIGHT)
    expect(page.locator("#trouble-text")).to_contain_text("kept in this tab")
    assert said(office) == {}
    page.reload()
    expect(page.locator("#trouble")).to_be_visible()
    assert said(office) == {}
    page.unroute("**/api/judgements")
    is_done(page)
    assert said(office) == {
        "a": [("ada", "correction", {"place": 1, "text": "It is dry."}), ("ada", "pair", {"chosen": 0})]
    }
    assert len({each["key"] for each in guest.judgements}) == 2 < len(guest.judgements)


def test_a_judgement_that_finds_the_session_ended_arrives_after_the_next_log_in(
    office: Office, visit: Visiting
) -> None:
    office.store.offer([item(Task.PAIR, "a", "Which?", RIGHT, WRONG)])
    token = invited(office)
    page = visit().enter(token)
    comes(page, Task.PAIR)
    office.clock.now += 2 * 3600
    prefer(page, WRONG)
    expect(page.locator("#login-error")).to_contain_text("session has ended")
    assert said(office) == {}
    page.locator("#invitation").fill(token)
    press(page, "Enter")
    is_done(page)
    assert said(office) == {"a": [("ada", "pair", {"chosen": 1})]}


def test_a_thumb_is_given_by_keyboard_changed_and_taken_back(office: Office, visit: Visiting) -> None:
    office.store.offer([item(Task.PAIR, "a", "Which?", RIGHT, WRONG)])
    page = visit().enter(invited(office))
    place = comes(page, Task.PAIR).index(WRONG)
    press(page, *["ArrowRight"] * (place + 1), "+")
    up, down = (page.locator(f"#completion-{place} [data-thumb={name}]") for name in ("up", "down"))
    expect(up).to_have_attribute("aria-pressed", "true")
    press(page, "-")
    expect(up).to_have_attribute("aria-pressed", "false")
    expect(down).to_have_attribute("aria-pressed", "true")
    down.click()
    expect(down).to_have_attribute("aria-pressed", "false")
    prefer(page, RIGHT)
    is_done(page)
    page.locator("#logout").click()
    expect(page.locator("#login")).to_be_visible()
    (viewing,) = office.store.viewings()
    thumbs = [(act.place, act.value) for act in viewing.acts if act.kind is EventKind.THUMB]
    assert thumbs == [(1, 1.0), (1, -1.0), (1, 0.0)]


# It can be read, and used, by everybody.


def test_axe_has_nothing_serious_to_say_in_light_and_dark_on_phones_and_wide_screens(
    office: Office, visit: Visiting, files: Mapping[MediaKind, bytes]
) -> None:
    offer_one_of_each(office, files)
    guest = visit(bypass_csp=True)
    page, found = guest.page, dict[str, Any]()
    page.goto(guest.address)
    expect(page.locator("#login")).to_be_visible()
    found["login"] = findings(page)
    guest.enter(invited(office, "eve", RaterRole.EXPERT))
    correct(page, WRONG, "It is dry.")
    press(page, "c")
    found["pair"] = findings(page)
    press(page, "Escape", "1")
    comes(page, Task.RANKING)
    press(page, 2, 1)
    found["ranking"] = findings(page)
    press(page, 3, "Enter")
    comes(page, Task.RATING)
    press(page, *"5432")
    found["rating"] = findings(page)
    press(page, *"1234", "Enter")
    is_done(page)
    page.locator("#logout").click()
    page.locator("#invitation").fill(invited(office, "root", RaterRole.ADMIN))
    press(page, "Enter")
    expect(page.locator("#raters-table")).to_be_visible()
    found["admin"] = findings(page)
    assert found == {"login": {}, "pair": {}, "ranking": {}, "rating": {}, "admin": {}}


def test_each_answer_runs_in_the_direction_of_its_own_script(office: Office, visit: Visiting) -> None:
    arabic, chinese = "مرحبا بالعالم، 220 Hz", "一个红色的方块。"
    office.store.offer([item(Task.PAIR, "a", "שלום, what is this?", arabic, chinese)])
    page = visit().enter(invited(office))
    texts = comes(page, Task.PAIR)
    correct(page, chinese, arabic)
    ways = {
        f"#completion-{texts.index(arabic)} .text": "rtl",
        f"#completion-{texts.index(chinese)} .text": "ltr",
        f"#correction-{texts.index(chinese)}": "rtl",
        "#messages .said": "rtl",
    }
    for place, way in ways.items():
        expect(page.locator(place)).to_have_attribute("dir", "auto")
        expect(page.locator(place)).to_have_css("direction", way)


def test_the_language_changes_every_word_but_what_was_typed_and_stays_after_a_reload(
    office: Office, visit: Visiting
) -> None:
    office.store.offer([item(Task.PAIR, "a", "Which?", RIGHT, WRONG)])
    page = visit().enter(invited(office))
    place = comes(page, Task.PAIR).index(WRONG)
    correct(page, WRONG, "It is dry.")
    root, question, skip = page.locator("html"), page.locator("#question"), page.locator("#skip span")

    def reads(language: str, *words: str) -> None:
        expect(root).to_have_attribute("lang", language)
        assert (question.text_content(), skip.text_content(), page.title()) == words
        expect(page.locator(f"#correction-{place}")).to_have_value("It is dry.")

    reads("en", "Which answer is better?", "Skip", "Rating · Polyphony")
    page.locator("#language").click()
    chinese = ("zh-CN", "哪个回答更好？", "跳过", "评分 · Polyphony")  # noqa: RUF001
    reads(*chinese)
    page.reload()
    comes(page, Task.PAIR)
    reads(*chinese)
    page.locator("#language").click()
    reads("en", "Which answer is better?", "Skip", "Rating · Polyphony")
