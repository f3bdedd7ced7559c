# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, each described once."""

import argparse
from pathlib import Path
from typing import Any

from gsbids.cli.argument_types import device_name, memory_size, whole_number


def add_masking(group: Any, modes: tuple[str, ...], first: str) -> None:
    """Add the options of brain masks, of the participant level and of ``gsbids reconstruct``."""
    group.add_argument(
        "--mask-mode",
        choices=modes,
        default="auto",
        help=f"where brain masks come from; auto: {first} voxels that are not 0 of a stripped skull, "
        "else what the network finds, else a threshold (default: %(default)s)",
    )
    group.add_argument(
        "--mask-weights",
        type=Path,
        metavar="FILE",
        help="weights of a mask network of your own (.safetensors), or the checkpoint of MONAIfbs or "
        "Fetal-BET2 (.pt, .pth)",
    )


def add_corrections(group: Any, usual: str) -> None:
    """Add what is corrected, of the participant level and of ``gsbids reconstruct``.

    ``usual`` says when noise and bias are corrected if nothing else is asked for.
    """
    for name, what in (("denoise", "denoise first"), ("n4", "correct the bias field first (N4)")):
        group.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=f"{what} (default: {usual})"
        )
    group.add_argument(
        "--motion-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="estimate the motion of every slice; without it stacks move as wholes",
    )


def add_orientation(group: Any, template: str) -> None:
    """Add the options of the orientation of a volume, of the participant level and of ``gsbids reconstruct``."""
    group.add_argument(
        "--orientation",
        choices=("scanner", "radiological"),
        default="scanner",
        help="order of the voxels of a reconstruction: left to right as the axes of the scanner (of the "
        "template, with --template) run, or from the right to the left (default: %(default)s)",
    )
    group.add_argument(
        "--template",
        type=Path,
        metavar="{auto,none,NII}",
        default=template,
        help="turn and shift the reconstruction (rigidly) so that the brain lies as in this volume of "
        "the same contrast, as an atlas; the field is sampled there, and nothing is interpolated. auto: "
        "the fetal atlas or the adult brain of the package that it looks like, or none; none: the axes "
        "of the scanner (default: %(default)s)",
    )
    group.add_argument(
        "--template-mask",
        type=Path,
        metavar="NII",
        help="brain mask of --template (default: its voxels that are not 0)",
    )


def add_seed_and_device(group: Any) -> None:
    """Add seed, device and ``--sloppy``, of the participant level and of ``gsbids reconstruct``."""
    group.add_argument(
        "--random-seed",
        type=whole_number(0, 2**32 - 1),
        metavar="INT",
        default=0,
        help="the same seed gives the same result (default: %(default)s)",
    )
    add_device(group)
    group.add_argument("--sloppy", action="store_true", help="quick and poor: TESTING ONLY")


def add_device(group: Any) -> None:
    """Add the option of the compute device."""
    group.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="{auto,cpu,cuda,cuda:N}",
        help="where fields are fitted and rendered; auto: on a GPU if there is one (default: %(default)s)",
    )


def add_resources(group: Any) -> None:
    """Add the options of threads and memory, of the participant level and of ``gsbids reconstruct``."""
    group.add_argument(
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        type=whole_number(1, 4096),
        metavar="INT",
        help="threads in use at any time (default: all)",
    )
    group.add_argument(
        "--omp-nthreads",
        type=whole_number(1, 4096),
        metavar="INT",
        help="threads of one step (default: as --nprocs, at most 8)",
    )
    group.add_argument(
        "--mem",
        "--mem-mb",
        dest="memory_gb",
        type=memory_size("M"),
        metavar="SIZE",
        help="memory to plan with: 1.5G, 800M, a bare number is MB (default: 90 %% of all)",
    )
    group.add_argument(
        "--mem-gb", dest="memory_gb", type=memory_size("G"), metavar="SIZE", help="the same; a bare number is GB"
    )
