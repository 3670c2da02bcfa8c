"""What every option of a recipe means: lines for `--help`, from the docstrings of the sections' fields."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from pipeline.config.recipe import Recipe
from pipeline.config.section import Section, section_of
from pipeline.config.steps import STEPS


def describe(section: type[Section] = Recipe, prefix: str = "", *, values: Section | None = None) -> Iterator[str]:
    """Lines that document every field below `section`: dotted name, type, default, docstring.

    values: the section as it stands by default where it is; None where its fields' own defaults hold.
    """
    said = meanings(section)
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        default = field.get_default(call_default_factory=True) if values is None else getattr(values, name)
        if typing.get_origin(field.annotation) is dict and section_of(typing.get_args(field.annotation)[1]):
            yield from _line(f"{prefix}{name}", field, default, said[name])
            yield from describe(
                typing.cast(type[Section], typing.get_args(field.annotation)[1]), f"{prefix}{name}.<name>."
            )
        elif inner is not None:
            place = f"{prefix}{name}" + "[]" * (typing.get_origin(field.annotation) is tuple)
            yield f"\n[{place}]  {said[name]}"
            yield from describe(inner, f"{place}.", values=default if isinstance(default, Section) else None)
        else:
            yield from _line(f"{prefix}{name}", field, default, said[name])


def meanings(section: type[Section]) -> dict[str, str]:
    """The docstring under each field, "" where there is none.

    Read when they are asked for: pydantic's own `use_attribute_docstrings` reads them whenever a process starts.
    """
    found = dict.fromkeys(section.model_fields, "")
    for base in reversed(section.__mro__):
        if not issubclass(base, Section):
            continue
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(said))):
                    found[name] = inspect.cleandoc(said)
                case _:
                    pass
    return found


def _line(place: str, field: FieldInfo, default: object, said: str) -> Iterator[str]:
    shown = "?" if field.is_required() else _as_yaml(default)
    yield f"  {place}: {_type_name(field.annotation)} = {shown}"
    yield f"      {said}"


def describe_steps() -> Iterator[str]:
    """Lines that document every step: its name and what it does; each field's name, type, default and docstring."""
    for name, section in STEPS.items():
        yield f"\n[step: {name}]  {' '.join((section.__doc__ or '').split())}"
        lines = list(describe(section))
        for field, text in zip(lines[::2], lines[1::2], strict=True):
            if not field.startswith("  step:"):
                yield field
                yield f"      {' '.join(text.split())}"


def _type_name(annotation: object) -> str:
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " | ".join(annotation)
    if typing.get_origin(annotation) is typing.Annotated:  # A path, or a choice of sections.
        inner = typing.get_args(annotation)[0]
        return inner.__name__ if inner in (str, Path) else "step"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " | ".join(_type_name(part) for part in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "null"
    inner = [_type_name(part) for part in typing.get_args(annotation) if part is not Ellipsis]
    if typing.get_origin(annotation) is tuple:
        return f"[{', '.join(inner)}]" if Ellipsis not in typing.get_args(annotation) else f"list of ({inner[0]})"
    if typing.get_origin(annotation) is dict:
        return f"mapping of ({inner[0]}) to {inner[1]}"
    return annotation.__name__ if isinstance(annotation, type) and not inner else str(annotation)


def _as_yaml(value: object) -> str:
    """A default as one would write it in a recipe or an override."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
