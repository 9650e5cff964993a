"""The values of a configuration: types in plain words, conversion, and YAML whose keys know their lines.

`jsonargparse` decides whether a value fits a type and converts it; the messages are ours, one line each.
"""

from __future__ import annotations

import enum
import functools
import re
import types
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse
import yaml


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One dotted key: a value, or a component that may be absent (`X | None`), which takes null or {}."""

    key: str
    owner: type  # the dataclass whose field it is
    hint: Any
    default: Any  # dataclasses.MISSING where the user has to give a value
    help: str
    optional_component: bool = False


def convert(setting: Setting, raw: Any, *, command_line: bool) -> Any:
    """`raw` as the setting's type; `command_line`: a word as typed, rather than a value out of a YAML file.

    Raises:
        ValueError: it does not fit; the message says what was expected.
    """
    if setting.optional_component:
        if raw in (None, {}) or (command_line and raw in ("null", "{}")):
            return {} if raw in ({}, "{}") else None
        raise ValueError(f"expected null or {{}} (present, with its defaults), not {raw!r}")
    problem = f"expected {describe(setting.hint)}, not {'null' if raw is None else repr(raw)}"
    if raw is None and not admits_none(setting.hint):
        raise ValueError(problem)
    parser = _parser(setting.hint, str(setting.hint))
    try:
        parsed = parser.parse_args([f"--value={raw}"]) if command_line else parser.parse_object({"value": raw})
    except ArgumentError:
        raise ValueError(problem) from None
    return parsed.value


@functools.cache
def _parser(hint: Any, written: str) -> jsonargparse.ArgumentParser:  # noqa: ARG001 - `int | float` equals `float | int`
    """Of values of a type."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def convert_words(setting: Setting, words: Sequence[str]) -> Any:
    """The words that followed an option, as its value: one for most types, any number for a list or tuple."""
    if not words:
        if setting.optional_component:
            return {}
        if bool in (setting.hint, *union_members(setting.hint)):
            return True
        raise ValueError(f"needs a value: {describe(setting.hint)}")
    sequence = sequence_in(setting.hint)
    if sequence is None:
        if len(words) > 1:
            raise ValueError(f"takes one value, not {len(words)}: {' '.join(words)}")
        return convert(setting, words[0], command_line=True)
    alone = len(words) == 1
    if alone and (words[0].startswith("[") or words[0] == "null" or sequence is not _without_none(setting.hint)):
        return convert(setting, words[0], command_line=True)
    items = words
    if alone and not _admits_text(sequence):
        items = words[0].split(",")
    return convert(setting, list(items), command_line=False)


def admits_none(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return hint is Any or type(None) in (hint, *union_members(hint)) or None in get_args(hint)


def sequence_in(hint: Any) -> Any:
    """The list or tuple type among the members of a type, or None: such a setting takes several words."""
    for member in (hint, *union_members(hint)):
        origin = get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and origin is not str:
            return member
    return None


_PLURALS: dict[Any, str] = {float: "numbers", int: "whole numbers", str: "texts", Path: "paths"}


def describe(hint: Any) -> str:
    """A type in plain words, for messages."""
    members = union_members(hint)
    if members:
        return " or ".join(describe(member) for member in members)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(choice) for choice in arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    if origin is tuple and Ellipsis not in arguments:
        same = len(set(arguments)) == 1 and arguments[0] in _PLURALS
        return f"{len(arguments)} {_PLURALS[arguments[0]]}" if same else f"a list of {len(arguments)}"
    if sequence_in(hint) is not None:
        return f"a list of {_PLURALS.get(arguments[0], 'values')}" if arguments else "a list"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, "null" if hint is type(None) else "a mapping" if origin is dict else str(hint))


def union_members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()


def _without_none(hint: Any) -> Any:
    members = [member for member in union_members(hint) if member is not type(None)]
    return members[0] if len(members) == 1 else hint


def _admits_text(sequence: Any) -> bool:
    return any(issubclass(item, str | Path) for item in get_args(sequence) if isinstance(item, type))


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 1e-4 is a number, and `no` (Norwegian) and 2016-01-01 are text."""


ConfigLoader.yaml_implicit_resolvers = {}


class ConfigDumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or `ConfigLoader` would take for something else than text."""


_FLOAT = r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf)|\.nan"
for _kind, _pattern in {
    "null": r"~|null|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][\d_]*)|0x[\da-fA-F]+",
    "float": _FLOAT,
    "merge": r"<<",
}.items():
    ConfigLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
ConfigDumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT})\Z"), list("-+.0123456789"))


def read_yaml(
    path: str, problems: list[str], advice: str = "name a YAML file after --config"
) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line (from 1) of each dotted key in it.

    What is wrong with it is added to `problems`, and both are empty then. advice: where it cannot be read.
    """
    lines: dict[str, int] = {}
    try:
        loader = ConfigLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        _note_lines(node, "", lines, set(), path, problems)
        content = loader.construct_document(node)
    except OSError as error:
        problems.append(f"{path}: {error.strerror or error}; {advice}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 text (byte {error.start})")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(f"{path}{f', line {mark.line + 1}' if mark else ''}: {error.problem or error.context}")
    except yaml.YAMLError as error:
        problems.append(f"{path}: {' '.join(str(error).split())}")
    else:
        if isinstance(content, dict):
            return content, lines
        problems.append(f"{path}: expected a mapping of keys to values, not {type(content).__name__}")
    return {}, {}


def _note_lines(
    node: yaml.Node, prefix: str, lines: dict[str, int], seen: set[int], path: str, problems: list[str]
) -> None:
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:  # an alias may lead back to itself
        return
    seen.add(id(node))
    for key_node, value_node in node.value:
        key, line = prefix + str(key_node.value), key_node.start_mark.line + 1
        if lines.setdefault(key, line) != line:
            problems.append(f"{path}, line {line}: {key} was given before, on line {lines[key]}")
        _note_lines(value_node, key + ".", lines, seen, path, problems)


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths and enums as text: what YAML and JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value
