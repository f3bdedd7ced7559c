# SPDX-License-Identifier: Apache-2.0
"""Motion of the slices of one stack, as a table and as transforms."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.recon.svr.result import SvrResult

_CONVENTION = (
    "A point x of the slice in scanner space (world RAS+ mm) lies in the anatomy at "
    "R (x - c) + c + t, with t = trans, c = centre, R = Rz(rot_z) Ry(rot_y) Rx(rot_x)"
)


def _column(name: str, units: str, description: str) -> dict[str, str]:
    return {"LongName": name, "Units": units, "Description": description}


#: BIDS description of every column of the table.
COLUMNS: dict[str, dict] = {
    "slice": _column("Slice", "count", "Index of the slice along the slice axis, from 0"),
    "stack_time_index": _column(
        "Order of acquisition",
        "count",
        "Place of the slice in the order of acquisition, from 0 (from SliceTiming; "
        "slices acquired at once share a place)",
    ),
    **{
        f"trans_{axis}": _column(f"Translation {axis}", "mm", f"Component {axis} of t. {_CONVENTION}") for axis in "xyz"
    },
    **{f"rot_{axis}": _column(f"Rotation {axis}", "rad", f"Rotation about {axis}. {_CONVENTION}") for axis in "xyz"},
    **{
        f"centre_{axis}": _column(
            f"Centre {axis}",
            "mm",
            f"Component {axis} of c: where the slice's origin (middle of its mask) was in the scanner, world RAS+",
        )
        for axis in "xyz"
    },
    "gain": _column("Gain", "arbitrary", "Intensity factor: acquired slice = gain x simulated slice"),
    "weight": _column("Weight", "arbitrary", "Robust weight of the slice in the fit, 0 to 1"),
    "ncc": _column(
        "Similarity",
        "arbitrary",
        "Normalised cross-correlation of the acquired and the simulated slice inside the mask",
    ),
    "rejected": {
        "LongName": "Rejected",
        "Description": "Whether the slice had (almost) no say in the volume",
        "Levels": {"0": "used", "1": "rejected"},
    },
}


def motion_table(result: SvrResult, index: int, depth: int, slice_timing: Sequence[float] | None = None) -> list[dict]:
    """Return one row per slice of a stack, in array order.

    Parameters
    ----------
    result : SvrResult
    index : int
        Number of the stack, 0..N-1.
    depth : int
        Slices of the stack, those without brain included.
    slice_timing : sequence of float, optional
        BIDS ``SliceTiming`` in s; used if it has a time for every slice.

    Returns
    -------
    list of dict
        Keys of ``COLUMNS``; None where a slice has no brain and so no part in the fit.
    """
    order = _order(slice_timing, depth)
    rotation, centre, shift = result.motion.relative_to(result.nominal)
    rows = [dict.fromkeys(COLUMNS) | {"slice": k, "stack_time_index": order[k]} for k in range(depth)]
    for s in np.flatnonzero(result.stack_index == index):
        angles = Rotation.from_matrix(rotation[s]).as_euler("xyz")
        row = rows[int(result.slice_index[s])]
        for name, values in (("trans", shift[s]), ("rot", angles), ("centre", centre[s])):
            row |= {f"{name}_{axis}": float(value) for axis, value in zip("xyz", values, strict=True)}
        row |= {
            "gain": float(result.gain[s]),
            "weight": float(result.weight[s]),
            "ncc": float(result.ncc[s]),
            "rejected": int(result.rejected[s]),
        }
    return rows


def format_table(rows: list[dict]) -> str:
    r"""Format rows as tab-separated text with a header; ``n/a`` where there is no number.

    Numbers have nine digits after the point, far under what the fit knows, so that rounding is not
    seen.

    Examples
    --------
    >>> format_table([{"slice": 0, "gain": 1.0}, {"slice": 1, "gain": None}])
    'slice\tgain\n0\t1.000000000\n1\tn/a\n'
    """

    def text(value: float | int | None) -> str:
        if isinstance(value, float):
            return f"{value + 0.0:.9f}" if np.isfinite(value) else "n/a"
        return "n/a" if value is None else str(value)

    lines = ["\t".join(rows[0])] + ["\t".join(text(value) for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"


def slice_transforms(result: SvrResult, index: int, depth: int) -> np.ndarray:
    """Return the world RAS+ transforms scanner -> anatomy of every slice of a stack, (depth, 4, 4).

    Slices without brain move as their whole stack did in the co-registration.
    """
    transforms = np.tile(result.stack_affine[index], (depth, 1, 1))
    mine = np.flatnonzero(result.stack_index == index)
    transforms[result.slice_index[mine]] = result.motion[mine].as_affines(result.nominal[mine])
    return transforms


def _order(slice_timing: Sequence[float] | None, depth: int) -> list[int | None]:
    times = np.asarray(slice_timing if slice_timing is not None else [], dtype=float).ravel()
    if times.size != depth or not np.isfinite(times).all():
        return [None] * depth
    return [int(place) for place in np.unique(times, return_inverse=True)[1]]
