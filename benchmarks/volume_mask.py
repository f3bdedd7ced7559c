# SPDX-License-Identifier: Apache-2.0
"""How good is the brain mask of the volume where the masks of the stacks come from the network?

    python benchmarks/volume_mask.py --seeds 1 2 3 --json volume_mask.json

Scenes of ``placing_scenes.py`` are reconstructed with the masks of the network. Their brain mask by the vote of the
slices, and by the shape of the atlas of the package that is laid on the volume, is compared with the truth: once with
the atlas of all ages, and once with those of other ages alone, as a brain that the atlas does not hold. Where the atlas
is doubtful the vote counts, as in the program. ``AROUND`` and the smoothness of the deformation were chosen on seeds
101 to 112.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):  # a case has one thread
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import placing  # noqa: E402
import placing_scenes as scenes  # noqa: E402
from common import machine, say, write_json  # noqa: E402
from placing_score import masked, slice_errors  # noqa: E402

VOXEL = 0.8  # mm


def main() -> None:
    """Run the scenes; what is known is written after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=range(1, 13), help="of scenes (default: 1 to 12)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(score, seed) for seed in args.seeds]):
            found.append(future.result())
            say(json.dumps(found[-1]))
            report = {"benchmark": "volume_mask", "machine": machine(), "summary": summary(found)}
            write_json(args.json, report | {"cases": sorted(found, key=lambda case: case["seed"])})
    print(json.dumps(summary(found), indent=1))


def score(seed: int) -> dict:
    """Dice coefficients of one scene by vote and by atlas, and volumes over the true one."""
    from gsbids.imaging.masks import dice, resample_mask, without_appendages
    from gsbids.masking.shape_prior import LEAST_OVERLAP, mask_by_atlas
    from gsbids.masking.template import fetal_templates
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.registration.register import register_stacks
    from gsbids.recon.svr.fit import fit_svr
    from gsbids.recon.volume.coverage import seen_near, vote_mask
    from gsbids.recon.volume.sample import output_grid
    from gsbids.recon.volume.template import align_to_templates, brain_of_result

    case, _ = placing.prepared("scenes", seed)
    given = scenes.masks(case, "network", seed)
    used = [n for n, mask in enumerate(given) if mask is not None and mask.any()]
    stacks = [masked(case.stacks[n], given[n]) for n in used]
    result = fit_svr(stacks, register_stacks(stacks).transforms, SvrOptions(**placing.FAST))
    errors, align = slice_errors(
        result,
        [case.transforms[n] for n in used],
        [case.stacks[n].mask for n in used],
        [stack.affine for stack in stacks],
    )
    grid, shape = output_grid(stacks, result, VOXEL)
    vote, coverage = vote_mask(stacks, result, grid, shape)
    vote = without_appendages(vote, np.full(3, VOXEL))
    known = seen_near(vote, coverage, grid, result.settings["rim"])
    truth = resample_mask(case.brain, case.truth.affine, align @ grid, shape)
    brain = brain_of_result(result, stacks)
    head = replace(brain, mask=without_appendages(brain.mask, brain.spacing))
    row = {"seed": seed, "case": case.name, "slice_error": round(float(np.nanmedian(errors)), 3)}
    row |= scores("vote", vote, truth)
    templates = [template.brain for template in fetal_templates()]
    for name, ages in (("all", [0, 1, 2]), ("other", [n for n in range(3) if n != seed % 3])):
        number, found = align_to_templates(brain, [templates[n] for n in ages])
        atlas, begun = templates[ages[number]], time.process_time()
        mask, shared = mask_by_atlas(head, atlas, found.laid(atlas), vote, known, grid)
        row[f"{name}_cpu_s"] = round(time.process_time() - begun, 1)
        taken = not found.doubt and shared >= LEAST_OVERLAP
        row |= {f"{name}_taken": taken, f"{name}_overlap": round(shared, 3)}
        row |= scores(name, mask if taken else vote, truth) | {f"{name}_if_taken": round(dice(mask, truth), 3)}
    return row


def scores(name: str, mask: np.ndarray, truth: np.ndarray) -> dict:
    """Dice coefficient and volume over the true one."""
    from gsbids.imaging.masks import dice

    return {f"{name}_dice": round(dice(mask, truth), 3), f"{name}_volume": round(float(mask.sum() / truth.sum()), 3)}


def summary(cases: list[dict]) -> dict:
    """Median and least Dice coefficient, median volume, and how often the atlas was taken."""
    table = {}
    for name in ("vote", "all", "other"):
        dices = [case[f"{name}_dice"] for case in cases]
        table[name] = {
            "median": round(float(np.median(dices)), 3),
            "least": min(dices),
            "volume": round(float(np.median([case[f"{name}_volume"] for case in cases])), 3),
        }
        if name != "vote":
            table[name] |= {
                "taken": f"{sum(case[f'{name}_taken'] for case in cases)} of {len(cases)}",
                "worse_than_vote": sum(case[f"{name}_dice"] < case["vote_dice"] for case in cases),
            }
    return table


if __name__ == "__main__":
    main()
