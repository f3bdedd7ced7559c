# SPDX-License-Identifier: Apache-2.0
"""Coverage of every voxel by slices, the brain mask by their vote, and the region in which the volume is shown.

And the way back: a mask of the volume, resampled to the slices.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.masks import largest_region
from gsbids.imaging.stack import Stack
from gsbids.recon.svr.result import SvrResult

LEAST_COVERAGE = 0.15  # slices that must have seen a voxel of the brain for it to be shown
LOOKS = 1.2  # the same of the rim, about it on average: one look alone gives streaks
USUAL_LOOKS = 0.6  # of the usual coverage of the brain, which is enough where there is no more, as of a lone stack
ABOUT = 2.0  # mm: standard deviation of that average
DEPTHS = 5  # within the slice thickness, at which a pixel looks at a mask
FLECK = 1e-3  # of the brightest tissue: up to this a voxel of the brain is a hole


def vote_mask(
    stacks: list[Stack], result: SvrResult, affine: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the brain mask on a grid by the vote of the motion-corrected slice masks.

    Every slice votes on the voxels within its thickness; brain is where more than half of the votes say so. Dividing
    by their number makes the answer independent of slice distance and voxel size. Rejected slices do not vote.

    Parameters
    ----------
    stacks : list of Stack
    result : SvrResult
    affine, shape
        Affine and shape of the grid, isotropic.

    Returns
    -------
    mask : ndarray, shape, bool
        Largest component, holes filled.
    coverage : ndarray, shape, float32
        Slices within whose thickness each voxel lies.
    """
    voxel = float(np.linalg.norm(affine[:3, 0]))
    stacks = result.as_fitted(stacks)
    votes, seen = np.zeros((2, int(np.prod(shape))), np.float32)
    moves = result.motion.as_affines(result.nominal)
    for n, stack in enumerate(stacks):
        for row in np.flatnonzero((result.stack_index == n) & ~result.rejected):
            k = result.slice_index[row]
            to_slice = np.linalg.inv(moves[row] @ _slice_affine(stack, k)) @ affine
            index, pixel, share = _slab(to_slice, stack.image.shape[:2], stack.thickness / voxel, shape)
            seen[index] += share
            votes[index] += share * stack.mask[pixel[0], pixel[1], k]
    reach = max(float(np.max(stack.spacing[:2])) for stack in stacks)
    votes, seen = (ndimage.gaussian_filter(a.reshape(shape), reach / 2 / voxel) for a in (votes, seen))
    mask = (votes > 0.5 * seen) & (seen > LEAST_COVERAGE)
    return _tidy(mask), seen


def shown_region(mask: np.ndarray, coverage: np.ndarray, affine: np.ndarray, rim: float) -> np.ndarray:
    """Return where the volume is shown: the brain and the fitted rim around it, as far as two slices support it.

    A volume that ends at the mask itself would cut the cortex wherever the mask is a voxel too tight; where a single
    slice saw the rim, it would show that slice's own surroundings as a streak.

    Parameters
    ----------
    mask, coverage : ndarray, (X, Y, Z)
        Mask and coverage from :func:`vote_mask`.
    affine : ndarray, (4, 4)
    rim : float
        Width in mm.

    Returns
    -------
    ndarray, (X, Y, Z), bool
    """
    usual = float(np.median(coverage[mask])) if mask.any() else 0.0
    looks = ndimage.gaussian_filter(coverage, ABOUT / np.linalg.norm(affine[:3, :3], axis=0))
    return mask | (seen_near(mask, coverage, affine, rim) & (looks > min(LOOKS, USUAL_LOOKS * usual)))


