"""Mutual information: clusters where it is known, the paper's biased form, runs, and input that does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from small_classifiers import small_training
from torch import Tensor

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from vision_ls.augment import Augmentation, AugmentConfig
from vision_ls.data import EmbeddedSizes, embedded_images
from vision_ls.information import MeasureConfig, main, measure_all, store, thinned
from vision_ls.mutual_information import InformationConfig, Pair, best_sigma, information_of, mutual_information
from vision_ls.train_config import TrainConfig, new_model
from vision_ls.training import train

N = 600
TWO = InformationConfig(classes=("0", "1"), images=8, views=6)


def views_round(centres_N: Tensor, views: int, *, seed: int = 0, sd: float = 1.0) -> Tensor:
    """Normal views of images whose means are known."""
    noise = torch.randn(len(centres_N), views, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return centres_N[:, None].double() + sd * noise


def two_clusters() -> Tensor:
    return torch.cat([torch.zeros(N // 2), torch.full((N // 2,), 50.0)])


def test_no_information() -> None:
    fitted, scored = (views_round(torch.zeros(N), 200, seed=seed) for seed in (1, 2))
    assert mutual_information(fitted, scored) == pytest.approx(0.0, abs=0.005)
    assert mutual_information(torch.ones(N, 4)) == 0.0


def test_two_perfect_clusters_have_one_bit() -> None:
    fitted, scored = (views_round(two_clusters(), 200, seed=seed) for seed in (1, 2))
    assert mutual_information(fitted, scored) == pytest.approx(math.log(2), abs=0.005)
    collapsed = two_clusters()[:, None].expand(N, 4)
    assert mutual_information(collapsed) == pytest.approx(math.log(2), abs=1e-9)
    assert mutual_information(collapsed, sigma="each") == pytest.approx(math.log(2), abs=1e-9)


def test_separated_points_say_which_image() -> None:
    fitted, scored = (views_round(100 * torch.arange(N), 16, seed=seed) for seed in (1, 2))
    assert mutual_information(fitted, scored) == pytest.approx(math.log(N), abs=0.005)
    assert mutual_information(fitted, scored, sigma="each") == pytest.approx(math.log(N), abs=0.005)


def test_a_case_by_hand() -> None:
    """Means 0 and 2, σ = 1; views at -1 and 1 of the first, 1 and 3 of the second."""
    values = torch.tensor([[-1.0, 1.0], [1.0, 3.0]])

    def score(own: float, other: float) -> float:
        return -math.log((1 + math.exp((own**2 - other**2) / 2)) / 2)

    expected = (score(-1, -3) + score(1, -1) + score(-1, 1) + score(1, 3)) / 4
    assert mutual_information(values) == pytest.approx(expected)
    assert mutual_information(values, sigma=1.0) == pytest.approx(expected)
    assert mutual_information(values, sigma="each") == pytest.approx(expected)
    # fitted from two views: the variance within is 2, and another view lies round their mean with 1 + 1/2 of it
    held_out = torch.tensor([[0.5], [2.5]])
    spread = math.sqrt(3.0)
    expected = (score(0.5 / spread, 1.5 / spread) + score(0.5 / spread, 2.5 / spread)) / 2
    assert mutual_information(values, held_out) == pytest.approx(expected)


def test_scoring_the_fitted_views_is_biased_upwards() -> None:
    """The paper's form at 5 views: 0.81 for two collapsed clusters, which hold 0.69; held-out views stay below."""
    reused = [mutual_information(views_round(two_clusters(), 5, seed=seed)) for seed in range(10)]
    assert sum(reused) / 10 == pytest.approx(0.81, abs=0.01)
    held_out = mutual_information(views_round(two_clusters(), 5, seed=1), views_round(two_clusters(), 50, seed=2))
    assert held_out < math.log(2)


def test_the_scale_of_logits_does_not_matter() -> None:
    centres = torch.linspace(0, 9, N)
    fitted, scored = (views_round(centres, 12, seed=seed) for seed in (1, 2))
    for sigma in ("shared", "each"):
        plain = mutual_information(fitted, scored, sigma)  # type: ignore[arg-type]
        assert mutual_information(7 * fitted - 3, 7 * scored - 3, sigma) == pytest.approx(plain)  # type: ignore[arg-type]


def test_the_best_sigma_gives_no_less() -> None:
    """With few views the means are uncertain, and a wider σ guesses better; where variances differ, another does."""
    centres = torch.linspace(0, 3, N)
    fitted, third, scored = (views_round(centres, 4, seed=seed) for seed in (1, 2, 3))
    best = best_sigma(fitted, third)
    assert best > 1
    assert mutual_information(fitted, scored, best) > mutual_information(fitted, scored)
    for other in (0.8 * best, 1.25 * best):
        assert mutual_information(fitted, third, best) > mutual_information(fitted, third, other)


