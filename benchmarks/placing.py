# SPDX-License-Identifier: Apache-2.0
"""Does every slice find its place, whatever the masks, and does a reconstruction that failed say so?

    python benchmarks/placing.py --json placing.json

Scenes (``placing_scenes.py``) are reconstructed with seven kinds of masks, pairs of orthogonal stacks of the real
subject with three, as scanned and turned, and special inputs (``placing_special.py``). Part ``misplaced`` makes
failures, for the verdict to be judged on: scenes whose last stack starts turned by 180 degrees, and is not looked for.
A reconstruction is right if its slices are within 2 mm (median) of where they should be and it has at most 2 dB less
than the same fit with tight masks at the true poses; none of two stacks of two subjects is. The rules of the verdict
(``gsbids.qc.verdict``) were chosen on seeds from 100 on; they are judged on seeds from 1 on.
"""

import argparse
import json
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):  # a case has one thread
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import placing_real  # noqa: E402
import placing_scenes as scenes  # noqa: E402
import placing_special  # noqa: E402
from common import machine, say, write_json  # noqa: E402
from placing_score import masked, psnr, slice_errors, volume_in_truth  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

NEAR, LOSS = 2.0, 2.0  # mm, and dB: of a reconstruction that is right
PARTS = ("scenes", "misplaced", "real", *placing_special.KINDS)
WRONG_MASKS = ("tight", "network")
REAL_MASKS = ("tight", "network", "grown-6")
KEPT = Path("work/benchmarks/placing")  # cases; to be removed where these are made otherwise
FAST = {"members": 1, "doublings": 1}  # of the fit: one field shows whether the slices are in their places


def main() -> None:
    """Run what was asked for; what is known is written after each case."""
    args = parse()
    wanted = [(part, seed) for part in args.parts for seed in (args.pairs if part == "real" else args.seeds)]
    found = kept(args.json) if args.keep and args.json and args.json.exists() else []
    there = {(case["part"], case["seed"], case["masks"]) for case in found}
    jobs = [
        (part, seed, kind, args.figures)
        for part, seed in wanted
        for kind in kinds(part, args.masks)
        if (part, seed, kind) not in there
    ]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        waiting = [pool.submit(run, *job) for job in jobs]
        for future in as_completed(waiting):
            found.append(future.result())
            say(line(found[-1]))
            write(args.json, found)
    write(args.json, found)
    if args.short:
        write_short(args.short, found)
    print(json.dumps(summary(found), indent=1))


