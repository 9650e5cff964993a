"""The help of a command: texts that stand where a configuration's fields are declared, found and printed."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from argparse import SUPPRESS
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import jsonargparse

from nmt_ls.experiment.config_values import Setting, describe, sequence_in


@functools.cache  # a file such as claims.yaml holds hundreds of one class
def field_help(config_class: type) -> Mapping[str, str]:
    """Help by field; of several texts the first of: metadata["help"], the docstring under the field, the comment at the
    end of its line, its entry in the class's docstring (`name: text`, or `name, other: text`)."""
    helps: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        if is_dataclass(owner):
            helps.update(_in_docstring(owner)[1])
            helps.update(_in_source(owner))
    for entry in fields(config_class):
        if "help" in entry.metadata:
            helps[entry.name] = str(entry.metadata["help"])
    return helps


def prose(config_class: type) -> str:
    """The class's docstring, without the entries of its fields."""
    return _in_docstring(config_class)[0]


def _in_docstring(config_class: type) -> tuple[str, dict[str, str]]:
    doc = inspect.cleandoc(config_class.__doc__ or "")
    if doc.startswith(config_class.__name__ + "("):  # dataclass wrote it
        return "", {}
    name = "|".join(sorted((entry.name for entry in fields(config_class)), key=len, reverse=True))
    # at the start of a line, or after a sentence
    before, *entries = re.split(rf"(?:(?<=\n)|(?<=[.;]\s))[ \t]*((?:{name})(?:,\s+(?:{name}))*):\s", doc)
    helps = {}
    for names, text in zip(entries[::2], entries[1::2], strict=True):
        helps.update(dict.fromkeys(re.split(r",\s+", names), _one_line(text)))
    return _one_line(re.sub(r"\nAttributes:\n", "\n", before)), helps


def _in_source(config_class: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except OSError:  # typed in at a prompt
        return {}
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    helps = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        text = comments.get(statement.end_lineno or statement.lineno, "")
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        if text:
            helps[statement.target.id] = _one_line(text)
    return helps


def _one_line(text: str) -> str:
    return " ".join(text.split())


def print_help(settings: Iterable[Setting], program: str, description: str, short_names: Mapping[str, str]) -> None:
    """What --help prints: every setting with its text, type and default, by component."""
    parser = jsonargparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--config FILE ...] [--KEY VALUE ...]",
        description=description,
        epilog="Values come from the defaults, then the --config files in their order, then the command line.",
    )
    parser.add_argument("--config", metavar="FILE ...", default=SUPPRESS, help="YAML files; later ones win")
    parser.add_argument(
        "--print_config", action="store_true", default=SUPPRESS, help="print the configuration as YAML, and leave"
    )
    groups: dict[str, Any] = {"": parser}
    for setting in settings:
        key = setting.key
        component = key.rpartition(".")[0]
        if component not in groups:
            groups[component] = parser.add_argument_group(component, prose(setting.owner))
        name = key.rpartition(".")[2].upper()
        metavar = {"metavar": f"{name} ..."} if sequence_in(setting.hint) is not None else {}
        action = groups[component].add_argument(
            f"--{key}",
            *(f"--{name}" for name, meant in short_names.items() if meant == key),
            type=dict[str, Any] | None if setting.optional_component else setting.hint,
            default=None if setting.default is MISSING else setting.default,
            required=setting.default is MISSING,
            help=setting.help or describe(setting.hint),
            **metavar,
        )
        action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
    parser.print_help()
