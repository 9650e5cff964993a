"""The command-line funnel: values from every source, and one line for every mistake."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from nmt_ls.experiment.command_line import UserError, config_to_dict, load_config, parse, run_command
from nmt_ls.experiment.records import own_commit


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised.

    A second paragraph.
    """

    alpha: float = 0.1
    """Smoothing mass, at most 99%,
    over two lines."""
    spread: Literal["all", "others"] = "all"  # where the mass goes

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must lie in [0, 1), not {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class Search:
    beam: int = field(default=5, metadata={"help": "hypotheses kept"})
    temperature: float | Literal["fitted"] = 1.0

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"search.beam must be at least 1, not {self.beam}")


@dataclass(frozen=True, kw_only=True)
class Config:
    loss: Loss = field(default_factory=Loss)
    search: Search = field(default_factory=lambda: Search(beam=7))
    audit: Search | None = None
    seed: int = 1
    eps: float = 1e-9
    out: Path | None = None
    language: str = "en"
    runs: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.98)
    steps: list[int] | None = None
    verbose: bool = False
    grid: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.loss.alpha > 0.9 and self.search.beam > 100:
            raise ValueError("so much smoothing and so wide a beam do not go together")


@dataclass(frozen=True, kw_only=True)
class Needy:
    source: str
    loss: Loss = field(default_factory=Loss)


SHORT = {"ls": "loss.alpha", "beam": "search.beam"}


def parsed(*argv: str, config_class: type[Any] = Config) -> Any:
    short = SHORT if config_class is Config else {}
    return parse(config_class, argv, program="prog", description="Does a thing.", short_names=short)


def errors(capsys: pytest.CaptureFixture[str], *argv: str, config_class: type[Any] = Config) -> list[str]:
    """The error lines of a refused command line; nothing else may be printed."""
    with pytest.raises(SystemExit) as left:
        parsed(*argv, config_class=config_class)
    printed = capsys.readouterr()
    assert left.value.code == 2
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def written(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def test_nothing_said_gives_the_defaults() -> None:
    assert parsed() == Config()
    assert parsed().search.beam == 7  # the parent's default for its component, not the component's own


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--loss.alpha", "0.2"], "loss", Loss(alpha=0.2)),
        (["--ls=1e-4"], "loss", Loss(alpha=1e-4)),
        (["--ls", "0"], "loss", Loss(alpha=0.0)),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--eps", "1e-4"], "eps", 1e-4),
        (["--search.temperature", "fitted"], "search", Search(beam=7, temperature="fitted")),
        (["--search.temperature", "1.5"], "search", Search(beam=7, temperature=1.5)),
        (["--out", "a/b"], "out", Path("a/b")),
        (["--out", "null"], "out", None),
        (["--language", "no"], "language", "no"),
        (["--language", "12"], "language", "12"),
        (["--language=--x: [1]"], "language", "--x: [1]"),
        (["--runs", "A", "12", "null"], "runs", ("A", "12", "null")),
        (["--runs", "A,B"], "runs", ("A,B",)),
        (["--runs", "[A, B]"], "runs", ("A", "B")),
        (["--betas", "0.1", "1e-3"], "betas", (0.1, 1e-3)),
        (["--betas", "0.1,-1"], "betas", (0.1, -1.0)),
        (["--betas", "[0.1, 2]"], "betas", (0.1, 2.0)),
        (["--steps", "1", "2"], "steps", [1, 2]),
        (["--steps", "3"], "steps", [3]),
        (["--steps", "null"], "steps", None),
        (["--verbose"], "verbose", True),
        (["--verbose", "true"], "verbose", True),
        (["--verbose", "false"], "verbose", False),
        (["--audit"], "audit", Search()),
        (["--audit.beam", "3"], "audit", Search(beam=3)),
        (["--audit.beam", "3", "--audit", "null"], "audit", None),
        (["--audit", "null", "--audit.beam", "3"], "audit", Search(beam=3)),
        (["--grid", "{a: [1, 1e-3]}"], "grid", {"a": [1.0, 1e-3]}),
    ],
)
def test_values_from_the_command_line(argv: list[str], key: str, value: Any) -> None:
    found = getattr(parsed(*argv), key)
    assert found == value
    assert type(found) is type(value)


def test_files_in_order_then_the_command_line(tmp_path: Path) -> None:
    first = written(tmp_path / "a.yaml", "{seed: 3, loss: {alpha: 0.3, spread: others}, audit: {beam: 2}}")
    second = written(tmp_path / "b.yaml", "seed: 4\nloss:\n  alpha: 1e-4\naudit:\n")
    config = parsed("--seed", "9", "--config", first, "--config", second)
    assert (config.seed, config.loss, config.audit) == (9, Loss(alpha=1e-4, spread="others"), None)
    assert parsed("--config", first, second) == parsed("--config", first, "--config", second)
    assert parsed("--config", second, "--config", first).loss.alpha == 0.3


