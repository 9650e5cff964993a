"""The command of Figure 1: its numbers from activations, its pictures and records, and what it refuses."""

from __future__ import annotations

import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import telling_folder
from matplotlib.figure import Figure
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from vision_ls.data import EmbeddedSizes
from vision_ls.geometry import ClassMeans
from vision_ls.project import main, project
from vision_ls.projecting import (
    Panel,
    ProjectConfig,
    chosen_rows,
    class_figures,
    first_of_each,
    outside_the_regime,
    pictures,
    plane_figures,
    project_runs,
)
from vision_ls.projection_figure import projection_figure
from vision_ls.runs import LONGEST_NAME, Classifier, picture_stem
from vision_ls.train_config import FITTED_TO_TRAINING, training_images
from vision_ls.training import train


def of(*runs: RunDirectory, **settings: object) -> ProjectConfig:
    return ProjectConfig(runs=tuple(str(run.path) for run in runs), checkpoint="last", **settings)  # type: ignore[arg-type]


SIZES = EmbeddedSizes(train=200, validation=150, test=60)


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of a second without smoothing, on a subset of some embedded shapes."""
    out = tmp_path_factory.mktemp("runs") / "hard"
    return train(small_training(out, embedded=SIZES, loss=LossConfig(alpha=0.0), train_size=90)).run


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of a second with smoothing, on all of them."""
    return train(small_training(tmp_path_factory.mktemp("runs") / "smoothed", embedded=SIZES)).run


def test_numbers_are_those_of_the_activations(smoothed: RunDirectory) -> None:
    projected, classes = project_runs(of(smoothed, classes=("bar", "0", "oval"), splits=("train",)))
    assert classes == ("bar", "diamond", "oval")
    run = Classifier.open(smoothed.path, "last")
    images = training_images(run.config, run.data)
    with torch.no_grad():
        activations_ND = run.model.penultimate(run.augmentation.evaluate(images.images_NCHW))
    found = projected[0].of_all
    means = ClassMeans.of(activations_ND, images.labels_N, 9)
    assert found["nc1"] == pytest.approx(means.nc1(), rel=1e-4)
    assert found["scatter_ratio_all"] == pytest.approx(means.within_over_between(), rel=1e-4)
    assert not {"accuracy", "train_accuracy"} & set(found)  # evaluate's, of other images
    places = {8: 0, 0: 1, 4: 2}
    chosen_N = torch.tensor([int(label) in places for label in images.labels_N])
    coordinates_N2 = project(activations_ND[chosen_N], run.model.templates[[8, 0, 4]])
    assert len(projected[0].panel.labels_N) == int(chosen_N.sum())
    torch.testing.assert_close(
        torch.from_numpy(projected[0].panel.coordinates_N2), coordinates_N2, rtol=1e-4, atol=1e-5
    )
    assert projected[0].panel.labels_N.tolist() == [places[int(label)] for label in images.labels_N[chosen_N]]


def test_plane_figures_by_hand() -> None:
    # classes at the corners of a triangle with sides 6, 8 and 10, each spread by 1 along the first axis
    corners_32 = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    coordinates_N2 = torch.cat((corners_32 - torch.tensor([1.0, 0.0]), corners_32 + torch.tensor([1.0, 0.0])))
    found = plane_figures(coordinates_N2, torch.tensor([0, 1, 2, 0, 1, 2]), 2 * corners_32)
    between = (6**2 + 8**2 + 10**2) / 3 / 3  # the squared distances from the mean sum to a third of the squared sides
    assert found["scatter_ratio"] == pytest.approx(1.0 / between)
    assert found["log_scatter_ratio"] == pytest.approx(-math.log(between))
    assert (found["triangle_regularity"], found["template_regularity"]) == pytest.approx((0.6, 0.6))
    assert (found["triangle_side"], found["template_side"]) == pytest.approx((8.0, 16.0))
    # the mean class is at (2, 8/3), which every example is off by its corner's place and ±1 along the first axis
    distances = [math.hypot(x + sign - 2, y - 8 / 3) for x, y in ((0, 0), (6, 0), (0, 8)) for sign in (-1, 1)]
    assert found["projection_scale"] == pytest.approx(sum(distances) / 6)
    assert found["log_projection_scale"] == pytest.approx(math.log(sum(distances) / 6))
    # from the third template, at (0, 16): to (±1, 0) and to (5, 0) and (7, 0)
    near, far = math.hypot(1, 16), (math.hypot(5, 16), math.hypot(7, 16))
    from_third = [near, near, *far]
    assert found["arc_variation"] == pytest.approx(statistics.pstdev(from_third) / statistics.mean(from_third))
    radial = statistics.pvariance(far)
    apart = (2 * math.atan(1 / 16), math.atan(7 / 16) - math.atan(5 / 16))  # angles; of two, the sd is half
    tangential = sum((angle / 2 * each) ** 2 for angle, each in zip(apart, (near, statistics.mean(far)), strict=True))
    assert found["arc_ratio"] == pytest.approx(math.sqrt(radial / tangential))


