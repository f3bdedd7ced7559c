# SPDX-License-Identifier: Apache-2.0
"""Lists of pairs and tiles that are kept over iterations, for as long as they provably hold (Verlet lists).

Lists made with the margin m hold all that comes within ``cut + m`` standard deviations. Since then Gaussian j has
moved by d_j, its covariance went from Sigma to Sigma', and slice s has turned by ``|R' - R| = a_s`` and shifted by
``t' - t``. With S and S' the observed covariances before and after, and x a pixel, the triangle inequality gives

    |x' - mu'|_S'  >=  (|x - mu|_S - |d_j|_S - (|t' - t| + a_s |x|) / sqrt(lowest eigenvalue of S)) / g,

``|v|_S^2 = v^T S^-1 v``, and g^2 the largest eigenvalue of S^-1 S'. So nothing beyond the lists comes within the cut
as long as

    need_j = |d_j|_A + shift / sqrt(low_j) + cut (g_j - 1)  <=  m,

where ``A = Sigma + p I`` with the least PSF variance p stands for S from below, ``low_j`` is its lowest eigenvalue,
``shift`` the largest of the slices' ``|t' - t| + a_s |x|``, and ``g_j^2 = (1 + a (P - p) / low_j)`` times the largest
eigenvalue of ``A^-1 (Sigma' + p I)``, at least 1, with the largest turn a and the largest PSF variance P: adding the
same covariance to both brings a ratio of two nearer to 1. Both eigenvalues are taken by bounds. The lists are safe,
and rebuilt somewhat early.
"""

import math
from typing import Any

import torch
from numba import float32

from gsbids.kernels.cuda import ops as ops_cuda
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda.formulas import ONE, TWO, ZERO
from gsbids.kernels.cuda.plan import DeviceGeometry, SlicePlan
from gsbids.kernels.cuda.splat import THREADS
from gsbids.kernels.problem import DEFAULT, FieldArrays, RenderOptions, SliceGeometry

cuda = runtime.numba_cuda()

SAFETY = 1e-3  # of a standard deviation, for the rounding of all this
SLACK = 0.15  # room in the lists for later, longer ones


@cuda.jit(device=True, fastmath=True)
def growth(a, b, p):
    """Bound the largest eigenvalue of ``A^-1 B`` less 1, with the Cholesky factor of A; A, B: rows + p I."""
    u = math.sqrt(a[3] + p)
    v, w = a[4] / u, a[5] / u
    x = math.sqrt(a[6] + p - v * v)
    y = (a[7] - w * v) / x
    z = math.sqrt(a[8] + p - w * w - y * y)
    # M = L^-1 (B - A) L^-T, whose largest eigenvalue is at most its mean plus twice its spread.
    d0, d1, d2, d3, d4, d5 = b[3] - a[3], b[4] - a[4], b[5] - a[5], b[6] - a[6], b[7] - a[7], b[8] - a[8]
    r0, r1, r2 = d0 / u, d1 / u, d2 / u
    s1, s2 = (d3 - v * r1) / x, (d4 - v * r2) / x
    s0 = (d1 - v * r0) / x
    t0, t1, t2 = (d2 - w * r0 - y * s0) / z, (d4 - w * r1 - y * s1) / z, (d5 - w * r2 - y * s2) / z
    m00, m10, m20 = r0 / u, s0 / u, t0 / u
    m11, m21 = (s1 - v * m10) / x, (t1 - v * m20) / x
    m22 = (t2 - w * m20 - y * m21) / z
    mean = (m00 + m11 + m22) / float32(3)
    e0, e1, e2 = m00 - mean, m11 - mean, m22 - mean
    spread = math.sqrt((e0 * e0 + e1 * e1 + e2 * e2 + TWO * (m10 * m10 + m20 * m20 + m21 * m21)) / float32(6))
    return mean + TWO * spread, u, v, w, x, y, z


@cuda.jit(fastmath=True)
def margin_used(before, after, low, moved, least, spread, cut, need):
    """Compute ``need`` (J,) of the module's formula; a thread per Gaussian.

    Parameters
    ----------
    before, after : (J, 12)
        Rows of ``gauss`` when the lists were made, and now.
    low : (J,)
        Lowest eigenvalue of A, mm2.
    moved : (2,)
        Largest shift of a pixel (mm) and largest turn of a slice.
    least, spread : float
        Least PSF variance p, and P - p, mm2.
    cut : float
    need : (J,)
    """
    j = cuda.grid(1)
    if j >= before.shape[0]:
        return
    a, b = before[j], after[j]
    grown, u, v, w, x, y, z = growth(a, b, least)
    d0 = (b[0] - a[0]) / u
    d1 = (b[1] - a[1] - v * d0) / x
    d2 = (b[2] - a[2] - w * d0 - y * d1) / z
    ratio = (ONE + max(grown, ZERO)) * (ONE + moved[1] * spread / low[j])
    need[j] = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2) + moved[0] / math.sqrt(low[j]) + cut * (math.sqrt(ratio) - ONE)


