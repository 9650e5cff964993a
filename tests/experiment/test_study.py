"""Studies: expansion of the grid, and cells run as real processes, stopped and killed at bad moments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_studies import COUNT, runs_of, work

from nmt_ls.experiment import keeper
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, append_records, read_records
from nmt_ls.experiment.study import Costs, Estimate, LeftInAll, Progress, Study, load_study
from nmt_ls.experiment.study_plan import plan_rows
from nmt_ls.experiment.study_workers import is_locked


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_what_is_recorded_is_measured_anew_into_another_folder(write_study: Callable[..., Study]) -> None:
    commands = [COUNT, "python record.py {results} {cell}"]
    assert work(write_study({"a": {"cell": "only", "commands": commands}})).done == ["only"]
    assert work(load_study("small.yaml")).done == []
    other = load_study("small.yaml", results="mine")
    assert work(other).done == ["only"]
    assert (other.records, runs_of("only")) == (Path("mine/records.jsonl"), 2)
    assert {record.command for record in read_records(other.records)} >= {"python record.py mine only"}


def test_a_grid_is_the_product_of_its_axes_in_order(write_study: Callable[..., Study]) -> None:
    study = write_study(
        {
            "pilot": {
                "cell": "ls{alpha}-s{seed}",
                "axes": {"seed": [1, 2], "alpha": [0.0, 0.1]},
                "commands": [
                    "train --ls {alpha} --threads {threads} --precision {precision} --out 'runs/{cell}'",
                    "score --results {results}",
                ],
            },
            "end": {"cell": "end", "commands": ["sweep --results {study}"], "after": ["pilot"]},
        },
        constants={"precision": "fp32"},
    )
    assert [cell.name for cell in study.cells] == ["ls0.0-s1", "ls0.1-s1", "ls0.0-s2", "ls0.1-s2", "end"]
    train, score = study.cells[1].steps
    assert train.line == "train --ls 0.1 --threads 1 --precision fp32 --out runs/ls0.1-s1"
    assert train.scratch is None
    # what a person would type differs from what is run by the folder only
    assert score.line == "score --results results/small"
    assert score.argv == ("score", "--results", str(score.scratch))
    assert re.fullmatch(r"runs/studies/small/ls0\.1-s1/step2-[0-9a-f]{8}", str(score.scratch))
    assert study.cells[-1].steps[0].argv == ("sweep", "--results", "results/small")
    assert study.cells[-1].steps[0].scratch is None


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a": {"cell": "{alpha}", "commands": ["x"]}}, "unknown placeholder {alpha}"),
        ({"a": {"cell": "c", "commands": ["x {seed}"]}}, "unknown placeholder {seed}"),
        ({"a": {"cell": "c", "commands": ["x 'y"]}}, "is not a command line"),
        ({"a": {"cell": "c", "commands": ["x {"]}}, "a literal brace is written twice"),
        ({"a": {"cell": "a/b", "commands": ["x"]}}, "cannot be a folder's name"),
        ({"a": {"cell": "c", "commands": ["x"], "axes": {"seed": [1, 2]}}}, "a second cell c"),
        ({"a": {"cell": "c", "commands": ["x"], "axes": {"seed": []}}}, "seed needs at least one value"),
        ({"a": {"cell": "c", "commands": ["x"], "axes": {"cell": [1]}}}, "'cell' cannot be the name of an axis"),
        ({"a": {"cell": "c", "commands": []}}, "give at least one"),
        ({"a": {"cell": "c", "comands": ["x"]}}, "comands; did you mean commands"),
        ({"a": {"cell": "c", "commands": ["x"], "after": ["b"]}}, "there is no other block 'b'"),
        (
            {
                "a": {"cell": "a", "commands": ["x"], "after": ["b"]},
                "b": {"cell": "b", "commands": ["x"], "after": ["a"]},
            },
            "waits, by way of others, for itself",
        ),
        ({}, "name at least one"),
    ],
)
def test_mistakes_in_a_study_file(write_study: Callable[..., Study], blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        write_study(blocks)
    assert message in str(caught.value)
    assert "small.yaml" in str(caught.value) or "blocks" in str(caught.value)


def test_cells_run_once_and_leave_their_records(write_study: Callable[..., Study]) -> None:
    commands = [COUNT, "python record.py {results} {cell}", "sh -c 'test \"$OMP_NUM_THREADS\" = 1'"]
    study = write_study({"a": {"cell": "c{seed}", "axes": {"seed": [1, 2, 3]}, "commands": commands}})
    session = work(study)
    assert sorted(session.done) == ["c1", "c2", "c3"]
    records = [record for record in read_records(study.records) if record.name == "value"]
    assert sorted(record.signature["cell"] for record in records) == ["c1", "c2", "c3"]
    assert {record.signature["alpha"] for record in records} == {0.1}
    assert {record.command for record in records} == {"record results/small"}
    assert sorted(path.name for path in (study.results / "figures").iterdir()) == ["c1.txt", "c2.txt", "c3.txt"]
    costs = [record for record in read_records(study.records) if record.name == "seconds"]
    assert len(costs) == 9
    assert {"commit", "versions", "cell", "block"} <= set(costs[0].signature)
    before = study.records.read_bytes()
    again = work(study)
    assert again.done == []
    assert study.records.read_bytes() == before
    assert [runs_of(f"c{seed}") for seed in (1, 2, 3)] == [1, 1, 1]


def test_cells_whose_records_exist_are_skipped_where_nothing_else_does(write_study: Callable[..., Study]) -> None:
    study = write_study({"a": {"cell": "c", "commands": [COUNT, "python record.py {results} {cell}"]}})
    work(study)
    Path("runs").rename("runs-of-another-machine")
    work(study)
    assert runs_of("c") == 1
    # without its records it is to do again
    study.records.unlink()
    work(study)
    assert runs_of("c") == 2
    assert [record.name for record in read_records(study.records)] == ["seconds", "value", "seconds"]


def test_a_cell_half_done_on_another_machine_begins_anew(write_study: Callable[..., Study]) -> None:
    record, fails = "python record.py {results} {cell}", "sh -c 'test -e allowed && echo {results}'"
    study = write_study({"a": {"cell": "c", "commands": [COUNT, record, fails]}})
    (cell,) = study.cells
    assert list(work(study).failed) == ["c"]
    assert [Costs.read(study).ended(cell, step) for step in cell.steps] == [True, True, False]
    work(study)
    assert [one.name for one in read_records(study.records)] == [
        "seconds",
        "value",
        "seconds",
    ]  # nothing measured again
    Path("runs").rename("runs-of-another-machine")
    work(study)
    costs = Costs.read(study)
    assert [costs.ended(cell, step) for step in cell.steps] == [True, True, False]
    assert [one.name for one in read_records(study.records)] == ["seconds", "value", "seconds", "seconds", "seconds"]
    Path("allowed").touch()
    assert work(study).done == ["c"]
    assert runs_of("c") == 4  # as ever, since it goes on by itself
    assert len(read_records(study.records)) == 6


def test_a_changed_command_line_is_another_command(write_study: Callable[..., Study]) -> None:
    block = {"cell": "c", "commands": [COUNT, "python record.py {results} {cell}"]}
    work(write_study({"a": block}))
    block["commands"][1] += " --more"  # type: ignore[index]
    assert work(write_study({"a": block})).done == ["c"]
    assert runs_of("c") == 2  # what goes on by itself is run again, the later command may need what it made


def test_what_follows_a_changed_command_is_to_do_again(write_study: Callable[..., Study]) -> None:
    measure = "sh -c 'echo y >> measured; : {results}'"
    work(write_study({"a": {"cell": "c", "commands": [COUNT, measure]}}))
    longer = write_study({"a": {"cell": "c", "commands": [COUNT + " # longer", measure]}})
    cell = longer.cells[0]
    assert [Costs.read(longer).ended(cell, step) for step in cell.steps] == [False, False]
    assert work(longer).done == ["c"]
    assert Path("measured").read_text() == "y\ny\n"
    assert [Costs.read(longer).ended(cell, step) for step in cell.steps] == [True, True]
    assert work(longer).done == []


def test_failures_are_collected_and_stop_nobody_else(write_study: Callable[..., Study]) -> None:
    failing = "sh -c 'echo progress; echo error: cell {seed} does not like it >&2; exit $(( ({seed} == 2) * 2 ))'"
    study = write_study(
        {
            "a": {"cell": "c{seed}", "axes": {"seed": [1, 2, 3]}, "commands": [failing, COUNT]},
            "b": {"cell": "end", "commands": [COUNT], "after": ["a"]},
        }
    )
    session = work(study, workers=1)
    assert session.done == ["c1", "c3"]
    assert list(session.failed) == ["c2"]
    assert session.failed["c2"]["status"] == 2
    assert session.failed["c2"]["last_line"] == "error: cell 2 does not like it"
    assert session.left == ["end"]
    assert runs_of("c2") == runs_of("end") == 0
    states = {row["cell"]: row["state"] for row in plan_rows(study, list(study.cells))}
    assert states["c2"] == "failed: error: cell 2 does not like it"
    assert states["end"] == "waits for a"


def test_a_program_that_does_not_exist_is_a_failure(write_study: Callable[..., Study]) -> None:
    session = work(write_study({"a": {"cell": "c", "commands": ["no-such-program --x"]}}))
    assert session.failed["c"]["status"] == 127
    assert "no-such-program" in session.failed["c"]["last_line"]


def test_the_time_is_kept_and_the_next_session_goes_on(write_study: Callable[..., Study]) -> None:
    # saves at SIGTERM, as a training run does, and needs two sessions
    saves = "trap 'echo saved >> saved; exit 143' TERM; if test -e saved; then exit 0; fi; sleep 30 & wait"
    study = write_study({"a": {"cell": "c{seed}", "axes": {"seed": [1, 2]}, "commands": [f'sh -c "{saves}"', COUNT]}})
    began = time.monotonic()
    session = work(study, workers=1, seconds=1.0)
    assert time.monotonic() - began < 5
    assert session.reason == "the time is up"
    assert session.stopped == ["c1"]
    assert session.left == ["c2"]
    assert Path("saved").read_text() == "saved\n"
    assert work(study, workers=1).done == ["c1", "c2"]
    spent = Costs.read(study).seconds["c1", study.cells[0].steps[0].line]
    assert spent > 0.5  # of both sessions


def forked(study: Study) -> int:
    """A study run in a process of its own, forked since importing everything anew takes seconds."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        work(study)
    finally:
        os._exit(0)


