"""The command line of a job that has commands: `python -m jobs.<job> COMMAND ... section.field=value ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from jobs.command import as_utf8, recipe_of, where_the_user_stands
from jobs.local import print_in_any_locale
from pipeline.config import Recipe
from pipeline.config.paths import DiskPath


class CommandLine:
    """The commands of a job, each a function of the recipe and its own options."""

    def __init__(self, description: str | None):
        self._parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._commands = self._parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, run: Callable[[Recipe, argparse.Namespace], None]) -> argparse.ArgumentParser:
        """Adds a command of a function's name; returns the parser that takes its options."""
        found = self._commands.add_parser(run.__name__, help=run.__doc__)
        found.set_defaults(run=run)
        found.add_argument("--config", type=Path, help="a recipe in YAML")
        return found

    def read(self) -> tuple[argparse.Namespace, Recipe]:
        """What is asked for: the options, `run` among them, and the recipe.

        Raises:
            ConfigError: the recipe or an override is wrong.
        """
        print_in_any_locale()
        # Overrides are no argument of each command: that would end with the first option after it.
        options, overrides = self._parser.parse_known_args([as_utf8(argument) for argument in sys.argv[1:]])
        if unknown := [each for each in overrides if each.startswith("-")]:
            self._parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, recipe_of(options.config, overrides)


def user_path(text: str) -> Path:
    """A path of a command line, for argparse: absolute, and meant as one of the recipe is."""
    try:
        return TypeAdapter[Path](DiskPath).validate_python(text, context=where_the_user_stands())
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
