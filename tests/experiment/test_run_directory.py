import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
import yaml
from dying import dies_at, fork, status_of

from nmt_ls.experiment.checkpoint import save_checkpoint
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory, atomic_write, newest_finished_run

CONFIG = {
    "loss": {"alpha": 0.1, "prior": "uniform"},
    "engine": {"max_updates": 10},
    "optimizer": {"betas": (0.9, 0.98), "eps": 1e-9},
    "out": None,
    "data": Path("data/x"),
}
MANIFEST = {"threads": 1, "corpus_checksum": "abc", "time": "now"}


def altered(key: str, value):
    config = json.loads(json.dumps(CONFIG, default=str))
    *path, last = key.split(".")
    place = config
    for part in path:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return config


def begin(path: Path, config=CONFIG, manifest=MANIFEST, **options) -> str:
    run, state = RunDirectory.open(path, config, manifest, **options)
    run.close()
    return state


def test_new_resume_finished(tmp_path):
    assert begin(tmp_path / "deep" / "a") == "new"
    run = RunDirectory(tmp_path / "deep" / "a")
    assert run.read_config() == {**CONFIG, "optimizer": {"betas": [0.9, 0.98], "eps": 1e-9}, "data": "data/x"}
    assert run.read_manifest() == MANIFEST
    assert run.checkpoints.is_dir()
    assert begin(tmp_path / "deep" / "a") == "resume"
    run.write_summary({"nll": 1.5, "bleu": math.nan, "deep": {"x": math.inf}})
    assert run.read_summary() == {"nll": 1.5, "bleu": None, "deep": {"x": None}}
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert begin(tmp_path / "deep" / "a") == "finished"
    assert {path: path.read_bytes() for path in before} == before


def test_options_that_a_run_was_begun_before(tmp_path):
    """What config.yaml lacks counts as the default: the same goes on, and gets the option; another value is refused."""
    begin(tmp_path / "a", altered("loss.prior", KeyError))
    usual = {"loss": {"prior": "uniform", "alpha": 0.9}}
    with pytest.raises(UserError, match=r'loss.prior was absent, now "uniform"'):
        begin(tmp_path / "a", altered("loss.alpha", 0.1))
    with pytest.raises(UserError, match=r'loss.prior was "uniform", now "unigram"'):
        begin(tmp_path / "a", altered("loss.prior", "unigram"), defaults=usual)
    with pytest.raises(UserError, match=r"loss\.alpha was 0\.1, now 0\.9"):  # it has one of its own
        begin(tmp_path / "a", altered("loss.alpha", 0.9), defaults=usual)
    assert begin(tmp_path / "a", defaults=usual) == "resume"
    assert RunDirectory(tmp_path / "a").read_config()["loss"] == CONFIG["loss"]
    assert begin(tmp_path / "a") == "resume"


