"""Pools of real processes that are killed, hang and get new states: results are those of one worker that lives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.exceptions import RpcError

from actors.engine.place import Place
from actors.fleet import staff
from actors.fleet.failures import KillsWorkers, TooManyRecoveries
from actors.fleet.placement import ExtraSeat
from actors.fleet.pool import Pool
from actors.fleet.recoveries import Recoveries
from actors.fleet.staff import LINGERS
from actors.fleet.worker import Worker
from pipeline.config import Deadlines, Device, Pooled, Recipe, Workers, load_recipe

pytestmark = pytest.mark.usefixtures("local_ray")


class Adder(Worker):
    """Adds what it was told to numbers; some kill it, stop it, or cannot be added to."""

    imports_models = False

    def warm_up(self, device: Device) -> None:
        pass

    def setup(self, place: Place, path: Path) -> None:
        if path.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if path.name == "broken":
            raise ValueError("no such checkpoint")
        self._path = path
        self._more = 0

    def take(self, more: int) -> None:
        self._more = more

    def add(self, number: int, *, deaths: str = "", hang: bool = False) -> tuple[int, int, int]:
        """The sum, what was added, and the process that did it."""
        log = self._path / deaths
        if deaths and number == 3 and len(list(log.iterdir())) < int(log.suffix[1:]):
            (log / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGSTOP if hang else signal.SIGKILL)
        if number < 0:
            raise ValueError(f"{number} is below 0")
        time.sleep(0.02)
        return number + self._more, self._more, os.getpid()

    def process(self) -> int:
        """The process that it is in."""
        return os.getpid()

    def timed(self, number: int) -> tuple[int, float]:
        """The number, and when it was begun."""
        started = time.time()
        time.sleep(0.2)
        return number, started


def adders(
    path: Path,
    *,
    num_workers: int = 2,
    max_an_hour: int = 20,
    settings: Workers | None = None,
    options: Mapping[str, Any] | None = None,
) -> Pool[Adder]:
    deadlines = Deadlines(first_s=60.0, least_s=3.0, factor=1.0)
    recipe: Recipe = load_recipe(None, [])
    recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"deadlines": deadlines})})
    seating: Any = SimpleNamespace(options={"adder": [options or {"num_cpus": 0}] * num_workers}, device=Device.CPU)
    found = Pool(Adder, "adder", seating, recipe, settings or Workers(), Recoveries(max_an_hour=max_an_hour))
    found.setup(path).result()
    return found


@pytest.fixture(scope="module")
def pool(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool[Adder]]:
    found = adders(tmp_path_factory.mktemp("pool"))
    yield found
    found.shutdown()


def deaths(pool: Pool[Adder], name: str) -> Path:
    """Where the workers of a test that die leave their numbers; the suffix says how many do."""
    directory = cast(Path, pool.path) / name
    directory.mkdir()
    return directory


def test_results_lie_in_the_order_of_the_tasks_and_both_workers_have_a_share(pool: Pool[Adder]) -> None:
    found = pool.submit(Adder.add, list(range(12))).result()
    assert [sum_ for sum_, _, _ in found] == list(range(12))
    assert len({process for _, _, process in found}) == 2


def test_what_a_killed_worker_was_at_is_done_by_others_and_another_one_joins(pool: Pool[Adder]) -> None:
    pool.publish(Adder.take, 100)
    pool.recoveries.counts()
    log = deaths(pool, "killed.1")
    found = pool.submit(Adder.add, list(range(12)), deaths=log.name).result()
    assert [sum_ for sum_, _, _ in found] == list(range(100, 112))
    assert [path.name for path in log.iterdir()] not in ([], [str(process) for *_, process in found])
    assert pool.recoveries.counts()["counts/recoveries:adder"] == 1
    # The one that joined has the state that was published before it came.
    processes: set[int] = set()
    while len(processes) < 2:  # It takes its seconds to start.
        again = pool.submit(Adder.add, list(range(12))).result()
        processes = {process for *_, process in again}
        assert {more for _, more, _ in again} == {100}


def test_a_worker_that_hangs_is_killed_after_its_deadline(pool: Pool[Adder]) -> None:
    pool.publish(Adder.take, 0)
    log = deaths(pool, "stopped.1")
    found = pool.submit(Adder.add, list(range(6)), deaths=log.name, hang=True).result()
    assert [sum_ for sum_, _, _ in found] == list(range(6))
    assert len(list(log.iterdir())) == 1


def test_a_worker_that_hangs_with_nothing_to_do_keeps_nobody_from_asking_the_others(pool: Pool[Adder]) -> None:
    wait_until(lambda: len(pool.on_all(Adder.process)) == 2)
    pool.recoveries.counts()
    hanging, other = pool.on_all(Adder.process)
    os.kill(hanging, signal.SIGSTOP)
    assert pool.on_all(Adder.process) == [other]
    found = pool.submit(Adder.add, list(range(6))).result()
    assert [sum_ for sum_, _, _ in found] == list(range(6))
    assert pool.recoveries.counts() == {"counts/recoveries:adder": 1, "counts/recoveries_by_cause:hung": 1}


def test_a_task_is_done_under_the_state_in_which_it_was_submitted(pool: Pool[Adder]) -> None:
    answers: list[Any] = []
    for more in (1, 2):
        pool.publish(Adder.take, more)
        old = pool.state
        answers.append(pool.submit(Adder.add, list(range(9))))
    pool.publish(Adder.take, 3)
    with pool.under(old):
        answers.append(pool.submit(Adder.add, [0]))
    answers.append(pool.submit(Adder.add, [0]))
    assert [{more for _, more, _ in answer.result()} for answer in answers] == [{1}, {2}, {2}, {3}]


def test_an_error_is_the_tasks_own(pool: Pool[Adder]) -> None:
    bad, good = pool.submit(Adder.add, [-1]), pool.submit(Adder.add, [4])
    with pytest.raises(ValueError, match="-1 is below 0"):
        bad.result()
    assert good.result()[0][1:] == (3, good.result()[0][2])


def test_what_kills_four_workers_is_given_up_and_the_rest_is_done(pool: Pool[Adder]) -> None:
    log = deaths(pool, "always.9")
    fatal = pool.submit(Adder.add, [3], deaths=log.name)
    with pytest.raises(KillsWorkers, match="adder: 4 workers died of add"):
        fatal.result()
    assert len(list(log.iterdir())) == 4
    assert pool.submit(Adder.add, [5]).result()[0][0] == 8


def test_a_seat_keeps_what_belongs_to_it_and_a_third_takes_a_third_of_all(pool: Pool[Adder], tmp_path: Path) -> None:
    keys = [str(number) for number in range(300)]
    two = [pool.seat_of(key) for key in keys]
    other = adders(tmp_path, num_workers=3)
    try:
        three = [other.seat_of(key) for key in keys]
    finally:
        other.shutdown()
    assert set(two) == {0, 1}
    moved = [new for old, new in zip(two, three, strict=True) if old != new]
    assert set(moved) == {2} and 70 < len(moved) < 130


def test_more_losses_than_the_budget_end_the_work_and_say_what_kept_failing(tmp_path: Path) -> None:
    small = adders(tmp_path, num_workers=1, max_an_hour=1)
    try:
        log = deaths(small, "often.3")
        with pytest.raises(TooManyRecoveries, match=r"max_recoveries_an_hour=1: .*adder: worker 0 died"):
            small.submit(Adder.add, [3], deaths=log.name).result()
    finally:
        small.shutdown()


def test_workers_that_cannot_load_end_the_wait_for_them_and_all_tasks_until_another_checkpoint_comes(
    tmp_path: Path,
) -> None:
    small = adders(tmp_path, num_workers=1, max_an_hour=1)
    try:
        with pytest.raises(ValueError, match="no such checkpoint"):
            small.setup(tmp_path / "broken").result()
        with pytest.raises(ValueError, match="no such checkpoint"):
            small.submit(Adder.add, [1]).result()
        small.setup(tmp_path).result()
        assert small.submit(Adder.add, [1]).result()[0][0] == 1
        # It dies whenever it loads: the budget ends that, and whoever waits is told.
        with pytest.raises(TooManyRecoveries, match="2 losses within an hour"):
            small.setup(tmp_path / "deadly").result()
    finally:
        small.shutdown()


@pytest.fixture
def one_and_more(local_ray: None, tmp_path: Path) -> Iterator[Pool[Adder]]:
    """A pool of one worker that stays, to which others come."""
    found = adders(tmp_path, num_workers=1, settings=Pooled(cpus_per_worker=0.1, max_workers=3))
    yield found
    found.shutdown()


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def num_groups() -> int:
    return sum(group["state"] in ("CREATED", "PENDING") for group in ray.util.placement_group_table().values())


def test_workers_come_one_after_the_other_and_those_that_go_end_what_they_are_at(
    one_and_more: Pool[Adder],
) -> None:
    pool, groups = one_and_more, num_groups()
    pool.publish(Adder.take, 100)
    pool.resize(3)
    wait_until(lambda: len(pool) == 3)
    assert num_groups() == groups + 2
    processes: set[int] = set()
    while len(processes) < 3:  # Those that came have the state that was published before.
        found = pool.submit(Adder.add, list(range(30))).result()
        assert [sum_ for sum_, _, _ in found] == list(range(100, 130))
        processes |= {process for *_, process in found}
    last = pool.submit(Adder.add, list(range(60)))
    for _ in range(LINGERS + 1):
        pool.resize(1)
    assert [sum_ for sum_, _, _ in last.result()] == list(range(100, 160))
    wait_until(lambda: len(pool) == 1)
    pool.resize(1)
    wait_until(lambda: num_groups() == groups)
    assert len({process for *_, process in pool.submit(Adder.add, list(range(12))).result()}) == 1
    assert pool.recoveries.counts() == {}


def test_a_seat_that_does_not_come_keeps_nobody_from_work_and_the_request_can_be_taken_back(
    local_ray: None, tmp_path: Path
) -> None:
    far = Pooled(cpus_per_worker=0.1, max_workers=2, resources={"on_the_moon": 1.0})
    pool, groups = adders(tmp_path, num_workers=1, settings=far), num_groups()
    pool.resize(2)
    wait_until(lambda: num_groups() == groups + 1)
    assert [sum_ for sum_, _, _ in pool.submit(Adder.add, list(range(6))).result()] == list(range(6))
    pool.resize(1)
    wait_until(lambda: num_groups() == groups)
    pool.resize(2)
    wait_until(lambda: num_groups() == groups + 1)
    pool.shutdown()
    assert num_groups() == groups


def test_a_control_plane_that_does_not_answer_costs_a_look_and_no_work(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([RpcError("deadline exceeded"), RpcError("unavailable")])
    looks_itself = ExtraSeat.is_there

    def looks(seat: ExtraSeat) -> bool:
        for error in answers:
            raise error
        return looks_itself(seat)

    monkeypatch.setattr(ExtraSeat, "is_there", looks)
    pool = adders(tmp_path, num_workers=1, settings=Pooled(cpus_per_worker=0.1, max_workers=2))
    pool.resize(2)
    wait_until(lambda: len(pool) == 2)
    assert next(answers, None) is None
    assert [sum_ for sum_, _, _ in pool.submit(Adder.add, list(range(6))).result()] == list(range(6))
    pool.shutdown()


def test_a_spare_takes_over_and_another_one_follows_and_a_dead_spare_is_no_loss_of_its_own(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff, "SPARE_AFTER_S", 0.0)
    pool = adders(tmp_path, num_workers=1)
    pool.publish(Adder.take, 100)
    known: set[int] = set()
    for life, is_alive in enumerate((True, True, False)):
        spare = spare_of(pool)
        known.add(spare)
        assert len(known) == life + 1
        if not is_alive:
            os.kill(spare, signal.SIGKILL)
        log = deaths(pool, f"life-{life}.1")
        (sum_, _, process) = pool.submit(Adder.add, [3], deaths=log.name).result()[0]
        assert sum_ == 103 and len(list(log.iterdir())) == 1
        assert (process == spare) == is_alive
        assert pool.recoveries.counts()["counts/recoveries:adder"] == 1
        assert all(loss.seconds is not None for loss in pool.recoveries.all)
    pool.shutdown()


def spare_of(pool: Pool[Adder]) -> int:
    """The process of a pool's spare, once there is one."""
    own: Any = pool._staff  # pyright: ignore[reportPrivateUsage]
    wait_until(lambda: own._spare is not None)
    return ray.get(own._spare.actor.__ray_call__.remote(lambda _: os.getpid()))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


def test_the_dearest_tasks_are_begun_first_and_results_lie_where_they_were_asked_for(pool: Pool[Adder]) -> None:
    pool.publish(Adder.take, 0)
    found = pool.submit_by_cost(Adder.timed, [1.0, 9.0, 2.0, 5.0], [0, 1, 2, 3]).result()
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert set(sorted(range(4), key=lambda number: found[number][1])[:2]) == {1, 3}
