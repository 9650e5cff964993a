"""The plane of Figure 1 and the numbers beside it, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vision_ls.geometry import (
    ClassMeans,
    Plane,
    Simplex,
    distance_variation,
    mean_side,
    project,
    radial_over_tangential,
    regularity,
    template_cosines,
)

# sides 3, 4 and 5 in the plane of the first two of four axes, at height 7
TEMPLATES_3D = torch.tensor([[1.0, 1.0, 7.0, 0.0], [4.0, 1.0, 7.0, 0.0], [1.0, 5.0, 7.0, 0.0]])


def simplex(classes: int, scale: float = 1.0) -> Tensor:
    return scale * (torch.eye(classes, dtype=torch.float64) - 1 / classes)


def test_projection_by_hand() -> None:
    points_ND = torch.tensor([[1.0, 1.0, 0.0, 9.0], [3.0, 2.0, 7.0, -1.0], [0.0, 5.0, 7.0, 0.0]])
    expected_N2 = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(project(points_ND, TEMPLATES_3D), expected_N2)
    torch.testing.assert_close(
        project(TEMPLATES_3D, TEMPLATES_3D), torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    )


def test_distances_on_the_plane_are_kept_and_none_grows() -> None:
    random = torch.Generator().manual_seed(0)
    templates_3D = torch.randn(3, 20, generator=random)
    plane = Plane.through(templates_3D)
    torch.testing.assert_close(plane.basis_D2.T @ plane.basis_D2, torch.eye(2, dtype=torch.float64))
    corners_32 = plane.coordinates(templates_3D)
    torch.testing.assert_close(torch.cdist(corners_32, corners_32).float(), torch.cdist(templates_3D, templates_3D))
    assert corners_32[1, 0] > 0
    assert corners_32[2, 1] > 0
    points_ND = torch.randn(30, 20, generator=random)
    flat_N2 = plane.coordinates(points_ND)
    assert (torch.cdist(flat_N2, flat_N2) <= torch.cdist(points_ND, points_ND).double() + 1e-5).all()


def test_moving_everything_moves_nothing_on_the_plane() -> None:
    random = torch.Generator().manual_seed(1)
    points_ND, shift_D = torch.randn(5, 4, generator=random), torch.randn(4, generator=random)
    torch.testing.assert_close(
        project(points_ND, TEMPLATES_3D), project(points_ND + shift_D, TEMPLATES_3D + shift_D), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("templates_3D", "message"),
    [
        (torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), "on one line"),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 5.0]]), "on one line"),
        (torch.tensor([[1.0, 2.0], [3.0, 5.0], [1.0, 2.0]]), "on one line"),
        (torch.tensor([[1.0, 2.0], [3.0, 5.0]]), "three templates"),
        (torch.tensor([[0.0, 0.0], [1.0, math.nan], [0.0, 1.0]]), "not finite"),
    ],
)
def test_templates_that_span_no_plane_are_refused(templates_3D: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project(torch.zeros(1, 2), templates_3D)


def test_points_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="must be N x 4"):
        project(torch.zeros(2, 3), TEMPLATES_3D)


def test_triangles_by_hand() -> None:
    assert mean_side(TEMPLATES_3D) == pytest.approx(4.0)
    assert regularity(TEMPLATES_3D) == pytest.approx(3 / 5)
    assert regularity(simplex(3)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one point"):
        regularity(torch.ones(3, 2))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_collapsed_simplex_has_no_variability_and_no_irregularity(classes: int) -> None:
    labels_N = torch.arange(classes).repeat(4)
    points_ND = simplex(classes, scale=3.0)[labels_N] + 5.0
    means = ClassMeans.of(points_ND, labels_N, classes)
    assert means.nc1() == pytest.approx(0.0, abs=1e-20)
    assert means.within_over_between() == pytest.approx(0.0, abs=1e-20)
    shape = Simplex.of(means.means_KD)
    assert (shape.equinorm, shape.equiangle, shape.maximal_angle) == pytest.approx((0, 0, 0), abs=1e-7)
    own, others = template_cosines(points_ND, labels_N, simplex(classes, scale=0.1) + 2.0)
    assert (own, others) == pytest.approx((1.0, -1 / (classes - 1)))


def test_scatter_by_hand() -> None:
    # means at ±2 on the first axis; each class ±1 along it, ±3 across it
    offsets = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    points_ND = torch.cat((torch.tensor([2.0, 0.0]) + offsets, torch.tensor([-2.0, 0.0]) + offsets))
    labels_N = torch.tensor([0] * 4 + [1] * 4)
    means = ClassMeans.of(points_ND, labels_N, 2)
    # Σ_W = diag(1/2, 9/2), Σ_B = diag(4, 0)
    assert means.within_over_between() == pytest.approx(5.0 / 4.0)
    assert means.nc1() == pytest.approx((0.5 / 4.0) / 2)


def test_nc1_is_the_formula_with_the_pseudo_inverse() -> None:
    random = torch.Generator().manual_seed(2)
    labels_N = torch.randint(0, 6, (200,), generator=random)
    points_ND = torch.randn(200, 9, generator=random).double() + 2 * torch.randn(6, 9, generator=random)[labels_N]
    means_KD = torch.stack([points_ND[labels_N == k].mean(0) for k in range(6)])
    within_DD = torch.stack([torch.cov(points_ND[labels_N == k].T, correction=0) for k in range(6)]).mean(0)
    between_DD = torch.cov(means_KD.T, correction=0)
    expected = torch.trace(within_DD @ torch.linalg.pinv(between_DD, rtol=1e-10)) / 6
    assert ClassMeans.of(points_ND, labels_N, 6).nc1() == pytest.approx(float(expected))


def test_a_class_of_more_examples_weighs_no_more() -> None:
    points_ND = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0], [-1.0, -2.0]])
    labels_N = torch.tensor([0, 0, 1, 1])
    once = ClassMeans.of(points_ND, labels_N, 2)
    more = ClassMeans.of(
        torch.cat((points_ND, points_ND[:2], points_ND[:2])), torch.cat((labels_N, labels_N.new_zeros(4))), 2
    )
    assert more.within_over_between() == pytest.approx(once.within_over_between()) == pytest.approx(2.5)


def test_an_irregular_simplex_by_hand() -> None:
    # seen from their mean (0, 0): lengths 1, 1, 2, 2; cosines of the six pairs -1 twice and 0 four times
    cross = Simplex.of(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]))
    assert cross.equinorm == pytest.approx(0.5 / 1.5)
    assert cross.equiangle == pytest.approx(math.sqrt(2) / 3)
    assert cross.maximal_angle == pytest.approx((2 * (2 / 3) + 4 * (1 / 3)) / 6)


def test_an_arc_by_hand() -> None:
    angles_N = torch.linspace(0.0, 1.5, 7)
    arc_N2 = torch.stack((2 + 3 * angles_N.cos(), 1 + 3 * angles_N.sin()), dim=1)
    assert distance_variation(arc_N2, torch.tensor([2.0, 1.0])) == pytest.approx(0.0, abs=1e-6)
    assert distance_variation(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="away from its centre"):
        distance_variation(torch.zeros(3, 2), torch.zeros(2))


def test_a_tight_blob_is_no_arc() -> None:
    angles_N = torch.arange(8) * math.pi / 4
    blob_N2 = 0.01 * torch.stack((angles_N.cos(), angles_N.sin()), dim=1)
    blobs = [blob_N2 + torch.tensor([10.0, 0.0]), blob_N2 + torch.tensor([0.0, 10.0])]  # of two classes, far apart
    assert radial_over_tangential(blobs, torch.zeros(2)) == pytest.approx(1.0, abs=1e-3)
    assert distance_variation(torch.cat(blobs), torch.zeros(2)) < 1e-3  # which takes it for one
    wide_N = torch.linspace(-0.2, 0.2, 9)
    arcs = [torch.stack((10 * (at + wide_N).cos(), 10 * (at + wide_N).sin()), dim=1) for at in (0.0, 3.1)]
    assert radial_over_tangential(arcs, torch.zeros(2)) == pytest.approx(0.0, abs=1e-6)
    # at distances 1 and 3 (sd 1) straight ahead, and at ± 0.5 of a right angle at distance 2: sd over angles once each
    cross_N2 = torch.tensor([[1.0, 0.0], [3.0, 0.0], [math.sqrt(2), math.sqrt(2)], [math.sqrt(2), -math.sqrt(2)]])
    by_hand = math.sqrt(2 / 4) / (2 * math.sqrt(2 / 4) * math.pi / 4)
    assert radial_over_tangential([cross_N2], torch.zeros(2)) == pytest.approx(by_hand)
    assert radial_over_tangential([torch.tensor([[1.0, 0.0]] * 3)], torch.zeros(2)) == 1.0
    with pytest.raises(ValueError, match="away from its centre"):
        radial_over_tangential([torch.zeros(1, 2)], torch.zeros(2))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 3], "between 0 and 2"), ([0, 1, 1], "class 2 has no example"), ([0, 1], "must be N x D")],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassMeans.of(torch.zeros(3, 2), torch.tensor(labels), 3)


def test_class_means_in_one_point_are_refused() -> None:
    means = ClassMeans.of(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1, 1]), 2)
    for figure in (means.nc1, means.within_over_between):
        with pytest.raises(ValueError, match="one point"):
            figure()
    with pytest.raises(ValueError, match="no angle"):
        Simplex.of(torch.tensor([[1.0], [0.0], [-1.0]]))
