# SPDX-License-Identifier: Apache-2.0
"""Rigid alignment of a reconstructed brain to a template."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.recon.registration.isotropic import Volume, isotropic_volume
from gsbids.recon.registration.register import about, likely_places, refine
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.coverage import vote_mask
from gsbids.recon.volume.sample import output_grid, sample_result

STEP = 2.0  # mm of the fine grid, of a brain of REFERENCE size; the coarse one has twice as much
REFERENCE = 1.5e5  # mm3
TURNS, PLACES = 24, 3  # that are refined on the coarse grid, and of these on the fine one
FINE, COARSE = 0, 1  # index of the grid
SIZES = (1.1, 1.05, 1.025)  # by which the template is tried larger and smaller, in turn
HALF_TURNS = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()  # about the three axes
DIFFERENT = 20.0  # degrees from which on two places are not the same one
GRID = 1.5  # mm: of the brain that is compared
# Similarity, and how much more than in any other place, from which on a place is trusted (benchmarks/svr_template.py).
OUTLINES, INSIDES = (0.75, 0.04), (0.5, 0.1)
CLEAR = 0.01  # similarity by which a template of another size must be better
CONTRARY = 45.0  # degrees between the places by outlines and by what is inside, both clear: neither is trusted


@dataclass(frozen=True)
class TemplateAlignment:
    """A rigid alignment, and the similarity of the images under it.

    Attributes
    ----------
    transform : ndarray, (4, 4)
        World RAS+ mm of the reconstruction (scanner) -> world of the template.
    similarity : float
        Normalised cross-correlation of the two brains, brought to one size.
    scale : float
        Size of the template's brain over that of the reconstruction, along one side.
    runner_up : float
        Similarity in the best place that is turned by more than 20 degrees from it; 0 where none was found.
    doubt : str
        Reason why it is doubtful; empty where it is not.
    """

    transform: np.ndarray
    similarity: float
    scale: float
    runner_up: float
    doubt: str = ""

    def facts(self, name: str) -> dict:
        """Return the facts about an alignment to the template ``name``, for the sidecar of the volume."""
        return {
            "TemplateName": name,
            "TemplateSimilarity": round(self.similarity, 4),
            "TemplateSimilarityOfNextOrientation": round(self.runner_up, 4),
            "TemplateRotation": round(self.angle, 2),
        }

    def laid(self, template: Stack) -> np.ndarray:
        """Return the transform of the template's world to that of the reconstruction, sizes matched, (4, 4)."""
        middle, shrink = _middle(template), np.eye(4)
        shrink[:3, :3] /= self.scale
        shrink[:3, 3] = middle - shrink[:3, :3] @ middle
        return np.linalg.inv(self.transform) @ shrink

    @property
    def angle(self) -> float:
        """Rotation from the scanner to the template, degrees."""
        return float(np.degrees(Rotation.from_matrix(self.transform[:3, :3]).magnitude()))


def align_to_template(brain: Stack, template: Stack) -> TemplateAlignment:
    """Align a brain to a template; see :func:`align_to_templates`."""
    return align_to_templates(brain, [template])[1]


def align_to_templates(brain: Stack, templates: list[Stack]) -> tuple[int, TemplateAlignment]:
    """Find the most similar template, and the rigid transform that aligns the brain to it.

    Every rotation is looked at (:func:`gsbids.recon.registration.register.likely_places`): a fetus may lie in any way.
    First the brains are compared within their masks, where outlines tell much. Then the images are compared within the
    mask of the template alone, as the mask of the brain may be wrong, with the size found along with the place; that
    decides where it is clear, from the places that outlines tell, or, where those are doubtful, from all rotations
    again.

    Parameters
    ----------
    brain : Stack
        Isotropic, its image not masked, with a brain mask; ``thickness`` is the voxel size.
    templates : list of Stack
        Brains with masks, turned alike, within some 20 degrees.

    Returns
    -------
    int
        Number of the template.
    TemplateAlignment
        Rigid, whatever the sizes.
    """
    sides = [(millilitres(template) / millilitres(brain)) ** (1 / 3) for template in templates]
    step = STEP * (1000 * millilitres(brain) / REFERENCE) ** (1 / 3)
    head = replace(brain, mask=brain.image != 0)
    outlines, insides = (
        _Searches(
            kind,
            [isotropic_volume(moving, size * step, 2 * size * step) for size in (1, 2)],
            templates,
            sides,
            _middle(brain),
        )
        for kind, moving in ((isotropic_volume, brain), (_inside, head))
    )
    by_outline = _look(outlines, (), OUTLINES)
    n, found, place = by_outline
    known = None if found.doubt else (n, [place, *_half_turns(place)])
    by_inside = _look(insides, SIZES, INSIDES, known)
    if by_inside[1].doubt:
        return by_outline[:2]
    if not found.doubt and _apart(by_inside[2].turn, place.turn) > CONTRARY:
        angle = _apart(by_inside[2].turn, place.turn)
        return n, replace(found, doubt=f"lies by its outline {angle:.0f} degrees from how it lies by what is in it")
    return by_inside[:2]


