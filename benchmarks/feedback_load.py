"""Does the rating page bear many raters at once, and does it lose or double a judgement when it is killed?

    raters -> GET /api/next, POST /api/judgements, at once and without a pause -> judgements a second, p99 of the latter
    the same raters go on, and the reward model learns from them; `kill -9` to the page, or to what refits, at random
    times -> what was acknowledged == what is stored?

    python -m benchmarks.feedback_load

The page runs as users start it, on Ray Serve, which starts its process again. Each store is measured by itself: SQLite,
and PostgreSQL where that is installed. Raters send a judgement again, under its key and with the page's waits, until it
is acknowledged, and keep a log of what was. Each item is to be judged by one of them. Left out: what the page tells of
clicks (`/api/events`), and the time in which people think (see `--think-s`); so most seconds of an answer are those
in the queue before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import psutil
import ray

from actors.feedback import refit
from actors.feedback import serve as page
from actors.fleet.forks import descendants
from benchmarks import machine, postgres
from jobs import prepare
from jobs.command import connect
from pipeline.config import Recipe, load_recipe
from pipeline.data.datasets import Datasets
from pipeline.feedback.raters import Register
from pipeline.feedback.records import Candidate, Item, JudgementKind, RaterRole, Task
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersions
from pipeline.models.checkpoint import load_reward_model, save_checkpoint
from pipeline.records import Message

WARM_JUDGEMENTS = 2
"""Of each rater, that are not counted: threads and connections to the database are made for them."""
KILL_WITHIN_S = 2.0
"""A kill comes within so many seconds after the first judgement that the page took since the last one."""
BACK_WITHIN_S = 120.0
PAGE, REFITTING = "ServeReplica", ("_Looking", "RayTrainWorker")
"""What is in the names of the processes that are killed: the page's; and the one that refits, with those that train."""
REFIT_SHARE = 0.5
"""How often what refits is killed, and not the page."""
PATIENCE_S, LONGEST_WAIT_S = 20.0, 30.0
"""The page's own: how long it waits for an answer, and between two attempts."""
LOOK_AGAIN_S = 0.5


class Said(NamedTuple):
    """A judgement, as its rater sees it; `chosen` is None for a tie."""

    rater: str
    key: str
    question: str
    chosen: str | None


@dataclass
class Log:
    """What the raters saw: judgements that were acknowledged, seconds of each, and what went wrong how often."""

    acknowledged: list[Said] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)


@dataclass
class Rater:
    """Somebody with the page open."""

    name: str
    http: aiohttp.ClientSession
    log: Log
    chance: random.Random
    think_s: float
    csrf: str = ""

    async def log_in(self, token: str) -> None:
        """Comes in with an invitation."""
        self.csrf = (await self._insist("POST", "/api/login", {"token": token}))["csrf"]

    async def judge(self) -> bool:
        """Judges the next item, and returns whether there was one."""
        shown = (await self._insist("GET", "/api/next"))["presentation"]
        if shown is None:
            await asyncio.sleep(LOOK_AGAIN_S)
            return False
        await asyncio.sleep(self.think_s)
        place = self.chance.choice((0, 1, None))
        key = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        body = {
            "key": key,
            "presentation": shown["id"],
            "kind": JudgementKind.PAIR.value,
            "content": {"chosen": place},
            "latency_s": self.think_s,
        }
        await self._insist("POST", "/api/judgements", body, self.log.seconds)
        question = shown["messages"][0]["parts"][0]["text"]
        chosen = None if place is None else shown["completions"][place]["text"]
        self.log.acknowledged.append(Said(self.name, key, question, chosen))
        return True

    async def _insist(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: list[float] | None = None
    ) -> dict[str, Any]:
        """The answer to a request that is sent as often as the page would; the seconds of its last attempt."""
        tries = 0
        while True:
            started = time.perf_counter()
            try:
                async with self.http.request(method, path, json=body, headers={"X-CSRF-Token": self.csrf}) as answer:
                    if answer.ok:
                        found = await answer.json()
                        if seconds is not None:
                            seconds.append(time.perf_counter() - started)
                        return found
                    trouble = f"{method} {path}: {answer.status}"
                    if answer.status < 500 and answer.status not in (408, 429):
                        raise RuntimeError(f"{trouble} for {self.name}: {await answer.text()}")
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
                trouble = f"{method} {path}: {type(error).__name__}"
            self.log.troubles[trouble] += 1
            await asyncio.sleep(min(LONGEST_WAIT_S, 2.0**tries) * (1 - self.chance.random() / 3))
            tries += 1


class Supply:
    """Items in the store, of these prompts in turn: so many that all raters always find one."""

    def __init__(self, store: FeedbackStore, prompt_ids: Sequence[str]):
        self._store = store
        self._prompt_ids = prompt_ids
        self.num_offered = 0

    def offer(self, num: int) -> None:
        """Puts as many more into the queue."""
        numbers = range(self.num_offered, self.num_offered + num)
        prompts = self._prompt_ids
        self._store.offer([item(number, prompts[number % len(prompts)]) for number in numbers])
        self.num_offered += num


