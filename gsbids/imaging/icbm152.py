# SPDX-License-Identifier: Apache-2.0
"""The ICBM152 2009a maps of an adult brain that nilearn ships."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gsbids.errors import GsbidsError


def icbm152_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the tissue maps and the T1-weighted template.

    Returns
    -------
    grey, white, t1 : ndarray, (X, Y, Z), float32
        Fractions of grey and white matter and the T1-weighted template, each 0 to 1, on a grid of 1 mm.
    affine : ndarray, (4, 4)
        Voxel indices to MNI152NLin2009aSym, mm.

    Raises
    ------
    GsbidsError
        nilearn, or the maps in it, are not there.
    """
    import nibabel as nib

    spec = find_spec("nilearn")
    if spec is None:
        raise GsbidsError("The ICBM152 maps of the nilearn package are not there: pip install nilearn")
    folder = Path(spec.origin).parent / "datasets" / "data"  # type: ignore[arg-type]
    maps = []
    for kind in ("gm", "wm", "t1"):
        path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.exists():
            raise GsbidsError(f"{path}: not in this version of nilearn; install the one in constraints.txt")
        image: Any = nib.load(path)
        maps.append(np.asarray(image.dataobj, dtype=np.float32) / 255)
    return (*maps, np.asarray(image.affine, dtype=float))  # type: ignore[return-value]
