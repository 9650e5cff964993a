"""Where penultimate activations lie among the templates: the plane of Figure 1, and the numbers beside the picture.

Everything is computed in float64. Shape suffixes: N examples, D width of the penultimate layer, K classes, 3 the three
classes of a picture, 2 the coordinates in their plane, R the rank of the class means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FLAT = 1e-6  # sine of the smallest angle at which two sides of a triangle still span a plane
_POINT = 1e-30  # variance of what counts as a point


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The affine plane through three templates, for Section 2's projection.

    origin_D is the first template; basis_D2 is orthonormal, from the QR decomposition of the sides to the second and
    the third template, with signs such that the second lies at (positive, 0) and the third at a positive height.
    """

    origin_D: Tensor
    basis_D2: Tensor

    @classmethod
    def through(cls, templates_3D: Tensor) -> Plane:
        """Raises ValueError for anything but three points that span a plane."""
        if templates_3D.ndim != 2 or len(templates_3D) != 3 or templates_3D.shape[1] < 2:
            raise ValueError(f"a plane needs three templates of two or more numbers, not {tuple(templates_3D.shape)}")
        templates_3D = templates_3D.detach().double()
        if not templates_3D.isfinite().all():
            raise ValueError("the templates hold numbers that are not finite")
        basis_D2, r_22 = torch.linalg.qr((templates_3D[1:] - templates_3D[0]).T)
        heights_2 = r_22.diagonal()
        second = torch.linalg.vector_norm(r_22[:, 1])
        if not (heights_2[0].abs() > 0 and second > 0 and heights_2[1].abs() > _FLAT * second):
            raise ValueError("the three templates lie on one line: they span no plane")
        return cls(origin_D=templates_3D[0], basis_D2=basis_D2 * heights_2.sign())

    def coordinates(self, points_ND: Tensor) -> Tensor:
        """The coordinates N2, float64, of the points' orthogonal projections."""
        if points_ND.ndim != 2 or points_ND.shape[1] != len(self.origin_D):
            raise ValueError(f"the points must be N x {len(self.origin_D)}, not {tuple(points_ND.shape)}")
        return (points_ND.detach().double() - self.origin_D) @ self.basis_D2


def project(activations_ND: Tensor, templates_3D: Tensor) -> Tensor:
    """Coordinates N2 (float64) of penultimate activations on the plane through three classes' templates: Section 2.

    Units are those of the activations; `Plane` says where the axes lie. Raises ValueError for shapes that do not fit
    and for templates on one line.
    """
    return Plane.through(templates_3D).coordinates(activations_ND)


def mean_side(corners_3D: Tensor) -> float:
    """The mean distance between three points, such as the templates: the unit of Figure 1's second form."""
    return sum(_sides(corners_3D)) / 3


def regularity(corners_3D: Tensor) -> float:
    """The shortest side of a triangle over its longest: 1 if it is regular.

    Raises ValueError if the three corners are one point.
    """
    shortest, _, longest = sorted(_sides(corners_3D))
    if longest == 0:
        raise ValueError("the three corners are one point")
    return shortest / longest


def _sides(corners_3D: Tensor) -> list[float]:
    if corners_3D.ndim != 2 or len(corners_3D) != 3:
        raise ValueError(f"a triangle has three corners, not {tuple(corners_3D.shape)}")
    corners_3D = corners_3D.detach().double()
    return [float(torch.linalg.vector_norm(corners_3D[i] - corners_3D[(i + 1) % 3])) for i in range(3)]


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """Examples as their class means and their distances from them."""

    means_KD: Tensor  # centred: their mean, the global mean of balanced classes, is taken off
    centre_D: Tensor
    deviations_ND: Tensor
    weights_N: Tensor  # 1 / (K · examples of the class), so that every class counts the same

    @classmethod
    def of(cls, activations_ND: Tensor, labels_N: Tensor, classes: int) -> ClassMeans:
        """Raises ValueError for shapes that do not fit, labels outside 0 to classes - 1, a class without example."""
        if activations_ND.ndim != 2 or labels_N.shape != activations_ND.shape[:1]:
            shapes = f"{tuple(activations_ND.shape)} and {tuple(labels_N.shape)}"
            raise ValueError(f"activations must be N x D and labels N, not {shapes}")
        if len(labels_N) and (labels_N.min() < 0 or labels_N.max() >= classes):
            raise ValueError(f"labels must lie between 0 and {classes - 1}")
        counts_K = torch.bincount(labels_N, minlength=classes)
        if (counts_K == 0).any():
            raise ValueError(f"class {int((counts_K == 0).nonzero()[0])} has no example")
        activations_ND = activations_ND.detach().double()
        sums_KD = torch.zeros(classes, activations_ND.shape[1], dtype=torch.float64, device=activations_ND.device)
        means_KD = sums_KD.index_add_(0, labels_N, activations_ND) / counts_K[:, None]
        centre_D = means_KD.mean(0)
        return cls(
            means_KD=means_KD - centre_D,
            centre_D=centre_D,
            deviations_ND=activations_ND - means_KD[labels_N],
            weights_N=1.0 / (classes * counts_K[labels_N].double()),
        )

    def within_over_between(self) -> float:
        """tr Σ_W / tr Σ_B: the spread of examples about their class mean over that of class means about the centre."""
        between = self.means_KD.square().sum() / len(self.means_KD)
        if between == 0:
            raise ValueError("the class means are one point: nothing to compare the spread with")
        return float((self.weights_N @ self.deviations_ND.square().sum(1)) / between)

    def nc1(self) -> float:
        """Variability collapse, tr(Σ_W Σ_B†) / K (Papyan, Han & Donoho 2020, NC1): 0 once every class is a point.

        The pseudo-inverse is taken over the directions in which the class means differ, at most min(K - 1, D).
        """
        _, singular_R, directions_RD = torch.linalg.svd(self.means_KD, full_matrices=False)
        kept = singular_R > singular_R.max() * max(self.means_KD.shape) * torch.finfo(torch.float64).eps
        if not kept.any():
            raise ValueError("the class means are one point: nothing to compare the spread with")
        along_NR = self.deviations_ND @ directions_RD[kept].T
        # Σ_B has eigenvalues s²/K, so that K cancels
        return float(((self.weights_N @ along_NR.square()) / singular_R[kept].square()).sum())


