#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Super-resolution of one volume: gsbids beside interpolation and the linear optimum, on volumes made coarse for it.

    python benchmarks/super_resolution.py --json OUT.json --figures DIR
    python benchmarks/super_resolution.py --volumes stroke-T2 --cases x2 thick --crop 72 --methods bspline gsbids

Cases: ``x2``, ``x3``, ``x4``, ``arbitrary`` (2.4 x 2.0 x 1.56), all by trilinear decimation of the whole volume
(``torch.nn.functional.interpolate``, ``align_corners=False``), ``thick`` (1 x 1 x 4 by a Gaussian slice profile as wide
as the slices are apart) and ``rician`` (x2 with 3 % Rician noise). ``ablation`` adds the paper's Table 3 at x2. Every
method gets the coarse volume only; the fine one scores. Tuned on ``stroke-T1``, ``icbm152`` and, to a lesser degree,
``atlas-GA25``; the others score. Needs the ``bench`` extra: ``make bench-install``.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numba
import numpy as np
import torch
from common import forget_peak, machine, peak_gb, say, shared_folder, write_json
from siren import siren
from sr_results import KINDS, SETS, summarise
from sr_scores import energy_above, scores

from gsbids.imaging.nifti import load_image
from gsbids.recon.sr.fit import super_resolve
from gsbids.recon.sr.grid import grid_by_factor, grid_by_shape
from gsbids.recon.sr.interpolation import interpolate
from gsbids.recon.sr.options import SrOptions
from gsbids.recon.sr.sampling_operator import SamplingOperator
from gsbids.recon.sr.sobolev import sobolev

FACTORS = {
    "x2": (2, 2, 2),
    "x3": (3, 3, 3),
    "x4": (4, 4, 4),
    "arbitrary": (2.4, 2.0, 1.56),
    "thick": (1, 1, 4),
    "rician": (2, 2, 2),
}
NOISE = 0.03
METHODS = ("nearest", "linear", "cubic", "bspline", "lanczos", "sobolev", "siren", "gsbids")
ABLATION = {
    "neither": {"amplitude": False, "proxy": False},
    "amplitude": {"proxy": False},
    "both": {},
    "fixed geometry": {"geometry": False},
    "points": {"forward": "point"},
}


