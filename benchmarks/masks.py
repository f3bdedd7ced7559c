#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The effect of brain masks on the reconstruction, in one command.

    python benchmarks/masks.py --json docs/results/mask_effect.json
    python benchmarks/masks.py --parts real --weights NEW.safetensors --reuse --json OUT.json

``real``: one fetus, six stacks (``data/fetal-stacks-mialsrtk``), reconstructed with manual masks and with those of the
network. In turn a stack is left out and predicted from the five others (``tools/score_heldout_stack.py``, inside its
manual mask in both cases). With all six: the brain mask of the volume against that with manual masks, after rigid
alignment (antspyx, :func:`gsbids.simulate.compare.align_rigid`). ``simulated``: case A of ``svr.py`` with errors of its
masks, each alone: loss of PSNR. Seeded; nothing here is timed.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from common import heldout_medians, machine, only, say, shared_folder, slice_ncc, write_json
from svr_cases import simulated
from svr_change import dilated, eroded, spilled, with_masks
from svr_real import ALL_RUNS, LEFT_OUT, mask_file, reconstruct, stack_file
from svr_rows import Suite, run_against

from gsbids.imaging.nifti import load_image, save_image
from gsbids.masking.networks import weights_file
from gsbids.simulate.compare import align_rigid

PARTS = ("real", "simulated")
VOLUME, MASK = "*_rec-gsvr_*_desc-preproc_T2w.nii.gz", "*_rec-gsvr_*_desc-brain_mask.nii.gz"


def main() -> None:
    """Run what was asked for; after each part, what is known is written."""
    args = parse()
    result = {
        "benchmark": "masks",
        "machine": machine(),
        "weights": weights_name(args.weights),
        "real": {},
        "simulated": [],
    }

    def record(entry: dict) -> None:
        result["simulated"].append({key: value for key, value in entry.items() if key != "volume"})
        say(f"{entry['case']}: PSNR {entry['score']['psnr']:.2f}, loss {entry.get('psnr_loss', 0):.2f} dB")
        save()

    def save() -> None:
        if args.json:
            write_json(args.json, result)

    suite = Suite(args.work, args.threads, record)
    if "simulated" in args.parts:
        for seed in args.seeds:
            simulated_part(seed, suite)
    if "real" in args.parts:
        for name, found in real_part(args, suite):
            result["real"][name] = found
            say(f"{name}: {found}")
            save()
    if not args.json:
        write_json(None, result)


def parse() -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--weights", type=Path, help="of the network (default: those of the package)")
    parser.add_argument(
        "--left-out",
        nargs="+",
        type=int,
        choices=ALL_RUNS,
        default=LEFT_OUT,
        help="real stacks that are left out in turn (default: %(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=(1,), help="of the simulation (default: 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="take reconstructions that an earlier call has left in --work with these masks",
    )
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/masks"))
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    return parser.parse_args()


def weights_name(given: Path | None) -> dict:
    """Name and first digits of the checksum of the weights."""
    file = weights_file(given)
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:12]}


def simulated_part(seed: int, suite: Suite) -> None:
    """Loss of PSNR by every kind of error alone, and the two that ``svr.py`` has, with an end slice missing."""
    case = simulated("A", seed, suite.work)
    run_against(
        suite,
        "masks",
        case,
        [
            with_masks(case, "dilated", dilated, (0, 0)),
            with_masks(case, "eroded", eroded, (0, 0)),
            with_masks(case, "ends", lambda mask: mask, (1, 1)),
            spilled(case, "spill"),
        ],
        ("default",),
    )


def real_part(args: argparse.Namespace, suite: Suite):
    """Names and results, one reconstruction of each kind after the other."""
    data = shared_folder() / "data" / "fetal-stacks-mialsrtk"
    network = f"network-{weights_name(args.weights)['sha256']}"
    weights = ("--mask-weights", str(args.weights)) if args.weights else ()
    kinds = {"manual": (), network: ("--mask-mode", "network", *weights)}

    def made(name: str, runs: tuple[int, ...]) -> dict[str, Path]:
        return {
            kind.partition("-")[0]: kept(data, name, runs, kind, options, suite, args.reuse)
            for kind, options in kinds.items()
        }

    folders = made("all-runs", ALL_RUNS)
    yield (
        "all",
        {kind: slice_ncc(folder) | facts(folder) for kind, folder in folders.items()}
        | {"network_against_manual": agreement(folders["network"], folders["manual"])},
    )
    for run in args.left_out:
        folders = made(f"without-run-{run}", tuple(r for r in ALL_RUNS if r != run))
        scores = {
            kind: heldout_medians(only(folder, VOLUME), stack_file(data, run), mask_file(data, run))
            for kind, folder in folders.items()
        }
        yield f"run-{run}", scores | {"ncc_loss": round(scores["manual"]["ncc"] - scores["network"]["ncc"], 4)}


def kept(data: Path, name: str, runs, kind: str, options, suite: Suite, reuse: bool) -> Path:
    """Output folder of a reconstruction; made, unless it may be taken from an earlier call."""
    folder = suite.work / "real" / name / kind / "out"
    if reuse and list(folder.rglob(VOLUME)):
        return folder
    out = reconstruct(data, name, runs, kind, suite, options)[0]
    shutil.rmtree(out.parent / "work", ignore_errors=True)
    return out


def facts(folder: Path) -> dict:
    """Volume (ml) of the brain mask, and what every stack's mask came from."""
    mask, affine = load_image(only(folder, MASK))
    sidecars = sorted(folder.rglob("*_run-*_desc-brain_mask.json"))
    told = {path.name.split("_")[1]: json.loads(path.read_text()) for path in sidecars}
    return {
        "mask_ml": round(float((mask > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3), 1),
        "stacks": {
            run: found.get("MaskSource", "") + (f" {found['MaskDoubt']}" if "MaskDoubt" in found else "")
            for run, found in told.items()
        },
    }


def agreement(folder: Path, reference: Path) -> dict:
    """Dice of two volumes' brain masks, and NCC in both, after rigid alignment of the first to the second."""
    image, affine = load_image(only(folder, VOLUME))
    mask = load_image(only(folder, MASK))[0] > 0
    moving = save_image(folder.parent / "moving.nii.gz", (np.maximum(image, 0) + 1) * mask, affine)  # 0: not brain
    fixed, fixed_mask = only(reference, VOLUME), only(reference, MASK)
    found, filled = align_rigid(moving, fixed, fixed_mask)
    truth, inside = load_image(fixed)[0], load_image(fixed_mask)[0] > 0
    both = filled & inside
    return {
        "dice": round(float(2 * both.sum() / (filled.sum() + inside.sum())), 4),
        "ncc": round(float(np.corrcoef(found[both], truth[both])[0, 1]), 4),
    }


if __name__ == "__main__":
    main()
