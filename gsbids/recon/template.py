# SPDX-License-Identifier: Apache-2.0
"""Where a template lies: the rigid transform that turns a reconstructed brain as an atlas is turned."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.recon.coverage import vote_mask
from gsbids.recon.isotropic import Volume, isotropic_volume
from gsbids.recon.register import about, likely_places, refine
from gsbids.recon.resample import output_grid, sample_result
from gsbids.recon.result import SvrResult

STEP = 2.0  # mm of the fine grid, of a brain of REFERENCE size; the coarse one has twice as much
REFERENCE = 1.5e5  # mm3
TURNS, PLACES = 24, 4  # that are refined on the coarse grid, and of these on the fine one
HALF_TURNS = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
DIFFERENT = 20.0  # degrees from which on two places are not the same one
GRID = 1.5  # mm: of the brain that is compared
POOR = 0.5  # similarity below which the alignment to a template of the user is not to be trusted
ALIKE, LEAD = 0.6, 0.03  # similarity, and how much more than in any other place, from which on one of the package is


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
    def doubt(self) -> str:
        """Why it is not to be trusted; empty where it is."""
        if self.similarity < ALIKE:
            return f"looks little like the template where it fits best (similarity {self.similarity:.2f})"
        if self.similarity - self.runner_up < LEAD:
            return ("looks nearly as much like the template when it is turned another way (similarity "
                    f"{self.similarity:.2f} and {self.runner_up:.2f})")
        return ""

    def facts(self, name: str) -> dict:
        """What is told of an alignment to the template of a name, in the sidecar of the volume."""
        return {"TemplateName": name, "TemplateSimilarity": round(self.similarity, 4),
                "TemplateSimilarityOfNextOrientation": round(self.runner_up, 4),
                "TemplateRotation": round(self.angle, 2)}

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
    return align_to_templates(brain, [template])[1]


def align_to_templates(brain: Stack, templates: list[Stack]) -> tuple[int, TemplateAlignment]:
    """Find the template that a brain looks most like, and how it must be turned and shifted to lie as in that.

    Every rotation is looked at in the template of the nearest size, and in the others the best places of that one. In
    the end the brain is turned upside down, back to front and both, as brains look alike so.

    Parameters
    ----------
    brain : Stack
        As for :func:`align_to_template`.
    templates : list of Stack
        Turned alike, within some 20 degrees.

    Returns
    -------
    int
        Number of the template.
    TemplateAlignment
    """
    pairs = [_Pair.of(brain, template) for template in templates]
    order = sorted(range(len(pairs)), key=lambda n: abs(np.log(pairs[n].scale)))
    first = pairs[order[0]]
    places = likely_places(*first.coarse, turns=TURNS)[:PLACES] or [np.eye(4)]
    middle = [pair.fine[1].centroid for pair in pairs]
    found = {}
    for n in order:
        shift = np.eye(4)
        shift[:3, 3] = middle[n] - middle[order[0]]
        found[n] = pairs[n].refined([shift @ place for place in places])
    best = max(order, key=lambda n: found[n][0][1])
    turned = pairs[best].refined([about(turn, middle[best], middle[best]) @ found[best][0][0]
                                   for turn in HALF_TURNS])
    return best, pairs[best].alignment(found[best] + turned)


@dataclass(frozen=True)
class _Pair:
    """A brain and a template brought to its size, on a fine and a coarse grid; ``scale`` as in the alignment."""

    fine: tuple[Volume, Volume]
    coarse: tuple[Volume, Volume]
    scale: float

    @classmethod
    def of(cls, brain: Stack, template: Stack) -> "_Pair":
        sizes = [millilitres(each) for each in (brain, template)]
        scale = (sizes[1] / sizes[0]) ** (1 / 3)
        step = STEP * (1000 * sizes[0] / REFERENCE) ** (1 / 3)
        pairs = []
        for size in (1, 2):
            own = isotropic_volume(brain, size * step, 2 * size * step)
            other = isotropic_volume(template, size * step * scale, 2 * size * step * scale)
            pairs.append((own, replace(other, origin=other.origin / scale, step=other.step / scale)))
        return cls(*pairs, scale)

    def refined(self, places: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """Places (brain -> template of its size) refined, with their similarity, the best first."""
        return sorted((refine(*self.fine, place) for place in places), key=lambda pair: pair[1], reverse=True)

    def alignment(self, places: list[tuple[np.ndarray, float]]) -> TemplateAlignment:
        """The best of refined places, and what others there are."""
        found = sorted(places, key=lambda pair: pair[1], reverse=True)
        transform = found[0][0].copy()
        middle = self.fine[0].centroid
        there = transform[:3, :3] @ middle + transform[:3, 3]
        transform[:3, 3] = self.scale * there - transform[:3, :3] @ middle
        others = (value for place, value in found if _apart(place, found[0][0]) > DIFFERENT)
        return TemplateAlignment(transform, found[0][1], self.scale, next(others, 0.0))


def millilitres(brain: Stack) -> float:
    """Volume of the mask, ml."""
    return float(brain.mask.sum()) * abs(np.linalg.det(brain.affine[:3, :3])) / 1000


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).magnitude()))


def brain_of_result(result: SvrResult, stacks: list[Stack]) -> Stack:
    """The reconstructed brain on a coarse grid in the world of the scanner, with its mask."""
    affine, shape = output_grid(stacks, result, GRID)
    mask, _ = vote_mask(stacks, result, affine, shape)
    image = sample_result(result, affine, shape) - np.float32(result.intensity_offset)
    return Stack("brain", image, mask, affine, GRID, result.intensity_offset)