def test_facts_of_the_manifest_are_refused_by_key(tmp_path):
    def manifest(**teacher):
        return {**MANIFEST, "teacher": teacher}

    match = ("corpus_checksum", "teacher")
    begin(tmp_path / "a", manifest=manifest(run="t", weights="w"), must_match=match)
    with pytest.raises(UserError, match=r'teacher\.weights was "w", now "v"') as refused:
        begin(tmp_path / "a", manifest=manifest(run="t", weights="v"), must_match=match)
    assert "teacher.run" not in str(refused.value)
    assert begin(tmp_path / "a", manifest=manifest(run="t", weights="w", more=1), must_match=match) == "resume"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss.alpha", 0.2, "loss.alpha was 0.1, now 0.2"),
        ("loss.prior", "unigram", 'loss.prior was "uniform", now "unigram"'),
        ("optimizer.betas", [0.9, 0.999], "optimizer.betas was [0.9, 0.98], now [0.9, 0.999]"),
        ("loss.spread", "others", 'loss.spread was absent, now "others"'),
        ("loss.alpha", KeyError, "loss.alpha was 0.1, now absent"),
        ("engine.max_updates", 5, "engine.max_updates was 10 and may only grow, not become 5"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_key(tmp_path, key, value, said, finished):
    begin(tmp_path / "a")
    run = RunDirectory(tmp_path / "a")
    if finished:
        run.write_summary({"nll": 1.0})
    with pytest.raises(UserError) as error:
        begin(tmp_path / "a", altered(key, value))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert begin(tmp_path / "a") == ("finished" if finished else "resume")  # nothing was touched, the lock is free


def test_several_differences_are_one_line(tmp_path):
    many = {f"k{i}": i for i in range(9)}
    begin(tmp_path / "a", many)
    with pytest.raises(UserError, match=r"k0 was 0, now 1; k1 was 1, now 2; .* \(and 5 more\)"):
        begin(tmp_path / "a", {key: value + 1 for key, value in many.items()})


def test_max_updates_may_grow(tmp_path):
    begin(tmp_path / "a")
    assert begin(tmp_path / "a", altered("engine.max_updates", 20)) == "resume"
    run = RunDirectory(tmp_path / "a")
    assert run.read_config()["engine"]["max_updates"] == 20
    with pytest.raises(UserError, match=r"engine.max_updates was 20 and may only grow, not become 10"):
        begin(tmp_path / "a")
    run.write_summary({"nll": 1.0})
    assert begin(tmp_path / "a", altered("engine.max_updates", 20)) == "finished"
    assert begin(tmp_path / "a", altered("engine.max_updates", 40)) == "resume"
    assert not run.summary_file.exists()


def test_killed_while_it_grew_it_still_grows(tmp_path):
    more, died = altered("engine.max_updates", 20), True
    for number in range(1, 60):
        path = tmp_path / str(number)
        begin(path)
        RunDirectory(path).write_summary({"nll": 1.0})
        died = dies_at(number, lambda path=path: begin(path, more))
        assert begin(path, more) == "resume"
        assert RunDirectory(path).read_config()["engine"]["max_updates"] == 20
        if not died:
            break
    assert not died


def test_may_grow_can_be_taken_away(tmp_path):
    begin(tmp_path / "a")
    with pytest.raises(UserError, match=r"engine.max_updates was 10, now 20"):
        begin(tmp_path / "a", altered("engine.max_updates", 20), may_grow=())


def test_max_updates_may_not_grow_where_the_learning_rate_decays_towards_them(tmp_path):
    def config(updates, **schedule):
        return {"engine": {"max_updates": updates}, "schedule": schedule}

    for kind in ("linear", "cosine"):
        run = RunDirectory(tmp_path / kind)
        begin(run.path, config(10, kind=kind, total_updates=0))
        run.write_summary({"nll": 1.0})
        with pytest.raises(UserError, match=r"engine.max_updates was 10, now 20"):
            begin(run.path, config(20, kind=kind, total_updates=0))
        assert run.read_summary() == {"nll": 1.0}
        begin(tmp_path / f"{kind}-set", config(10, kind=kind, total_updates=20))
        assert begin(tmp_path / f"{kind}-set", config(20, kind=kind, total_updates=20)) == "resume"
    begin(tmp_path / "constant", config(10, kind="constant", total_updates=0))
    assert begin(tmp_path / "constant", config(20, kind="constant", total_updates=0)) == "resume"


def test_may_differ(tmp_path):
    begin(tmp_path / "a")
    assert begin(tmp_path / "a", altered("loss.alpha", 0.2), may_differ=("loss.alpha",)) == "resume"
    assert RunDirectory(tmp_path / "a").read_config()["loss"]["alpha"] == 0.2


def test_another_corpus_is_refused_and_other_threads_are_remembered(tmp_path):
    begin(tmp_path / "a")
    with pytest.raises(UserError, match='corpus_checksum was "abc", now "def"'):
        begin(tmp_path / "a", manifest={**MANIFEST, "corpus_checksum": "def"})
    run, _ = RunDirectory.open(tmp_path / "a", CONFIG, {**MANIFEST, "threads": 2, "time": "later"})
    with run:
        assert run.changes == {"threads": (1, 2)}
        manifest = run.read_manifest()
        assert manifest["threads"] == 1
        assert [set(entry) for entry in manifest["resumed"]] == [{"time", "threads"}]


def test_what_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: a file, where the directory of a run should be"):
        begin(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"folder: not a run \(no config.yaml\) and not empty"):
        begin(tmp_path / "folder")
    (tmp_path / "empty").mkdir()
    assert begin(tmp_path / "empty") == "new"


def test_damaged_files_are_named(tmp_path):
    begin(tmp_path / "a")
    run = RunDirectory(tmp_path / "a")
    with pytest.raises(UserError, match=r"summary.json: there is no such file"):
        run.read_summary()
    run.config_file.write_text("a: [1")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        begin(tmp_path / "a")
    run.config_file.write_text("just words")
    with pytest.raises(UserError, match=r"config.yaml: does not hold keys and values"):
        run.read_config()
    run.metrics_file.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a line of JSON"):
        run.read_metrics()


def test_lock_keeps_a_second_process_out_and_goes_with_its_holder(tmp_path):
    run, _ = RunDirectory.open(tmp_path / "a", CONFIG, MANIFEST)
    with pytest.raises(UserError, match=f"a: in use by process {os.getpid()} on "):
        begin(tmp_path / "a")
    run.close()
    assert begin(tmp_path / "a") == "resume"

    def hold() -> None:
        kept = RunDirectory.open(tmp_path / "a", CONFIG, MANIFEST)
        (tmp_path / "held").touch()
        time.sleep(30)
        del kept

    child = fork(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"in use by process {child} on "):
        begin(tmp_path / "a")
    os.kill(child, 9)
    assert status_of(child) == -9
    assert begin(tmp_path / "a") == "resume"


def test_a_new_run_that_saved_nothing_can_be_forgotten(tmp_path):
    run, _ = RunDirectory.open(tmp_path / "a", CONFIG, MANIFEST)
    (run.path / "spm.model").write_text("a vocabulary")
    run.append_metrics({"step": 1})
    run.tensorboard.mkdir()
    (run.tensorboard / "events").write_text("curves")
    run.forget()
    run.close()
    other, state = RunDirectory.open(tmp_path / "a", {**CONFIG, "loss": {"alpha": 0.5}}, MANIFEST)
    assert state == "new"
    assert other.read_metrics() == []
    save_checkpoint(other.checkpoints / "last", {"w": torch.zeros(1)}, {})
    other.forget()
    other.close()
    assert RunDirectory.open(tmp_path / "a", {**CONFIG, "loss": {"alpha": 0.5}}, MANIFEST)[1] == "resume"


def test_lock_goes_with_the_garbage(tmp_path):
    run, _ = RunDirectory.open(tmp_path / "a", CONFIG, MANIFEST)
    del run
    assert begin(tmp_path / "a") == "resume"


def test_killed_while_it_began_it_begins_again(tmp_path):
    states = set()
    for number in range(1, 60):
        path = tmp_path / str(number)
        died = dies_at(number, lambda path=path: begin(path))
        states.add(begin(path))
        assert RunDirectory(path).read_manifest()["threads"] == 1
        assert RunDirectory(path).read_config()["loss"] == CONFIG["loss"]
        assert {entry.name for entry in path.iterdir()} == {".lock", "config.yaml", "manifest.json", "checkpoints"}
        if not died:
            break
    assert states == {"new", "resume"}


def test_metrics_are_cut_back(tmp_path):
    begin(tmp_path / "a")
    run = RunDirectory(tmp_path / "a")
    run.cut_metrics(0, 0)
    assert run.read_metrics() == []
    for step in (5, 10, 10, 15):
        run.append_metrics({"step": step, "x": 0.1, "bad": math.nan})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "x": 0.')  # a kill in the midst of a line
    assert [line["step"] for line in run.read_metrics()] == [5, 10, 10, 15]
    run.cut_metrics(10, 0)
    run.append_metrics({"step": 12})
    assert run.metrics_file.read_text().splitlines() == [
        '{"step": 5, "x": 0.1, "bad": null}',
        '{"step": 10, "x": 0.1, "bad": null}',
        '{"step": 10, "x": 0.1, "bad": null}',
        '{"step": 12}',
    ]


def test_newest_finished_run(tmp_path):
    assert newest_finished_run(tmp_path / "none") is None
    for age, name in enumerate(["a", "study/b", "c", "d"]):
        begin(tmp_path / name)
        if name != "d":
            RunDirectory(tmp_path / name).write_summary({"name": name})
            os.utime(tmp_path / name / "summary.json", (1000 - age, 1000 - age))
    assert newest_finished_run(tmp_path) == tmp_path / "a"
    os.utime(tmp_path / "study/b/summary.json", (2000, 2000))
    assert newest_finished_run(tmp_path) == tmp_path / "study/b"
    assert newest_finished_run(tmp_path, accept=lambda run: run.path.name == "c") == tmp_path / "c"


def test_atomic_write_replaces_whole_files(tmp_path):
    path = tmp_path / "x.json"
    atomic_write(path, "old")
    number = 0
    while dies_at(number := number + 1, lambda: atomic_write(path, "new")):
        assert path.read_text() in ("old", "new")
    assert path.read_text() == "new"
    assert number >= 3
    atomic_write(path, b"\xff")
    assert path.read_bytes() == b"\xff"


def test_config_is_yaml_that_other_tools_read(tmp_path):
    begin(tmp_path / "a", {"optimizer": {"eps": 1e-9, "note": "größer"}})
    text = (tmp_path / "a" / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {"optimizer": {"eps": 1e-9, "note": "größer"}}
    assert "größer" in text
