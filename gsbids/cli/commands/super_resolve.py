# SPDX-License-Identifier: Apache-2.0
"""``gsbids super-resolve``: from one file to one finer file, without BIDS."""

import argparse
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gsbids.cli.argument_types import OneOrThree
from gsbids.cli.devices import device_words, resolve_device
from gsbids.cli.options import add_device
from gsbids.cli.parser import Parser
from gsbids.cli.places import spare_places
from gsbids.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LOGGER = logging.getLogger("gsbids.cli")
COMMAND = "super-resolve"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``gsbids super-resolve``."""
    parser = Parser(
        prog=f"gsbids {COMMAND}",
        allow_abbrev=False,
        description="Make a finer volume from one volume alone; nothing is learned from other scans.",
    )
    parser.add_argument("input", type=Path, metavar="IN.nii.gz", help="3D volume")
    parser.add_argument("output", type=Path, metavar="OUT.nii.gz", help="the finer volume")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--factor",
        type=positive,
        nargs="+",
        action=OneOrThree,
        metavar="X",
        default=(),
        help="how many times finer, one number or one for each array axis",
    )
    size.add_argument(
        "--output-resolution",
        type=positive,
        nargs="+",
        action=OneOrThree,
        metavar="MM",
        default=(),
        help="voxel size, one number or one for each array axis",
    )
    size.add_argument("--like", type=Path, metavar="GRID.nii.gz", help="the grid of this image")
    parser.add_argument(
        "--sr-quality",
        choices=("full", "fast"),
        default="full",
        help="fast: the linear solution, in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        choices=("auto", "trilinear", "box", "gaussian", "kspace"),
        default="auto",
        help="point-spread function assumed for the voxels; auto: the mean over the "
        "voxel, and a Gaussian slice profile across thick slices (default: %(default)s)",
    )
    parser.add_argument(
        "--slice-thickness",
        type=positive,
        metavar="MM",
        help="of thick slices, instead of SliceThickness in the sidecar",
    )
    parser.add_argument("--model", type=Path, metavar="MODEL.npz", help="write the Gaussians here as well")
    parser.add_argument("--random-seed", type=int, default=0, metavar="INT")
    add_device(parser)
    parser.add_argument("--nprocs", "--nthreads", type=int, metavar="INT", help="threads (default: all)")
    parser.add_argument("-v", "--verbose", dest="verbosity", action="count", default=0, help="say more")
    args = parser.parse_args(argv)
    if not args.output.name.endswith((".nii", ".nii.gz")):
        parser.error(f"{args.output}: the output's name must end with .nii.gz or .nii")
    if (args.nprocs is not None and args.nprocs < 1) or args.random_seed < 0:
        parser.error("--nprocs must be at least 1 and --random-seed at least 0")
    return args


def run(args: argparse.Namespace) -> int:
    """Read, super-resolve, write under a temporary name and rename; return 0."""
    for file in filter(None, (args.output, args.model)):
        if not file.parent.is_dir():
            raise InputError(f"{file.parent}: there is no such folder; make it first")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise InputError(f"{args.output}: this is the input; give the output another name")
    with spare_places(args.output):
        return _super_resolve(args)


def _super_resolve(args: argparse.Namespace) -> int:
    import numpy as np

    from gsbids.imaging.nifti import load_image, read_header, save_image
    from gsbids.recon.sr.fit import super_resolve
    from gsbids.recon.sr.options import SrOptions
    from gsbids.recon.sr.sample import sample_sr
    from gsbids.recon.sr.target import SrTarget, target_grid

    data, affine = load_image(args.input)
    like = read_header(args.like) if args.like else None
    target = SrTarget(args.factor, args.output_resolution, like)
    try:
        grid, other = target_grid(data.shape, affine, target)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    profile, width = _profile(args, np.linalg.norm(affine[:3, :3], axis=0))
    options = SrOptions(
        quality=args.sr_quality,
        profile=profile,
        profile_width=width,
        seed=args.random_seed,
        threads=args.nprocs or len(os.sched_getaffinity(0)),
        device=resolve_device(args.device),
    )
    LOGGER.info(
        "%s: %s voxels to %s, profile %s, device %s",
        args.input,
        by(data.shape),
        by(grid.shape),
        ", ".join(profile),
        device_words(options.device),
    )
    result = super_resolve(data, affine, grid, options, LOGGER.info)
    if other is None:
        save_image(args.output, result.volume, result.affine)
    else:
        save_image(args.output, sample_sr(result, other[1], other[0], options.device), other[1])
    if args.model:
        result.save(args.model)
    LOGGER.info("wrote %s", args.output)
    return 0


def _profile(
    args: argparse.Namespace, spacing: "np.ndarray"
) -> tuple[tuple[str, str, str], tuple[float, float, float]]:
    """Return profile and width of every axis."""
    from gsbids.recon.sr.target import is_thick, voxel_profile

    thickness = args.slice_thickness or _sidecar_thickness(args.input)
    if args.slice_thickness and not is_thick(spacing, thickness):
        raise InputError(
            f"--slice-thickness was given, but {args.input} has voxels of {by(spacing.round(3))} mm, "
            "which are no thick slices: leave it out"
        )
    return voxel_profile(spacing, thickness, args.profile)


def _sidecar_thickness(path: Path) -> float | None:
    """Read ``SliceThickness`` (mm) from the JSON file beside an image, if there is one."""
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.is_file():
        return None
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8")).get("SliceThickness")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{sidecar}: this is not a JSON object ({error}); correct or remove it") from error
    return float(value) if isinstance(value, int | float) and value > 0 else None


def positive(text: str) -> float:
    """Parse a number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def by(numbers: Iterable[float]) -> str:
    """Format numbers as people write a size.

    >>> by((2, 1.5))
    '2 x 1.5'
    """
    return " x ".join(f"{n:g}" for n in numbers)