def parse() -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(1, 29), help="of scenes (default: 1 to 28)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=int,
        default=range(24),
        help="of the real subject: 0 to 11 as scanned, 12 to 23 turned (default: all)",
    )
    parser.add_argument("--masks", nargs="+", choices=scenes.MASKS, default=scenes.MASKS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figures", type=Path, help="folder for a picture of every case that is not right")
    parser.add_argument("--keep", action="store_true", help="go on from what is in the JSON; cases are judged again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", type=Path, help="JSON with the summary and a line for each case, as in docs/results")
    return parser.parse_args()


def kept(path: Path) -> list[dict]:
    """The cases of a JSON, each with the verdict of today's rules on its metrics."""
    from gsbids.qc.verdict import judge

    cases = json.loads(path.read_text())["cases"]
    for case in cases:
        if "metrics" in case:
            verdict = judge(case["metrics"])
            case |= {"verdict": verdict.level, "spoke": list(verdict.rules)}
    return cases


def write(path: Path | None, found: list[dict]) -> None:
    """What is known so far."""
    if path:
        write_json(path, {"benchmark": "placing", "machine": machine(), "summary": summary(found), "cases": found})


def write_short(path: Path, found: list[dict]) -> None:
    """The summary, and what tells most of each case, one a line."""
    names = (
        "part",
        "seed",
        "case",
        "masks",
        "slice_error",
        "slice_error_p90",
        "loss",
        "right",
        "verdict",
        "spoke",
        "dice",
        "re_registered",
        "cpu_s",
    )
    rows = [
        json.dumps({name: case.get(name) for name in names})
        for case in sorted(found, key=lambda case: (case["part"], case["seed"], case["masks"]))
    ]
    head = {"benchmark": "placing", "machine": machine(), "summary": summary(found)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    path.write_text("{\n" + ",\n".join(lines) + ',\n"cases": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


def kinds(part: str, wanted) -> tuple[str, ...]:
    """Masks that a part is tried with."""
    if part in placing_special.KINDS:
        return ("given",)
    known = {"scenes": wanted, "misplaced": WRONG_MASKS, "real": REAL_MASKS}[part]
    return tuple(kind for kind in wanted if kind in known)


def case_of(part: str, seed: int) -> scenes.Scene:
    """A scene, a pair of real stacks, or a special input."""
    if part in placing_special.KINDS:
        return placing_special.special(part, seed)
    return placing_real.pair(seed) if part == "real" else scenes.scene(seed)


def prepared(part: str, seed: int) -> tuple[scenes.Scene, float]:
    """A case and the PSNR that can be had of it; made once, and kept in a file."""
    path = KEPT / f"{'scenes' if part == 'misplaced' else part}-{seed}.pkl"
    if not path.exists():
        case = case_of(part, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_bytes(pickle.dumps((case, known(case))))
        own.replace(path)
    return pickle.loads(path.read_bytes())


def run(part: str, seed: int, kind: str, figures: Path | None) -> dict:
    """One case with one kind of masks."""
    case, reference = prepared(part, seed)
    try:
        entry, volume = one(case, kind, seed, part == "misplaced")
    except Exception as error:  # the others go on, and the table says what became of this one
        entry, volume = {"error": f"{type(error).__name__}: {error}"}, None
    entry = {"part": part, "seed": seed, "case": case.name, "turn": case.turn, "masks": kind} | entry
    if volume is not None:
        entry["loss"] = round(reference - entry["psnr"], 3)
    entry["right"] = bool(
        "slice_error" in entry
        and entry["slice_error"] < NEAR
        and entry.get("loss", 0.0) < LOSS
        and part != "stranger-of-2"
    )
    if figures and volume is not None:
        draw(figures, entry, case, volume)
    return entry


def known(case) -> float:
    """PSNR of the fit with tight masks at the true poses."""
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.svr.fit import fit_svr

    depth = max(map(len, case.transforms))
    poses = np.stack(
        [np.concatenate([each, np.tile(np.eye(4), (depth - len(each), 1, 1))]) for each in case.transforms]
    )
    poses[~np.isfinite(poses).all((2, 3))] = np.eye(4)
    used = [n for n, each in enumerate(case.transforms) if np.isfinite(each).any()]
    result = fit_svr([case.stacks[n] for n in used], poses[used], SvrOptions(motion_correction=False, **FAST))
    return psnr(
        volume_in_truth(result, np.eye(4), case.truth.affine, case.truth.image.shape), case.truth.image, case.brain
    )


def one(case, kind: str, seed: int, misplace: bool = False) -> tuple[dict, np.ndarray]:
    """Fit a case with one kind of masks; scores, metrics, and the volume on the grid of the truth.

    ``misplace``: the last stack starts turned by 180 degrees, and no stack is looked for.
    """
    from gsbids.imaging.masks import dice
    from gsbids.qc.metrics import reconstruction_metrics
    from gsbids.qc.verdict import judge
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.registration.register import register_stacks
    from gsbids.recon.svr.fit import fit_svr
    from gsbids.recon.volume.coverage import shown_region, vote_mask, without_holes
    from gsbids.recon.volume.sample import output_grid, sample_result

    given = scenes.masks(case, kind, seed)
    chosen = [n for n, mask in enumerate(given) if mask is not None and mask.any()]
    stacks = [masked(case.stacks[n], given[n]) for n in chosen]
    begun = time.process_time()
    transforms = register_stacks(stacks).transforms
    with no_search() if misplace else nullcontext():
        result = fit_svr(stacks, upside_down(stacks, transforms, seed) if misplace else transforms, SvrOptions(**FAST))
    seconds = time.process_time() - begun
    errors, align = slice_errors(
        result, [case.transforms[n] for n in chosen], [case.stacks[n].mask for n in chosen], [s.affine for s in stacks]
    )
    volume = volume_in_truth(result, align, case.truth.affine, case.truth.image.shape)
    affine, shape = output_grid(stacks, result, 1.2)
    image = sample_result(result, affine, shape)
    mask, coverage = vote_mask(stacks, result, affine, shape)
    image = without_holes(image, mask, affine)
    shown = shown_region(mask, coverage, affine, result.settings["rim"])
    row = reconstruction_metrics(result, image * shown, mask, (1.2,) * 3, coverage, stacks)
    verdict = judge(row)
    own, per_stack = ~np.isnan(errors), []
    for n in range(len(stacks)):
        mine = errors[own & (result.stack_index == n)]
        per_stack.append(round(float(np.median(mine)), 3) if len(mine) else None)
    return {
        "slice_error": round(float(np.nanmedian(errors)), 3),
        "slice_error_p90": round(float(np.nanpercentile(errors, 90)), 3),
        "stack_errors": per_stack,
        "psnr": round(psnr(volume, case.truth.image, case.brain), 3),
        "cpu_s": round(seconds, 1),
        "dice": [round(dice(given[n], case.stacks[n].mask), 3) for n in chosen],
        "re_registered": result.settings["placed_anew"],
        "excluded": result.settings["excluded"],
        "black": round(float(((image <= 0) & mask).sum() / mask.sum()), 5),
        "metrics": {key: round(value, 4) for key, value in row.items() if np.isfinite(value)},
        "verdict": verdict.level,
        "spoke": list(verdict.rules),
    }, volume


def upside_down(stacks, transforms: np.ndarray, seed: int) -> np.ndarray:
    """Transforms (N, 4, 4) with the last stack turned by 180 degrees about an axis through its brain."""
    axis = np.random.default_rng((25, seed)).standard_normal(3)
    last = stacks[-1]
    middle = last.affine[:3, :3] @ np.argwhere(last.mask).mean(0) + last.affine[:3, 3]
    middle = transforms[-1, :3, :3] @ middle + transforms[-1, :3, 3]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.pi * axis / np.linalg.norm(axis)).as_matrix()
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    return np.array([*transforms[:-1], turn @ transforms[-1]])


@contextmanager
def no_search():
    """Slices are placed from where their stacks are put, and from nowhere else."""
    from unittest import mock

    from gsbids.recon.svr import arrangements, misplaced, place

    with (
        mock.patch.object(arrangements, "TRIED", 0),
        mock.patch.object(misplaced, "TRIALS", 0),
        mock.patch.object(place, "ENOUGH", -1.0),
    ):
        yield


def draw(folder: Path, entry: dict, case, volume: np.ndarray) -> None:
    """Three planes of the truth and of the volume."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    middle = np.rint(np.argwhere(case.brain).mean(0)).astype(int)
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.3))
    for row, image in zip(axes, (case.truth.image, volume), strict=True):
        top = np.percentile(image[case.brain], 99.5)
        for axis, panel in enumerate(row):
            panel.imshow(np.take(image, middle[axis], axis).T, cmap="gray", origin="lower", vmin=0, vmax=top)
            panel.axis("off")
    figure.suptitle(line(entry), fontsize=8, wrap=True)
    figure.tight_layout()
    word = "right" if entry["right"] else "wrong"
    figure.savefig(folder / f"{word}_{entry['part']}-{entry['seed']}_{entry['masks']}.png", dpi=60)
    plt.close(figure)


def line(case: dict) -> str:
    """A case in one line."""
    if "error" in case:
        return f"{case['case']} {case['masks']}: {case['error']}"
    metrics = case["metrics"]
    return (
        f"{'right' if case['right'] else 'WRONG'} {case['verdict']:>10} {case['case']} {case['masks']}: "
        f"error {case['slice_error']:.2f}/{case['slice_error_p90']:.2f} mm, PSNR {case['psnr']:.1f} "
        f"(loss {case.get('loss', 0):.1f}), ncc {metrics.get('ncc_median', 0):.3f}, agreement "
        f"{metrics.get('stack_agreement', 0):.2f}, rejected {metrics.get('slices_rejected', 0):.2f}, "
        f"{case['cpu_s']:.0f} s"
    )


def summary(cases: list[dict]) -> dict:
    """Shares of right reconstructions by masks and by turn, the loss of PSNR, and what the verdict is worth."""
    out = {}
    for part in sorted({case["part"] for case in cases}):
        own = [case for case in cases if case["part"] == part]
        table = {}
        for kind in (*scenes.MASKS, "given"):
            mine = [case for case in own if case["masks"] == kind]
            if mine:
                losses = [case["loss"] for case in mine if "loss" in case and case["right"]]
                turns = {
                    str(turn): rate([c for c in mine if c["turn"] == turn])
                    for turn in sorted({c["turn"] for c in mine})
                }
                table[kind] = {
                    "right": rate(mine),
                    "median_loss_db": round(float(np.median(losses)), 3) if losses else None,
                    "by_turn": turns,
                }
        wrong = [case for case in own if not case["right"]]
        good = [case for case in own if case["right"]]
        called = [case for case in wrong if case.get("verdict", "do not use") == "do not use"]
        alarms = [case for case in good if case["verdict"] == "do not use"]
        out[part] = {
            "masks": table,
            "wrong": len(wrong),
            "wrong_called": len(called),
            "right": len(good),
            "wrong_usable": sum(case.get("verdict") == "usable" for case in wrong),
            "right_called_wrong": len(alarms),
            "right_look": sum(case["verdict"] == "look at it" for case in good),
            "cpu_s_median": round(float(np.median([c["cpu_s"] for c in own if "cpu_s" in c] or [0])), 1),
        }
    return out


def rate(cases: list[dict]) -> str:
    """How many are right."""
    return f"{sum(case['right'] for case in cases)} of {len(cases)}"


if __name__ == "__main__":
    main()
