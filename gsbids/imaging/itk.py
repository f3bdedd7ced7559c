# SPDX-License-Identifier: Apache-2.0
"""Rigid and affine transforms as ITK text files.

In memory a transform moves points of the scanner to the anatomy, in world RAS+ mm. ITK resamples an
image through the points of its output, in LPS mm: a file holds the inverse, with x and y turned
round, so that ``ants.apply_transforms(fixed=volume, moving=stack, transformlist=[file])`` puts the
stack onto the volume.
"""

from pathlib import Path

import numpy as np

from gsbids.atomic import write_atomic
from gsbids.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_KIND = "AffineTransform_double_3_3"


def write_itk_transforms(path: str | Path, transforms: np.ndarray) -> Path:
    """Write transforms as an ITK text file, under a temporary name that is then renamed.

    Parameters
    ----------
    path : path-like
        Text file, ``.txt`` or ``.tfm``.
    transforms : ndarray, (4, 4) or (N, 4, 4)
        World RAS+ mm, scanner -> anatomy (moving points); written one after another.

    Returns
    -------
    pathlib.Path
        ``path``.
    """
    path = Path(path)
    lines = ["#Insight Transform File V1.0"]
    for number, transform in enumerate(np.asarray(transforms, dtype=np.float64).reshape(-1, 4, 4)):
        back = LPS @ np.linalg.inv(transform) @ LPS
        values = [*back[:3, :3].ravel(), *back[:3, 3]]
        # Adding 0 makes -0 a plain 0; repr keeps every bit.
        lines += [
            f"#Transform {number}",
            f"Transform: {_KIND}",
            "Parameters: " + " ".join(repr(float(value) + 0.0) for value in values),
            "FixedParameters: 0 0 0",
        ]
    write_atomic(path, ("\n".join(lines) + "\n").encode("ascii"))
    return path


def read_itk_transforms(path: str | Path) -> np.ndarray:
    """Read the transforms of an ITK text file, as they were in memory.

    Parameters
    ----------
    path : path-like
        Affine or rigid transforms of three dimensions given by a matrix.

    Returns
    -------
    ndarray, (N, 4, 4)
        World RAS+ mm, scanner -> anatomy (moving points).

    Raises
    ------
    gsbids.errors.InputError
        The file holds something else.
    """
    found, values = [], None
    for line in Path(path).read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        if key == "Parameters":
            values = np.array(rest.split(), dtype=np.float64)
        elif key == "FixedParameters":
            centre = np.array(rest.split(), dtype=np.float64)
            if values is None or values.size != 12 or centre.size != 3:
                raise InputError(f"{path}: transforms of 12 parameters (matrix and shift) are expected")
            affine = np.eye(4)
            affine[:3, :3] = values[:9].reshape(3, 3)
            affine[:3, 3] = values[9:] + centre - affine[:3, :3] @ centre
            found.append(np.linalg.inv(LPS @ affine @ LPS))
    if not found:
        raise InputError(f"{path}: no ITK transform in this file; an ITK text file is expected")
    return np.array(found)
