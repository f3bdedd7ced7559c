# SPDX-License-Identifier: Apache-2.0
"""How far a reconstruction is turned from its template: an atlas scanned in any orientation, aligned to another age.

    python benchmarks/svr_template.py --seeds 1 2 3 4 5 6 --output template.json

Each seed turns the brain of the first atlas at random, scans it in three stacks that move, reconstructs these and
aligns the reconstruction to the other atlas. The error is the angle between the orientation found and the true one;
both atlases are taken to be turned alike, which holds within a degree for 25 and 28 weeks (what both show when nothing
is turned).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from common import machine, say, shared_folder, write_json
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.masking.template import load_template
from gsbids.recon import poses
from gsbids.recon.fit_svr import fit_svr
from gsbids.recon.options import SvrOptions
from gsbids.recon.register import register_stacks
from gsbids.recon.template import align_to_template, brain_of_result
from gsbids.simulate.acquire import Acquisition
from gsbids.simulate.dataset import SimulationSettings, simulate_stacks
from gsbids.simulate.phantom import Phantom

FILES = {22: "GA22_notoperated", 25: "GA25_operated", 28: "GA28_operated"}
QUICK = {"iterations": 40, "n_gaussians": 2000, "members": 1}  # poses and outlines are all that is needed
SETTINGS = SimulationSettings(orientations=("axial", "coronal", "sagittal"), angle=4.0, shift=2.5,
                              acquisition=Acquisition(in_plane=1.4, thickness=4.0, spacing=4.0))


def turned_phantom(atlas: Stack, turn: np.ndarray, voxel: float = 1.0) -> tuple[Phantom, np.ndarray]:
    """An atlas turned about the middle of its brain, as the simulator scans it, and atlas -> phantom (4, 4)."""
    brain = np.argwhere(atlas.mask) @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
    middle = (brain.min(0) + brain.max(0)) / 2
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, -turn @ middle
    count = int(np.ceil(2 * (np.linalg.norm(brain - middle, axis=1).max() + 6) / voxel)) + 1
    affine = np.diag([voxel] * 3 + [1.0])
    affine[:3, 3] = -voxel * (count - 1) / 2
    index = np.linalg.inv(move @ atlas.affine) @ affine
    image, mask = (ndimage.affine_transform(a.astype(np.float32), index[:3, :3], index[:3, 3], (count,) * 3, order=1)
                   for a in (atlas.image, atlas.mask))
    return Phantom(image * 1000 / np.percentile(atlas.image[atlas.mask], 99), mask > 0.5, affine), move


def reconstruct_and_align(atlas: Stack, template: Stack, seed: int, threads: int = 1) -> dict:
    """Angle of the error (degrees), and what the alignment says of itself."""
    turn = Rotation.random(random_state=seed).as_matrix()
    phantom, move = turned_phantom(atlas, turn)
    settings = SimulationSettings(**{**vars(SETTINGS), "seed": seed})
    acquired = simulate_stacks(settings, phantom)
    stacks = [Stack(f"run-{n}", a.image, a.mask, a.affine, settings.acquisition.thickness)
              for n, a in enumerate(acquired, start=1)]
    result = fit_svr(stacks, register_stacks(stacks, threads).transforms, SvrOptions(**QUICK, threads=threads))
    true = np.array([acquired[n].transforms[k] for n, k in zip(result.stack_index, result.slice_index, strict=True)])
    gauge = poses.mean_correction(result.motion, result.nominal.moved(true), result.weight)
    begun = time.perf_counter()
    found = align_to_template(brain_of_result(result, stacks), template)
    error = found.transform[:3, :3] @ (gauge @ move)[:3, :3]
    return {"seed": seed, "turned": float(np.degrees(Rotation.from_matrix(turn).magnitude())),
            "error": float(np.degrees(Rotation.from_matrix(error).magnitude())), "similarity": found.similarity,
            "runner_up": found.runner_up, "seconds": time.perf_counter() - begun}


def main() -> None:
    """Run the seeds that were asked for, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 7)))
    parser.add_argument("--ages", type=int, nargs=2, default=(28, 25), help="of the brain and of the template, weeks")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    atlas, template = (load_template(
        shared_folder() / "data" / "fetal-atlas-spinabifida" / f"{FILES[age]}_srr.nii.gz") for age in args.ages)
    rows = []
    for seed in args.seeds:
        rows.append(reconstruct_and_align(atlas, template, seed))
        say(", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()))
    success = sum(row["error"] < 5 for row in rows)
    say(f"{success} of {len(rows)} within 5 degrees")
    write_json(args.output, {"benchmark": "template", "machine": machine(), "ages": list(args.ages), "rows": rows,
                             "within_5_degrees": success})


if __name__ == "__main__":
    main()