def test_images_whose_fitted_views_are_alike() -> None:
    """Of few outcomes some are drawn twice: an image's own σ of 0 would call every other view impossible."""
    generator = torch.Generator().manual_seed(0)
    outcomes = torch.randn(N, 3, generator=generator, dtype=torch.float64) + torch.linspace(0, 9, N)[:, None]
    drawn = outcomes.gather(1, torch.randint(3, (N, 12), generator=generator))
    fitted, scored = drawn[:, :3], drawn[:, 3:]
    assert (fitted.std(1) == 0).any()
    assert 0 < mutual_information(fitted, scored, "each") < math.log(N)


def test_shares_of_the_views_are_fitted_and_scored() -> None:
    values = views_round(torch.linspace(0, 9, N), 12)
    found = information_of(values, every_outcome=False, sigma="shared")
    assert found.value == pytest.approx(mutual_information(values[:, :6], values[:, 6:]))
    assert found.reused == pytest.approx(mutual_information(values))
    again = [
        information_of(views_round(torch.linspace(0, 9, N), 12, seed=seed), every_outcome=False, sigma="shared").value
        for seed in range(1, 30)
    ]
    assert found.standard_error == pytest.approx(float(torch.tensor(again).std()), rel=0.6)
    best = information_of(values, every_outcome=False, sigma="best")
    assert best.value == pytest.approx(
        mutual_information(values[:, :4], values[:, 8:], best_sigma(values[:, :4], values[:, 4:8]))
    )
    exact = information_of(values, every_outcome=True, sigma="shared")
    assert exact.value == pytest.approx(mutual_information(values))
    assert (exact.standard_error, exact.reused) == (None, None)
    assert list(exact.figures()) == ["mutual_information"]
    assert information_of(values, every_outcome=True, sigma="best").value > exact.value - 1e-4