def begun(name: str) -> bool:
    file = Path(f"child-{name}")
    return file.exists() and bool(file.read_text().strip())


LONG = (
    "sh -c 'echo $$ > pid-{cell}; sleep 60 & echo $! > child-{cell}; "
    'trap "echo saved > saved-{cell}; kill $!; exit 143" TERM; wait\''
)


def test_killing_the_study_leaves_no_orphan_and_loses_nothing(write_study: Callable[..., Study]) -> None:
    study = write_study(
        {
            "quick": {"cell": "quick", "commands": ["python record.py {results} {cell}"]},
            "long": {"cell": "long", "commands": [LONG]},
        }
    )
    quick, long = study.cells
    process = forked(study)
    wait_for(lambda: begun("long") and Costs.read(study).done(quick))
    # a second worker leaves both alone
    session = work(study)
    assert (session.elsewhere, session.done) == (["long"], [])
    assert {row["cell"]: row["state"] for row in plan_rows(study, list(study.cells))} == {
        "quick": "done",
        "long": "running",
    }
    command, child = (int(Path(f"{name}-long").read_text()) for name in ("pid", "child"))
    assert alive(command)
    assert alive(child)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    wait_for(lambda: not alive(command) and not alive(child))
    assert Path("saved-long").read_text() == "saved\n"  # SIGTERM came, and once: there was time to save
    wait_for(lambda: not is_locked(long))
    assert [record.name for record in read_records(study.records)] == ["value", "seconds"]


