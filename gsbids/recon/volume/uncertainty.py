# SPDX-License-Identifier: Apache-2.0
"""Uncertainty of each voxel: a standard deviation from the data that support it and from the ensemble."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import simulate_stack

# The two numbers that data cannot give. Chosen on two simulations of a fetal brain of 22 weeks (benchmarks/svr.py,
# row uncertainty, which is scored on others): members of an ensemble share data, poses and model, and err alike.
CALIBRATION = 3.7
PLACEMENT = 0.15  # mm, what is left of the motion of a slice
SMOOTH = 0.8  # mm, width over which the squares of few samples are averaged
EPS = 1e-8  # 1/mm3, against division by 0
LEAST_SAY = 1e-3  # weight under which a pixel is left out

FORMULA = (
    "sigma^2 = 1 / (n / r^2 + 1 / t^2) + k^2 s^2 / M + d^2 |grad I|^2; n: weighted pixels that one Gaussian "
    "stands on, r: local residual of the slices, t: standard deviation of the volume, s: standard deviation of "
    f"the M members, I: volume; k = {CALIBRATION}, d = {PLACEMENT} mm"
)


@dataclass(frozen=True)
class Uncertainty:
    """Predicted error of a volume, and its parts; all (X, Y, Z), float32, in input intensities.

    Attributes
    ----------
    sigma : ndarray
        Standard deviation of the error of the volume.
    data, members, placement : ndarray
        Three parts of it: ``sigma^2 = data^2 + members^2 + placement^2``.
    """

    sigma: np.ndarray
    data: np.ndarray
    members: np.ndarray
    placement: np.ndarray


def predict_error(
    result: SvrResult, stacks: list[Stack], affine: np.ndarray, image: np.ndarray, device: str = "cpu"
) -> Uncertainty:
    r"""Predict the standard deviation of the error of a volume, voxel by voxel.

    .. math:: \sigma^2 = \frac{1}{n / r^2 + 1 / t^2} + k^2 \frac{s^2}{M} + d^2 |\nabla I|^2

    with, at every voxel x,

    - ``n = V sum_p w_p P_p(x)``, the pixels that one Gaussian stands on: w the robust weight of pixel and slice, P the
      slice's PSF around the pixel (density, 1/mm3), V the volume of the brain over the Gaussians of one member;
    - ``r^2 = sum_p w_p P_p(x) r_p^2 / sum_p w_p P_p(x)``, the variance of the residuals ``r_p = y_p / a_s - I_s(p)``
      of the slices there: noise, and what neither the field nor the motion explains;
    - t, the standard deviation of the volume: the error where no slice saw anything;
    - s, the standard deviation (M - 1 in the denominator) of the images of the M members of the ensemble, of which
      the volume is the mean; one member has none;
    - k, one factor for the errors that members have in common and therefore do not show;
    - ``d |grad I|``, the error of slices that lie a little beside their place.

    k and d are constants, see ``docs/method.md``. s and the gradient are averaged (as squares) over 0.8 mm.

    Parameters
    ----------
    result : SvrResult
    stacks : list of Stack
        Stacks of the fit.
    affine : ndarray, (4, 4)
        Voxel indices of ``image`` to world RAS+ mm; isotropic.
    image : ndarray, (X, Y, Z)
        Volume from :func:`gsbids.recon.volume.sample.sample_result`.
    device : str
        Device on which fields are rendered.

    Returns
    -------
    Uncertainty
    """
    stacks, voxel = result.as_fitted(stacks), float(np.linalg.norm(affine[:3, 0]))
    support, noise = data_support(result, stacks, affine, image.shape, device)
    ground = max(1e-3 * float(support.max()), 1e-12)  # beside all slices, residuals are those of the others
    noise = (support * noise + ground * np.average(noise, weights=support + 1e-12)) / (support + ground)
    mean = np.average(image, weights=support + 1e-12)
    spread = np.average((image - mean) ** 2, weights=support + 1e-12)
    members = split_members(result)
    brain = np.median([stack.mask.sum() * abs(np.linalg.det(stack.affine[:3, :3])) for stack in stacks])
    pixels = support * brain / len(members[0])
    data = 1 / (pixels / np.maximum(noise, 1e-6 * spread + 1e-12) + 1 / max(spread, 1e-12))
    slope = sum((g / voxel) ** 2 for g in np.gradient(image.astype(float)))
    fields = _variance_of_mean(members, affine, image.shape, result.render_options(device))
    parts = data, CALIBRATION**2 * fields * result.intensity_scale**2, PLACEMENT**2 * slope
    parts = parts[0], *(ndimage.gaussian_filter(part, SMOOTH / voxel) for part in parts[1:])
    return Uncertainty(*(np.sqrt(part).astype(np.float32) for part in (sum(parts), *parts)))


def split_members(result: SvrResult) -> list[GaussianField]:
    """Split the field into those of the ensemble; return the whole field where there is no ensemble."""
    sizes = result.settings.get("gaussians_of_members", [len(result.field)])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [
        result.field.replace(**{name: getattr(result.field, name)[first:last] for name in GaussianField.PARAMETERS})
        for first, last in pairwise(starts)
    ]


def _variance_of_mean(
    members: list[GaussianField], affine: np.ndarray, shape: Sequence[int], options: ops.RenderOptions
) -> np.ndarray:
    """Return ``s^2 / M`` from the images of the members, in the field's units squared; 0 for one member."""
    count, mean, square = len(members), np.zeros(shape), np.zeros(shape)
    if count < 2:
        return mean
    for number, member in enumerate(members, start=1):  # one image at a time (Welford's update)
        image = sample_grid(member, affine, shape, options=options)[0]
        change = image - mean
        mean += change / number
        square += change * (image - mean)
    return square / (count - 1) / count


