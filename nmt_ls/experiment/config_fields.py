"""A configuration as a tree: what a dataclass of dataclasses may be told, in dotted keys, and how it is built.

`jsonargparse` alone stops at the first mistake and lets errors of `__post_init__` through. Here every problem is
appended to a list of one-line messages that name file, line and key, so that a user sees all of them together.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from nmt_ls.experiment.config_help import field_help, prose
from nmt_ls.experiment.config_values import Setting, convert, describe, union_members


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value the user gave, converted, and where a message should point (empty: the command line)."""

    value: Any
    origin: str = ""


def component_of(hint: Any) -> tuple[type | None, bool]:
    """The dataclass that a field's type names, and whether the field may be None; (None, _) for plain values."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint, False
    members = union_members(hint)
    components = [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]
    if not components:
        return None, type(None) in members
    if len(members) != 2 or type(None) not in members:
        raise TypeError(f"a configuration field may hold one component or None, not {hint}")
    return components[0], True


def settings_of(config_class: type, default: Any = MISSING, prefix: str = "") -> Iterator[Setting]:
    """Every setting of `config_class`, in the order of its fields; defaults come from `default` where one is given."""
    hints, helps = _type_hints(config_class), field_help(config_class)
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        key, hint = prefix + field.name, hints[field.name]
        value = default_of(field, default)
        component, optional = component_of(hint)
        if component is None:
            yield Setting(key=key, owner=config_class, hint=hint, default=value, help=helps.get(field.name, ""))
            continue
        if optional:
            about = helps.get(field.name) or prose(component)
            off = value is None or value is MISSING
            yield Setting(
                key=key, owner=config_class, hint=hint, default=None if off else {}, help=about, optional_component=True
            )
        yield from settings_of(component, MISSING if value is None else value, key + ".")


_type_hints = functools.cache(typing.get_type_hints)


def default_of(field: dataclasses.Field[Any], parent: Any) -> Any:
    """What the field holds when nobody says anything: the parent's default first, then its own; else MISSING."""
    if parent is not MISSING:
        return getattr(parent, field.name)
    return field.default_factory() if callable(field.default_factory) else field.default


class ConfigTree:
    """The settings of a configuration class by dotted key."""

    def __init__(self, config_class: type) -> None:
        self.config_class = config_class
        self.settings = {setting.key: setting for setting in settings_of(config_class)}
        self.groups = dict.fromkeys(key[:at] for key in self.settings for at in range(len(key)) if key[at] == ".")

    def nearest(self, key: str, also: Sequence[str] = ()) -> str:
        """`; did you mean X?` for an unknown key, or nothing."""
        tail = key.rpartition(".")[2]
        close = [known for known in self.settings if known.endswith("." + key)]
        close = close or difflib.get_close_matches(key, [*self.settings, *self.groups, *also], n=1, cutoff=0.6)
        if not close:  # the right name, misspelt, without its component
            tails = {known.rpartition(".")[2]: known for known in reversed(self.settings)}
            close = [tails[near] for near in difflib.get_close_matches(tail, tails, n=1, cutoff=0.7)]
        return f"; did you mean {' or '.join(close[:3])}?" if close else ""

    def given(
        self, content: Mapping[str, Any], where: str, lines: Mapping[str, int], problems: list[str]
    ) -> dict[str, Given]:
        """What a nested mapping says, in dotted keys and converted; `where` names it in messages."""
        found: dict[str, Given] = {}

        def visit(mapping: Mapping[str, Any], prefix: str) -> None:
            for name, value in mapping.items():
                key = f"{prefix}{name}"
                origin = ", line ".join([where, *([str(lines[key])] if key in lines else [])])
                setting = self.settings.get(key)
                if key in self.groups and value is None and setting is None:
                    continue  # a heading whose keys are all commented out
                if key in self.groups and isinstance(value, Mapping) and (value or setting is None):
                    visit(value, key + ".")
                elif setting is not None:
                    try:
                        found[key] = Given(value=convert(setting, value, command_line=False), origin=origin)
                    except ValueError as error:
                        problems.append(f"{origin}: {key}: {error}")
                elif key in self.groups:
                    problems.append(f"{origin}: {key}: expected keys and values below it, not {value!r}")
                else:
                    problems.append(f"{origin}: unknown key {key}{self.nearest(key)}")

        visit(content, "")
        return found

    def merge(self, given: dict[str, Given], later: Mapping[str, Given]) -> None:
        """Let `later` override `given`; a component set to null forgets its keys, a key below it brings it back."""
        for key, value in later.items():
            setting = self.settings[key]
            if setting.optional_component and value.value is None:
                for below in [known for known in given if known.startswith(key + ".")]:
                    del given[below]
            parts = key.split(".")
            for above in (".".join(parts[:depth]) for depth in range(1, len(parts))):
                if above in given and given[above].value is None:
                    del given[above]
            given[key] = value

    def build(self, given: Mapping[str, Given], problems: list[str]) -> Any:
        """The configuration, every component validated; problems are collected over all of them."""
        return _build(self.config_class, given, MISSING, "", problems)


def _build(config_class: type, given: Mapping[str, Given], default: Any, prefix: str, problems: list[str]) -> Any:
    hints, before, values = typing.get_type_hints(config_class), len(problems), {}
    for field in dataclasses.fields(config_class):
        if field.init:
            key, hint = prefix + field.name, hints[field.name]
            value = _value(hint, key, default_of(field, default), given, problems)
            if value is MISSING:
                problems.append(f"{key} has to be given: {describe(hint)}")
            values[field.name] = value
    return _instance(config_class, values, given, prefix, problems, sound=len(problems) == before)


def _value(hint: Any, key: str, default: Any, given: Mapping[str, Given], problems: list[str]) -> Any:
    component, optional = component_of(hint)
    said = given[key].value if key in given else default
    if component is None:
        return said
    below = any(known.startswith(key + ".") for known in given)
    if optional and not below and (said is None or said is MISSING):
        return None
    unset = default is None or default is MISSING
    if not below and not unset:
        return default
    return _build(component, given, MISSING if unset else default, key + ".", problems)


def _instance(
    config_class: type,
    values: dict[str, Any],
    given: Mapping[str, Given],
    prefix: str,
    problems: list[str],
    *,
    sound: bool,
) -> Any:
    """Where a part is unsound its parent is still validated, on the values as given: it may have something to say."""
    try:
        return config_class(**values)
    except ValueError as error:
        problems.extend(_component_problems(str(error), prefix, list(values), given))
    except Exception:
        if sound:
            raise
    unvalidated: Any = object.__new__(config_class)
    for name, value in values.items():
        object.__setattr__(unvalidated, name, value)
    return unvalidated


def _component_problems(message: str, prefix: str, names: list[str], given: Mapping[str, Given]) -> Iterator[str]:
    for line in filter(None, map(str.strip, message.splitlines())):
        words = re.findall(r"\w+", line)
        origins = [given[prefix + word].origin for word in words if word in names and prefix + word in given]
        origin = next((f" ({origin})" for origin in origins if origin), "")
        if not prefix or line.startswith(prefix):
            yield line + origin
        elif words and words[0] in names:
            yield prefix + line + origin
        else:
            yield f"{prefix[:-1]}: {line}{origin}"