@dataclass(frozen=True, kw_only=True)
class Simplex:
    """How far K points are from a regular simplex around their mean (Papyan, Han & Donoho 2020, NC2): all 0 in one.

    equinorm: variation coefficient of their distances from the mean. equiangle: standard deviation of the cosines
    between pairs, as seen from the mean. maximal_angle: mean |cosine + 1/(K-1)|. In fewer than K - 1 dimensions
    the last two cannot vanish.
    """

    equinorm: float
    equiangle: float
    maximal_angle: float

    @classmethod
    def of(cls, points_KD: Tensor) -> Simplex:
        """Raises ValueError for fewer than two points, or a point at their mean, which has no angle."""
        if points_KD.ndim != 2 or len(points_KD) < 2:
            raise ValueError(f"a simplex needs two or more points, not {tuple(points_KD.shape)}")
        points_KD = points_KD.detach().double()
        centred_KD = points_KD - points_KD.mean(0)
        norms_K = torch.linalg.vector_norm(centred_KD, dim=1)
        if not (norms_K > 0).all():
            raise ValueError("a point lies at the mean of all: it has no angle to the others")
        classes = len(points_KD)
        cosines_KK = (centred_KD / norms_K[:, None]) @ (centred_KD / norms_K[:, None]).T
        pairs = cosines_KK[~torch.eye(classes, dtype=torch.bool, device=points_KD.device)]
        return cls(
            equinorm=float(norms_K.std(correction=0) / norms_K.mean()),
            equiangle=float(pairs.std(correction=0)),
            maximal_angle=float((pairs + 1 / (classes - 1)).abs().mean()),
        )


def template_cosines(activations_ND: Tensor, labels_N: Tensor, templates_KD: Tensor) -> tuple[float, float]:
    """The mean cosine between an example and its own class's template, and between it and the other templates.

    Templates are taken from their mean, since one vector added to all of them changes no probability; activations from
    the mean of their class means, so that what all examples share does not count as likeness. In a regular simplex,
    collapsed, the two are 1 and -1/(K-1).
    """
    classes = ClassMeans.of(activations_ND, labels_N, len(templates_KD))
    templates_KD = templates_KD.detach().double()
    centred_ND = activations_ND.detach().double() - classes.centre_D
    cosines_NK = _unit(centred_ND) @ _unit(templates_KD - templates_KD.mean(0)).T
    own_N = cosines_NK.gather(1, labels_N[:, None]).squeeze(1)
    others_N = (cosines_NK.sum(1) - own_N) / (len(templates_KD) - 1)
    return float(own_N.mean()), float(others_N.mean())


def _unit(points_ND: Tensor) -> Tensor:
    return F.normalize(points_ND, dim=1)


def distance_variation(points_ND: Tensor, corner_D: Tensor) -> float:
    """Standard deviation over mean of the points' distances from a corner: 0 on an arc around it.

    Raises ValueError if there is no point, or all points are the corner.
    """
    distances_N = torch.linalg.vector_norm(points_ND.detach().double() - corner_D.detach().double(), dim=1)
    if len(distances_N) == 0 or not (mean := float(distances_N.mean())) > 0:
        raise ValueError("an arc needs points away from its centre")
    return float(distances_N.std(correction=0)) / mean


def radial_over_tangential(classes_N2: Sequence[Tensor], corner_2: Tensor) -> float:
    """How the points of classes spread about their centres, seen from a corner: sd along the distance over sd across.

    1 for an isotropic spread, however tight, far from the corner; towards 0 for an arc around it. Across is measured
    as an angle at the corner times the mean distance; a class's variances are about its own means, so that where
    the classes lie does not matter, and are averaged over classes. Classes that have shrunk to points have 1.

    Raises ValueError for no points, and for points on the corner.
    """
    radial = tangential = 0.0
    for points_N2 in classes_N2:
        offsets_N2 = points_N2.detach().double() - corner_2.detach().double()
        distances_N = torch.linalg.vector_norm(offsets_N2, dim=1)
        if not len(distances_N) or not (distances_N > 0).all():
            raise ValueError("an arc needs points away from its centre")
        towards_2 = (offsets_N2 / distances_N[:, None]).mean(0)
        along_N, across_N = offsets_N2 @ towards_2, offsets_N2 @ torch.stack((-towards_2[1], towards_2[0]))
        radial += float(distances_N.var(correction=0))
        tangential += float((torch.atan2(across_N, along_N) * distances_N.mean()).var(correction=0))
    return math.sqrt((radial + _POINT) / (tangential + _POINT))
