"""Recipes in: YAML, the recipe it is based on, and overrides; errors that name field, value and cure."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from pipeline.config.paths import Base
from pipeline.config.recipe import Recipe
from pipeline.config.section import ConfigError, Section, section_of
from pipeline.config.steps import STEPS
from pipeline.config.strict_yaml import read_value, read_yaml

BASE = "base"
"""What a recipe calls the recipe whose values it overrides: `base: tiny_cpu.yaml`, relative to its own directory."""


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe (or the defaults where `path` is None) and applies `section.field=value` overrides.

    A recipe that says `base: other.yaml` stands on the values of that one, which may have a base itself.

    Raises:
        ConfigError: a file is missing, no YAML or no mapping, bases go round in a circle, an override has no `=`, a key
            is unknown, a value is wrong.
    """
    tree = {} if path is None else _read(path, f"--config {path}", ())
    for override in overrides:
        _apply(tree, override)
    if BASE in tree:
        raise ConfigError(
            f"override {BASE}={tree[BASE]}: a recipe's file names its base; use --config with such a file"
        )
    return _validated(tree)


def absolute(recipe: Recipe, base: Base) -> Recipe:
    """The recipe with all its paths absolute, defaults too: it means the same to every process on every node.

    Raises:
        ConfigError: a path is relative, and nobody knows to what.
    """
    return _validated(recipe.model_dump(), base)


def _validated(tree: Mapping[str, Any], base: Base | None = None) -> Recipe:
    try:
        return Recipe.model_validate(tree, context=base)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def _read(path: Path, origin: str, above: Sequence[Path]) -> dict[str, Any]:
    """The tree of a recipe laid over its base's; `above` are the recipes that stand on this one."""
    if not path.is_file():
        raise ConfigError(f"{origin}: no such file; recipes lie in jobs/recipes/")
    loaded = read_yaml(_text(path, origin), origin)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{origin}: a recipe is a mapping of sections, not {type(loaded).__name__}")
    tree = cast(dict[str, Any], loaded)
    if BASE not in tree:
        return tree
    base, chain = tree.pop(BASE), (*above, path.resolve())
    if not isinstance(base, str):
        raise ConfigError(f"{origin}: {BASE} is the path of a recipe, relative to this one, not {base!r}")
    below, place = path.parent / base, f"{origin}: {BASE}: {base}"
    if below.resolve() in chain:
        circle = " -> ".join(each.name for each in (*chain, below))
        raise ConfigError(f"{place}: bases go round in a circle ({circle}); take one of them out")
    if not below.is_file():
        raise ConfigError(f"{place}: no such file; it is looked for in {below.parent}")
    return _over(_read(below, place, chain), tree, Recipe)


def _over(base: Mapping[str, Any], own: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    """The values of `base` with those of `own` over them, section by section. A value, be it a mapping such as
    `rlhf.rewards` or a list, is replaced whole."""
    merged = {**base, **own}
    for name in base.keys() & own.keys() & section.model_fields.keys():
        annotation = section.model_fields[name].annotation
        inner = None if typing.get_origin(annotation) is tuple else section_of(annotation)
        if inner is not None and isinstance(base[name], dict) and isinstance(own[name], dict):
            merged[name] = _over(base[name], own[name], inner)
    return merged


def check_once(overrides: Sequence[str]) -> None:
    """Makes sure that no override loses an earlier one, of its field or of one inside it. Programs layer overrides, and
    the last one wins; a person who gives two has forgotten one.

    Raises:
        ConfigError: one does.
    """
    given: dict[str, str] = {}
    for override in overrides:
        field = override.partition("=")[0]
        for earlier, text in given.items():
            if text != override and f"{earlier}.".startswith(f"{field}."):
                raise ConfigError(f"override {override!r}: {text!r} would be lost; give one of them")
        given[field] = override


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {override!r}: write section.field=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        node = cast(dict[str, Any], child)
    node[leaf] = read_value(text, dotted, f"override {override!r}")


def _text(path: Path, origin: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: byte {error.start} is not UTF-8; save the recipe as UTF-8") from None


def _explain(item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    field = ".".join(location) or "recipe"
    if item["type"] == "extra_forbidden":
        known = [*_section_at(location[:-1]).model_fields, *([] if location[:-1] else [BASE])]
        close = difflib.get_close_matches(location[-1], known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{field}: unknown key; {cure}"
    if isinstance(item["input"], dict):
        return f"{field}: {item['msg']}"
    cure = "; in quotes it is a text" if item["type"] == "string_type" and item["input"] is not None else ""
    return f"{field}: {item['msg']} (got {item['input']!r}){cure}"


def _section_at(location: Sequence[str]) -> type[Section]:
    section: type[Section] = Recipe
    for part in location:
        if part in STEPS:
            section = STEPS[part]
        elif part in section.model_fields:  # Others are places in a list or a mapping.
            annotation = section.model_fields[part].annotation
            if typing.get_origin(annotation) is dict:
                annotation = typing.get_args(annotation)[1]
            section = section_of(annotation) or section
    return section
