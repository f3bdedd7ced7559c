# SPDX-License-Identifier: Apache-2.0
"""Comparison of a reconstruction with the truth, and with no motion correction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image
from gsbids.simulate.acquire import rigid_about

MARGIN = 2.0  # mm
SAMPLES = 10_000  # voxels of the mask that the alignment looks at
COVER, TURNED = 600, 2  # random rotations: one is within some 25 degrees of any; how many of them are tried


@dataclass(frozen=True)
class Comparison:
    """Similarity of a volume to the truth, inside the brain.

    A reconstruction is defined up to a rigid motion, a gain and an offset: these are fitted first.
    The outermost ``MARGIN`` mm of the mask are left out: there the volume's own mask, not the brain,
    would decide.

    Attributes
    ----------
    psnr : float
        Peak signal-to-noise ratio, dB; the peak is the truth's maximum inside the brain.
    ncc : float
        Normalised cross-correlation.
    coverage : float
        Part of the whole mask where the volume is not zero.
    """

    psnr: float
    ncc: float
    coverage: float


def compare_to_truth(volume: str | Path, truth: str | Path, truth_mask: str | Path) -> Comparison:
    """Align a volume rigidly to the truth and compare.

    Parameters
    ----------
    volume : path-like
        Reconstruction on any grid, in any rigid frame, on any intensity scale.
    truth, truth_mask : path-like
        Truth and its brain mask, on one grid.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        A file that cannot be read, or a volume of zeros.
    """
    truth_data, affine = load_image(truth)
    mask = load_image(truth_mask)[0] > 0.5
    if not load_image(volume)[0].any():
        raise InputError(f"{volume}: every voxel is 0, so there is nothing to compare; see how it was made")
    aligned, filled = align_rigid(volume, truth, truth_mask)
    depth = ndimage.distance_transform_edt(mask, sampling=np.linalg.norm(affine[:3, :3], axis=0))
    psnr, ncc = score(aligned, truth_data, depth > MARGIN)
    return Comparison(psnr, ncc, coverage=float(filled[mask].mean()))


def score(volume: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Compute PSNR (dB) and NCC after the best gain and offset.

    Parameters
    ----------
    volume, truth : ndarray, (X, Y, Z)
        Images on the same grid.
    mask : ndarray, (X, Y, Z), bool
    """
    x, y = volume[mask].astype(float), truth[mask].astype(float)
    deviation = x - x.mean()
    power = deviation @ deviation
    gain = deviation @ (y - y.mean()) / power if power > 0 else 0.0
    error = np.sqrt(np.mean((y - y.mean() - gain * deviation) ** 2))
    ncc = gain * np.sqrt(power / max(np.sum((y - y.mean()) ** 2), 1e-30))
    return float(20 * np.log10(y.max() / max(error, 1e-12))), float(ncc)


