# SPDX-License-Identifier: Apache-2.0
"""How far a reconstruction is turned from its template: an atlas scanned in any orientation, and laid on the atlas.

    python benchmarks/svr_template.py --seeds 1 2 3 4 5 6 7 8 9 10 --output template.json

Each seed turns the brain of each age at random, scans it in three stacks that move, reconstructs these and lays the
reconstruction on the fetal templates of the package: on all of them, and on those of other ages alone, as a stranger's
brain would be. The error is the angle between the orientation found and that of the atlas the brain came from; the
brain of 22 weeks lies 10 degrees from how those of 25 and 28 weeks lie. ``--wide`` grows the masks by as many mm.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import machine, say, shared_folder, write_json
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.masking.template import WEEKS, fetal_templates, load_template
from gsbids.recon.fitting import poses
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.registration.register import register_stacks
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.template import align_to_templates, brain_of_result
from gsbids.simulate.acquire import Acquisition
from gsbids.simulate.dataset import SimulationSettings, simulate_stacks
from gsbids.simulate.phantom import Phantom

FILES = {22: "GA22_notoperated", 25: "GA25_operated", 28: "GA28_operated"}
RIGHT = 20.0  # degrees
QUICK = {"iterations": 40, "n_gaussians": 2000, "members": 1}  # poses and outlines are all that is needed
SETTINGS = SimulationSettings(
    orientations=("axial", "coronal", "sagittal"),
    angle=4.0,
    shift=2.5,
    acquisition=Acquisition(in_plane=1.4, thickness=4.0, spacing=4.0),
)


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
    image, mask = (
        ndimage.affine_transform(a.astype(np.float32), index[:3, :3], index[:3, 3], (count,) * 3, order=1)
        for a in (atlas.image, atlas.mask)
    )
    return Phantom(image * 1000 / np.percentile(atlas.image[atlas.mask], 99), mask > 0.5, affine), move


def reconstructed(atlas: Stack, seed: int, threads: int = 1) -> tuple[Stack, np.ndarray]:
    """An atlas in a random pose as reconstructed from moving stacks, and the true atlas -> scanner transform (4, 4)."""
    phantom, move = turned_phantom(atlas, Rotation.random(random_state=seed).as_matrix())
    settings = SimulationSettings(**{**vars(SETTINGS), "seed": seed})
    acquired = simulate_stacks(settings, phantom)
    stacks = [
        Stack(f"run-{n}", a.image, a.mask, a.affine, settings.acquisition.thickness)
        for n, a in enumerate(acquired, start=1)
    ]
    result = fit_svr(stacks, register_stacks(stacks, threads).transforms, SvrOptions(**QUICK, threads=threads))
    true = np.array([acquired[n].transforms[k] for n, k in zip(result.stack_index, result.slice_index, strict=True)])
    gauge = poses.mean_correction(result.motion, result.nominal.moved(true), result.weight)
    return brain_of_result(result, stacks), gauge @ move


def aligned(brain: Stack, move: np.ndarray, templates: list[Stack]) -> dict:
    """Angle of the error (degrees), and what the alignment says of itself."""
    begun = time.process_time()
    number, found = align_to_templates(brain, templates)
    error = found.transform[:3, :3] @ move[:3, :3]
    return {
        "template": templates[number].name,
        "error": angle(error),
        "similarity": found.similarity,
        "runner_up": found.runner_up,
        "doubt": found.doubt,
        "cpu": time.process_time() - begun,
    }


def angle(rotation: np.ndarray) -> float:
    """Of a rotation matrix, degrees."""
    return float(np.degrees(Rotation.from_matrix(rotation).magnitude()))


def wider(brain: Stack, millimetres: float) -> Stack:
    """The same with a mask that is larger all around."""
    return replace(brain, mask=ndimage.distance_transform_edt(~brain.mask, brain.spacing) <= millimetres)


def main() -> None:
    """Run the seeds that were asked for, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--ages", type=int, nargs="+", default=(22, 25, 28), help="of the brains, weeks")
    parser.add_argument("--wide", type=float, default=0.0, help="mm by which masks are too wide")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    packaged = {
        age: replace(template.brain, name=str(age)) for age, template in zip(WEEKS, fetal_templates(), strict=True)
    }
    rows = []
    for age in args.ages:
        atlas = load_template(shared_folder() / "data" / "fetal-atlas-spinabifida" / f"{FILES[age]}_srr.nii.gz")
        for seed in args.seeds:
            brain, move = reconstructed(atlas, seed)
            for kind, templates in (
                ("all ages", list(packaged.values())),
                ("other ages", [brain for week, brain in packaged.items() if week != age]),
            ):
                rows.append(
                    {"age": age, "seed": seed, "templates": kind, "turned": angle(move[:3, :3])}
                    | aligned(wider(brain, args.wide) if args.wide else brain, move, templates)
                )
                say(
                    ", ".join(
                        f"{key} {value if isinstance(value, str) else format(value, '.3g')}"
                        for key, value in rows[-1].items()
                    )
                )
    counts = {kind: counted([row for row in rows if row["templates"] == kind]) for kind in ("all ages", "other ages")}
    say(str(counts))
    write_json(
        args.output, {"benchmark": "template", "machine": machine(), "wide": args.wide, "rows": rows, "counts": counts}
    )


def counted(rows: list[dict]) -> dict:
    """How many lie right, wrong, and are not to be trusted."""
    return {
        "of": len(rows),
        "right": sum(row["error"] < RIGHT and not row["doubt"] for row in rows),
        "wrong and not said": sum(row["error"] >= RIGHT and not row["doubt"] for row in rows),
        "doubted": sum(bool(row["doubt"]) for row in rows),
        "median error": float(np.median([row["error"] for row in rows])),
    }


if __name__ == "__main__":
    main()
