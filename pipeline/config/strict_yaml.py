"""YAML as people mean it: YAML 1.2's core schema, and errors where a value would be lost or become another one.

PyYAML reads YAML 1.1, to which `0123` is 83, `1:30` is 90, `no` is false, `2026-01-02` a date and `1e-6` a text, which
keeps the last of two equal keys, and takes nothing (`path:`) for null. Here numbers are decimal, words are words, a key
stands once, and null is written `null`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline.config.section import ConfigError

_COMMENT = re.compile(r"[ \t]+#\S")
"""A comment without a blank after its `#`: in `exp #3` somebody may have meant the whole."""


class _Core(yaml.SafeLoader):
    """PyYAML's safe loader with the types of plain scalars of YAML 1.2's core schema (chapter 10.3.2)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's name for a registry of the class


def _integer(loader: _Core, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL", "nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Core.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml(text: str, origin: str) -> object:
    """What a YAML document says; `origin` names it in errors.

    Raises:
        ConfigError: it is no YAML, a key stands twice, a value is missing, or a value is not what it seems to be.
    """
    return _constructed(text, origin, within="")


def read_value(text: str, field: str, origin: str, *, is_text: bool = False) -> object:
    """What the text after the `=` of an override says: YAML, where a word or several are taken as they stand.

    is_text: whether a number is taken as it stands, too: quotes would say so, but a shell takes them away.

    Raises:
        ConfigError: as of `read_yaml`.
    """
    if not text.strip():
        raise ConfigError(f"{origin}: no value; write {field}=null for none, or {field}='\"\"' for an empty text")
    node, whole = _composed(text, origin), text.strip()
    is_number = is_text and node is not None and node.tag.endswith((":int", ":float"))
    if node is None or (_is_plain(node) and (is_number or node.value != whole) and not whole.startswith("!")):
        # Neither a comment (`exp #3`), nor an anchor, nor a document's mark is meant on a command line.
        return whole
    if "#" in text[node.end_mark.index :]:
        raise ConfigError(f"{origin}: what follows {text[: node.end_mark.index]!r} would be lost as a comment; drop it")
    return _constructed(text, origin, within=field)


def _constructed(text: str, origin: str, within: str) -> object:
    node = _composed(text, origin)
    if node is None:
        return None
    try:
        found = next(_troubles(node, within, text, set()), None)
        value = None if found else _Core("").construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from None
    if found:
        place, trouble = found
        raise ConfigError(f"{origin}: {f'{place}: ' if place else ''}{trouble}")
    return value


def _composed(text: str, origin: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _Core)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from None


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _troubles(node: yaml.Node, place: str, text: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Where in a document a value is not what it seems to be, and why. Each node once, however often it is aliased."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[object, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                yield (
                    place,
                    "a list or a mapping stands where a name should; a {{ template }} is to be filled in before",
                )
                return
            name, line = str(key.value), key.start_mark.line + 1
            field = f"{place}.{name}" if place else name
            # `00` is the key `0`, and so is `false`.
            alike = {name, _Core("").construct_object(key)} if _is_plain(key) and name != "<<" else {name}
            for each in alike & lines.keys():
                where = f"on line {line}" if line == lines[each] else f"on lines {lines[each]} and {line}"
                cure = "write <<: [*one, *other]" if name == "<<" else "keep one of them"
                yield field, f"stands twice, {where}, and one would be lost; {cure}"
            lines |= dict.fromkeys(alike, line)
            yield from _troubles(value, field, text, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _troubles(value, f"{place}.{index}", text, seen)
    elif _is_plain(node):
        yield from ((place, trouble) for trouble in _of_plain(node, text))


def _of_plain(node: yaml.Node, text: str) -> Iterator[str]:
    if node.value == "":
        yield "no value; write null for none, '' for an empty text, or leave the key out"
    elif node.value == "~":
        yield "~ is null to YAML, and home to a shell; write null for none, ~/ for your home directory"
    elif node.value == "None":
        yield "None is Python's word; write null for none, or 'None' in quotes for the word"
    elif node.tag.endswith(":str") and _COMMENT.match(text, node.end_mark.index):
        rest = text[node.end_mark.index :].partition("\n")[0].rstrip()
        yield (
            f"{rest.lstrip()!r} would be lost as a comment; put {node.value + rest!r} in quotes if it belongs to the "
            "text, or a blank after the # if it does not"
        )
