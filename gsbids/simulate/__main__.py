# SPDX-License-Identifier: Apache-2.0
"""``python -m gsbids.simulate OUT``: write simulated stacks, or score a volume against their truth."""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from gsbids.errors import GsbidsError, InputError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m gsbids.simulate",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Simulate thick-slice stacks of a moving fetal head as a BIDS data set, "
        "or score a reconstruction of them.",
    )
    parser.add_argument("out", type=Path, help="BIDS data set to write, or with --score: to compare with")
    parser.add_argument(
        "--score",
        type=Path,
        metavar="VOLUME",
        default=argparse.SUPPRESS,
        help="do not simulate: compare this volume, and the plain average, with the truth",
    )
    parser.add_argument("--json", action="store_true", help="print the score as JSON")
    parser.add_argument("--subject", default="01", help="label without sub-")
    parser.add_argument(
        "--stacks",
        nargs="+",
        default=["axial", "coronal", "sagittal", "axial"],
        choices=("axial", "coronal", "sagittal"),
        help="orientation of each stack",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    parser.add_argument("--brain-ml", type=float, default=140.0, help="volume of the brain, ml")
    parser.add_argument("--voxel", type=float, default=0.6, help="voxel of the phantom, mm")
    parser.add_argument("--truth-resolution", type=float, default=0.8, help="voxel of the truth, mm")
    parser.add_argument("--in-plane", type=float, default=1.1, help="pixel size, mm")
    parser.add_argument("--thickness", type=float, default=3.0, help="slice thickness, mm")
    parser.add_argument("--spacing", type=float, default=3.3, help="distance between slices, mm")
    parser.add_argument("--noise", type=float, default=0.02, help="noise over the signal of fluid")
    parser.add_argument("--angle", type=float, default=5.0, help="largest rotation within the scan, degrees")
    parser.add_argument("--shift", type=float, default=3.0, help="largest shift within the scan, mm")
    parser.add_argument("--drop", type=float, default=0.05, help="part of the slices that lose their signal")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0, or 2 when files or options cannot be used.
    """
    args = build_parser().parse_args(argv)
    try:
        return _score(args) if hasattr(args, "score") else _simulate(args)
    except GsbidsError as error:
        print(f"gsbids.simulate: error: {error}", file=sys.stderr)
        return error.exit_code


def _simulate(args: argparse.Namespace) -> int:
    from gsbids.simulate.acquire import Acquisition
    from gsbids.simulate.dataset import SimulationSettings, simulate_dataset

    acquisition = Acquisition(
        in_plane=args.in_plane, thickness=args.thickness, spacing=args.spacing, noise=args.noise, drop=args.drop
    )
    files = simulate_dataset(
        args.out,
        SimulationSettings(
            subject=args.subject,
            orientations=tuple(args.stacks),
            seed=args.seed,
            phantom_voxel=args.voxel,
            brain_ml=args.brain_ml,
            truth_resolution=args.truth_resolution,
            acquisition=acquisition,
            angle=args.angle,
            shift=args.shift,
        ),
    )
    print(f"{len(files.stacks)} stacks of sub-{args.subject}: {files.root}, their truth: {files.truth_root}")
    return 0


def _score(args: argparse.Namespace) -> int:
    from gsbids.imaging.nifti import save_image
    from gsbids.simulate.compare import average_of_stacks, compare_to_truth

    sub = f"sub-{args.subject}"
    truth = args.out / "derivatives" / "truth" / sub / "anat"
    masks = sorted((args.out / "derivatives" / "masks" / sub / "anat").glob("*_mask.nii.gz"))
    stacks = sorted((args.out / sub / "anat").glob("*_T2w.nii.gz"))
    if not stacks or len(stacks) != len(masks):
        raise InputError(
            f"{args.out}: no simulated stacks of {sub} with masks; "
            "simulate them first (the same command without --score)"
        )
    known = (truth / f"{sub}_desc-truth_T2w.nii.gz", truth / f"{sub}_desc-brain_mask.nii.gz")
    scores = {"reconstruction": compare_to_truth(args.score, *known)}
    with tempfile.TemporaryDirectory() as folder:
        average, affine = average_of_stacks(stacks, masks, args.truth_resolution)
        file = save_image(Path(folder) / "average.nii.gz", average, affine)
        scores["average of stacks"] = compare_to_truth(file, *known)
    if args.json:
        print(json.dumps({name: asdict(score) for name, score in scores.items()}))
        return 0
    print(f"against the truth, in the brain {'PSNR':>10} {'NCC':>8}")
    for name, score in scores.items():
        print(f"  {name:<28} {score.psnr:>7.2f} dB {score.ncc:>8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
