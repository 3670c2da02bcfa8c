"""What all sections of the recipe share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.config.paths import NOTHING


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names field, value and cure."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers only. `meanings` reads the fields' docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # NaN passes no bound and fails none: as a weight or a rate it would spoil a run hours later.
        allow_inf_nan=False,
        protected_namespaces=(),
        # Workers receive recipes that were checked: they need no validators, which take a tenth of their imports.
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _check_meaning(cls, values: object) -> object:
        """Refuses what pydantic would take for something else: `true` for the number 1, "none" for a text."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(str(name))
            types = set(_leaves(field.annotation)) if field else set[type]()
            if types & {int, float} and bool not in types:
                for place, each in _booleans(str(name), value):
                    raise ValueError(f"{place}={str(each).lower()}: no number; write one, such as {int(each)}")
            if {NoneType, str} <= types and isinstance(value, str) and value.casefold() in NOTHING:
                raise ValueError(f"{name}={value!r}: this is a text; write null, without quotes, for none")
        return values


def _booleans(place: str, value: object) -> Iterator[tuple[str, bool]]:
    """The booleans in a value, and among the keys of its mappings, each with its place."""
    if isinstance(value, bool):
        yield place, value
    elif isinstance(value, list | tuple):
        for each in cast(tuple[object, ...], value):
            yield from _booleans(place, each)
    elif isinstance(value, Mapping):
        for key, each in cast(Mapping[Any, object], value).items():
            yield from _booleans(f"a key of {place}", key)
            yield from _booleans(f"{place}.{key}", each)


def _leaves(annotation: object) -> Iterator[type]:
    """The types that an annotation is made of: `str` and `NoneType` of `tuple[str, ...] | None`."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def kinds(annotation: object) -> set[type]:
    """The types, but for null, of a field that is one value; none of a list or a mapping."""
    return set() if get_origin(annotation) in (tuple, dict) else {*_leaves(annotation)} - {NoneType}


def section_of(annotation: object) -> type[Section] | None:
    """The section class that a field's annotation names, alone, as a list of it or where there may be none; None where
    the field is a value."""
    if get_origin(annotation) in (tuple, UnionType):
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None
