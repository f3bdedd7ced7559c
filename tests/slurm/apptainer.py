#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""``apptainer run ... IMAGE WORDS`` without Apptainer: gsbids itself, with the folders outside for those inside.

Stands in for it where scripts for Slurm are tried; the image itself is tried by tests/container/run.sh.
"""

import argparse
import os
import sys


def outside(word: str, binds: dict[str, str]) -> str:
    """A word of the command line with the folder outside for the folder inside that it names.

    >>> outside("masks=/data/derivatives/masks", {"/data": "/study"})
    'masks=/study/derivatives/masks'
    """
    name, equals, path = word.rpartition("=")
    for inside, folder in binds.items():
        if path == inside or path.startswith(f"{inside}/"):
            return name + equals + folder + path[len(inside) :]
    return word


def main() -> None:
    """Become gsbids, as the entry point of the image is."""
    parser = argparse.ArgumentParser(prog="apptainer", allow_abbrev=False)
    parser.add_argument("command", choices=("run",))
    for flag in ("--nv", "--cleanenv", "--containall"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-B", "--bind", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not os.path.isfile(args.image):
        sys.exit(f"{args.image} is not there")
    binds = {bind.split(":")[1]: bind.split(":")[0] for bind in args.bind}
    missing = [folder for folder in binds.values() if not os.path.isdir(folder)]
    if missing:  # Apptainer refuses them too
        sys.exit(f"{missing[0]} is not there")
    words = [outside(word, binds) for word in args.words]
    os.execv(os.environ["GSBIDS_PYTHON"], [os.environ["GSBIDS_PYTHON"], "-m", "gsbids", *words])


if __name__ == "__main__":
    main()