@pytest.mark.parametrize(
    ("values", "held_out", "sigma", "message"),
    [
        (torch.zeros(3), None, "shared", "2 or more images"),
        (torch.zeros(3, 1), None, "shared", "2 or more views"),
        (torch.zeros(1, 4), None, "shared", "2 or more images"),
        (torch.full((3, 4), math.nan), None, "shared", "finite"),
        (torch.zeros(3, 4), torch.zeros(4, 4), "shared", "3 images, held-out ones of 4"),
        (torch.zeros(3, 4), None, "own", '"shared", "each"'),
        (torch.zeros(3, 4), None, 0.0, "positive"),
    ],
)
def test_values_that_do_not_fit(values: Tensor, held_out: Tensor | None, sigma: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mutual_information(values, held_out, sigma)  # type: ignore[arg-type]


def pair_of(config: TrainConfig, asked: InformationConfig) -> Pair:
    data = embedded_images(config.embedded)
    return Pair(asked, data, data.split("train"), Augmentation(config.augment, data))


def test_differences_of_the_two_classes_logits(tmp_path: Path) -> None:
    config = small_training(tmp_path / "run")
    data = embedded_images(config.embedded)
    pair = pair_of(config, InformationConfig(classes=("2", "5"), images=8, views=18))
    assert pair.every_outcome  # 3 x 3 places, and a flip
    labels = data.split("train").labels_N[pair.rows_N]
    assert labels.tolist() == [2] * 4 + [5] * 4
    model = new_model(config, data).train()
    state = torch.get_rng_state()
    differences = pair.logit_differences(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert differences.shape == (8, 18)
    images = data.split("train").images_NCHW[pair.rows_N]
    views = list(pair.augmentation.views(images))
    logits = model.eval()(views[7])
    torch.testing.assert_close(differences[:, 7], (logits[:, 2] - logits[:, 5]).detach())
    sampled = pair_of(config, InformationConfig(classes=("2", "5"), images=8, views=6))
    assert not sampled.every_outcome
    drawn = sampled.logit_differences(model)
    assert drawn.shape == (8, 6)
    assert torch.equal(drawn, sampled.logit_differences(model))
    for image in range(8):  # each of them is one of its outcomes
        assert (drawn[image, :, None] - differences[image]).abs().min(1).values.max() < 1e-5


def rewrite(run: RunDirectory, **changes: object) -> None:
    """Let a run have been trained with other settings."""
    run.config_file.write_text(yaml.safe_dump({**run.read_config(), **changes}), encoding="utf-8")


def test_measuring_while_training_changes_nothing_else(tmp_path: Path) -> None:
    plain = train(small_training(tmp_path / "plain")).run
    measured = train(small_training(tmp_path / "measured", information=TWO)).run
    lines = [
        [{k: v for k, v in line.items() if k not in ("elapsed", "rate")} for line in run.read_metrics()]
        for run in (plain, measured)
    ]
    found = [line.pop("mutual_information") for line in lines[1] if "mutual_information" in line]
    assert len(found) == 3
    for line in lines[1]:
        line.pop("mutual_information_error", None)
        line.pop("mutual_information_reused", None)
    assert lines[0] == lines[1]
    assert plain.read_summary()["signature"]["settings"] == measured.read_summary()["signature"]["settings"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [train(small_training(tmp_path / f"run-s{seed}", seed=seed, information=TWO)).run for seed in (1, 2)]
    config = MeasureConfig(
        runs=tuple(str(run.path) for run in runs), checkpoint="last", results=str(tmp_path / "found")
    )
    main(config)
    printed = capsys.readouterr().out
    assert "8 training images, 6 views of each, last checkpoint" in printed
    assert "run-s1" in printed
    records = [json.loads(line) for line in (tmp_path / "found" / "records.jsonl").read_text().splitlines()]
    of_first = [record for record in records if record["signature"]["run"] == "run-s1"]
    course = [(r["signature"]["update"], r["value"]) for r in of_first if r["name"] == "mutual_information_course"]
    assert [update for update, _ in course] == [0, 4, 8, 12]
    values = {record["name"]: record["value"] for record in of_first}
    # the last checkpoint is that of the last validation, and the first point that of the first weights
    assert values["mutual_information"] == pytest.approx(course[-1][1], abs=1e-5)
    assert values["mutual_information_initial"] == course[0][1]
    assert values["mutual_information_peak"] == pytest.approx(sum(value for _, value in course) / 4)
    assert of_first[0]["signature"]["classes"] == list(embedded_images(small_training(tmp_path).embedded).classes[:2])
    assert values["mutual_information_fall"] == values["mutual_information_peak"] - values["mutual_information"]
    main(dataclasses.replace(config, sigma="each", results=str(tmp_path / "each")))
    lines = (tmp_path / "each" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in lines} >= {
        "each_mutual_information",
        "each_mutual_information_initial",
    }
    assert (tmp_path / "found" / "figures" / "information-run-s1-run-s2-last-train.svg").exists()


def test_a_long_course_is_thinned() -> None:
    course = [(78 * index, float(index)) for index in range(302)]
    found = [int(value) for _, value in thinned(course)]
    assert found[:20] == list(range(20))
    assert found[20:] == [*range(20, 301, 5), 301]


def test_a_checkpoint_without_a_course(small_classifier: RunDirectory) -> None:
    measured = measure_all(MeasureConfig(runs=(str(small_classifier.path),), classes=("0", "1"), images=8, views=6))
    assert not measured[0].course
    with pytest.raises(UserError, match="trained without; name two with --classes"):
        measure_all(MeasureConfig(runs=(str(small_classifier.path),)))


def test_courses_of_many_runs_are_drawn_under_a_short_name(small_classifier: RunDirectory, tmp_path: Path) -> None:
    config = MeasureConfig(
        runs=(str(small_classifier.path),), classes=("0", "1"), images=8, views=6, results=str(tmp_path)
    )
    (found,) = measure_all(config)
    names = [f"cifar10-alexnet-ls{alpha}-s{seed}" for alpha in ("0.0", "0.1") for seed in range(1, 6)]
    course = [(0, 0.1), (4, 0.3)]
    store(config, [dataclasses.replace(found, recipe={**found.recipe, "run": run}, course=course) for run in names])
    (drawn,) = (tmp_path / "figures").glob("*.svg")
    assert drawn.name.startswith("information-10-runs-cifar10-alexnet-ls0-")
    assert drawn.name.endswith("-best-train.svg")


def test_input_that_does_not_fit(small_classifier: RunDirectory, tmp_path: Path) -> None:
    config = small_training(tmp_path / "run", embedded=EmbeddedSizes(train=96, validation=40, test=60))
    with pytest.raises(UserError, match="class 'nothing' is none of the 9"):
        pair_of(config, InformationConfig(classes=("nothing", "1")))
    with pytest.raises(UserError, match="to train on; ask for"):
        pair_of(config, InformationConfig(classes=("0", "1"), images=600))
    name = embedded_images(config.embedded).classes[0]
    with pytest.raises(UserError, match="are one class"):
        pair_of(config, InformationConfig(classes=("0", name), images=4))
    with pytest.raises(UserError, match="always shown alike"):
        pair_of(dataclasses.replace(config, augment=AugmentConfig()), TWO)
    for wrong in ({"classes": ("a",)}, {"classes": ("a", "a")}, {"images": 7}, {"images": 0}, {"views": 5}):
        with pytest.raises(ValueError, match=r"classes|images|views"):
            InformationConfig(**wrong)  # type: ignore[arg-type]
    others = EmbeddedSizes(train=90, validation=40, test=60)
    other = RunDirectory(shutil.copytree(small_classifier.path, tmp_path / "other"))
    rewrite(other, embedded=dataclasses.asdict(others))
    manifest = {**other.read_manifest(), "corpus_checksum": embedded_images(others).checksum}
    other.manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    finer = RunDirectory(shutil.copytree(small_classifier.path, tmp_path / "finer"))
    rewrite(finer, information={**dataclasses.asdict(TWO), "classes": ["0", "1"], "views": 8})
    both = MeasureConfig(runs=(str(small_classifier.path), str(finer.path)), classes=("0", "1"), images=8)
    with pytest.raises(UserError, match="another measure"):
        measure_all(both)
    assert measure_all(dataclasses.replace(both, views=6))[1].pair.views == 6
    with pytest.raises(UserError, match="other images"):
        measure_all(
            MeasureConfig(runs=(str(small_classifier.path), str(other.path)), classes=("0", "1"), images=8, views=6)
        )
