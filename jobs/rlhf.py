"""The RLHF loop: generate -> score -> update.

    prompts -> encoder --features--> rollout -> completions --+--> reward ----+
       (once)                           ^                     +--> reference -+--> experience -> policy, critic
                                        |                     +--> critic ----+                    |
                                        +---------------- weights, with their version <-----------+

The driver holds ids, logprobs and rewards, never a medium: those travel as references in the object store.
With `rlhf.staleness` above 0 the next batches are sampled while this one is scored and learned from.
Where `rlhf.evaluate_every` asks for it, the rollout workers complete validation prompts between two steps.
Where `feedback.enabled` asks for it, a share of the completions is offered to people, and the reward model learns from
what they say of them: another process refits it, and it is swapped between two steps.
Left out on purpose: a second policy pass where behaviour logprobs are the policy's own (`Recipe.scores_proximal`).
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

from actors.feedback.people import People
from actors.fleet.failures import StateLost, WorldLost
from actors.loop import agreement, checkpoints, parity, validation
from actors.loop.checkpoints import LoopState
from actors.loop.crew import Crew, Roles, crew_of, loop_needs, loop_paths
from actors.loop.door import Batches, Door, check_some
from actors.loop.judge import NOTHING_SAID, check_rows, lacks
from actors.loop.metrics import ray_sinks
from actors.loop.recovery import Recovery
from actors.loop.sampler import Sampler
from actors.loop.scaling import Scaler
from actors.loop.step import Step, sync_weights
from actors.loop.step_metrics import Clock, sample_rows, step_metrics
from actors.loop.validation import Validator
from actors.roles.scoring import ShardedWorker
from jobs.command import main
from pipeline.config import Recipe, Resume
from pipeline.data.datasets import Datasets
from pipeline.evaluation.validation import End
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, resume: bool | None = None, crew: Crew | None = None) -> Path:
    """Trains the policy and returns the directory of its Hugging Face checkpoint.

    resume: whether to go on from a checkpoint that lies there; None is what `run.resume` says of this run's own.
    """
    settings, target = recipe.rlhf, recipe.checkpoint("rlhf")
    among = None
    if resume is None:
        among = checkpoints.own(checkpoints.root_of(recipe)) if recipe.run.resume is Resume.AUTO else []
        resume = bool(among)
    if validation.is_done(recipe, resume=resume):
        return target
    datasets = Datasets(recipe.datasets, settings.split).check("rlhf.split")
    check_some(datasets, lacks(recipe))
    check_rows(recipe, datasets, settings.split)
    if settings.evaluate_every:
        held_out = Datasets(recipe.datasets, settings.validation.split).check("rlhf.validation.split")
        check_some(held_out, validation.lacks)
    asked = People(recipe, goes_on=resume) if recipe.feedback.enabled else nullcontext()
    with crew_of(recipe, crew) as workers, asked as people:
        workers.recoveries.enter("rlhf", goes_on=resume)
        roles = workers.roles(loop_paths(recipe))
        recovery = Recovery(roles, recipe)
        state: LoopState | None = None
        door = Door(roles, recipe, settings.split, stage="rlhf", needs=loop_needs(recipe), lacks=lacks(recipe))
        validator = validation.Validator(roles, recipe)
        is_checked = False
        while True:
            try:
                if state is None:
                    state = recovery.resumed(among) if resume else recovery.started()
                if not is_checked:
                    recovery.insist(partial(check, roles, recipe, door, state, is_resumed=resume))
                    is_checked = True
                sync_weights(roles, state.step)
                state, end = train(roles, recipe, door, validator, recovery, people, state)
                checkpoints.export(roles, recipe, state.step, target)
                break
            except (WorldLost, StateLost) as lost:
                before = recovery.rolled_back(lost)
                state = None if state is None else before
        validation.record_end(recipe, end, state)
    return target


def check(roles: Roles, recipe: Recipe, door: Door, state: LoopState, *, is_resumed: bool) -> None:
    """Says what learns; makes sure that rewards can be given, and that the copies of the model agree, as they were
    loaded and after weights have travelled."""
    for learner in filter(None, (roles.policy, roles.critic)):
        print(f"{learner.role}:", learner.on_all(ShardedWorker.parameter_table).result()[0], sep="\n", flush=True)
    if roles.graders is not None:
        roles.graders.check(recipe)
        if not is_resumed:
            agreement.measure(roles.graders, recipe)
    if not recipe.rlhf.parity.num_rows:
        return
    if not is_resumed:
        parity.check(roles, recipe, door, stage="after loading", stock=True)
    sync_weights(roles, state.step)
    parity.check(roles, recipe, door, stage="after the first weight sync", stock=not is_resumed)


def train(
    roles: Roles,
    recipe: Recipe,
    door: Door,
    validator: Validator,
    recovery: Recovery,
    people: People | None,
    state: LoopState,
) -> tuple[LoopState, End]:
    """Steps from a state to the end of the run; the state then, and why it ended.

    Raises:
        WorldLost, StateLost: policy and critic have to be brought back, and with them an earlier state.
    """
    settings = recipe.rlhf
    batches = Batches(door, recipe, size=settings.prompts_per_step, cursor=state.cursor)
    sampler, scaler = Sampler(roles, recipe, batches), Scaler(roles, recipe)
    tracker = Tracker(
        recipe.run,
        "rlhf",
        num_steps=settings.num_steps,
        resume_from_step=state.step,
        extra_sinks=ray_sinks(recipe.run, "rlhf"),
    )
    with tracker, closing(batches):
        state = recovery.insist(partial(validator.evaluated, state), renew=validator.renew)
        while (end := validator.end(state)) is None:
            clock, said = Clock(), NOTHING_SAID
            if people is not None:
                state, said = recovery.insist(partial(people.swapped, roles, state)), people.said(state.step)
            before = state
            step = Step(roles, recipe, sampler, before, said)
            state, learned = recovery.insist(step.run, renew=step.renew)
            recovery.step = state.step
            scaler.stepped(learned.phases)
            metrics = {
                **step_metrics(
                    roles,
                    door,
                    learned,
                    settings.algorithm,
                    step=before.step,
                    clock=clock,
                ),
                **batches.metrics(),
                "kl/weight": state.kl.weight,
            }
            if people is not None:
                people.take(before.step, learned.batch)
                metrics |= people.metrics()
            tracker.log(before.step, {**metrics, **before.progress.at(before.step)})
            if before.step % settings.samples_every == 0:
                tracker.samples(before.step, sample_rows(learned.batch))
            state = recovery.insist(partial(validator.evaluated, state), renew=validator.renew)
            if state.step % settings.checkpoints.save_every == 0 or validator.end(state):
                recovery.saved(state, {**metrics, **state.progress.at(state.step)})
        if evaluated := state.progress.at(state.step):
            tracker.log(state.step, evaluated)
        batches.record_rows("rlhf")
    return state, end


if __name__ == "__main__":
    main(run, __doc__, resumable=True)
