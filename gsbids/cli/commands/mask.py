# SPDX-License-Identifier: Apache-2.0
"""``gsbids mask``: the brain mask of one stack, by the network."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from gsbids.cli.parser import Parser
from gsbids.cli.places import spare_places
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.cli")
COMMAND = "mask"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``gsbids mask``."""
    parser = Parser(
        prog=f"gsbids {COMMAND}",
        allow_abbrev=False,
        description="Find the fetal brain in a stack of slices. Look at every mask before you trust it.",
    )
    parser.add_argument("input", type=Path, metavar="STACK.nii.gz", help="stack of 2D slices")
    parser.add_argument("output", type=Path, metavar="OUT.nii.gz", help="the mask, on the grid of the stack")
    parser.add_argument(
        "--mask-weights",
        type=Path,
        metavar="FILE",
        help="weights of a network of your own (.safetensors), or the checkpoint of MONAIfbs or "
        "Fetal-BET2 (.pt, .pth) (default: "
        "those that come with gsbids)",
    )
    parser.add_argument("--probability", type=Path, metavar="FILE.nii.gz", help="write the probabilities here as well")
    parser.add_argument("--nprocs", "--nthreads", type=int, metavar="INT", help="threads (default: all)")
    parser.add_argument("-v", "--verbose", dest="verbosity", action="count", default=0, help="say more")
    args = parser.parse_args(argv)
    for file in filter(None, (args.output, args.probability)):
        if not file.name.endswith((".nii", ".nii.gz")):
            parser.error(f"{file}: the output's name must end with .nii.gz or .nii")
    if args.nprocs is not None and args.nprocs < 1:
        parser.error("--nprocs must be at least 1")
    return args


def run(args: argparse.Namespace) -> int:
    """Read, segment and write; return 0, or 1 where there is no brain."""
    for file in filter(None, (args.output, args.probability)):
        if not file.parent.is_dir():
            raise InputError(f"{file.parent}: there is no such folder; make it first")
        if file.exists() and args.input.exists() and file.samefile(args.input):
            raise InputError(f"{file}: this is the input; give the output another name")
    with spare_places(args.output):
        return _mask(args)


def _mask(args: argparse.Namespace) -> int:
    import torch

    from gsbids.imaging.intensity import above_background
    from gsbids.imaging.nifti import load_image, save_image
    from gsbids.masking.found import DOUBTFUL
    from gsbids.masking.networks import load_network, segment_stack, weights_file

    weights = weights_file(args.mask_weights)
    image, affine = load_image(args.input)
    torch.set_num_threads(args.nprocs or len(os.sched_getaffinity(0)))
    found = segment_stack(above_background(image), affine, load_network(weights))
    if args.probability:
        save_image(args.probability, found.probability, affine)
    if not found.mask.any():
        LOGGER.error("%s: no brain was found in it; no mask is written", args.input)
        return 1
    save_image(args.output, found.mask, affine, "uint8")
    LOGGER.info("wrote %s: %.0f ml, confidence %.2f", args.output, found.millilitres(affine), found.confidence)
    if found.confidence < DOUBTFUL:
        LOGGER.warning(
            "%s: the network has low confidence (%.2f, below %.2f); look at the mask",
            args.input,
            found.confidence,
            DOUBTFUL,
        )
    return 0
