"""How good is the policy while it trains? Prompts of the validation split, completed every few steps.

    prompts (once) -> rollout workers, with the weights after k updates -> completions -> measures -> go on, or end

It changes nothing else: its samples have seeds of their own, and training's prompts and samples stay as they are.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from actors.fleet.answer import gather
from actors.fleet.failures import KillsWorkers
from actors.loop.checkpoints import LoopState
from actors.loop.crew import Roles, loop_paths
from actors.loop.door import Door
from actors.loop.sampler import check_fresh, generate, killers, left_of
from actors.roles.encoder import PromptRef, needs_of
from pipeline.config import VALIDATION, ConfigError, Recipe
from pipeline.data.schema import Reason
from pipeline.evaluation.validation import End, EndReason, Progress, chosen, end_of, measured
from pipeline.records import PromptInfo, Rollout

SAMPLING_STEP = -3
"""Seeds of validation samples are those of a step that neither training nor another evaluation takes. They are the same
each time: two evaluations then differ by the weights more than by chance."""
END_FILE = "rlhf_end.json"


def lacks(info: PromptInfo) -> str | None:
    """What a row lacks to be validated on."""
    if info.answer is not None:
        return None
    return "no answer to compare with; choose another rlhf.validation.split, or set rlhf.evaluate_every=null"


class Validator:
    """Evaluates the policy of the loop, where the recipe asks for it, and says when the loop has come to its end."""

    def __init__(self, roles: Roles, recipe: Recipe):
        """Has the prompts processed, once and for all evaluations.

        Raises:
            FileNotFoundError: there is no such split.
            ConfigError: none of its prompts has an answer.
            TooManyBadRows: more than `data.max_bad_fraction` of them were refused.
        """
        self._roles = roles
        self._recipe = recipe
        self._prompts: list[PromptRef] = []
        self._num_unanswered = 0
        if recipe.rlhf.evaluate_every:
            self._admit()

    def renew(self) -> None:
        """Has the prompts processed again: some are no longer in the object store."""
        self._prompts = self._door.again(self._prompts)

    def _admit(self) -> None:
        recipe, settings = self._recipe, self._recipe.rlhf.validation
        needs = needs_of(recipe, loop_paths(recipe)["encoder"], recipe.rlhf.policy.parts)
        self._door = door = Door(self._roles, recipe, settings.split, stage="validation", needs=needs)
        infos = door.datasets.infos()
        self._num_unanswered = sum(info.answer is None for info in infos)
        self._prompts = door.admit([info.id for info in chosen(infos, num_prompts=settings.num_prompts)])
        if not self._prompts:
            raise ConfigError(
                f"rlhf.evaluate_every={recipe.rlhf.evaluate_every}: no good row of the split {settings.split} has an "
                "answer to compare with; choose another rlhf.validation.split, or set evaluate_every=null"
            )

    def evaluated(self, state: LoopState) -> LoopState:
        """The state with what the policy's weights of now have shown, where an evaluation is due.

        Raises:
            RuntimeError: other weights than those have sampled.
            ConfigError: the recipe looks at a metric of a task that none of the prompts belongs to.
        """
        settings = self._recipe.rlhf
        every, step = settings.evaluate_every, state.step
        is_due = every and (step % every == 0 or step == settings.num_steps)
        if not is_due or state.progress.at(step):  # A resumed run finds it in the checkpoint.
            return state
        metrics = self._measured(step)
        self._check_names(metrics)
        waits = settings.critic_warmup_steps if settings.algorithm.advantage.needs_critic else 0
        progress = state.progress.updated(
            step=step,
            metrics=metrics,
            metric=settings.validation.stop_metric,
            min_delta=settings.validation.min_delta,
            has_learned=step > waits,
        )
        return replace(state, progress=progress)

    def _measured(self, step: int) -> dict[str, float]:
        started = time.monotonic()
        rollouts = None
        while rollouts is None:
            rollouts = self._completed()
        for found in rollouts.values():
            check_fresh(found, oldest=step, newest=step)
        return {
            **measured([prompt.info for prompt in self._prompts], **rollouts),
            "data/validation_prompts": float(len(self._prompts)),
            "data/validation_rows_without_answer": float(self._num_unanswered),
            "time/validation_s": time.monotonic() - started,
        }

    def _completed(self) -> dict[str, list[Rollout]] | None:
        """Sampled and greedy completions of all prompts; None where there are fewer prompts now: some kill workers."""
        sampling, size = self._recipe.rlhf.sampling, self._recipe.rlhf.validation.samples_per_prompt
        calls = {
            "sampled": generate(self._roles, self._prompts, sampling, group_size=size, seed=SAMPLING_STEP),
            "greedy": generate(self._roles, self._prompts, sampling.greedy, group_size=1, seed=SAMPLING_STEP),
        }
        try:
            found, _ = gather(calls)
        except KillsWorkers as error:
            deadly = killers(self._roles, error, sampling, group_size=size, seed=SAMPLING_STEP)
            for prompt in deadly:
                self._door.expel(prompt, Reason.KILLS_WORKER, str(error))
            self._prompts = left_of(self._prompts, deadly, error)
            return None
        return {name: [rollout for part in parts for rollout in part] for name, parts in found.items()}

    def _check_names(self, metrics: dict[str, float]) -> None:
        wanted = {
            "validation.stop_metric": self._recipe.rlhf.validation.stop_metric,
            "checkpoints.best_metric": self._recipe.rlhf.checkpoints.best_metric or "",
        }
        for name, metric in wanted.items():
            if metric.startswith(VALIDATION) and metric not in metrics:
                known = ", ".join(sorted(each for each in metrics if each.startswith(VALIDATION)))
                raise ConfigError(f"rlhf.{name}={metric}: no validation prompt is of that task; there are {known}")

    def end(self, state: LoopState) -> End | None:
        """Whether the loop ends here, and why."""
        return end_of(self._recipe.rlhf, step=state.step, progress=state.progress)


def is_done(recipe: Recipe, *, resume: bool) -> bool:
    """Whether a resumed run ended before, by the recipe of now, and has handed on its weights; prints it.

    A run that starts or goes on has no end yet: what an earlier one left is removed.
    """
    file = _end_file(recipe)
    if not file.is_file():
        return False
    stored = json.loads(file.read_text(encoding="utf-8"))
    end = end_of(recipe.rlhf, step=stored["step"], progress=Progress(**stored["progress"]))
    if resume and end and stored["export"] == recipe.rlhf.checkpoints.export and recipe.checkpoint("rlhf").is_dir():
        print(f"--resume: the run ended after step {end.step}, nothing is left to do: {end.detail}", flush=True)
        return True
    file.unlink()
    return False


def record_end(recipe: Recipe, end: End, state: LoopState) -> None:
    """Says why the run ended, and keeps it in `rlhf_end.json`: once the weights are handed on, not before."""
    print(f"the run ends after step {end.step} of {recipe.rlhf.num_steps}: {end.detail}", flush=True)
    content = {**asdict(end), "export": recipe.rlhf.checkpoints.export, "progress": state.progress.to_json()}
    _end_file(recipe).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_end(recipe: Recipe) -> End | None:
    """Why the run ended; None where it has not, or began anew since."""
    file = _end_file(recipe)
    if not file.is_file():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    return End(EndReason(stored["reason"]), stored["step"], stored["detail"])


def _end_file(recipe: Recipe) -> Path:
    return recipe.run.directory / END_FILE