def align_rigid(volume: str | Path, truth: str | Path, truth_mask: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Align a volume rigidly to the truth inside the brain, on the truth's grid.

    Starts: the registration of ANTs, the volume as it is, with the centre of its non-zero part on that of the brain,
    and so in the likeliest of many rotations, as a volume may be aligned to an atlas; from each the cross-correlation
    in the mask is maximised, and the best result is taken. (For the blurred average of moving stacks ANTs alone ends
    far from the best, which would be unfair to it.)

    Parameters
    ----------
    volume, truth, truth_mask : path-like

    Returns
    -------
    image : ndarray, (X, Y, Z), float32
    filled : ndarray, (X, Y, Z), bool
        Voxels where the volume is not zero.
    """
    moving, moving_affine = load_image(volume)
    fixed, fixed_affine = load_image(truth)
    mask = load_image(truth_mask)[0] > 0.5
    inside = np.argwhere(mask)
    points = inside @ fixed_affine[:3, :3].T + fixed_affine[:3, 3]
    centre = points.mean(axis=0)
    filled = np.argwhere(moving != 0).mean(axis=0) @ moving_affine[:3, :3].T + moving_affine[:3, 3]
    chosen = slice(None, None, max(1, len(points) // SAMPLES))
    to_index = np.linalg.inv(moving_affine)
    few, values = points[chosen], fixed[mask][chosen].astype(float)

    def cost(parameters: np.ndarray) -> float:
        place = _rigid(parameters, centre)
        index = to_index @ place @ np.vstack([few.T, np.ones(len(few))])
        seen = ndimage.map_coordinates(moving, index[:3], order=1)
        return -np.corrcoef(seen, values)[0, 1] if seen.std() > 0 else 0.0

    middle = (filled - centre) / 5
    cover = Rotation.random(COVER, random_state=0).as_rotvec()
    turned = sorted((np.r_[10 * turn, middle] for turn in cover), key=cost)[:TURNED]
    starts = [np.zeros(6), np.r_[np.zeros(3), middle], _ants_rigid(volume, truth, truth_mask, centre), *turned]
    ends = [minimize(cost, start, method="Powell", options={"maxiter": 4}) for start in starts]
    best = min(ends, key=lambda end: end.fun)
    best = minimize(cost, best.x, method="Powell", options={"xtol": 1e-4, "ftol": 1e-8, "maxiter": 10})
    index = to_index @ _rigid(best.x, centre) @ fixed_affine
    where = {"matrix": index[:3, :3], "offset": index[:3, 3], "output_shape": fixed.shape}
    filled = ndimage.affine_transform((moving != 0).astype(np.float32), order=1, **where) >= 0.5
    return ndimage.affine_transform(moving, order=3, **where), filled


def _rigid(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the transform (4, 4) that rotates about ``centre`` (tenths of a radian) and then shifts (mm x 5).

    The units make steps of one size move the brain by about the same distance.
    """
    return rigid_about(centre, parameters[:3] / 10, 5 * parameters[3:])


def _ants_rigid(volume: str | Path, truth: str | Path, truth_mask: str | Path, centre: np.ndarray) -> np.ndarray:
    """Return the parameters of :func:`_rigid` of the rigid registration of ANTs."""
    import ants

    fixed, mask, moving = (ants.image_read(str(path)) for path in (truth, truth_mask, volume))
    found = ants.registration(
        fixed * mask,
        moving,
        type_of_transform="Rigid",
        mask=ants.iMath(mask, "MD", 2),
        aff_metric="GC",
        aff_random_sampling_rate=0.5,
        random_seed=1,
    )
    transform = ants.read_transform(found["fwdtransforms"][0])
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        Path(path).unlink(missing_ok=True)
    flip = np.diag([-1.0, -1.0, 1.0])  # ITK's world is LPS
    numbers, middle = np.asarray(transform.parameters), flip @ np.asarray(transform.fixed_parameters)
    turn, shift = flip @ numbers[:9].reshape(3, 3) @ flip, flip @ numbers[9:]
    at_centre = turn @ (centre - middle) + middle + shift - centre
    return np.r_[10 * Rotation.from_matrix(turn).as_rotvec(), at_centre / 5]


def average_of_stacks(
    stacks: Sequence[str | Path], masks: Sequence[str | Path], resolution: float
) -> tuple[np.ndarray, np.ndarray]:
    """Average the masked stacks without motion correction, interpolated to one grid.

    Each stack is divided by its median in the mask, put on one isotropic grid in scanner space by
    linear interpolation, and averaged where the masks reach.

    Parameters
    ----------
    stacks, masks : sequence of path-like
        Images and brain masks, pairwise on one grid.
    resolution : float
        Voxel size of the result, mm.

    Returns
    -------
    image : ndarray, (X, Y, Z), float32
        0 where no mask reaches.
    affine : ndarray, (4, 4)
    """
    loaded = [(*load_image(stack), load_image(mask)[0] > 0.5) for stack, mask in zip(stacks, masks, strict=True)]
    points = np.concatenate([np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3] for _, affine, mask in loaded])
    low, high = points.min(0) - 2 * resolution, points.max(0) + 2 * resolution
    shape = tuple(np.ceil((high - low) / resolution).astype(int) + 1)
    grid = np.diag([resolution, resolution, resolution, 1.0])
    grid[:3, 3] = low
    total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for image, affine, mask in loaded:
        index = np.linalg.inv(affine) @ grid
        where = {"matrix": index[:3, :3], "offset": index[:3, 3], "output_shape": shape, "order": 1}
        inside = mask.astype(np.float32)
        total += ndimage.affine_transform(image * inside / np.median(image[mask]), **where)
        weight += ndimage.affine_transform(inside, **where)
    return np.where(weight > 0.5, total / np.maximum(weight, 1e-6), 0).astype(np.float32), grid
