# SPDX-License-Identifier: Apache-2.0
"""Rigid motion: one pose per slice."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class RigidMotion:
    """One rigid pose per slice, from the slice's own frame to the anatomy.

    A point ``(u, v, 0)`` mm of slice s lies at ``X = rotation[s] @ (u, v, 0) + translation[s]``;
    the columns of ``rotation[s]`` are the slice's row, column and normal directions.

    Attributes
    ----------
    rotation : ndarray, (S, 3, 3), float64
        Proper rotations.
    translation : ndarray, (S, 3), float64
        Positions of the slice origins in mm.
    """

    rotation: np.ndarray
    translation: np.ndarray

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.rotation)

    def __getitem__(self, which: slice | np.ndarray) -> "RigidMotion":
        """Return the poses of some slices."""
        return RigidMotion(self.rotation[which], self.translation[which])

    def moved(self, transform: np.ndarray) -> "RigidMotion":
        """Move the slices by rigid transforms.

        Parameters
        ----------
        transform : ndarray, (4, 4) or (S, 4, 4)
            Rigid transforms applied after the poses.
        """
        turn, shift = transform[..., :3, :3], transform[..., :3, 3]
        moved = np.einsum("...ij,sj->si" if transform.ndim == 2 else "sij,sj->si", turn, self.translation)
        return RigidMotion(turn @ self.rotation, moved + shift)

    def step(self, omega: np.ndarray, tau: np.ndarray) -> "RigidMotion":
        """Retract steps in the slice frame: ``R <- R exp([omega]x)``, ``t <- t + R tau``.

        Parameters
        ----------
        omega : ndarray, (S, 3)
            Rotation vectors in radians.
        tau : ndarray, (S, 3)
            Translations in mm.
        """
        turn = Rotation.from_rotvec(omega).as_matrix()
        shift = np.einsum("sij,sj->si", self.rotation, tau)
        return RigidMotion(self.rotation @ turn, self.translation + shift)

    def relative_to(self, nominal: "RigidMotion") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the motion of every slice with respect to its nominal pose.

        Returns
        -------
        rotation : ndarray, (S, 3, 3)
        centre : ndarray, (S, 3)
            Nominal slice origin, mm.
        shift : ndarray, (S, 3)
            Shift in mm: ``x_anatomy = rotation @ (x_scanner - centre) + centre + shift``.
        """
        rotation = self.rotation @ np.swapaxes(nominal.rotation, 1, 2)
        return rotation, nominal.translation, self.translation - nominal.translation

    def as_affines(self, nominal: "RigidMotion") -> np.ndarray:
        """Return the world RAS+ transforms scanner -> anatomy of every slice, (S, 4, 4)."""
        rotation, centre, shift = self.relative_to(nominal)
        affine = np.tile(np.eye(4), (len(self), 1, 1))
        affine[:, :3, :3] = rotation
        affine[:, :3, 3] = centre + shift - np.einsum("sij,sj->si", rotation, centre)
        return affine


def best_rigid(source: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Find the rigid transform (4, 4) that best carries points onto others (Kabsch).

    Parameters
    ----------
    source, target : ndarray, (P, 3)
        Points, mm; they may lie in a plane.
    weight : ndarray, (P,), optional
        Weight of each point; equal if left out.
    """
    weight = np.full(len(source), 1 / len(source)) if weight is None else weight / weight.sum()
    a, b = weight @ source, weight @ target
    u, _, vt = np.linalg.svd(((source - a) * weight[:, None]).T @ (target - b))
    transform = np.eye(4)
    transform[:3, :3] = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    transform[:3, 3] = b - transform[:3, :3] @ a
    return transform