def test_a_command_that_does_not_heed_the_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait; wait"
    kept = subprocess.Popen([sys.executable, "-S", keeper.__file__, "0.3", "sh", "-c", stubborn], stdin=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    command, child = (int((tmp_path / name).read_text()) for name in ("pid", "child"))
    assert kept.stdin is not None
    kept.stdin.close()  # the study is dead
    assert kept.wait(timeout=10) == 128 + signal.SIGKILL
    wait_for(lambda: not alive(command) and not alive(child))


def test_a_command_outlives_its_keeper_by_no_more_than_it_takes_to_save(tmp_path: Path) -> None:
    saves = f"trap 'echo saved > {tmp_path}/saved; exit' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    kept = subprocess.Popen([sys.executable, "-S", keeper.__file__, "60", "sh", "-c", saves], stdin=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    kept.kill()
    kept.wait()
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))
    assert (tmp_path / "saved").exists()


def test_kills_at_any_moment_change_nothing_in_what_comes_of_it(write_study: Callable[..., Study]) -> None:
    study = write_study(
        {
            "a": {
                "cell": "c{seed}",
                "axes": {"seed": [1, 2, 3, 4]},
                "commands": ["sh -c 'sleep 0.1'", "python record.py {results} {cell}"],
            }
        }
    )
    for attempt in range(8):
        process = forked(study)
        time.sleep(0.05 + 0.07 * attempt)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    # what the last one left behind holds its cells until it is gone, and a cell that is held is left alone
    wait_for(lambda: not any(is_locked(cell) for cell in study.cells))
    assert work(study).elsewhere == []
    records = read_records(study.records)
    figures = sorted((str(record.signature["cell"]), record.name) for record in records)
    assert figures == sorted((f"c{seed}", name) for seed in (1, 2, 3, 4) for name in ("seconds", "seconds", "value"))