def test_yaml_reads_as_people_mean_it(tmp_path: Path) -> None:
    text = """\
        language: no          # Norwegian, not false
        eps: 1e-4
        loss:                 # a heading with nothing under it
        search.beam: 3
        betas: [1, 2e-1]
        audit: {}
        out:
        """
    config = parsed("--config", written(tmp_path / "c.yaml", text))
    assert config == Config(language="no", eps=1e-4, search=Search(beam=3), betas=(1.0, 0.2), audit=Search())


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--language", "no", "--eps", "1e-12", "--audit.beam", "2", "--runs", "1e-4", "0x1", "2016-01-01", "~", "é: #"],
        ["--out", "a b", "--steps", "1", "2", "--verbose", "--grid", "{a: [1e-30]}", "--search.temperature", "fitted"],
    ],
)
def test_printed_config_is_taken_back(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed(*argv, "--print_config")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert list(yaml.safe_load(printed)) == list(Config.__dataclass_fields__)
    assert parsed("--config", written(tmp_path / "p.yaml", printed)) == parsed(*argv)


def test_help_shows_names_text_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed("--seed", "3", "-h")
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "Does a thing.",
        "loss: What is minimised. A second paragraph. --loss.alpha",
        "--ls ALPHA Smoothing mass, at most 99%, over two lines. (type: float, default: 0.1)",
        "where the mass goes (type: Literal['all', 'others'], default: all)",
        "hypotheses kept (type: int, default: 7)",
        "--runs RUNS ...",
        "--print_config",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ls", "x"], "--ls: expected a number, not 'x'"),
        (["--seed", "1.5"], "--seed: expected a whole number, not '1.5'"),
        (["--seed", "null"], "--seed: expected a whole number, not 'null'"),
        (["--seed"], "--seed: needs a value: a whole number"),
        (["--seed", "1", "2"], "--seed: takes one value, not 2: 1 2"),
        (["--verbose", "maybe"], "--verbose: expected true or false, not 'maybe'"),
        (["--loss.spread", "al"], "--loss.spread: expected one of all, others, not 'al'"),
        (["--search.temperature", "warm"], "--search.temperature: expected a number or fitted, not 'warm'"),
        (["--betas", "1"], "--betas: expected 2 numbers, not ['1']"),
        (["--steps", "1", "x"], "--steps: expected a list of whole numbers or null, not ['1', 'x']"),
        (["--audit", "off"], "--audit: expected null or {} (present, with its defaults), not 'off'"),
        (["--loss.alhpa", "1"], "unknown option --loss.alhpa; did you mean --loss.alpha?"),
        (["--alpha", "1"], "unknown option --alpha; did you mean --loss.alpha?"),
        (["--apha", "1"], "unknown option --apha; did you mean --loss.alpha?"),
        (["--beem", "1"], "unknown option --beem; did you mean --beam?"),
        (["--qqqqqq", "1"], "unknown option --qqqqqq"),
        (["--loss", "1"], "--loss is a group of options: name one, such as --loss.alpha"),
        (["runs/X"], "unexpected argument 'runs/X': values follow an option, as in --key value"),
        (["--config"], "--config needs a value: a YAML file"),
        (
            ["--config", "/nowhere/c.yaml"],
            "/nowhere/c.yaml: No such file or directory; name a YAML file after --config",
        ),
    ],
)
def test_a_parse_error_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors(capsys, *argv) == [message]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("loss:\n  alhpa: 1\n", ["line 2: unknown key loss.alhpa; did you mean loss.alpha?"]),
        ("ls: 0.1\n", ["line 1: unknown key ls; did you mean loss?"]),
        ("alpha: 0.1\n", ["line 1: unknown key alpha; did you mean loss.alpha?"]),
        ("\nseed: x\n", ["line 2: seed: expected a whole number, not 'x'"]),
        ("seed:\n", ["line 1: seed: expected a whole number, not null"]),
        ("language: 3\n", ["line 1: language: expected text, not 3"]),
        ("loss: 3\n", ["line 1: loss: expected keys and values below it, not 3"]),
        ("seed: 1\nloss: {alpha: x}\nsed: 2\n", ["line 2: loss.alpha: expected a number, not 'x'", "line 3: unknown"]),
        ("seed: 1\nseed: 2\n", ["line 2: seed was given before, on line 1"]),
        ("loss: [1\nseed: 2", ["line 2: expected ',' or ']', but got ':'"]),
        ("loss: !!python/name:os.system\n", ["line 1: could not determine a constructor for the tag"]),
        ("- 1\n", [": expected a mapping of keys to values, not list"]),
        ("loss: &l {alpha: *l}\n", ["line 1: loss.alpha: expected a number, not {"]),
        ("seed: \x00\n", [": unacceptable character"]),
    ],
)
def test_errors_in_a_file_name_file_line_and_key(
    text: str, messages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "c.yaml", text)
    found = errors(capsys, "--config", path)
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert line.startswith(path if message.startswith(":") else f"{path}, ")
        assert message in line