def fine_volume(name: str, crop: int | None) -> np.ndarray:
    """A volume, its intensities brought to [0, 1]; ``crop`` voxels around the middle of what is not 0."""
    data = shared_folder() / "data"
    if name == "icbm152":
        import nilearn

        path = Path(nilearn.__file__).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    elif name.startswith("stroke"):
        path = data / "adult-stroke" / f"{name.replace('-', '_')}.nii.gz"
    else:
        path = next((data / "fetal-atlas-spinabifida").glob(f"{name.removeprefix('atlas-')}*_srr.nii.gz"))
    volume, _ = load_image(path)
    volume = (volume - volume.min()) / (volume.max() - volume.min())
    if crop:
        middle = np.argwhere(volume > 0.02).mean(0).astype(int)
        volume = volume[tuple(slice(max(0, m - crop // 2), m - crop // 2 + crop) for m in middle)]
    return np.ascontiguousarray(volume)


def coarsened(fine: np.ndarray, case: str, seed: int):
    """The coarse volume of a case, the grid back to the fine one, and the operator between them."""
    shape = tuple(int(n // f) for n, f in zip(fine.shape, FACTORS[case], strict=True))
    if case == "thick":
        fine = fine[:, :, : 4 * shape[2]]  # whole slices
    grid = grid_by_shape(shape, np.eye(4), fine.shape)
    profiles = ("trilinear", "trilinear", "gaussian") if case == "thick" else ("trilinear",) * 3
    operator = SamplingOperator.of(grid.axes, profiles)
    if case == "thick":
        coarse = operator(fine)
    else:
        coarse = torch.nn.functional.interpolate(
            torch.from_numpy(fine)[None, None], size=shape, mode="trilinear", align_corners=False
        )[0, 0].numpy()
    if case == "rician":
        noise = NOISE * np.random.default_rng(seed).standard_normal((2, *shape))
        coarse = np.hypot(coarse + noise[0], noise[1]).astype(np.float32)
    return fine, coarse, grid, operator, profiles


def run(args) -> None:
    """Every volume, case and method."""
    result = {
        "benchmark": "super_resolution",
        "machine": machine(),
        "sets": SETS,
        "kinds": KINDS,
        "options": asdict(changed(args, ())),
        "summary": [],
        "records": [],
    }
    warm_up()
    for name in args.volumes:
        whole = fine_volume(name, args.crop)
        for case in args.cases:
            fine, coarse, grid, operator, profiles = coarsened(whole, case, args.seed)
            shares = {"above_half_nyquist": energy_above(fine, 0.5)}
            pictures = {"truth": fine}
            jobs = [(m, None) for m in args.methods]
            if args.ablation and case == "x2":
                jobs += [
                    (f"ablation: {k}", v | {"held_out": 0.0, "members": 1, "nonlocal_steps": 0})
                    for k, v in ABLATION.items()
                ]
            for method, changes in jobs:
                options = changed(args, profiles, changes)
                forget_peak()
                start = time.perf_counter(), time.process_time()
                found, settings = by_method(method, coarse, grid, operator, options)
                cost = {
                    "wall_s": time.perf_counter() - start[0],
                    "cpu_s": time.process_time() - start[1],
                    "peak_gb": peak_gb(),
                }
                entry = {
                    "volume": name,
                    "case": case,
                    "method": method,
                    **scores(found, fine),
                    **shares,
                    **cost,
                    "threads": args.threads,
                    "load": os.getloadavg()[0],
                    "settings": settings,
                }
                result["records"].append(entry)
                result["summary"] = summarise(result["records"])
                pictures[method] = found
                say(
                    f"{name} {case} {method}: PSNR {entry['psnr']:.2f} SSIM {entry['ssim']:.4f} "
                    f"HFEN {entry['hfen']:.3f}  {cost['cpu_s']:.1f} s CPU {cost['peak_gb']:.2f} GB"
                )
                if args.json:
                    write_json(args.json, result)
            if args.figures:
                draw(args.figures / f"{name}_{case}.png", pictures)
    if not args.json:
        write_json(None, result)


def by_method(method: str, coarse, grid, operator, options: SrOptions):
    """The fine volume that a method makes of a coarse one, in [0, ...), and what it chose."""
    if method == "siren":
        return siren(coarse, grid.axes, options.seed, options.threads), {}
    if method == "sobolev":
        return sobolev(coarse, operator), {}
    if method in METHODS[:5]:
        return interpolate(coarse, grid.axes, method), {}
    found = super_resolve(coarse, np.eye(4), grid, options, say)
    return found.volume, found.settings.get("choice", {})


def changed(args, profiles, changes=None) -> SrOptions:
    """Options of a run."""
    given = dict(word.split("=", 1) for word in args.set)
    return SrOptions(
        profile=profiles or "trilinear",
        threads=args.threads,
        seed=args.seed,
        **{k: json.loads(v) for k, v in given.items()},
        **(changes or {}),
    )


def warm_up() -> None:
    """Compile the kernels, outside of what is timed."""
    tiny = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    super_resolve(tiny, np.eye(4), grid_by_factor(tiny.shape, np.eye(4), 2), SrOptions(members=1))


def draw(path: Path, pictures: dict[str, np.ndarray]) -> None:
    """A PNG of the middle slice of each volume, and of its difference from the truth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    truth = pictures["truth"]
    middle = np.argwhere(truth > 0.02).mean(0).astype(int)
    box = [slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(truth > 0.02)]
    names = [n for n in ("truth", "bspline", "sobolev", "gsbids") if n in pictures]
    figure, axes = plt.subplots(4, len(names), figsize=(3.6 * len(names), 14), squeeze=False)
    for column, name in enumerate(names):
        for row, cut in enumerate(((box[0], middle[1], box[2]), (box[0], box[1], middle[2]))):
            image, wanted = pictures[name][cut], truth[cut]
            axes[2 * row, column].imshow(image.T, origin="lower", cmap="gray", vmin=0, vmax=np.percentile(wanted, 99.8))
            axes[2 * row + 1, column].imshow((image - wanted).T, origin="lower", cmap="RdBu", vmin=-0.2, vmax=0.2)
        axes[0, column].set_title(name)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--volumes", nargs="+", choices=list(KINDS), default=list(SETS["scoring"]))
    parser.add_argument("--cases", nargs="+", choices=list(FACTORS), default=list(FACTORS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ablation", action="store_true", help="the paper's Table 3, at x2")
    parser.add_argument("--crop", type=int, help="side of a cube in the middle (default: whole volumes)")
    parser.add_argument("--set", nargs="+", metavar="OPTION=VALUE", default=[], help="fields of SrOptions, in JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    parser.add_argument("--figures", type=Path, help="folder for pictures")
    args = parser.parse_args()
    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    run(args)


if __name__ == "__main__":
    main()
