"""JSON: does the completion hold what a schema asks for, or the very object that was expected?"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from typing import Any, NoReturn

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY

from pipeline.rewards.conclusion import of_conclusions

_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_MAX_STARTS = 100
"""So many brackets of a text are tried as the beginning of a value."""


class NoJson(ValueError):
    """A text that holds no JSON."""


@of_conclusions
def json_schema_reward(completion: str, answer: str) -> float:
    """1.0 where the completion's JSON is valid by the schema that the answer is, else 0.0.

    The schema's own `$schema` says which draft it is of (2020-12 where it says nothing). A `$ref` is looked up in the
    schema and among the drafts, never on a network. Formats (`format: date`) are not checked, as the drafts have it.

    Raises:
        ValueError: the answer is no JSON schema.
    """
    validator = _validator(answer)
    try:
        value = json_of(completion)
    except NoJson:
        return 0.0
    return float(validator.is_valid(value))


@of_conclusions
def json_match_reward(completion: str, answer: str) -> float:
    """F1 over the leaves of the completion's JSON and of the answer's, in [0, 1]: 1.0 where both are equal.

    A leaf is a number, a text, true, false, null or an empty list or object, with its path; it is right where the other
    side has the same at the same path. The order of keys does not count, that of lists does. 1 and 1.0 are the same,
    and so are Unicode's composed and decomposed forms of a text (NFC, NFD).

    Raises:
        ValueError: the answer is no JSON.
    """
    wanted = Counter(_leaves(_loads(answer)))
    try:
        said = Counter(_leaves(json_of(completion)))
    except NoJson:
        return 0.0
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def json_of(text: str) -> Any:
    """The JSON value that a text is; else that of its last code fence that holds one; else its last object or list.

    Raises:
        NoJson: there is none. `NaN` and `Infinity` are no JSON.
    """
    for candidate in (text, *reversed(_FENCE.findall(text))):
        try:
            return _loads(candidate)
        except NoJson:
            continue
    found, position, starts = list[Any](), 0, 0
    while (start := _next_start(text, position)) is not None and starts < _MAX_STARTS:
        starts += 1
        try:
            value, position = _DECODER.raw_decode(text, start)
            found.append(_composed(value))
        except (ValueError, RecursionError):
            position = start + 1
    if not found:
        raise NoJson(f"no JSON in {text[:100]!r}")
    return found[-1]


def is_schema(answer: str) -> bool:
    """Whether a text is a JSON schema that can be compared with."""
    try:
        _validator(answer)
    except ValueError:
        return False
    return True


def is_json(answer: str) -> bool:
    """Whether a text is JSON, and nothing else."""
    try:
        _loads(answer)
    except NoJson:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _validator(answer: str) -> Validator:
    schema = _loads(answer)
    if not isinstance(schema, dict):
        raise ValueError(f"the answer {answer[:100]!r} is no JSON schema: a schema is an object, such as {{}}")
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"the answer {answer[:100]!r} is no JSON schema: {error.message}") from error
    return kind(schema, registry=REGISTRY)  # without a registry, jsonschema fetches what `$ref` names


def _loads(text: str) -> Any:
    try:
        return _composed(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise NoJson(f"no JSON: {text[:100]!r}") from error


def _composed(value: Any) -> Any:
    """The value with its texts and keys in NFC. No mark of JSON takes part in a composition."""
    written = json.dumps(value, ensure_ascii=False)
    return value if written.isascii() else json.loads(unicodedata.normalize("NFC", written))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _next_start(text: str, position: int) -> int | None:
    starts = [at for bracket in "{[" if (at := text.find(bracket, position)) >= 0]
    return min(starts) if starts else None


def _leaves(value: Any) -> list[tuple[tuple[str | int, ...], object]]:
    """Paths and values; a value with its kind, as Python takes True for 1."""
    stack, leaves = [((), value)], list[tuple[tuple[str | int, ...], object]]()
    while stack:
        path, each = stack.pop()
        items = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        children = [((*path, key), child) for key, child in items]
        stack += children
        if not children:
            kind = "number" if isinstance(each, int | float) and not isinstance(each, bool) else type(each).__name__
            leaves.append((path, (kind, () if isinstance(each, dict | list) else each)))
    return leaves
