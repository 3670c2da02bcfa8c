"""What all sections of the recipe share."""

from __future__ import annotations

from typing import get_args, get_origin

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names field, value and cure."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers only, documentation from attribute docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # NaN passes no bound and fails none: as a weight or a rate it would spoil a run hours later.
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def section_of(annotation: object) -> type[Section] | None:
    """The section class that a field's annotation names, alone or as a list of it; None where the field is a value."""
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None
