"""The study command: its words, its plan, a real training run inside it, and the study files that we ship."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from nmt_ls import distill, score, sweep, train
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import parse
from nmt_ls.experiment.distillation import OF_STUDENTS
from nmt_ls.experiment.records import Record, append_records, read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.study import load_study
from nmt_ls.study import main
from nmt_ls.sweeping import SweepConfig

ROOT = Path(__file__).parents[1]
SHIPPED = [  # those of images: tests/vision/test_vision_configs.py
    path
    for path in sorted((ROOT / "configs" / "studies").glob("*.yaml"))
    if path.stem.split("-")[0] not in ("vision", "distillation")
]
TRAIN = (
    "python -m nmt_ls.train --data {corpus} --ls {alpha} --seed 1 --threads {threads} --precision {precision} "
    "--max_tokens 800 --model.width 32 --model.feed_forward 64 --model.heads 2 --model.encoder_layers 1 "
    "--model.decoder_layers 1 --dropout 0.1 --max_updates {updates} --engine.validate_every 100 --engine.log_every 5 "
    "--schedule.kind inverse_sqrt --schedule.warmup_updates 20 "
    "--validation_sentences 0 --beam 1 --checkpoints last --out runs/{cell}"
)


def run_main(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert isinstance(left.value.code, int)
    return left.value.code


def write(blocks: dict[str, object], **settings: object) -> None:
    Path("small.yaml").write_text(yaml.safe_dump({"results": "results/small", "blocks": blocks, **settings}))


def test_a_study_starts_without_loading_pytorch() -> None:
    code = (
        "import sys, nmt_ls.study\n"
        "from nmt_ls.experiment.study_workers import provenance\n"
        "assert provenance(threads=2)['threads'] == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "words", [(), ("run",), ("go", "small.yaml"), ("run", "--workers", "2"), ("small.yaml", "run")]
)
def test_without_action_and_file_it_says_how_it_is_used(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: usage: python -m nmt_ls.study run|plan")
    assert message.count("\n") == 1


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (
            ("plan", "missing.yaml"),
            "missing.yaml: No such file or directory; name the study's YAML file after run or plan",
        ),
        (("plan", "small.yaml", "--wrokers", "2"), "unknown option --wrokers; did you mean --workers?"),
        (("plan", "small.yaml", "--workers", "0"), "workers must be at least 1"),
        (("plan", "small.yaml", "--cells", "x*"), "no cell of small is called x*"),
    ):
        write({"a": {"cell": "c", "commands": ["true"]}})
        assert run_main(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_plan_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(
        {
            "a": {
                "cell": "c{n}",
                "axes": {"n": [0, 1, 2]},
                "commands": ["sh -c 'echo so it goes; exit {n}'"],
                "minutes": 2,
            }
        }
    )
    assert run_main("plan", "small.yaml", "--commands") == 0
    planned = capsys.readouterr().out
    assert re.search(r"^c1 +a +~2 min, guessed +to do$", planned, re.MULTILINE)
    assert "sh -c 'echo so it goes; exit 1'" in planned
    assert "0 of 3 cells done; left: 6 min of work (~6 min by guesses), 3 min with 2 workers" in planned
    assert not Path("results").exists()
    assert run_main("run", "small.yaml") == 1
    out, err = capsys.readouterr()
    assert "[1/3] c0: done" in err
    assert re.search(r"^c1 +status 1 +sh -c \S.*so it goes$", out, re.MULTILINE)
    assert re.search(r"^c2 +status 2: a mistake in the command .*so it goes$", out, re.MULTILINE)
    assert "1 of 3 cells done, 1 of them now" in out
    assert run_main("plan", "small.yaml", "--cells", "c0", "c2") == 0
    planned = capsys.readouterr().out
    assert re.search(r"^c0 +a .* done$", planned, re.MULTILINE)
    assert "failed: so it goes" in planned
    assert "c1" not in planned


def test_the_plan_tells_measured_from_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"cell": "a{n}", "axes": {"n": [1, 2]}, "commands": ["train {n}"]}
    write({"a": known, "b": {"cell": "b", "commands": ["x"], "minutes": 10}, "c": {"cell": "c", "commands": ["y"]}})
    signature = {"study": "small", "cell": "a1"}
    append_records(
        "results/small/records.jsonl", [Record(name="seconds", value=240.0, signature=signature, command="train 1")]
    )
    assert run_main("plan", "small.yaml") == 0
    planned = capsys.readouterr().out
    assert re.search(r"^a2 +a +4 min +to do$", planned, re.MULTILINE)
    assert re.search(r"^b +b +~10 min, guessed +to do$", planned, re.MULTILINE)
    assert re.search(r"^c +c +unknown +to do$", planned, re.MULTILINE)
    assert (
        "1 of 4 cells done; left: 14 min of work (4 min by measured costs and ~10 min by guesses), "
        "7 min with 2 workers, besides 1 cells of unknown cost"
    ) in planned


def forked_main(*words: str) -> int:
    """The command in a process of its own, its output in the file `output`; forked, since importing takes seconds."""
    if pid := os.fork():
        return pid
    try:
        for descriptor in (1, 2):
            os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
        main(words)
    except SystemExit as left:
        os._exit(left.code if isinstance(left.code, int) else 99)
    finally:
        os._exit(98)


def test_a_training_run_is_stopped_and_goes_on(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write(
        {"a": {"cell": "ls{alpha}", "axes": {"alpha": [0.1]}, "commands": [TRAIN]}},
        constants={"corpus": str(small_corpus.directory), "precision": "fp32", "updates": 100},
    )
    run = RunDirectory("runs/ls0.1")
    pid = forked_main("run", "small.yaml")
    try:
        end = time.monotonic() + 120
        while not (run.metrics_file.exists() and run.read_metrics()):
            assert time.monotonic() < end
            assert "failed" not in (Path("output").read_text() if Path("output").exists() else "")
            time.sleep(0.02)
    finally:
        os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0
    output = Path("output").read_text()
    assert "stopped by SIGTERM: 0 of 1 cells done" in output
    assert "part-way: ls0.1" in output
    assert not run.summary_file.exists()
    assert run_main("run", "small.yaml") == 0
    assert "1 of 1 cells done, 1 of them now" in capsys.readouterr().out
    assert "resumed at step" in Path("runs/studies/small/ls0.1/log").read_text()
    manifest = run.read_manifest()
    assert manifest["threads"] == 1
    assert manifest["precision"]["kind"] == "fp32"
    assert run.read_summary()["updates"] == 100
    (cost,) = read_records("results/small/records.jsonl")
    assert (cost.name, cost.command.split()[:3]) == ("seconds", ["python", "-m", "nmt_ls.train"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_commands_of_shipped_studies_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configs = {
        "train": train.TrainConfig,
        "distill": distill.DistillConfig,
        "score": score.ScoreConfig,
        "sweep": sweep.SweepConfig,
    }
    study = load_study(path)
    for cell in (study.cells_of([block])[0] for block in study.blocks):
        for step in cell.steps:
            python, option, module, *words = step.argv
            assert (python, option) == ("python", "-m")
            name = module.removeprefix("nmt_ls.")
            short_names = {"train": train, "distill": train, "score": score, "sweep": sweep}[name].SHORT_NAMES
            short_names = short_names | (OF_STUDENTS if name == "distill" else {})
            config = parse(configs[name], words, program=name, description="", short_names=short_names)
            assert "{" not in str(config)
        trains = any("nmt_ls.train" in step.line for step in cell.steps)
        assert not trains or cell.steps[0].scratch is None  # what trains goes on by itself


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_name_what_must_not_be_left_to_chance(path: Path) -> None:
    study = load_study(path)
    assert study.threads == 1
    assert study.results == Path("results") / path.stem
    updates: dict[tuple[str, str], set[str]] = {}
    training = [
        (cell, shlex.split(step.line)) for cell in study.cells for step in cell.steps if "nmt_ls.train" in step.line
    ]
    taught = [shlex.split(step.line) for cell in study.cells for step in cell.steps if "nmt_ls.distill" in step.line]
    assert bool(taught) == (path.stem == "grammar-students")
    for options in (dict(pairwise(words)) for words in taught):
        pinned = {"--precision": "fp32", "--threads": "1", "--distillation.checkpoint": "last", "--max_updates": "3200"}
        assert pinned.items() <= options.items()
        assert {"--dropout", "--seed"} <= set(options)
    assert training
    later = {
        cell.name for cell, _ in training if any(name.startswith("pilot") for name in study.blocks[cell.block].after)
    }
    pilot = {
        words[words.index("--out") + 1]: int(words[words.index("--max_updates") + 1])
        for cell, words in training
        if cell.block.startswith("pilot")
    }
    for cell, words in training:
        options = dict(pairwise(words))
        # dropout said, precision and threads pinned, never a stop at a moment that differs from seed to seed
        assert {"--dropout", "--ls", "--seed", "--max_updates"} <= set(options)
        assert options["--precision"] in ("fp32", "bf16")  # never auto, which another machine would settle otherwise
        assert options["--threads"] == "1"
        assert "--engine.patience" not in options
        if cell.block.startswith("pilot"):  # trains only, with fewer updates: a run that another block takes up
            assert len(cell.steps) == 1
            assert Path(options["--out"]).name in later
            assert float(options["--ls"]) == 0
            continue
        teacher = f"runs/grammar-teacher-ls{cell.values['alpha']}-s{cell.values['seed']}"  # a cell named after students
        assert options["--out"] == (teacher if cell.block == "taught" else f"runs/{cell.name}")
        assert int(options["--max_updates"]) >= pilot.get(options["--out"], 0)  # a run goes on, never back
        table = options.get("--config", "embedded"), options["--dropout"]
        updates.setdefault(table, set()).add(options["--max_updates"])
    assert all(len(numbers) == 1 for numbers in updates.values())  # equal updates in a table
    for cell in study.cells:
        for step in cell.steps:
            if "nmt_ls.score" in step.line:
                assert "--checkpoint" in step.line  # never the default by accident


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_temperatures_are_chosen_on_another_split_than_is_reported(path: Path) -> None:
    study = load_study(path)
    for cell in study.cells:
        sweeps = [shlex.split(step.line) for step in cell.steps if "nmt_ls.sweep" in step.line]
        if path.stem == "grammar-students":  # its temperatures are fitted, by score
            assert not sweeps
            continue
        if not any("nmt_ls.train" in step.line for step in cell.steps) or cell.block.startswith("pilot"):
            assert not sweeps
            continue
        options = {words[words.index("--split") + 1]: dict(pairwise(words)) for words in sweeps}
        assert all("--summarise" in words for words in sweeps)  # the report has the tables, from the records
        assert set(options) == {"validation", "test"}
        validation, test = (
            SweepConfig(
                temperatures=(options[split]["--temperatures"],),
                inverse_temperatures=options[split]["--inverse_temperatures"],
            )
            for split in ("validation", "test")
        )
        # whatever is chosen has a test cell
        assert test.decoded_temperatures == validation.decoded_temperatures
        assert set(test.whole_inverse_grid) <= set(validation.whole_inverse_grid)
        assert len(test.decoded_temperatures) > 1
        assert {options[split]["--checkpoint"] for split in options} == {"last"}
        assert {options[split]["--beams"] for split in options} == {"5"}  # never greedy, which no temperature changes