def item(number: int, prompt_id: str) -> Item:
    """One that a rater is to judge."""
    candidates = (Candidate("seven", (11, 12)), Candidate("maybe seven", (13, 11, 12)))
    return Item(Task.PAIR, prompt_id, "digit", (Message("user", f"Digit {number}?"),), (), candidates)


def stored(store: FeedbackStore) -> list[Said]:
    """The judgements in a store that stand."""
    return [
        Said(
            str(said.rater),
            said.key,
            str(each.item.messages[0].content),
            None if (place := said.content["chosen"]) is None else each.item.candidates[place].text,
        )
        for each in store.judged()
        for said in each.judgements
    ]


def compare(acknowledged: Iterable[Said], found: Iterable[Said]) -> tuple[int, int]:
    """Of judgements that were acknowledged: how many are not in the store as they were said; and how many judgements
    there are in the store beyond the one that each item asks for.
    """
    found = list(found)
    lost = Counter(acknowledged) - Counter(found)
    judged = Counter(said.question for said in found)
    return lost.total(), judged.total() - len(judged)


def p99(values: Sequence[float]) -> float:
    """The least value that 99 % of all do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def processes(*names: str) -> set[int]:
    """Processes of this process's own Ray that have one of these names."""
    found: set[int] = set()
    for each in descendants(psutil.Process()):
        try:
            command = "".join(each.cmdline())
        except psutil.Error:  # It has ended meanwhile.
            continue
        if any(name in command for name in names):
            found.add(each.pid)
    return found


def killed_now(*names: str) -> set[int]:
    """Kills the processes that have one of these names."""
    gone = processes(*names)
    for process in gone:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process).kill()
    return gone


async def killed(log: Log, *, kills: int, chance: random.Random) -> tuple[Counter[str], list[float]]:
    """Kills the page or what refits, at random times: how often which of them, and the seconds after which the page,
    where it was killed, acknowledged a judgement again.
    """
    counts, seconds = Counter[str](), list[float]()
    while counts.total() < kills:
        await asyncio.sleep(chance.uniform(0, KILL_WITHIN_S))
        if chance.random() < REFIT_SHARE and await asyncio.to_thread(killed_now, *REFITTING):
            counts["refit"] += 1
            continue
        gone = await asyncio.to_thread(killed_now, PAGE)
        started = time.perf_counter()
        counts["page"] += 1

        async def until(happened: Callable[[], Awaitable[bool]], started: float = started) -> None:
            while not await happened():
                if time.perf_counter() - started > BACK_WITHIN_S:
                    raise TimeoutError(f"the page was not back {BACK_WITHIN_S:.0f} s after it was killed")
                await asyncio.sleep(0.05)

        async def is_there(gone: set[int] = gone) -> bool:
            return bool(await asyncio.to_thread(processes, PAGE) - gone)

        await until(is_there)
        before = len(log.acknowledged)

        async def answers(before: int = before) -> bool:
            return len(log.acknowledged) > before

        await until(answers)
        seconds.append(time.perf_counter() - started)
    return counts, seconds


async def judge_on(rater: Rater, is_over: asyncio.Event) -> None:
    """Judges until it is over; what was begun is finished."""
    while not is_over.is_set():
        await rater.judge()