def test_collapsed_classes_have_logarithms() -> None:
    corners_32 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    found = plane_figures(corners_32.repeat(2, 1), torch.arange(3).repeat(2), corners_32)
    assert math.isfinite(found["log_scatter_ratio"])
    assert found["log_scatter_ratio"] < -50
    assert found["triangle_regularity"] == pytest.approx(1.0)
    assert found["arc_variation"] == pytest.approx(0.0, abs=1e-9)
    simplex_KD = torch.eye(4)
    collapsed = class_figures(simplex_KD.repeat(2, 1), torch.arange(4).repeat(2), simplex_KD)
    assert collapsed["nc1"] == pytest.approx(0.0, abs=1e-12)
    assert collapsed["cosine_own"] == pytest.approx(1.0)
    assert collapsed["nc2_templates_maximal_angle"] == pytest.approx(0.0, abs=1e-9)


def test_rows_looked_at_and_shown() -> None:
    labels_N = torch.tensor([0, 1, 2, 3, 3, 3, 3, 3, 3, 0])
    assert chosen_rows(labels_N, [0, 1, 2], 0).tolist() == list(range(10))
    assert chosen_rows(labels_N, [0, 1, 2], 2).tolist() == [0, 1, 2, 5, 9]
    assert first_of_each(torch.tensor([2, 0, 0, 1, 0, 2, 2]), 2).tolist() == [0, 1, 2, 3, 5]