def seen_near(mask: np.ndarray, coverage: np.ndarray, affine: np.ndarray, rim: float) -> np.ndarray:
    """Find the voxels within a distance (mm) of a mask that slices have seen; arrays as in :func:`shown_region`."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return (ndimage.distance_transform_edt(~mask, sampling=spacing) <= rim) & (coverage > LEAST_COVERAGE)


def without_holes(image: np.ndarray, mask: np.ndarray, affine: np.ndarray, nothing: float = 0.0) -> np.ndarray:
    """Fill black voxels in the brain: voxels that are 0 there get the mean of those about them.

    A field is 0 where its Gaussians are negative, or too far away, as between slices that have moved apart; magnitudes
    of tissue or fluid never are.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
    mask : ndarray, (X, Y, Z), bool
    affine : ndarray, (4, 4)
    nothing : float
        Value of the image where the field is 0.

    Returns
    -------
    ndarray, (X, Y, Z), float32
    """
    if not mask.any():
        return image
    level = nothing + FLECK * (float(np.percentile(image[mask], 95)) - nothing)
    holes = mask & (image <= level)
    if not holes.any():
        return image
    # From the nearest values that are none, smoothed over the holes alone.
    nearest = ndimage.distance_transform_edt(~mask | holes, return_distances=False, return_indices=True)
    smooth = ndimage.gaussian_filter(image[tuple(nearest)], ABOUT / np.linalg.norm(affine[:3, :3], axis=0))
    return np.where(holes, smooth, image).astype(np.float32)


def reproject_mask(mask: np.ndarray, affine: np.ndarray, stack: Stack, number: int, result: SvrResult) -> np.ndarray:
    """Resample a mask of the reconstruction to a stack, through the poses of its slices.

    A pixel is inside where most of what it has averaged over the slice thickness is. Slices that were not fitted lie
    as the nearest fitted one of their stack.

    Parameters
    ----------
    mask : ndarray, (A, B, C), bool
    affine : ndarray, (4, 4)
        Affine of the mask, world RAS+ mm of the reconstruction.
    stack : Stack
        Stack as acquired.
    number : int
        Number of the stack in the result, from 0.
    result : SvrResult

    Returns
    -------
    ndarray, (X, Y, Z), bool
        Mask on the grid of the stack; empty where no slice of the stack was fitted.
    """
    out = np.zeros(stack.image.shape, bool)
    rows = np.flatnonzero(result.stack_index == number)
    if not len(rows):
        return out
    moves = result.motion[rows].as_affines(result.nominal[rows])
    pixels = np.ones((4, *stack.image.shape[:2]))
    pixels[:2] = np.indices(stack.image.shape[:2])
    depths = (np.arange(DEPTHS) - (DEPTHS - 1) / 2) * stack.thickness / DEPTHS
    for k in range(stack.image.shape[2]):
        move = moves[np.abs(result.slice_index[rows] - k).argmin()]
        to_mask = np.linalg.inv(affine) @ move @ _slice_affine(stack, k)
        share = np.zeros(stack.image.shape[:2], np.float32)
        for pixels[2] in depths:
            places = np.tensordot(to_mask[:3], pixels, 1)
            share += ndimage.map_coordinates(mask.astype(np.float32), places, order=1)
        out[..., k] = share > DEPTHS / 2
    return out


def _slice_affine(stack: Stack, k: int) -> np.ndarray:
    """Return the affine from pixel indices and mm along the normal of slice k to the world, (4, 4)."""
    affine = stack.affine.copy()
    affine[:3, 3] += k * affine[:3, 2]
    affine[:3, 2] = slice_frames(stack.affine, stack.image.shape)[0][k][:, 2]
    return affine


def _slab(
    to_slice: np.ndarray, pixels: Sequence[int], thickness: float, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the voxels within a slice: flat index (P,), nearest pixel (2, P), and share (P,) of each in the slice.

    ``to_slice`` takes voxel indices to pixels and mm along the normal; ``thickness`` is in voxels. Voxels are
    found in columns along the axis that is nearest to the normal, so that each is found once.
    """
    normal = to_slice[2] / np.linalg.norm(to_slice[2, :3])  # voxels along the normal
    along = int(np.argmax(np.abs(normal[:3])))
    first, second = (a for a in range(3) if a != along)
    half = (thickness + 1) / 2
    a, b = np.meshgrid(np.arange(shape[first]), np.arange(shape[second]), indexing="ij")
    middle = -(normal[first] * a + normal[second] * b + normal[3]) / normal[along]
    reach = half / abs(normal[along])
    start = np.ceil(middle - reach)
    c = start[..., None] + np.arange(int(2 * reach) + 1)
    place = np.empty((3, *c.shape))
    place[first], place[second], place[along] = a[..., None], b[..., None], c
    pixel = np.rint(np.tensordot(to_slice[:2, :3], place, 1) + to_slice[:2, 3, None, None, None]).astype(int)
    depth = np.abs(c - middle[..., None]) * abs(normal[along])
    inside = (depth < half) & (c >= 0) & (c < shape[along])
    inside &= ((pixel >= 0) & (pixel < np.reshape(pixels, (2, 1, 1, 1)))).all(0)
    share = np.clip(half - depth[inside], 0, min(1.0, thickness))
    return np.ravel_multi_index(place[:, inside].astype(int), shape), pixel[:, inside], share


def _tidy(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(largest_region(mask))
