# SPDX-License-Identifier: Apache-2.0
"""Where a template lies: the rigid transform that turns a reconstructed brain as an atlas is turned."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.recon.coverage import vote_mask
from gsbids.recon.isotropic import isotropic_volume
from gsbids.recon.register import likely_places, refine
from gsbids.recon.resample import output_grid, sample_result
from gsbids.recon.result import SvrResult

STEP = 2.0  # mm of the fine grid, of a brain of REFERENCE size; the coarse one has twice as much
REFERENCE = 1.5e5  # mm3
TURNS, PLACES = 24, 4  # that are refined on the coarse grid, and of these on the fine one
DIFFERENT = 20.0  # degrees from which on two places are not the same one
GRID = 1.5  # mm: of the brain that is compared
POOR = 0.5  # similarity below which the alignment is not to be trusted


@dataclass(frozen=True)
class TemplateAlignment:
    """A rigid alignment and how alike the images are under it.

    Attributes
    ----------
    transform : ndarray, (4, 4)
        World RAS+ mm of the reconstruction (scanner) -> world of the template; the middles of the brains coincide.
    similarity : float
        Normalised cross-correlation of the two brains, brought to one size.
    scale : float
        Size of the template's brain over that of the reconstruction, along one side.
    runner_up : float
        Similarity in the best place that is turned by more than 20 degrees from it; 0 where none was tried.
    """

    transform: np.ndarray
    similarity: float
    scale: float
    runner_up: float

    @property
    def angle(self) -> float:
        """Rotation from the scanner to the template, degrees."""
        return float(np.degrees(Rotation.from_matrix(self.transform[:3, :3]).magnitude()))


def align_to_template(brain: Stack, template: Stack) -> TemplateAlignment:
    """Find how a brain must be turned and shifted to lie as in a template.

    Every rotation is looked at (:func:`gsbids.recon.register.likely_places`): a fetus may lie in any way. Brains of
    different age differ in size; for the comparison the template is brought to the size of the brain, and the
    transform found is rigid all the same.

    Parameters
    ----------
    brain, template : Stack
        Isotropic volumes with masks; ``thickness`` is the voxel size.

    Returns
    -------
    TemplateAlignment
    """
    sizes = [float(v.mask.sum()) * abs(np.linalg.det(v.affine[:3, :3])) for v in (brain, template)]
    scale = (sizes[1] / sizes[0]) ** (1 / 3)
    step = STEP * (sizes[0] / REFERENCE) ** (1 / 3)
    pairs = []
    for size in (1, 2):
        own = isotropic_volume(brain, size * step, 2 * size * step)
        other = isotropic_volume(template, size * step * scale, 2 * size * step * scale)
        pairs.append((own, replace(other, origin=other.origin / scale, step=other.step / scale)))
    fine, coarse = pairs
    places = likely_places(*coarse, turns=TURNS)[:PLACES] or [np.eye(4)]
    found = sorted((refine(*fine, place) for place in places), key=lambda pair: pair[1], reverse=True)
    transform = found[0][0].copy()
    middle = fine[0].centroid
    there = transform[:3, :3] @ middle + transform[:3, 3]
    transform[:3, 3] = scale * there - transform[:3, :3] @ middle
    others = (value for place, value in found if _apart(place, found[0][0]) > DIFFERENT)
    return TemplateAlignment(transform, found[0][1], scale, next(others, 0.0))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).magnitude()))


def brain_of_result(result: SvrResult, stacks: list[Stack]) -> Stack:
    """The reconstructed brain on a coarse grid in the world of the scanner, with its mask."""
    affine, shape = output_grid(stacks, result, GRID)
    mask, _ = vote_mask(stacks, result, affine, shape)
    image = sample_result(result, affine, shape) - np.float32(result.intensity_offset)
    return Stack("brain", image, mask, affine, GRID, result.intensity_offset)