def test_records_and_pictures_of_two_runs(
    hard: RunDirectory, smoothed: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of(hard, smoothed, results=str(tmp_path / "results"), name="near")
    main(config)
    printed = capsys.readouterr().out
    assert "diamond, lozenge, needle of embedded shapes, last checkpoint" in printed
    assert "regime not reached: hard" in printed
    records = read_records(tmp_path / "results" / "records.jsonl")
    arcs = {(r.signature["run"], r.signature["split"]): r for r in records if r.name == "arc_variation_near"}
    assert set(arcs) == {(run, split) for run in ("hard", "smoothed") for split in ("train", "validation")}
    signature = arcs["hard", "train"].signature
    assert (signature["alpha"], signature["checkpoint"], signature["temperature_is"]) == (0.0, "last", "given")
    assert signature["classes"] == ["diamond", "lozenge", "needle"]
    assert signature["examples"] == 90
    assert all("classes" not in record.signature for record in records if record.name == "nc1")
    drawn = {path.name for path in (tmp_path / "results" / "figures").iterdir()}
    stem = "projection-hard-smoothed-last-near"
    assert drawn == {f"{stem}-{unit}.{kind}" for unit in ("raw", "scaled") for kind in ("png", "svg")}
    main(config)
    assert len(read_records(tmp_path / "results" / "records.jsonl")) == len(records)
    with pytest.raises(UserError, match=r"^name: .* other classes of these images \(diamond, lozenge, needle\)"):
        project_runs(replace(config, classes=("bar", "disc", "oval")))
    main(replace(config, classes=("bar", "disc", "oval"), name="far", figure=False))
    renamed = {record.name for record in read_records(tmp_path / "results" / "records.jsonl")}
    assert {"scatter_ratio_near", "scatter_ratio_far"} < renamed


def test_names_of_pictures_always_fit() -> None:
    assert picture_stem("projection", ["a-s1", "b-s1"], "last", "") == "projection-a-s1-b-s1-last"
    many = [f"cifar100-resnet56-ls{alpha}-s{seed}" for alpha in ("0.0", "0.1") for seed in range(5)]
    short = picture_stem("projection", many, "last", "near")
    assert short.startswith("projection-10-runs-cifar100-resnet56-ls0-")
    assert short.endswith("-last-near")
    assert short != picture_stem("projection", [*many[:-1], "cifar100-resnet56-ls0.1-s9"], "last", "near")
    assert picture_stem("gaps", ["x" * 200, "y" * 200], "last").startswith("gaps-2-runs-")
    alike = picture_stem("gaps", ["é" * 120 + "1", "é" * 120 + "2"], "last")  # two bytes each
    assert LONGEST_NAME - 2 < len(alike.encode()) <= LONGEST_NAME


def test_runs_of_long_names_are_drawn(hard: RunDirectory, tmp_path: Path) -> None:
    """Once everything has been measured nothing may fail."""
    runs = [RunDirectory(shutil.copytree(hard.path, tmp_path / (name * 140))) for name in "ab"]
    main(of(*runs, splits=("train",), results=str(tmp_path / "results")))
    assert len(list((tmp_path / "results" / "figures").glob("projection-2-runs-*-last-*.png"))) == 2


def test_no_class_is_drawn_over_the_others() -> None:
    """Nor where the file has the images class by class."""
    places_N2 = np.arange(12.0).reshape(6, 2)
    labels_N = np.array([0, 0, 1, 1, 2, 2])
    figure = projection_figure(
        [Panel(title="", coordinates_N2=places_N2, labels_N=labels_N, templates_32=places_N2[:3])], "abc", ""
    )
    (points,) = figure.axes[0].collections
    assert np.asarray(points.get_offsets())[:, 0].tolist() == [0.0, 4.0, 8.0, 2.0, 6.0, 10.0]
    colours = [tuple(colour) for colour in points.get_facecolor()]
    assert colours[:3] == colours[3:]
    assert len(set(colours)) == 3
    assert [len(path.vertices) for path in points.get_paths()[:3]] == [
        len(path.vertices) for path in points.get_paths()[3:]
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "templates"]


def test_pictures_have_one_scale(hard: RunDirectory, smoothed: RunDirectory) -> None:
    projected, classes = project_runs(of(hard, smoothed, shown=5))
    assert all((each.panel.labels_N == place).sum() <= 5 for each in projected for place in range(3))
    for figure in pictures(projected, classes, "").values():
        assert isinstance(figure, Figure)
        first, *others = figure.axes
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            "α = 0, train", "α = 0, validation", "α = 0.1, train", "α = 0.1, validation"
        ]  # fmt: skip
        assert all((axes.get_xlim(), axes.get_ylim()) == (first.get_xlim(), first.get_ylim()) for axes in others)
        assert all(axes.get_aspect() == 1 for axes in figure.axes)
    scaled = [each.panel.scaled(each.unit) for each in projected]
    for panel in scaled:
        sides = [math.dist(panel.templates_32[i], panel.templates_32[(i + 1) % 3]) for i in range(3)]
        assert sum(sides) / 3 == pytest.approx(1.0)


def test_only_hard_runs_can_miss_the_regime(smoothed: RunDirectory) -> None:
    projected, _ = project_runs(of(smoothed))
    assert smoothed.read_summary()["train_accuracy"] < FITTED_TO_TRAINING
    assert outside_the_regime(projected) == []


def test_the_regime_is_looked_up_where_training_images_are_not_projected(hard: RunDirectory) -> None:
    projected, classes = project_runs(of(hard, splits=("validation",)))
    learnt = hard.read_summary()["checkpoints"]["last"]["train_accuracy"]
    (clause,) = outside_the_regime(projected)
    assert clause == f"regime not reached: hard has a training accuracy of {learnt:.3f}, below 0.95"
    for figure in pictures(projected, classes, "shapes").values():
        title = figure.get_suptitle().splitlines()
        assert title[0] == "shapes"
        assert " ".join(title[1:]) == clause
        assert max(map(len, title)) <= 13 * figure.get_size_inches()[0]


def test_of_an_unfinished_run_training_accuracy_is_measured(hard: RunDirectory, tmp_path: Path) -> None:
    copied = tmp_path / "unfinished"
    shutil.copytree(hard.path, copied)
    (copied / "summary.json").unlink()
    projected, _ = project_runs(of(RunDirectory(copied), splits=("train", "validation")))
    expected = hard.read_summary()["checkpoints"]["last"]["train_accuracy"]
    assert [each.training_accuracy for each in projected] == [expected, expected]
    assert len(outside_the_regime(projected)) == 1


