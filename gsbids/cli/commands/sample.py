# SPDX-License-Identifier: Apache-2.0
"""``gsbids sample``: the image of a saved model on any grid, without another fit."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsbids.cli.argument_types import OneOrThree
from gsbids.cli.commands.super_resolve import by, positive
from gsbids.cli.devices import device_words, resolve_device
from gsbids.cli.options import add_device
from gsbids.cli.parser import Parser
from gsbids.cli.places import spare_places
from gsbids.errors import InputError

if TYPE_CHECKING:
    import numpy as np


LOGGER = logging.getLogger("gsbids.cli")
COMMAND = "sample"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``gsbids sample``."""
    parser = Parser(
        prog=f"gsbids {COMMAND}",
        allow_abbrev=False,
        description="Sample a model of Gaussians, of a reconstruction or a super-resolution, on any grid. "
        "Gaussians are evaluated at the voxel centres; nothing is fitted.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.npz", help="*_desc-gaussians_model.npz")
    parser.add_argument("output", type=Path, metavar="OUT.nii.gz", help="the volume")
    _add_grid(parser, parser.add_mutually_exclusive_group())
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="MASK.nii.gz",
        help="0 beyond this brain mask (of a reconstruction: and its rim); without it the whole field of view",
    )
    parser.add_argument(
        "--transform",
        type=Path,
        metavar="TXT",
        help="the ITK transform of a reconstruction to a template (*_to-template_mode-image_xfm.txt): "
        "grid, mask and volume lie in the space of the template",
    )
    parser.add_argument(
        "--orientation",
        choices=("scanner", "radiological"),
        default="scanner",
        help="order of the voxels: as those of the grid, or with the first axis turned round where it "
        "runs to the right (default: %(default)s)",
    )
    add_device(parser)
    parser.add_argument("--nprocs", "--nthreads", type=int, metavar="INT", help="threads (default: all)")
    parser.add_argument("-v", "--verbose", dest="verbosity", action="count", default=0, help="say more")
    args = parser.parse_args(argv)
    if not (args.spacing or args.factor or args.like):
        parser.error("one of --spacing, --factor and --like is required")
    if not args.output.name.endswith((".nii", ".nii.gz")):
        parser.error(f"{args.output}: the output's name must end with .nii.gz or .nii")
    if args.nprocs is not None and args.nprocs < 1:
        parser.error("--nprocs must be at least 1")
    return args


def _add_grid(parser: Parser, size: Any) -> None:
    size.add_argument(
        "--spacing",
        type=positive,
        nargs="+",
        action=OneOrThree,
        metavar="MM",
        help="voxel size, one number or one for each array axis",
    )
    size.add_argument(
        "--factor",
        type=positive,
        nargs="+",
        action=OneOrThree,
        metavar="F",
        help="how many times finer than the image that was super-resolved, or than --like",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="GRID.nii.gz",
        help="the grid of this image; with --spacing or --factor: its field of view",
    )


def run(args: argparse.Namespace) -> int:
    """Load, sample, write under a temporary name and rename; return 0."""
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output.parent}: there is no such folder; make it first")
    for given in filter(None, (args.like, args.mask, args.transform)):
        if args.output.exists() and given.exists() and args.output.samefile(given):
            raise InputError(f"{args.output}: this is an input; give the output another name")
    with spare_places(args.output):
        return _sample(args)


def _sample(args: argparse.Namespace) -> int:
    import numba
    import numpy as np

    from gsbids.imaging.nifti import save_image
    from gsbids.recon.models import load_model, sample_model
    from gsbids.recon.volume.sample import in_order

    threads = args.nprocs or len(os.sched_getaffinity(0))
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    model = load_model(args.model)
    mask = _mask(args.mask) if args.mask else None
    transform = _transform(args, model)
    affine, shape = _grid(args, model, transform)
    if mask and transform is not None:
        mask = mask[0], np.linalg.inv(transform) @ mask[1]
    here = affine if transform is None else np.linalg.inv(transform) @ affine
    device = resolve_device(args.device)
    LOGGER.info(
        "%s: %s on %s voxels, device %s",
        args.model,
        type(model).__name__.removesuffix("Result").upper(),
        by(shape),
        device_words(device),
    )
    image = sample_model(model, here, shape, mask, device)
    if args.orientation == "radiological" and affine[0, 0] > 0:
        image, affine = in_order(image, affine, args.orientation)
    save_image(args.output, image, affine)
    LOGGER.info("wrote %s", args.output)
    return 0


def _mask(path: Path) -> tuple:
    """Return the voxels inside a mask, and its affine."""
    from gsbids.imaging.masks import inside_of
    from gsbids.imaging.nifti import load_image

    values, affine = load_image(path)
    try:
        inside, soft = inside_of(values)
    except InputError as error:
        raise InputError(f"--mask {path}: {error}; give a mask with the brain in it") from error
    if soft:
        LOGGER.warning("--mask %s: %s", path, soft)
    return inside, affine


def _transform(args: argparse.Namespace, model: Any) -> "np.ndarray | None":
    """Read the transform from the world of the model to that of the template, (4, 4).

    None without ``--transform``.
    """
    if not args.transform:
        return None
    from gsbids.imaging.itk import read_itk_transforms
    from gsbids.recon.sr.result import SrResult

    if isinstance(model, SrResult):
        raise InputError(f"--transform: {args.model} is a super-resolved volume, which has no template; leave it out")
    try:
        found = read_itk_transforms(args.transform)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a text file of ITK"
        raise InputError(
            f"--transform {args.transform}: cannot be read ({why}); give a *_to-template_mode-image_xfm.txt"
        ) from error
    if len(found) != 1:
        raise InputError(
            f"--transform {args.transform}: holds {len(found)} transforms, and one is expected; give a "
            "*_to-template_mode-image_xfm.txt"
        )
    return found[0]


def _grid(
    args: argparse.Namespace, model: Any, transform: "np.ndarray | None" = None
) -> "tuple[np.ndarray, tuple[int, ...]]":
    """Return affine and shape of the requested grid."""
    from gsbids.imaging.masks import check_overlap
    from gsbids.imaging.nifti import read_header
    from gsbids.recon.models import grid_of_factor, grid_of_spacing, model_grid
    from gsbids.recon.sr.result import SrResult

    if args.like:
        shape, affine = read_header(args.like)
        room, size = model_grid(model, transform)
        check_overlap((shape, affine), (size, room), (f"--like {args.like}", f"{args.model}"))
    elif args.factor and isinstance(model, SrResult):
        affine, shape = model.coarse_affine, model.filled.shape
    elif args.factor:
        raise InputError(
            f"--factor: {args.model} is a reconstruction from stacks, which has no voxels that others "
            "could be finer than; give --spacing MM, or --like GRID.nii.gz with it"
        )
    else:
        affine, shape = model_grid(model, transform)
    if args.spacing:
        return grid_of_spacing(affine, shape, args.spacing)
    if args.factor:
        return grid_of_factor(affine, shape, args.factor)
    return affine, shape
