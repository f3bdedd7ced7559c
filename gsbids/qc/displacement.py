# SPDX-License-Identifier: Apache-2.0
"""Displacement of every slice, measured in the brain."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.recon.svr.result import SvrResult


@dataclass(frozen=True)
class SliceDisplacement:
    """Motion of the S slices at the point of each slice that lies nearest the middle of the brain.

    A pose's translation alone says little: it is that of the middle of the field of view, and a small
    rotation about a far point moves the brain by millimetres. Hence the point in the brain.

    Attributes
    ----------
    point : ndarray, (S, 3)
        Position of the point in scanner space, world RAS+ mm.
    shift : ndarray, (S, 3)
        Position of the point by the slice's own pose, minus that by the mean pose of its stack: mm along
        R, A, S.
    turn : ndarray, (S, 3)
        Rotation vector from the mean pose of the stack to the slice's own, degrees about R, A, S.
    stack_shift, stack_turn : ndarray, (N, 3)
        Shift and rotation of each stack as a whole by its mean pose (mm, at the mean of its points; degrees);
        the shift of a stack without slices is NaN.
    neighbours : ndarray, (P, 2), int
        Pairs of used slices that lie next to one another in a stack.
    step_shift, step_turn : ndarray, (P,)
        Displacement (mm) and angle (degrees) between the two slices of each pair.
    """

    point: np.ndarray
    shift: np.ndarray
    turn: np.ndarray
    stack_shift: np.ndarray
    stack_turn: np.ndarray
    neighbours: np.ndarray
    step_shift: np.ndarray
    step_turn: np.ndarray


def brain_middle(result: SvrResult) -> np.ndarray:
    """Return the median centre of the Gaussians in world RAS+ mm, (3,); of the slices when the field is empty."""
    if len(result.field):
        return np.median(result.field.mean, axis=0).astype(float) + result.field.origin
    return np.median(result.motion.translation, axis=0)


def transform_points(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Transform one point by one affine each: (..., 4, 4) and (..., 3) to (..., 3)."""
    return np.einsum("...ij,...j->...i", transforms[..., :3, :3], points) + transforms[..., :3, 3]


def rotation_vectors(rotation: np.ndarray) -> np.ndarray:
    """Return the rotation vectors in degrees, (S, 3), of (S, 3, 3) rotations."""
    return np.degrees(Rotation.from_matrix(rotation).as_rotvec()) if len(rotation) else np.zeros((0, 3))


def slice_displacement(result: SvrResult) -> SliceDisplacement:
    """Measure the motion in a result.

    Parameters
    ----------
    result : SvrResult
        Rejected slices are measured too, but do not count for the mean pose of a stack.

    Returns
    -------
    SliceDisplacement
    """
    transforms = result.motion.as_affines(result.nominal)
    normal = result.motion.rotation[:, :, 2]
    middle = brain_middle(result)
    distance = np.einsum("si,si->s", result.motion.translation - middle, normal)
    point = transform_points(np.linalg.inv(transforms), middle + distance[:, None] * normal)
    means, used = _stack_means(result, transforms, point)
    mean = means[result.stack_index]
    neighbours = _neighbours(result)
    first, second = transforms[neighbours[:, 0]], transforms[neighbours[:, 1]]
    between = point[neighbours].mean(axis=1)
    stack_shift = [_mean_shift(means[stack], point[used == stack]) for stack in range(len(means))]
    step = transform_points(second, between) - transform_points(first, between)
    return SliceDisplacement(
        point=point,
        shift=transform_points(transforms, point) - transform_points(mean, point),
        turn=rotation_vectors(transforms[:, :3, :3] @ np.swapaxes(mean[:, :3, :3], 1, 2)),
        stack_shift=np.array(stack_shift).reshape(-1, 3),
        stack_turn=rotation_vectors(means[:, :3, :3]),
        neighbours=neighbours,
        step_shift=np.linalg.norm(step, axis=1),
        step_turn=np.linalg.norm(rotation_vectors(np.swapaxes(first[:, :3, :3], 1, 2) @ second[:, :3, :3]), axis=1),
    )


def _mean_shift(mean: np.ndarray, points: np.ndarray) -> np.ndarray:
    if not len(points):
        return np.full(3, np.nan)
    middle = points.mean(axis=0)
    return transform_points(mean, middle) - middle


def _stack_means(result: SvrResult, transforms: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean pose of the used slices of each stack, (N, 4, 4), and the stack each slice counts for.

    The latter is -1 for none. Where all slices of a stack are rejected, all count.
    """
    means = np.tile(np.eye(4), (len(result.stack_names), 1, 1))
    counted = np.full(len(point), -1)
    for stack in range(len(means)):
        mine = result.stack_index == stack
        used = mine & ~result.rejected
        used = used if used.any() else mine
        counted[used] = stack
        if used.any():
            turn = Rotation.from_matrix(transforms[used, :3, :3]).mean().as_matrix()
            means[stack, :3, :3] = turn
            moved = transform_points(transforms[used], point[used])
            means[stack, :3, 3] = (moved - point[used] @ turn.T).mean(axis=0)
    return means, counted


def _neighbours(result: SvrResult) -> np.ndarray:
    """Return the pairs of used slices of one stack whose indices differ by one, (P, 2)."""
    order = np.lexsort((result.slice_index, result.stack_index))
    first, second = order[:-1], order[1:]
    adjacent = (
        (result.stack_index[first] == result.stack_index[second])
        & (result.slice_index[second] - result.slice_index[first] == 1)
        & ~result.rejected[first]
        & ~result.rejected[second]
    )
    return np.stack([first[adjacent], second[adjacent]], axis=1).astype(int)
