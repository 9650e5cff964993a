"""The command-line funnel: the one place where a user's mistake becomes one `error: …` line and exit status 2.

A command's configuration is a frozen dataclass of frozen dataclasses; its keys are dotted (`--loss.alpha 0.1`). Values
come from the defaults, then the `--config` files in their order, then the command line.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from nmt_ls.experiment.config_fields import ConfigTree, Given
from nmt_ls.experiment.config_help import print_help
from nmt_ls.experiment.config_values import ConfigDumper, convert_words, plain, read_yaml

Config = TypeVar("Config")

INTERRUPTED = 130  # what a shell reports for SIGINT
PIPE_CLOSED = 141  # and for SIGPIPE
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """What the user did wrong: one line that says what, where (file, line or key) and what to do about it.

    Several mistakes found together are several lines of one UserError.
    """


def disk_full(path: str | Path, why: str | None) -> UserError:
    """The error of a file for which there is no room; why: what the system says."""
    return UserError(f"{path}: cannot be written ({why}); make room, then give the same command again")


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    short_names: Mapping[str, str] = {},
) -> Config:
    """The configuration that a command line asks for.

    Args:
        config_class: a frozen keyword-only dataclass; fields may be dataclasses, or `X | None`.
        argv: the arguments, without the program's name.
        program: for --help, such as "python -m nmt_ls.train".
        description: for --help.
        short_names: {"ls": "loss.alpha"} makes --ls another name of --loss.alpha.

    Leaves the process (SystemExit) with 0 after --help and --print_config, with 2 after one `error:` line a mistake.
    """
    tree = ConfigTree(config_class)
    assert not (wrong := set(short_names.values()) - set(tree.settings)), f"short names of no setting: {wrong}"
    assert not (taken := set(short_names) & set(tree.settings)), f"short names that are settings: {taken}"
    try:
        asked = _read_arguments(tree, argv, short_names)
        if asked.help:
            print_help(tree.settings.values(), program, description, short_names)
            raise SystemExit(0)
        config = _build(tree, asked)
    except UserError as error:
        report(error)
        raise SystemExit(2) from None
    if asked.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config  # type: ignore[no-any-return]


def run_command(
    main: Callable[[Config], int | None],
    config_class: type[Config],
    *,
    program: str,
    description: str,
    short_names: Mapping[str, str] = {},
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse, run `main`, and leave with its status (None: 0).

    A UserError, or an OSError about a file of the user's, is one `error:` line and status 2; a reader that closed the
    pipe ends the command quietly; any other exception is a bug of ours and keeps its traceback. Warnings are shown as
    `warning: …` lines.
    """
    from nmt_ls.experiment.records import own_commit  # which reports its own errors through this file

    warnings.formatwarning = _warning_line
    try:
        try:
            arguments = sys.argv[1:] if argv is None else argv
            config = parse(config_class, arguments, program=program, description=description, short_names=short_names)
            own_commit()  # while it is that of the code that runs: a checkout may change under hours of training
            status = main(config) or 0
        finally:
            sys.stdout.flush()
    except UserError as error:
        report(error)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes once more on its way out: give it somewhere to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = PIPE_CLOSED
    except OSError as error:
        line = _about_user_file(error)
        if line is None:
            raise
        report(line)
        status = 2
    raise SystemExit(status)


def report(problem: UserError | str) -> None:
    """One `error: …` line on standard error for each line of the message."""
    for line in filter(None, map(str.strip, str(problem).splitlines())):
        print(f"error: {line}", file=sys.stderr)


def _warning_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"


def load_config(
    config_class: type[Config],
    mapping: Mapping[str, Any],
    where: str = "config.yaml",
    lines: Mapping[str, int] = {},
) -> Config:
    """A configuration from nested plain values, such as a run's config.yaml.

    Raises:
        UserError: unknown keys, values of the wrong type, refused values: one line each; `where` names the file, and
            `lines` the line of each dotted key in it, where known.
    """
    tree, problems = ConfigTree(config_class), list[str]()
    given = tree.given(mapping, where, lines, problems)
    return _sound(tree, given, problems)  # type: ignore[no-any-return]


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested plain values, which `load_config` takes back."""
    values: dict[str, Any] = plain(config)
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by their dotted names; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_yaml(config: Any) -> str:
    """The configuration as YAML, which --config takes back."""
    return yaml.dump(config_to_dict(config), Dumper=ConfigDumper, sort_keys=False, allow_unicode=True)


@dataclass(kw_only=True)
class _Asked:
    """What a command line asks for."""

    help: bool = False
    print_config: bool = False
    config_files: list[str] = field(default_factory=list)
    given: list[tuple[str, Given]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _read_arguments(tree: ConfigTree, argv: Sequence[str], short_names: Mapping[str, str]) -> _Asked:
    asked, at = _Asked(), 0
    while at < len(argv):
        word, at = argv[at], at + 1
        option, equals, value = word.partition("=")
        words = [value] if equals else []
        while not equals and at < len(argv) and not _is_option(argv[at]):
            words.append(argv[at])
            at += 1
        if not _is_option(word):
            asked.problems.append(f"unexpected argument {word!r}: values follow an option, as in --key value")
        elif option in ("--help", "-h"):
            asked.help = True
        elif option == "--print_config":
            asked.print_config = True
            asked.problems += ["--print_config takes no value"] if words else []
        elif option == "--config":
            asked.config_files += words
            asked.problems += [] if words else ["--config needs a value: a YAML file"]
        else:
            _read_option(tree, option, words, short_names, asked)
    return asked


def _is_option(word: str) -> bool:
    return (word.startswith("--") and word != "--") or word == "-h"


def _read_option(
    tree: ConfigTree, option: str, words: list[str], short_names: Mapping[str, str], asked: _Asked
) -> None:
    name = option[2:]
    key = short_names.get(name, name)
    if key in tree.settings:
        try:
            asked.given.append((key, Given(value=convert_words(tree.settings[key], words))))
        except ValueError as error:
            asked.problems.append(f"{option}: {error}")
    elif key in tree.groups:
        some = next(known for known in tree.settings if known.startswith(key + "."))
        asked.problems.append(f"{option} is a group of options: name one, such as --{some}")
    else:
        hint = tree.nearest(key, also=[*short_names, "config", "print_config", "help"])
        asked.problems.append(f"unknown option {option}{hint.replace('mean ', 'mean --').replace(' or ', ' or --')}")


def _build(tree: ConfigTree, asked: _Asked) -> Any:
    given: dict[str, Given] = {}
    problems = asked.problems
    for path in asked.config_files:
        content, lines = read_yaml(path, problems)
        tree.merge(given, tree.given(content, path, lines, problems))
    for key, value in asked.given:
        tree.merge(given, {key: value})
    return _sound(tree, given, problems)


def _sound(tree: ConfigTree, given: Mapping[str, Given], problems: list[str]) -> Any:
    config = None if problems else tree.build(given, problems)
    if problems:
        raise UserError("\n".join(problems))
    return config


def _about_user_file(error: OSError) -> str | None:
    """The line for an OSError that the user can do something about, or None for one that is a bug of ours."""
    if error.errno in NO_ROOM:
        return str(disk_full(error.filename or "a file", error.strerror))
    if error.errno == errno.EROFS:
        return f"{error.filename or 'writing'}: {error.strerror}"
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(error.filename)
    ours = [Path(__file__).resolve().parents[1], Path(sys.prefix).resolve()]
    if any(Path(name).resolve().is_relative_to(place) for place in ours):
        return None
    return f"{name}: {error.strerror or error}"