def _look(
    searches: "_Searches",
    sizes: tuple[float, ...],
    limits: tuple[float, float],
    known: tuple[int, list["_Place"]] | None = None,
) -> tuple[int, TemplateAlignment, "_Place"]:
    """Find the best template and pose by one comparison: from known poses of a template, or from all rotations."""
    sides = searches.sides
    first = known[0] if known else min(range(len(sides)), key=lambda n: abs(np.log(sides[n])))
    fine, coarse = (searches.of(first, grid) for grid in (FINE, COARSE))
    places = _different([coarse.sized(place, sizes) for place in (known[1] if known else coarse.places())])
    tried, number = {first: fine}, first
    best = max((fine.sized(place, sizes[1:]) for place in places[:PLACES]), key=_value)
    for n in set(range(len(sides))) - {first}:
        tried[n] = searches.of(n, FINE)
        other = tried[n].sized(_resized(best, sides[n] / sides[number]), sizes[1:])
        if other.value > best.value + CLEAR:
            number, best = n, other
    fine = tried[number]
    rivals = [fine.refined(_resized(place, sides[number] / sides[first])) for place in places]
    rivals += [fine.refined(place) for place in _half_turns(best)]
    away = max((other.value for other in rivals if _apart(other.turn, best.turn) > DIFFERENT), default=0.0)
    transform = about(best.turn.T, best.middle, fine.middle)
    return number, TemplateAlignment(transform, best.value, best.side, away, _doubt(best.value, away, limits)), best


def _doubt(value: float, other: float, limits: tuple[float, float]) -> str:
    """Describe why a pose with a similarity, and one elsewhere, is doubtful."""
    if value < limits[0]:
        return f"looks little like the template where it fits best (similarity {value:.2f})"
    if value - other < limits[1]:
        return (
            "looks nearly as much like the template when it is turned another way (similarity "
            f"{value:.2f} and {other:.2f})"
        )
    return ""


@dataclass(frozen=True)
class _Place:
    """A place of the template, brought to a size, in the brain: rigid transform (4, 4), its size, and similarity.

    ``side`` is the size of the template over that of the brain, ``middle`` where the middle of the template comes to.
    """

    turn: np.ndarray
    middle: np.ndarray
    side: float
    value: float = 0.0


def _value(place: _Place) -> float:
    return place.value


def _resized(place: _Place, factor: float) -> _Place:
    return replace(place, side=place.side * factor)


def _half_turns(place: _Place) -> list[_Place]:
    """Return the same pose upside down, back to front, and both."""
    return [replace(place, turn=place.turn @ turn) for turn in HALF_TURNS]


def _different(places: list[_Place]) -> list[_Place]:
    """Return poses, the best first, without those that are rotated nearly as a better one."""
    found: list[_Place] = []
    for place in sorted(places, key=_value, reverse=True):
        if all(_apart(place.turn, other.turn) > DIFFERENT for other in found):
            found.append(place)
    return found


@dataclass(frozen=True)
class _Search:
    """Registration of a template (fixed) to a brain (moving); ``middle`` is that of its mask."""

    template: Volume
    brain: Volume
    middle: np.ndarray
    target: np.ndarray
    side: float

    def _at(self, side: float) -> Volume:
        """Return the template scaled to a size."""
        return replace(self.template, origin=self.template.origin / side, step=self.template.step / side)

    def _place(self, transform: np.ndarray, side: float, value: float = 0.0) -> _Place:
        return _Place(transform[:3, :3], transform[:3, :3] @ self.middle / side + transform[:3, 3], side, value)

    def places(self) -> list[_Place]:
        """Return likely poses, from a cover of all rotations about the middle of the brain's mask."""
        found = likely_places(self._at(self.side), self.brain, turns=TURNS, target=self.target)
        return [self._place(transform, self.side) for transform in found[: 2 * PLACES] or [np.eye(4)]]

    def refined(self, place: _Place) -> _Place:
        """Return the best pose near one, of its size."""
        fixed = self._at(place.side)
        transform, value = refine(fixed, self.brain, about(place.turn, self.middle / place.side, place.middle))
        return self._place(transform, place.side, value)

    def sized(self, place: _Place, factors: tuple[float, ...]) -> _Place:
        """Return the best pose near one, of any size near its own."""
        best = self.refined(place)
        for factor in factors:
            near = (self.refined(replace(best, side=best.side * each)) for each in (factor, 1 / factor))
            best = max(best, *near, key=_value)
        return best


@dataclass(frozen=True)
class _Searches:
    """Registrations of templates to one brain with one similarity: ``blurred`` resamples a template to a grid."""

    blurred: Callable[[Stack, float, float], Volume]
    brains: list[Volume]
    templates: list[Stack]
    sides: list[float]
    target: np.ndarray

    def of(self, number: int, grid: int) -> _Search:
        """Return the search for a template on the fine or the coarse grid."""
        brain, template, side = self.brains[grid], self.templates[number], self.sides[number]
        return _Search(
            self.blurred(template, brain.step * side, 2 * brain.step * side),
            brain,
            _middle(template),
            self.target,
            side,
        )


def _inside(template: Stack, step: float, fwhm: float) -> Volume:
    """Blur a template within its mask, without the rim of zeros."""
    whole, share = (
        isotropic_volume(replace(template, image=image), step, fwhm)
        for image in (template.image, np.ones_like(template.image))
    )
    inside = share.value > 0.5
    return replace(
        whole, value=np.where(inside, whole.value / np.maximum(share.value, 0.5), 0), weight=inside.astype(float)
    )


def _middle(brain: Stack) -> np.ndarray:
    """Return the centroid of the mask, world mm."""
    return brain.affine[:3, :3] @ np.argwhere(brain.mask).mean(0) + brain.affine[:3, 3]


def millilitres(brain: Stack) -> float:
    """Return the volume of the mask, ml."""
    return float(brain.mask.sum()) * abs(np.linalg.det(brain.affine[:3, :3])) / 1000


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(one.T @ other).magnitude()))


def brain_of_result(result: SvrResult, stacks: list[Stack]) -> Stack:
    """Sample the reconstructed brain on a coarse grid in the world of the scanner, with its mask."""
    affine, shape = output_grid(stacks, result, GRID)
    mask, _ = vote_mask(stacks, result, affine, shape)
    image = sample_result(result, affine, shape) - np.float32(result.intensity_offset)
    return Stack("brain", image, mask, affine, GRID, result.intensity_offset)