async def supply_on(supply: Supply, log: Log, num: int, is_over: asyncio.Event) -> None:
    """Offers items as a run does beside its raters: half of `num` of them wait at least."""
    while not is_over.is_set():
        if supply.num_offered - len(log.acknowledged) < num / 2:
            await asyncio.to_thread(supply.offer, num // 2)
        await asyncio.sleep(0.1)


async def judge_all(rater: Rater, num: int) -> None:
    """Judges `num` items."""
    while num:
        num -= await rater.judge()


async def load(
    address: str,
    supply: Supply,
    tokens: Sequence[str],
    *,
    judgements: int,
    kills: int,
    seed: int,
    think_s: float,
    before_kills: Callable[[], Any] = lambda: None,
) -> tuple[Log, dict[str, Any]]:
    """All that raters say, in peace and with kills; and what was measured meanwhile."""
    log, chance, is_over = Log(), random.Random(seed), asyncio.Event()
    raters: list[Rater] = []
    for number in range(len(tokens)):
        jar = aiohttp.CookieJar(unsafe=True)  # Cookies of an address without a name are safe here.
        patience = aiohttp.ClientTimeout(total=PATIENCE_S)
        http = aiohttp.ClientSession(address, cookie_jar=jar, timeout=patience)
        raters.append(Rater(f"rater{number}", http, log, random.Random(f"{seed}/{number}"), think_s))
    try:
        await asyncio.gather(*(rater.log_in(token) for rater, token in zip(raters, tokens, strict=True)))
        supply.offer(len(raters) * (WARM_JUDGEMENTS + judgements))
        await asyncio.gather(*(judge_all(rater, WARM_JUDGEMENTS) for rater in raters))
        log.seconds.clear()
        started = time.perf_counter()
        await asyncio.gather(*(judge_all(rater, judgements) for rater in raters))
        rate, in_peace = len(log.seconds) / (time.perf_counter() - started), list(log.seconds)
        if log.troubles:
            raise RuntimeError(f"nobody was killed, and yet: {dict(log.troubles)}")
        num = len(raters) * judgements
        supply.offer(num)
        going_on = [asyncio.create_task(judge_on(rater, is_over)) for rater in raters]
        going_on.append(asyncio.create_task(supply_on(supply, log, num, is_over)))
        await asyncio.to_thread(before_kills)
        killed_of, back_s = await killed(log, kills=kills, chance=chance)
        is_over.set()
        await asyncio.gather(*going_on)
    finally:
        for rater in raters:
            await rater.http.close()
    return log, {
        "judgements_per_s": round(rate, 1),
        "p99_ms": round(p99(in_peace) * 1e3, 1),
        "median_ms": round(median(in_peace) * 1e3, 1),
        "kills": killed_of.total(),
        "kills_of": dict(killed_of),
        "back_s": {"median": round(median(back_s), 1), "most": round(max(back_s), 1)} if back_s else None,
        "acknowledged": len(log.acknowledged),
    }


def recipe_of(directory: Path, url: str | None) -> Recipe:
    """A run that has a page, and refits often."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = [f"run.directory={directory}", f"feedback.port={port}", "feedback.max_requests_a_minute=1000000"]
    shares = [f"feedback.{share}_share=0" for share in ("gold", "repeat", "second_rater")]
    refits = ["feedback.refit={after_judgements: 64, num_steps: 4, poll_s: 0.2}", "data.num_readers=1"]
    small = ["prepare.tasks=[text]", "prepare.train_rows=64", "prepare.validation_rows=4", "prepare.test_rows=4"]
    return load_recipe(None, [*given, *shares, *refits, *small, *([f"feedback.url={url}"] if url else [])])


def trained(recipe: Recipe) -> list[str]:
    """Makes what refits need, an untrained reward model and a prompt table; the ids of its prompts."""
    prepare.run(recipe)
    source = recipe.checkpoint("base")
    module = load_reward_model(source, dtype=recipe.model.dtype, trust_remote_code=False)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    save_checkpoint(recipe.checkpoint("reward_model"), module=module, state=state, source=source)
    return [info.id for info in Datasets(recipe.datasets, recipe.rlhf.split).infos()]


def measure(
    recipe: Recipe, *, raters: int, judgements: int, kills: int, seed: int, think_s: float = 0.0
) -> dict[str, Any]:
    """The entry of one store in the machine-readable line. Ray is connected."""
    store = page.opened(recipe)
    register = Register(store.database, session_s=recipe.feedback.session_s)
    tokens = [register.invite(f"rater{number}", RaterRole.RATER, days=1) for number in range(raters)]
    supply, started = Supply(store, trained(recipe)), list[Any]()
    address = page.start(recipe)
    try:
        log, found = asyncio.run(
            load(
                address,
                supply,
                tokens,
                judgements=judgements,
                kills=kills,
                seed=seed,
                think_s=think_s,
                before_kills=lambda: started.append(refit.started(recipe)),
            )
        )
    finally:
        for actor in started:
            ray.kill(actor)
        page.stop()
    found["lost"], found["doubled"] = compare(log.acknowledged, stored(store))
    found["refits"] = len(RewardVersions(recipe).all())
    store.database.close()
    for trouble, num in sorted(log.troubles.items()):
        print(f"{num:6} times, then sent again: {trouble}", flush=True)
    return found


@contextmanager
def urls() -> Generator[dict[str, str | None], None, None]:
    """The URL of a database by its kind: None for the recipe's default, and no entry where there is none."""
    if postgres.binaries() is None:
        print("PostgreSQL is not installed, and is not measured; on Debian: apt install postgresql")
        yield {"sqlite": None}
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as directory, postgres.server(Path(directory)) as url:
        yield {"sqlite": None, "postgresql": url}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feedback_load", description="Many raters at once, on a page that is killed."
    )
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--judgements", type=int, default=40, help="of each rater, in peace")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--think-s", type=float, default=0.0, help="seconds between an item and its judgement")
    parsed = parser.parse_args(arguments)
    connect(address="local", num_cpus=8)
    found: dict[str, Any] = {"sqlite": None, "postgresql": None}
    with urls() as known, tempfile.TemporaryDirectory(prefix="feedback-load-") as directory:
        for kind, url in known.items():
            found[kind] = measure(recipe_of(Path(directory) / kind, url), **vars(parsed))
            print(kind, found[kind], flush=True)
    print(machine.describe())
    print(json.dumps({"benchmark": "feedback_load", **found}))
    sys.exit(0 if not any(each and (each["lost"] or each["doubled"]) for each in found.values()) else 1)


if __name__ == "__main__":
    main()
