# SPDX-License-Identifier: Apache-2.0
"""Pictures of the benchmarks: volumes side by side in one frame, their errors, and their convergence."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from gsbids.imaging.nifti import load_image, save_image
from gsbids.simulate.compare import align_rigid

PLANES = ("sagittal", "coronal", "axial")


def on_grid(image: Path, grid_of: Path) -> np.ndarray:
    """An image by its own place in the scanner, on the grid of another file (linear)."""
    data, affine = load_image(image)
    grid, grid_affine = load_image(grid_of)
    index = np.linalg.inv(affine) @ grid_affine
    return ndimage.affine_transform(data, index[:3, :3], index[:3, 3], grid.shape, order=1)


def upright(volume: Path, folder: Path, spacing: float = 0.8) -> tuple[Path, Path]:
    """A volume without negative background on a grid along the world's axes, and its brain mask."""
    data, affine = load_image(volume)
    data = np.clip(data, 0, None)
    inside = np.argwhere(data > 0) @ affine[:3, :3].T + affine[:3, 3]
    low, high = inside.min(0) - 3, inside.max(0) + 3
    shape = tuple(np.ceil((high - low) / spacing).astype(int) + 1)
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = low
    index = np.linalg.inv(affine) @ grid
    where = {"matrix": index[:3, :3], "offset": index[:3, 3], "output_shape": shape, "order": 1}
    mask = ndimage.affine_transform((data > 0).astype(np.float32), **where) > 0.5
    folder.mkdir(parents=True, exist_ok=True)
    return (
        save_image(folder / "reference.nii.gz", ndimage.affine_transform(data, **where), grid),
        save_image(folder / "reference_mask.nii.gz", mask, grid, dtype="uint8"),
    )


def aligned_rows(volumes: dict[str, Path], reference: Path, mask: Path) -> dict[str, np.ndarray]:
    """Volumes on the grid of the reference, each rigidly aligned to it inside the mask."""
    rows = {}
    for name, path in volumes.items():
        image, filled = align_rigid(path, reference, mask)
        rows[name] = np.where(filled, image, 0)
    return rows


def draw_planes(path: Path, rows: dict[str, np.ndarray], mask: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> None:
    """Write a PNG: one row a volume, its three planes through the middle of the mask.

    Grey values go from 0 to the 99.5th percentile inside the mask, for each volume on its own.
    """
    plt = _pyplot()
    middle = np.round(np.argwhere(mask).mean(0)).astype(int)
    box = [slice(max(0, i.min() - 4), i.max() + 5) for i in np.nonzero(mask)]
    widths = [(box[b].stop - box[b].start) * spacing[b] for b in (1, 0, 0)]
    heights = [(box[b].stop - box[b].start) * spacing[b] for b in (2, 2, 1)]
    height = 2.6 * len(rows)
    figure, axes = plt.subplots(
        len(rows),
        3,
        figsize=(2.6 * sum(widths) / max(heights) + 0.3, height),
        squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.02, "hspace": 0.02},
    )
    for line, (name, volume) in zip(axes, rows.items(), strict=True):
        top = np.percentile(volume[mask], 99.5)
        for axis, place in enumerate(line):
            cut = [b if k != axis else middle[axis] for k, b in enumerate(box)]
            across, up = [k for k in range(3) if k != axis]
            place.imshow(
                volume[tuple(cut)].T,
                cmap="gray",
                vmin=0,
                vmax=top,
                origin="lower",
                aspect=spacing[up] / spacing[across],
                interpolation="nearest",
            )
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    for plane, place in zip(PLANES, axes[0], strict=True):
        place.set_title(plane, fontsize=9)
    _save(figure, path)


def draw_errors(path: Path, aligned: dict[str, Path], truth: Path, mask: Path) -> None:
    """Write a PNG: the truth, and below it every volume and its error, in three planes through the brain.

    Parameters
    ----------
    path : Path
    aligned : dict of str to Path
        Volumes on the truth's grid in its intensities, as ``score.py --save-aligned`` writes them.
    truth, mask : Path
        Errors go from -15 % (blue) to 15 % (red) of the truth's largest value in the mask.
    """
    plt = _pyplot()
    image, brain = load_image(truth)[0], load_image(mask)[0] > 0.5
    top, limit = np.percentile(image[brain], 99.5), 0.15 * image[brain].max()
    middle = np.round(np.argwhere(brain).mean(0)).astype(int)
    box = [slice(max(0, i.min() - 4), i.max() + 5) for i in np.nonzero(brain)]
    widths = [box[b].stop - box[b].start for b in (1, 0, 0)]
    rows = {"truth": image * brain} | {name: load_image(file)[0] for name, file in aligned.items()}
    figure, axes = plt.subplots(
        len(rows),
        6,
        figsize=(13, 2.3 * len(rows)),
        squeeze=False,
        gridspec_kw={"width_ratios": 2 * widths, "wspace": 0.02, "hspace": 0.02},
    )
    for line, (name, volume) in zip(axes, rows.items(), strict=True):
        for axis in range(3):
            cut = tuple(b if k != axis else middle[axis] for k, b in enumerate(box))
            line[axis].imshow(volume[cut].T, cmap="gray", vmin=0, vmax=top, origin="lower")
            if name == "truth":
                line[3 + axis].set_visible(False)
                continue
            error = np.where(brain, volume - image, 0)[cut]
            line[3 + axis].imshow(error.T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower")
        for place in line:
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    _save(figure, path)


def draw_convergence(path: Path, curves: dict[str, list[dict]]) -> None:
    """Write a PNG: PSNR and SSIM of every method against the seconds that its fit has taken.

    Parameters
    ----------
    path : Path
    curves : dict of str to list of dict
        By method, points with ``seconds``, ``psnr`` (dB) and ``ssim``.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for place, key, label in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for name, curve in curves.items():
            place.plot([point["seconds"] for point in curve], [point[key] for point in curve], ".-", label=name)
        place.set(xscale="log", xlabel="seconds of the fit", ylabel=label)
        place.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    _save(figure, path)


def draw_calibration(path: Path, curves: dict[str, list[dict]]) -> None:
    """Write a PNG: RMS error against predicted sigma, a line for each case; on the diagonal they are alike.

    Parameters
    ----------
    path : Path
    curves : dict of str to list of dict
        By case, bins with ``sigma`` and ``error``, both in the intensities of the volume.
    """
    plt = _pyplot()
    figure, place = plt.subplots(figsize=(4.6, 4.2))
    for name, bins in curves.items():
        place.plot([b["sigma"] for b in bins], [b["error"] for b in bins], "o-", markersize=4, label=name)
    values = [b[key] for bins in curves.values() for b in bins for key in ("sigma", "error")]
    ends = [0.9 * min(values), 1.1 * max(values)]
    place.plot(ends, ends, "--", color="0.5", linewidth=1)
    place.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", xlabel="predicted sigma", ylabel="RMS error"
    )
    place.grid(alpha=0.3, which="both")
    place.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.05, metadata={"Software": None})
    _pyplot().close(figure)
