"""People in the loop: the rating page, its raters, and what they said.

    serve        the page, until it is interrupted; an administrator's invitation is made and shown the first time
    invite NAME  a token for a rater (--role expert may also give rewards, --role admin sees everything)
    revoke NAME  keeps a rater out; what he said stays
    forget NAME  removes all that tells who a rater was; his judgements stay, as nobody's
    preferences  writes <run>/preferences.parquet, from which jobs.reward_model learns
    refit        has the reward model learn from these now; a run with feedback.enabled does so by itself
    rollback N   has an earlier version of the reward model judge
    export PATH  all judgements that stand, in --format jsonl (all there is), label_studio, arena, preferences or
                 unpaired (TRL's), or demonstrations (corrections as rows for SFT)
    bring PATH   judgements made elsewhere, in --format jsonl, label_studio, arena or preferences

Each takes `--config recipe.yaml section.field=value ...`, as the stages do: `run.directory` says whose store it is.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping

from actors.feedback import serve as page
from jobs.command import USER_ERRORS, connect
from jobs.subcommands import CommandLine, user_path
from pipeline.config import ConfigError, Device, Recipe
from pipeline.data.table import write_preferences
from pipeline.feedback.exchange import arena, jsonl, label_studio, trl
from pipeline.feedback.preferences import human_opinions
from pipeline.feedback.raters import Register
from pipeline.feedback.records import MediumRef, RaterRole
from pipeline.feedback.versions import RewardVersions

EXPORTED = ("jsonl", "label_studio", "arena", "preferences", "unpaired", "demonstrations")
BROUGHT = ("jsonl", "label_studio", "arena", "preferences")


def serve(recipe: Recipe, options: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    connect(copies=recipe.cluster.device is Device.CPU)
    page.announce(recipe, page.start(recipe))
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        page.stop()


def invite(recipe: Recipe, options: argparse.Namespace) -> None:
    """Prints the address with which a rater comes in."""
    token = _register(recipe).invite(options.name, RaterRole(options.role), days=options.days)
    print(f"{page.address(recipe)}#invitation={token}")


def revoke(recipe: Recipe, options: argparse.Namespace) -> None:
    """Keeps a rater out."""
    _register(recipe).revoke(options.name)


def forget(recipe: Recipe, options: argparse.Namespace) -> None:
    """Removes a rater's traces."""
    _register(recipe).forget(options.name)


def preferences(recipe: Recipe, options: argparse.Namespace) -> None:
    """Writes what people said of completions, for the reward model."""
    path = recipe.run.directory / "preferences.parquet"
    told = human_opinions(page.opened(recipe), recipe.feedback, recipe.reward_model.criteria)
    found = [each.opinion for each in told]
    if not found:
        raise ConfigError("nobody has judged completions in the store of this run; see jobs.feedback serve")
    write_preferences(path, found)
    print(f"{path}: {len(found)} judgements by {len({each.rater for each in found})} raters")


def refit(recipe: Recipe, options: argparse.Namespace) -> None:
    """Refits the reward model from all that people have said; a run that goes on takes it up by itself."""
    from actors.feedback.refit import Refitter  # It brings torch: seconds that only those pay who refit.

    connect(copies=recipe.cluster.device is Device.CPU)
    refitter = Refitter(recipe)
    try:
        print(refitter.look(is_asked=True))
    finally:
        refitter.close()


def rollback(recipe: Recipe, options: argparse.Namespace) -> None:
    """Has an earlier version of the reward model judge; 0 is the one before people were asked."""
    versions = RewardVersions(recipe)
    with versions.alone():
        versions.roll_back(options.version)
    print(f"reward model {options.version} judges from the next step on; the next refit starts from it")


def export(recipe: Recipe, options: argparse.Namespace) -> None:
    """Writes all judgements in a format; says what it does not hold."""
    store, path = page.opened(recipe), options.path
    judged = list(store.judged())

    def media(ref: MediumRef) -> bytes:
        return store.medium(ref.key)[0].read_bytes()

    report: Mapping[str, int] = {}
    if options.format == "jsonl":
        jsonl.write(path, judged)
    elif options.format == "arena":
        report = arena.write(path, judged)
    else:
        writers = {
            "label_studio": label_studio.write,
            "preferences": trl.write_preferences,
            "unpaired": trl.write_unpaired,
            "demonstrations": trl.write_demonstrations,
        }
        report = writers[options.format](path, judged, media=media)
    print(f"{path}: {len(judged)} items{_left_out(report)}")


def bring(recipe: Recipe, options: argparse.Namespace) -> None:
    """Takes judgements that were made elsewhere."""
    store, path = page.opened(recipe), options.path
    report: Mapping[str, int] = {}
    if options.format == "jsonl":
        judged = list(jsonl.read(path))
    elif options.format == "label_studio":
        judged, report = label_studio.read(path, keep=store.keep)
    elif options.format == "arena":
        judged, report = arena.read(path)
    else:
        judged, report = trl.read_preferences(path, keep=store.keep, rater=path.stem)
    num_new = store.bring(judged)
    print(f"{path}: {num_new} judgements of {len(judged)} items are new{_left_out(report)}")


def _left_out(report: Mapping[str, int]) -> str:
    return "".join(f"; {number} x {reason} left out" for reason, number in report.items())


def _register(recipe: Recipe) -> Register:
    return Register(page.opened(recipe).database, session_s=recipe.feedback.session_s)


def main() -> None:
    """Command line."""
    line = CommandLine(__doc__)
    invited, *others = (line.add(run) for run in (invite, revoke, forget))
    for each in (invited, *others):
        each.add_argument("name", help="the rater's pseudonym")
    invited.add_argument("--role", choices=[role.value for role in RaterRole], default=RaterRole.RATER.value)
    invited.add_argument("--days", type=float, default=30.0, help="days until the invitation and its sessions end")
    for run, formats in ((export, EXPORTED), (bring, BROUGHT)):
        found = line.add(run)
        found.add_argument("path", type=user_path, help="the file; of label_studio's export: the directory")
        found.add_argument("--format", choices=formats, default=formats[0])
    line.add(rollback).add_argument("version", type=int, help="its number, as a refit says it")
    for run in (serve, preferences, refit):
        line.add(run)
    try:
        options, recipe = line.read()
        options.run(recipe, options)
    except (*USER_ERRORS, ValueError, KeyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