def test_estimates_come_from_what_was_measured(write_study: Callable[..., Study]) -> None:
    study = write_study(
        {
            "a": {"cell": "a{seed}", "axes": {"seed": [1, 2, 3, 4]}, "commands": ["train {seed}", "score {results}"]},
            "b": {"cell": "b", "commands": ["x"], "minutes": 10},
            "c": {"cell": "c", "commands": ["y"]},
        }
    )

    def cost(cell: str, line: str, seconds: float) -> Record:
        return Record(name="seconds", value=seconds, signature={"study": "small", "cell": cell}, command=line)

    append_records(
        study.records,
        [
            cost("a1", "train 1", 100.0),
            cost("a2", "train 2", 200.0),
            cost("a1", "score results/small", 20.0),
            # neither another study's costs nor those of an older command line count
            Record(name="seconds", value=9e9, signature={"study": "other", "cell": "a1"}, command="train 1"),
            cost("a1", "train 1 --faster", 9e9),
        ],
    )
    for number, spent in ((1, {"train 2": 200.0}), (2, {"train 3": 60.0})):
        (study.cells[number].state).mkdir(parents=True)
        Progress(spent=spent).write(study.cells[number])
    estimate = Estimate(study, Costs.read(study))
    left = [estimate.left(cell) for cell in study.cells]
    assert [one.seconds for one in left] == [0.0, 20.0, 110.0, 170.0, 600.0, None]
    assert [one.guessed for one in left] == [False, False, False, False, True, False]
    assert estimate.total(study.cells) == LeftInAll(measured=300.0, guessed=600.0, unknown=1)
    shown = [row["left"] for row in plan_rows(study, list(study.cells))]
    assert shown == [None, "20 s", "2 min", "3 min", "~10 min, guessed", "unknown"]
    Path("runs").rename("runs-of-another-machine")  # what was trained there is trained anew, unless the cell is done
    assert [estimate.left(cell).seconds for cell in study.cells[:3]] == [0.0, 170.0, 170.0]


def test_blocks_of_one_command_share_what_it_costs(write_study: Callable[..., Study]) -> None:
    command = {"commands": ["train {seed}"]}
    study = write_study(
        {
            "a": {"cell": "a{seed}", "axes": {"seed": [1]}, **command},
            "b": {"cell": "b{seed}", "axes": {"seed": [2]}, **command},
        }
    )
    cost = Record(name="seconds", value=90.0, signature={"study": "small", "cell": "a1"}, command="train 1")
    append_records(study.records, [cost])
    assert Estimate(study, Costs.read(study)).total(study.cells) == LeftInAll(measured=90.0, guessed=0.0, unknown=0)


def test_an_axis_in_the_place_of_a_constant_has_its_own_cost(write_study: Callable[..., Study]) -> None:
    shared = {"commands": ["train {seed} {precision}"], "minutes": 5.0}
    study = write_study(
        {
            "a": {"cell": "a{seed}", "axes": {"seed": [1, 2]}, **shared},
            "b": {"cell": "b{seed}", "axes": {"seed": [3], "precision": ["fp32"]}, **shared},
        },
        constants={"precision": "bf16"},
    )
    cost = Record(name="seconds", value=90.0, signature={"study": "small", "cell": "a1"}, command="train 1 bf16")
    append_records(study.records, [cost])
    assert Estimate(study, Costs.read(study)).total(study.cells) == LeftInAll(measured=90.0, guessed=300.0, unknown=0)


def test_progress_that_cannot_be_read(write_study: Callable[..., Study]) -> None:
    study = write_study({"a": {"cell": "c", "commands": [COUNT]}})
    study.cells[0].state.mkdir(parents=True)
    (study.cells[0].state / "progress.json").write_text(json.dumps({"spend": {}}))
    with pytest.raises(UserError, match=r"progress\.json: cannot be read"):
        work(study)