def test_a_file_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes(b"seed: \xff\n")
    assert errors(capsys, "--config", str(tmp_path / "c.yaml")) == [f"{tmp_path}/c.yaml: not UTF-8 text (byte 6)"]
    assert errors(capsys, "--config", str(tmp_path)) == [f"{tmp_path}: Is a directory; name a YAML file after --config"]


def test_validation_errors_of_all_components_are_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "c.yaml", "loss:\n  alpha: 1.5\naudit:\n  beam: -2\n")
    assert errors(capsys, "--config", path, "--beam", "0", "--seed", "-1") == [
        f"loss.alpha must lie in [0, 1), not 1.5 ({path}, line 2)",
        "search.beam must be at least 1, not 0",
        f"audit: search.beam must be at least 1, not -2 ({path}, line 4)",
        "seed must not be negative, not -1",
    ]
    both = ["--ls", "0.95", "--beam", "101"]
    assert errors(capsys, *both) == ["so much smoothing and so wide a beam do not go together"]


def test_a_setting_without_default_has_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors(capsys, "--loss.alpha", "2", config_class=Needy) == [
        "source has to be given: text",
        "loss.alpha must lie in [0, 1), not 2.0",
    ]
    assert parsed("--source", "x", config_class=Needy) == Needy(source="x")


def test_config_goes_to_plain_values_and_back() -> None:
    config = Config(audit=Search(beam=2), out=Path("x"), runs=("a", "b"), steps=[1], grid={"k": [0.5]})
    values = config_to_dict(config)
    assert values["audit"] == {"beam": 2, "temperature": 1.0}
    assert (values["out"], values["runs"]) == ("x", ["a", "b"])
    assert load_config(Config, yaml.safe_load(yaml.safe_dump(values))) == config
    assert load_config(Config, {}) == Config()


def test_load_config_refuses_by_key_and_file() -> None:
    with pytest.raises(UserError, match=r"^runs/X/config.yaml: unknown key loss.alhpa; did you mean loss.alpha\?$"):
        load_config(Config, {"loss": {"alhpa": 0.1}}, "runs/X/config.yaml")
    with pytest.raises(UserError, match=r"alpha must lie in \[0, 1\), not 7.0 \(config.yaml\)\nseed must not"):
        load_config(Config, {"loss": {"alpha": 7}, "seed": -3})


@pytest.fixture(autouse=True)
def keep_warnings_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


def leave(main: Any) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        run_command(main, Config, program="prog", description="", argv=[])
    return left.value.code


def test_run_command_leaves_with_mains_status() -> None:
    assert leave(lambda _: None) == 0
    assert leave(lambda _: 3) == 3


def test_run_command_turns_what_users_did_into_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refuse(_: Config) -> None:
        raise UserError("corpus.txt, line 3: empty\ncorpus.txt, line 9: empty")

    assert leave(refuse) == 2
    assert capsys.readouterr().err == "error: corpus.txt, line 3: empty\nerror: corpus.txt, line 9: empty\n"
    missing = tmp_path / "missing"
    assert leave(lambda _: missing.read_text() and None) == 2
    assert capsys.readouterr().err == f"error: {missing}: No such file or directory\n"

    def fill(_: Config) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "hyp.txt")

    assert leave(fill) == 2
    said = "hyp.txt: cannot be written (No space left on device); make room, then give the same command again"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_commit_is_looked_up_before_the_work_begins() -> None:
    own_commit.cache_clear()
    assert leave(lambda _: own_commit.cache_info().currsize) == 1


def test_run_command_keeps_the_traceback_of_a_bug() -> None:
    for bug in (ValueError("shape"), OSError(9, "Bad file descriptor"), KeyError("x")):

        def stumble(_: Config, bug: Exception = bug) -> None:
            raise bug

        with pytest.raises(type(bug)):
            run_command(stumble, Config, program="prog", description="", argv=[])
    ours = Path(run_command.__code__.co_filename).with_name("missing.py")
    with pytest.raises(FileNotFoundError):  # a file of the package is ours, not the user's
        run_command(lambda _: ours.read_text() and None, Config, program="prog", description="", argv=[])


def test_run_command_on_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: Config) -> None:
        raise KeyboardInterrupt

    assert leave(interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"


PROGRAM = """\
    import warnings
    from dataclasses import dataclass
    from nmt_ls.experiment.command_line import run_command

    @dataclass(frozen=True, kw_only=True)
    class Config:
        lines: int = 1

    def main(config):
        warnings.warn("line 7 is long") if config.lines < 0 else None
        for line in range(config.lines):
            print("line", line)

    run_command(main, Config, program="prog", description="")
    """


def started(tmp_path: Path, *argv: str) -> subprocess.Popen[bytes]:
    script = written(tmp_path / "prog.py", PROGRAM)
    return subprocess.Popen([sys.executable, script, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    command = started(tmp_path, "--lines", "100000")
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.readline() == b"line 0\n"
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == (b"", 141)


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    command = started(tmp_path, "--lines", "-1")
    assert (*command.communicate(), command.returncode) == (b"", b"warning: line 7 is long\n", 0)
