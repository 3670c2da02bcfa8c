"""Recipes in: YAML, the recipe it is based on, and overrides; errors that name field, value and cure."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from pipeline.config.paths import Base
from pipeline.config.recipe import Recipe
from pipeline.config.section import ConfigError, Section, kinds, section_of
from pipeline.config.steps import STEPS
from pipeline.config.strict_yaml import read_value, read_yaml

BASE = "base"
"""What a recipe calls the recipe whose values it overrides: `base: tiny_cpu.yaml`, relative to its own directory."""


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe (or the defaults where `path` is None) and applies `section.field=value` overrides.

    A recipe that says `base: other.yaml` stands on the values of that one, which may have a base itself. Overrides are
    laid over the recipe as that is over its base: a mapping of fields of a section changes these alone.

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
    return _validated(tree, None, {field: text for field, _, text in (each.partition("=") for each in overrides)})


def absolute(recipe: Recipe, base: Base) -> Recipe:
    """The recipe with all its paths absolute, defaults too: it means the same to every process on every node.

    Raises:
        ConfigError: a path is relative, and nobody knows to what.
    """
    return _validated(recipe.model_dump(), base, {})


def _validated(tree: Mapping[str, Any], base: Base | None, typed: Mapping[str, str]) -> Recipe:
    """The recipe of a tree; `typed` is what overrides say, by field."""
    try:
        return Recipe.model_validate(tree, context=base)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, typed) for item in error.errors())) from None


def _read(path: Path, origin: str, above: Sequence[Path]) -> dict[str, Any]:
    """The tree of a recipe laid over its base's; `above` are the recipes that stand on this one."""
    if path.is_dir():
        raise ConfigError(f"{origin}: a directory; name a recipe in it, such as {path / 'recipe.yaml'}")
    if not path.is_file():
        raise ConfigError(f"{origin}: no such file; recipes lie in jobs/recipes/")
    loaded = read_yaml(_text(path, origin), origin)
    if loaded is None:
        raise ConfigError(f"{origin}: says nothing; write {{}} where all defaults are meant")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{origin}: a recipe is a mapping of sections, not {type(loaded).__name__}")
    tree = cast(dict[str, Any], loaded)
    if BASE not in tree:
        return tree
    base, chain = tree.pop(BASE), (*above, path.resolve())
    if not isinstance(base, str):
        raise ConfigError(f"{origin}: {BASE} is the path of a recipe, relative to this one, not {base!r}")
    below, place = path.parent / os.path.expanduser(base), f"{origin}: {BASE}: {base}"
    if below.resolve() in chain:
        circle = " -> ".join(each.name for each in (*chain, below))
        raise ConfigError(f"{place}: bases go round in a circle ({circle}); take one of them out")
    if not below.exists():
        raise ConfigError(f"{place}: no such file; it is looked for in {below.parent}")
    return _over(_read(below, place, chain), tree, Recipe)


def _over(base: Mapping[str, Any], own: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    """The values of `base` with those of `own` over them, section by section. A value, be it a mapping such as
    `rlhf.rewards` or a list, is replaced whole."""
    merged = {**base, **own}
    for name in base.keys() & own.keys() & section.model_fields.keys():
        merged[name] = _laid(base[name], own[name], section.model_fields[name].annotation)
    return merged


def _laid(base: Any, own: Any, annotation: object) -> Any:
    """`own` over `base`, where both are of a field with this annotation."""
    inner = None if typing.get_origin(annotation) is tuple else section_of(annotation)
    return _over(base, own, inner) if inner and isinstance(base, dict) and isinstance(own, dict) else own


def check_once(overrides: Sequence[str]) -> None:
    """Makes sure that no override loses what an earlier one says. Programs layer overrides, and the last one wins; a
    person who gives two has forgotten one.

    Raises:
        ConfigError: one does, or cannot be read.
    """
    tree: dict[str, Any] = {}
    given: dict[str, dict[str, Any]] = {}
    for override in overrides:
        _apply(tree, override)
        for earlier, said in given.items():
            if not _says(tree, said):
                raise ConfigError(f"override {override!r}: {earlier!r} would be lost; give one of them")
        given[override] = {}
        _apply(given[override], override)


def _says(tree: object, said: object) -> bool:
    """Whether a tree says all that another one does."""
    if isinstance(tree, dict) and isinstance(said, dict):
        found, asked = cast(dict[str, object], tree), cast(dict[str, object], said)
        return all(name in found and _says(found[name], each) for name, each in asked.items())
    return repr(tree) == repr(said)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Lays an override over a tree: over the section that it names, or in the place of a value."""
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {override!r}: write section.field=value")
    *parents, leaf = dotted.split(".")
    node, annotation = tree, _inside(Recipe, dotted.split("."))
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        node = cast(dict[str, Any], child)
    value = read_value(text, dotted, f"override {override!r}", is_text=kinds(annotation) in ({str}, {Path}))
    node[leaf] = _laid(node.get(leaf), value, annotation)


def _inside(annotation: object, location: Sequence[str]) -> object:
    """The annotation of what lies there, in sections, lists and mappings; None where it is not known."""
    for part in location:
        inner, section = typing.get_args(annotation), section_of(annotation)
        if part in STEPS:
            annotation = STEPS[part]
        elif typing.get_origin(annotation) in (tuple, dict):
            annotation = inner[typing.get_origin(annotation) is dict]
        else:
            annotation = section.model_fields[part].annotation if section and part in section.model_fields else None
    return annotation


def _text(path: Path, origin: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: byte {error.start} is not UTF-8; save the recipe as UTF-8") from None


def _explain(item: Mapping[str, Any], typed: Mapping[str, str]) -> str:
    location = [str(part) for part in item["loc"]]
    field = ".".join(location) or "recipe"
    if item["type"] == "extra_forbidden":
        section = section_of(_inside(Recipe, location[:-1])) or Recipe
        known = [*section.model_fields, *([BASE] if section is Recipe else [])]
        close = difflib.get_close_matches(location[-1], known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{field}: unknown key; {cure}"
    got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{field}: {item['msg']}{got}{_cure(item, field, typed)}"


def _cure(item: Mapping[str, Any], field: str, typed: Mapping[str, str]) -> str:
    """What to write where a text or a list is asked for; of an override as a shell takes it, which eats quotes."""
    value, written = item["input"], typed.get(field, str(item["input"]))
    quoted = json.dumps(written, ensure_ascii=False)
    if item["type"] in ("string_type", "path_type") and value is not None:
        if any(field.startswith(f"{each}.") for each in typed):
            return f"; in quotes it is a text: {quoted}, and others around the override, as a shell takes some away"
        return "; in quotes it is a text" + (f": {shlex.quote(f'{field}={quoted}')}" if field in typed else "")
    entry = _inside(Recipe, [*field.split("."), "0"])
    if item["type"] != "tuple_type" or not isinstance(value, str) or not kinds(entry):
        return ""
    if sections := [each for each in kinds(entry) if issubclass(each, Section)]:
        required = (name for name, each in sections[0].model_fields.items() if each.is_required())
        written = f"{{{'step' if len(sections) > 1 else next(required)}: {quoted}}}"
    return "; write a list: " + (shlex.quote(f"{field}=[{written}]") if field in typed else f"[{written}]")