class KeptLists:
    """Lists of slices for the iterations of a fit, rebuilt only when they no longer hold.

    Parameters
    ----------
    options : RenderOptions
    margin : float
        Standard deviations beyond the cut: more makes longer lists that hold longer.

    Attributes
    ----------
    plans : list of SlicePlan, or None
        Lists for the functions of :mod:`gsbids.kernels.ops`; None, too, if they do not fit into the memory.
    used : tensor, ()
        Largest need of a Gaussian when :meth:`measure` last looked, in standard deviations.
    version : int
        Raised when ``plans`` are other tensors than before: graphs that were captured with them are void. A rebuild
        alone refills the same tensors.
    rebuilds : int
    """

    plans: Any
    used: Any
    _before: Any

    def __init__(self, options: RenderOptions = DEFAULT, margin: float = 0.5) -> None:
        self.options, self.margin = options, margin
        self.plans, self.used, self.version, self.rebuilds, self._before = None, None, 0, 0, None

    def current(self, field: FieldArrays, geometry: SliceGeometry | DeviceGeometry) -> list[SlicePlan] | None:
        """Return lists that hold for this field and these slices; wait for the device.

        Parameters
        ----------
        field : tuple of tensor
            mean, log_scale, quaternion, intensity, log_weight.
        geometry : SliceGeometry or DeviceGeometry
            Geometry of the same slices at every call; the poses may have moved.
        """
        geometry = ops_cuda.on_device(geometry, field[0].device)
        if self._before is not None:
            self.measure(field, geometry)
        if self.outdated():
            self.rebuild(field, geometry)
        return self.plans

    def outdated(self) -> bool:
        """Return whether the last :meth:`measure` found the margin used up, or a NaN; wait for the device."""
        return self._before is None or self.plans is None or not float(self.used) <= self.margin - SAFETY

    def measure(self, field: FieldArrays, geometry: DeviceGeometry) -> None:
        """Fill ``used``.

        Waits for nothing, so that it may end an epoch that is captured in a graph.
        """
        before, low, frame, radius, least, spread = self._before
        after = plan_cuda.pack_field(*field, False)
        need = after.new_empty(len(after))
        runtime.launch(
            margin_used,
            runtime.blocks(len(after), THREADS),
            THREADS,
            before,
            after,
            low,
            _slices_moved(frame, geometry.frame, radius),
            least,
            spread,
            self.options.cut,
            need,
        )
        self.used.copy_(need.amax() if len(need) else need.sum())

    def rebuild(self, field: FieldArrays, geometry: SliceGeometry | DeviceGeometry) -> None:
        """Make the lists again, in place where there is room."""
        geometry = ops_cuda.on_device(geometry, field[0].device)
        plans = ops_cuda.plan(field, geometry, self.options, self.margin)
        kept = self.plans is not None and plans is not None and len(plans) == len(self.plans)
        if not (kept and all(old.take(new) for old, new in zip(self.plans, plans, strict=True))):  # type: ignore[arg-type]
            self.plans = plans and [part.with_room(SLACK) for part in plans]
            self.version += 1
        self.remember(field, geometry)
        self.rebuilds += 1

    def remember(self, field: FieldArrays, geometry: DeviceGeometry) -> None:
        """Store what the next measure compares with; tensors stay where they are once there are any."""
        gauss = plan_cuda.pack_field(*field, False)
        psf = geometry.frame[:, 12:15]
        least, most = (float(f(psf)) for f in (torch.min, torch.max)) if psf.numel() else (0.0, 0.0)
        low = torch.exp(2 * field[1].detach().float().amin(1)) + least
        frame = geometry.frame.clone()
        same = self._before is not None and self._before[0].shape == gauss.shape
        if same and self._before[4:] == (least, most - least):
            for old, new in zip(self._before, (gauss, low, frame), strict=False):
                old.copy_(new)
            self.used.zero_()
            return
        self.used = gauss.new_zeros(())
        self._before = gauss, low, frame, _radius(geometry), least, most - least
        self.version += 1


def _radius(geometry: DeviceGeometry) -> torch.Tensor:
    """Return the largest distance (S,) mm of a rendered pixel from the origin of its slice."""
    frame, window = geometry.frame, geometry.window.float()
    ends = window.unflatten(1, (2, 2)) - frame[:, 17:19, None]
    return (ends.abs().amax(2) * frame[:, 15:17]).norm(dim=1)


def _slices_moved(before: torch.Tensor, after: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Return the largest shift of a pixel (mm), and the largest turn |R' - R|_2 of a slice, (2,)."""
    if not len(before):
        return before.new_zeros(2)
    turn = (after[:, :9] - before[:, :9]).norm(dim=1) * math.sqrt(0.5)  # spectral: the two largest of three are equal
    shift = (after[:, 9:12] - before[:, 9:12]).norm(dim=1) + turn * radius
    return torch.stack([shift.amax(), turn.amax()])