def test_a_note_and_remarks_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted = ImagesConfig(source=str(telling_folder(tmp_path / "made")), out=str(tmp_path / "noted"), note="own split")
    prepare(noted)
    engine = EngineConfig(max_updates=30, validate_every=30, log_every=30, monitor="accuracy", average_last=0)
    runs = [
        train(small_training(tmp_path / name, data=noted.out, seed=seed, engine=engine)).run
        for seed, name in enumerate("ab")
    ]
    capsys.readouterr()
    main(of(*runs))
    said = capsys.readouterr()
    assert said.out.startswith("cat, dog, horse of noted (own split), last checkpoint")
    assert said.err.count(f"{noted.out}: own split\n") == 1


def test_a_class_that_there_is_not_is_one_line_with_near_ones(
    smoothed: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(
            main, ProjectConfig, program="project", description="",
            argv=["--runs", str(smoothed.path), "--checkpoint", "last", "--classes", "disk", "oval", "bar"],
        )  # fmt: skip
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "class 'disk' is none of the 9" in error
    assert "disc" in error


def test_what_does_not_fit_is_refused(smoothed: RunDirectory, telling_classifier: RunDirectory) -> None:
    with pytest.raises(UserError, match="was trained on other images"):
        project_runs(of(smoothed, telling_classifier))
    with pytest.raises(UserError, match="are not three different ones"):
        project_runs(of(smoothed, classes=("bar", "8", "disc")))
    with pytest.raises(UserError, match=r"^runs: /nowhere is not a run"):
        project_runs(ProjectConfig(runs=("/nowhere",)))


def test_a_split_without_some_class_is_refused(tmp_path: Path) -> None:
    run = train(small_training(tmp_path / "few", embedded=replace(SIZES, validation=8))).run
    with pytest.raises(UserError, match=r"validation split: class '[a-z]+' has no example; leave the split out"):
        project_runs(of(run, splits=("validation",)))


def test_a_class_that_is_not_looked_at_is_refused(smoothed: RunDirectory) -> None:
    with pytest.raises(
        UserError, match=r"class '[a-z]+' has no example among the [0-9]+ looked at; look at more with --images"
    ):
        project_runs(of(smoothed, images=1))


def test_activations_in_one_point_are_refused(smoothed: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Classifier.open(smoothed.path, "last")
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            if not name.startswith("last"):
                parameter.zero_()
    monkeypatch.setattr(Classifier, "open", lambda *_, **__: opened)
    with pytest.raises(UserError, match=r"name other classes, or a checkpoint that has learnt more") as refused:
        project_runs(of(smoothed))
    assert "--splits" not in str(refused.value)


def test_runs_of_one_name_are_refused(smoothed: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(smoothed.path, tmp_path / "smoothed")
    with pytest.raises(UserError, match="runs: two of them are called smoothed; rename one directory"):
        project_runs(of(smoothed, RunDirectory(tmp_path / "smoothed")))


def test_templates_on_a_line_are_refused(smoothed: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Classifier.open(smoothed.path, "last")
    with torch.no_grad():
        opened.model.last.weight[2] = 2 * opened.model.last.weight[1] - opened.model.last.weight[0]
    monkeypatch.setattr(Classifier, "open", lambda *_, **__: opened)
    with pytest.raises(UserError, match=r"classes diamond lozenge needle: the three templates lie on one line"):
        project_runs(of(smoothed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": ()}, "runs: name one"),
        ({"runs": ("a", "a")}, "runs: name one"),
        ({"classes": ("a", "b")}, "that of three classes, not 2"),
        ({"splits": ("train", "train")}, "splits: name one"),
        ({"splits": ("train", "valid")}, "splits: name one or more of train, validation, test"),
        ({"images": -1}, "images must not be negative"),
        ({"shown": 0}, "shown must be positive"),
        ({"name": "a/b"}, "name becomes part"),
        ({"name": "a" * 200}, "200 characters are too many"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectConfig(**{"runs": ("a",), **settings})  # type: ignore[arg-type]
