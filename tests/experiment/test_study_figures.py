"""What a study's commands leave: kept while they are part-way, handed over once, and never of two data sets at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_studies import COUNT, RECORD, runs_of, work

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, append_records, read_records
from nmt_ls.experiment.study import Costs, Progress, Study, load_study
from nmt_ls.experiment.study_records import last_of_each
from nmt_ls.experiment.study_workers import Workers


def test_figures_of_a_command_that_was_stopped_are_kept_for_it(write_study: Callable[..., Study]) -> None:
    script = "python record.py {results} {cell} && test -e second || exec sleep 30"
    study = write_study({"a": {"cell": "c", "commands": [f'sh -c "{script}"']}})
    assert work(study, seconds=1.5).stopped == ["c"]
    assert not study.records.exists()
    Path("second").touch()
    assert work(study).done == ["c"]
    # the same figure measured twice is one figure
    assert [record.name for record in read_records(study.records)] == ["value", "seconds"]


def test_figures_of_a_command_that_was_stopped_do_not_become_those_of_a_changed_one(
    write_study: Callable[..., Study],
) -> None:
    script = "python record.py {results} {cell} && test -e second || exec sleep 30"
    commands = [COUNT, f'sh -c "{script}"']
    assert work(write_study({"a": {"cell": "c", "commands": commands}}), seconds=1.5).stopped == ["c"]
    Path("runs/studies/small/c/step2").mkdir()  # as folders were called before
    Path("second").touch()
    Path("record.py").write_text(RECORD.replace("2.0", "3.0"))
    study = write_study({"a": {"cell": "c", "commands": [COUNT + " # longer", commands[1]]}})
    assert work(study).done == ["c"]
    assert [record.value for record in read_records(study.records) if record.name == "value"] == [3.0]
    assert not list(study.cells[0].state.glob("step*"))


def test_a_command_that_ended_before_the_one_before_it_was_changed(write_study: Callable[..., Study]) -> None:
    record = "python record.py {results} {cell}"
    before = write_study({"a": {"cell": "c", "commands": [COUNT, record]}}).cells[0].steps[1]
    subprocess.run([sys.executable, *before.argv[1:]], check=True)
    study = write_study({"a": {"cell": "c", "commands": [COUNT + " # longer", record]}})
    Progress(ended=[before.line]).write(study.cells[0])  # killed before its figures were handed over
    assert work(study).done == ["c"]
    assert [record.name for record in read_records(study.records)] == ["seconds", "value", "seconds"]


def test_what_a_kill_left_between_the_end_of_a_command_and_its_records(write_study: Callable[..., Study]) -> None:
    study = write_study({"a": {"cell": "c", "commands": [COUNT, "python record.py {results} {cell}"]}})
    cell = study.cells[0]
    first, second = cell.steps
    assert second.scratch is not None
    subprocess.run([sys.executable, *second.argv[1:]], check=True)
    # killed after the first of two records was added
    value = Record(
        name="value", value=2.0, signature={"alpha": 0.1, "study": "small", "cell": "c"}, command="record results/small"
    )
    append_records(study.records, [value])
    Progress(spent={first.line: 5.0, second.line: 7.0}, ended=[first.line, second.line]).write(cell)
    work(study)
    records = read_records(study.records)
    assert [record.name for record in records] == ["value", "seconds", "seconds"]
    assert Costs.read(study).seconds == {("c", first.line): 5.0, ("c", second.line): 7.0}
    assert runs_of("c") == 0  # nothing was run again
    assert not second.scratch.exists()
    assert (study.results / "figures" / "c.txt").exists()


def test_of_equal_recipes_the_last_counts() -> None:
    def figure(value: float, **recipe: Any) -> Record:
        return Record(name="ece", value=value, signature=recipe, command="")

    records = [figure(1.0, alpha=0.1, commit="a"), figure(2.0, alpha=0.2), figure(3.0, alpha=0.1, commit="b")]
    assert [record.value for record in last_of_each(records)] == [2.0, 3.0]


MEASURE = """import json, pathlib, sys
results, *places = sys.argv[1:]
for place in places:
    corpus = json.loads((pathlib.Path(place.split("=")[-1]) / "manifest.json").read_text())["checksum"]
    line = {"name": "nll", "value": 1.0, "signature": {"corpus": corpus}, "command": ""}
    (pathlib.Path(results) / "records.jsonl").open("a").write(json.dumps(line) + "\\n")
"""


def prepare(place: str, checksum: str) -> None:
    Path(place).mkdir(parents=True, exist_ok=True)
    (Path(place) / "manifest.json").write_text(json.dumps({"checksum": checksum}))


def test_other_data_than_those_of_earlier_figures_are_refused(write_study: Callable[..., Study]) -> None:
    Path("measure.py").write_text(MEASURE)
    for place, checksum in (("data/a", "a" * 64), ("data/b", "b" * 64)):
        prepare(place, checksum)
    Path("runs/teacher").mkdir(parents=True)
    Path("runs/teacher/manifest.json").write_text(json.dumps({"corpus_checksum": "e" * 64}))  # a run is no data
    measure = "python measure.py {results}"
    blocks: dict[str, Any] = {
        "a": {"cell": "a{seed}", "axes": {"seed": [1]}, "commands": [COUNT + " runs/teacher", measure + " data/a"]},
        "b": {"cell": "b{seed}", "axes": {"seed": [1]}, "commands": [COUNT, measure + " --data=data/b"]},
        "both": {"cell": "both{seed}", "axes": {"seed": [1]}, "commands": [COUNT, measure + " data/a data/b"]},
    }
    assert sorted(work(write_study(blocks)).done) == ["a1", "b1", "both1"]
    for block in blocks.values():
        block["axes"]["seed"] = [1, 2]
    more = write_study(blocks)
    append_records(more.records, [Record(name="nll", value=1.0, signature={"corpus": "f" * 64}, command="no cell")])
    prepare("data/b", "c" * 64)
    with pytest.raises(UserError) as refused:
        work(more)
    assert str(refused.value) == (
        "data/b has checksum cccccccccccc…, but this study's figures of it (cell b1) were measured on bbbbbbbbbbbb…; "
        "prepare that (results/data.md), or measure all anew with --results"
    )
    assert [runs_of(name) for name in ("a2", "b2", "both2")] == [0, 0, 0]
    others = [cell for cell in more.cells if cell.block != "b"]
    assert Workers(more, others, workers=1, seconds=None, stream=io.StringIO()).run().done == ["a2", "both2"]
    assert len(work(load_study("small.yaml", results="mine")).done) == 6
    prepare("data/b", "b" * 64)
    assert work(more).done == ["b2"]