def data_support(
    result: SvrResult, stacks: list[Stack], affine: np.ndarray, shape: Sequence[int], device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weighted number of pixels that support every voxel, and the variance of their residuals.

    Every pixel, in the mask or the rim, is a Gaussian with the shape of its slice's PSF, and is rendered like those of
    a field: the sum of the weights is the support, their mean of the squared residuals is the variance.

    Parameters
    ----------
    result : SvrResult
    stacks : list of Stack
    affine, shape
        Affine and shape of the grid.
    device : str
        Device on which pixels are rendered.

    Returns
    -------
    support : ndarray, shape
        ``sum_p w_p P_p(x)``, pixels per mm3.
    variance : ndarray, shape
        ``sum_p w_p P_p(x) r_p^2 / sum_p w_p P_p(x)``, r in input intensities.
    """
    parts = zip(*_pixels(result, stacks, device), strict=True)
    mean, owner, weight, residual = (np.concatenate(part) for part in parts)
    said = weight > LEAST_SAY
    mean, owner, weight, residual = mean[said], owner[said], weight[said], residual[said]
    peak = (2 * np.pi) ** -1.5 / np.sqrt(result.psf.prod(1))  # of a pixel's density, 1/mm3
    scale = float(np.mean(residual**2)) or 1.0  # the renderer works in float32
    turn = Rotation.from_matrix(result.motion.rotation).as_quat(scalar_first=True)
    origin = mean.mean(0)
    field = GaussianField(
        mean=(mean - origin).astype(np.float32),
        log_scale=0.5 * np.log(result.psf[owner]).astype(np.float32),
        quaternion=turn[owner].astype(np.float32),
        intensity=(residual**2 / scale).astype(np.float32),
        log_weight=np.log(weight * peak[owner]).astype(np.float32),
        origin=origin,
    )
    variance, support = sample_grid(field, affine, shape, options=ops.RenderOptions(eps=EPS, device=device))
    return support - np.float32(EPS), variance * scale


def _pixels(
    result: SvrResult, stacks: list[Stack], device: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for every slice of the fit pixels (P, 3) in the world after motion, its row, weights and residuals (P,)."""
    moves = result.motion.as_affines(result.nominal)
    for n, stack in enumerate(stacks):
        rows = np.flatnonzero(result.stack_index == n)
        simulated = simulate_stack(result, stack, n, device)
        for row in rows:
            k, to_world = result.slice_index[row], moves[row] @ stack.affine
            outside = ndimage.distance_transform_edt(~stack.mask[:, :, k], sampling=stack.spacing[:2])
            i, j = np.nonzero(outside <= result.settings.get("rim", 0.0))
            residual = (stack.image[i, j, k] - simulated[i, j, k]) / result.gain[row]
            weight = outliers.pixel_weights(residual[None, None], np.ones((1, 1, len(i)), bool))[0, 0]
            world = np.stack([i, j, np.full(len(i), k)], 1) @ to_world[:3, :3].T + to_world[:3, 3]
            yield world, np.full(len(i), row), result.weight[row] * weight, residual
