"""What the loop does when something that it works with is lost: brings it back alone, and goes on to the same numbers.

| lost | brought back | done again |
|---|---|---|
| prompts or features in the object store | they are encoded again | the phase that met it |
| a rank of reference or reward model | its world, from its checkpoint | the phase that met it |
| a rank of policy or critic, published weights | both worlds, from the run's last checkpoint | the steps since |
| room for a checkpoint, its store | nothing: the one before is kept | nothing, at the next one all is as it was |

Rollout and encoder workers bring themselves back (`actors.fleet.pool`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from actors.engine.files import Folder, Unwritable
from actors.fleet.answer import gather
from actors.fleet.failures import MISTAKES, CannotSave, InputsLost, Loss, Lost, StateLost, TooManyRecoveries, WorldLost
from actors.fleet.recoveries import Recovery as Recovered
from actors.fleet.world import World
from actors.loop import checkpoints
from actors.loop.checkpoints import LoopState
from actors.loop.crew import Roles
from pipeline.config import Recipe

T = TypeVar("T")
LEARNERS = ("policy", "critic")
CURE = "make room there, or name another place with rlhf.checkpoints.path"
MAX_SAME = 4
"""Times that a step may be lost in the same way, before that is taken for what always happens."""


class Recovery:
    """Brings back what a run has lost, from its own checkpoints."""

    def __init__(self, roles: Roles, recipe: Recipe):
        self._roles = roles
        self._recipe = recipe
        self.step = 0
        self._same: Counter[tuple[int, str]] = Counter()
        self._num_unsaved = 0
        """Checkpoints since the last good one."""
        self._saved: list[Folder] = []
        """Checkpoints of this run, the newest first."""

    @property
    def step(self) -> int:
        """Steps that the run has made."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = self._roles.recoveries.step = step

    def started(self) -> LoopState:
        """Begins a run: what checkpoints there are belong to others.

        Raises:
            CannotSave: there is no room for the first checkpoint.
        """
        try:
            self._claim([])
            checkpoints.check_space(checkpoints.root_of(self._recipe), checkpoints.num_bytes(self._roles))
        except Unwritable as error:
            raise CannotSave(f"{error}: {CURE}") from None
        return LoopState.start(self._recipe.rlhf.algorithm.kl)

    def resumed(self, among: Sequence[Folder] | None = None) -> LoopState:
        """Goes on from the newest checkpoint that an earlier process left; see `checkpoints.resume`."""
        folder, state = checkpoints.resume(self._roles, self._recipe, among=among)
        self._claim([folder])
        self.step = state.step
        return state

    def saved(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Writes the checkpoint of a state, or goes on with the one before.

        Raises:
            ConfigError: `best_metric` is not among the metrics. The checkpoint has been written all the same.
            CannotSave: this has failed too often, one time after the other.
        """
        settings = self._recipe.rlhf.checkpoints
        try:
            folder = checkpoints.save(self._roles, state, self._recipe, metrics)
            self._claim([folder, *self._saved])
            self._num_unsaved = 0
            checkpoints.keep(checkpoints.root_of(self._recipe), folder, settings)
        except Exception as error:  # Stores' clients have no common error.
            if isinstance(error, (Lost, *MISTAKES)):
                raise
            self._num_unsaved += 1
            last = f"the run goes on with {self._saved[0].name}" if self._saved else "there is none before it"
            told = f"step {state.step} is not saved, {last}: {error}"
            self._roles.recoveries.note("checkpoint", told, Loss.UNSAVED)
            if self._num_unsaved > settings.max_failures:
                raise CannotSave(
                    f"rlhf.checkpoints.max_failures={settings.max_failures}: {self._num_unsaved} checkpoints one after "
                    f"the other were not written; the last one: {told}; {CURE}"
                ) from error

    def _claim(self, folders: Sequence[Folder]) -> None:
        self._saved = [*folders]
        checkpoints.claim(checkpoints.root_of(self._recipe), folders)

    def insist(self, phase: Callable[[], T], *, renew: Callable[[], None] = lambda: None) -> T:
        """What a phase comes to, repeated until nothing that it needs is lost. renew: encodes its prompts again.

        Raises:
            WorldLost: it was a learner, which takes back more than a phase.
            TooManyRecoveries: it does not come to an end.
        """
        while True:
            try:
                return phase()
            except InputsLost as lost:
                recovery = self._begin(lost)
                renew()
            except WorldLost as lost:
                if lost.role in LEARNERS:
                    raise
                recovery = self._begin(lost)
                self._restart([lost.role])
            recovery.done()

    def rolled_back(self, lost: WorldLost | StateLost) -> LoopState:
        """Starts policy and critic again, and returns the state from which the steps are done again.

        Raises:
            TooManyRecoveries: this happens too often.
        """
        recovery = self._begin(lost)
        while True:
            self._restart([role for role in LEARNERS if getattr(self._roles, role) is not None])
            try:
                state = LoopState.start(self._recipe.rlhf.algorithm.kl)
                if self._saved:
                    _, state = checkpoints.resume(self._roles, self._recipe, among=self._saved)
                break
            except WorldLost as again:
                self._begin(again)
        recovery.done(steps=max(0, self.step - state.step))
        self.step = state.step
        return state

    def _begin(self, lost: Lost) -> Recovered:
        self._same[self.step, str(lost)] += 1
        if self._same[self.step, str(lost)] >= MAX_SAME:
            raise TooManyRecoveries(f"step {self.step} was lost {MAX_SAME} times in the same way: {lost}") from lost
        return self._roles.recoveries.begin(lost.role, lost.detail, lost.kind)

    def _restart(self, roles: Sequence[str]) -> None:
        """Starts all ranks of worlds again, each from its checkpoint."""
        worlds: dict[str, World[Any]] = {role: getattr(self._roles, role) for role in roles}
        while True:
            paths = {role: world.restart() for role, world in worlds.items()}
            try:
                gather({role: world.setup(paths[role]) for role, world in worlds.items()})
                return
            except WorldLost as again:
                self._begin(again)
