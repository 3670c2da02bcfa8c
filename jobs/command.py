"""The command line that all stages share: `python -m jobs.<stage> --config recipe.yaml section.field=value ...`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.fleet.failures import CannotSave, KillsWorkers, TooManyRecoveries
from actors.fleet.forks import started_as
from actors.fleet.placement import NotEnoughResources
from jobs.directory import held
from jobs.local import STANDS, print_in_any_locale
from pipeline.config import (
    Base,
    ConfigError,
    Device,
    Recipe,
    absolute,
    check_once,
    describe,
    describe_steps,
    load_recipe,
)
from pipeline.data.table import TooManyBadRows
from pipeline.grading.records import TooManyFailures

STAGES_FILE = "stages.json"
SERVE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Of the rating page's processes. Serve starts its proxy again and again where that is not up within 5 s, as on a busy
machine."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in the driver of a submitted job, and nowhere else."""

# What a user can mend: shown as one message, without a traceback.
USER_ERRORS = (
    ConfigError,
    FileNotFoundError,
    NotEnoughResources,
    TooManyBadRows,
    TooManyRecoveries,
    TooManyFailures,
    CannotSave,
    KillsWorkers,
)


@dataclass(frozen=True)
class Flag:
    """A short way to write an override: `name VALUE`. One whose `field` is a list takes all its values together."""

    name: str
    field: str
    help: str
    entry: str | None = None
    """In a list: the entry that a value stands for."""

    def overrides(self, values: Sequence[str]) -> list[str]:
        """The overrides that the values of this flag stand for."""
        if self.entry is None:
            return [f"{self.field}{value}" for value in values]
        entries = ", ".join(f"{{{self.entry}: {json.dumps(value)}}}" for value in values)
        return [f"{self.field}=[{entries}]"] if values else []


def parse(description: str, *, resumable: bool = False, flags: Sequence[Flag] = ()) -> tuple[Recipe, bool]:
    """The recipe that the command line asks for, and whether to resume; `--resume` is known where that is possible."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="\n".join(["Options of the recipe:", *describe(), "", "Steps of prepare.steps:", *describe_steps()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="a recipe in YAML; `base: other.yaml` in it, relative to it, names a recipe whose values it overrides; "
        "without --config, the defaults below",
    )
    if resumable:
        parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this run")
    for flag in flags:
        parser.add_argument(flag.name, action="append", default=[], dest=flag.field, help=flag.help)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    options = parser.parse_intermixed_args([as_utf8(argument) for argument in sys.argv[1:]])
    short = [override for flag in flags for override in flag.overrides(getattr(options, flag.field))]
    return recipe_of(options.config, [*short, *options.overrides]), resumable and options.resume


def recipe_of(config: Path | None, overrides: Sequence[str]) -> Recipe:
    """The recipe of a file and overrides as a user writes them, with absolute paths."""
    check_once(overrides)
    base = where_the_user_stands()
    config = config and (base.directory or Path()) / config.expanduser()
    return absolute(load_recipe(config, overrides), base)


def as_utf8(argument: str) -> str:
    """An argument whose letters are none in this locale (then they are surrogates), as the UTF-8 that it was typed in.

    Raises:
        ConfigError: it is no UTF-8.
    """
    try:
        return os.fsencode(argument).decode() if any("\ud800" <= each <= "\udfff" for each in argument) else argument
    except UnicodeDecodeError:
        raise ConfigError(f"argument {argument!a}: neither in the locale's encoding nor in UTF-8") from None


def where_the_user_stands() -> Base:
    """What relative paths of the command line and the recipe are relative to.

    A submitted job runs in Ray's copy of the working directory, which is deleted with all that is written there, or
    wherever Ray was started.
    """
    if stands := os.environ.get(STANDS):
        return Base(Path(stands))
    if SUBMITTED in os.environ:
        reason = "this job was submitted: Ray runs it in a directory of its own, and deletes that"
        return Base(None, f"{reason}; write an absolute path, such as one that all nodes share")
    return Base(Path.cwd())


def main(
    run: Callable[..., object],
    description: str | None,
    *,
    resumable: bool = False,
    flags: Sequence[Flag] = (),
    needs_ray: bool = True,
) -> None:
    """Reads the recipe, connects to Ray and runs a stage; ends with status 1 on an error that the user can mend.

    needs_ray: whether a Ray is started where `RAY_ADDRESS` names none.
    """
    print_in_any_locale()
    try:
        recipe, resume = parse(description or "", resumable=resumable, flags=flags)
        if recipe.cluster.device is Device.CPU:
            # transformers imports DeepSpeed where it saves a model, and that warns of a GPU that it does not find.
            os.environ["DS_ACCELERATOR"] = "cpu"
        with held(recipe.run.directory):
            if needs_ray or os.environ.get("RAY_ADDRESS"):
                # What needs no Ray has small workers: they would wait for imports that none of them needs.
                connect(copies=needs_ray and recipe.cluster.device is Device.CPU)
            if resume:
                run(recipe, resume=True)
            else:
                run(recipe)
    except USER_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")


def connect(*, copies: bool = True, **options: Any) -> None:
    """Joins the cluster that this job was submitted to, or starts a local one; `options` go to `ray.init`.

    copies: whether all workers start as copies (`actors/fleet/forks.py`), whoever starts them.
    """
    if not ray.is_initialized():
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        started = started_as(Device.CPU) if copies else {}
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths), **SERVE}, **started},
            **options,
        )


def record_stage(recipe: Recipe, stage: str, seconds: float) -> None:
    """Keeps the wall time of a stage of this run, for the report."""
    path = recipe.run.directory / STAGES_FILE
    path.write_text(json.dumps({**read_stages(recipe), stage: round(seconds, 1)}), encoding="utf-8")


def read_stages(recipe: Recipe) -> dict[str, float]:
    """Wall time in seconds of the stages that ran, in their order."""
    path = recipe.run.directory / STAGES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
