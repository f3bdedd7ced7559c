# SPDX-License-Identifier: Apache-2.0
"""What the records of the SVR benchmark say about the table of docs/benchmarks.md."""

import numpy as np

#: The public reference code of the GSVR paper, measured once on seed 1: PSNR (dB) and SSIM.
REFERENCE = {"A": ("", 30.8, 0.916), "B2": ("_core", 28.0, 0.817)}
B0_MUST, B0_AIM = 33.5, 35.0
MOVING = ("A", "B2", "F22", "F25", "F28")


def summarise(records: list[dict]) -> list[dict]:
    """Rows ``what, measured, must, aim`` of the table, as far as there are records for them.

    Parameters
    ----------
    records : list of dict
        Of the default method and of those that it is compared with.
    """
    rows = [
        *_accuracy(records),
        *_slices(records),
        *_bound(records),
        *_heldout(records),
        *_robustness(records),
        *_costs(records),
    ]
    return [row for row in rows if row["measured"] is not None]


def as_text(rows: list[dict]) -> str:
    """The summary as a Markdown table."""
    lines = ["| | must | aim | measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['what']} | {r['must']} | {r['aim']} | {r['measured']} |" for r in rows)])


def _of(records, method="default", **where):
    """Records of a method with the given values; the standard rows where no row is named."""
    return [r for r in records if r["method"] == method and all(r.get(k) == v for k, v in where.items())]


def _row(what, must, aim, values, form="{:.2f}", spread=True):
    """A line: the mean of values over seeds, with the worst and the best where there are several."""
    if not len(values):
        return {"what": what, "must": must, "aim": aim, "measured": None}
    text = form.format(np.mean(values))
    if spread and len(values) > 1:
        text += f" ({form.format(min(values))} to {form.format(max(values))})"
    return {"what": what, "must": must, "aim": aim, "measured": text}


def _accuracy(records):
    for case, (part, psnr, ssim) in REFERENCE.items():
        scores = [r["score"] for r in _of(records, row=case)]
        name = f"{case}{' core' if part else ''}"
        for key, reference, must, aim in (
            ("psnr", psnr, *((0.5, 1.5) if case == "A" else (0.8, 2.0))),
            ("ssim", ssim, *((0.01, 0.03) if case == "A" else (0.02, 0.05))),
        ):
            form = "{:+.2f}" if key == "psnr" else "{:+.3f}"
            yield _row(
                f"{name}: {key.upper()} over the reference's {reference}",
                f"+{must}",
                f"+{aim}",
                [s[key + part] - reference for s in scores],
                form,
            )
            paper = {r["seed"]: r["score"][key + part] for r in _of(records, "paper", row=case)}
            yield _row(
                f"{name}: {key.upper()} over `--svr-method paper`",
                f"+{must}",
                f"+{aim}",
                [r["score"][key + part] - paper[r["seed"]] for r in _of(records, row=case) if r["seed"] in paper],
                form,
            )
    yield _row(
        "B0 core: PSNR", f"{B0_MUST}", f"{B0_AIM:.0f}", [r["score"]["psnr_core"] for r in _of(records, row="B0")]
    )


def _slices(records):
    for case in MOVING:
        errors = [r["score"]["slice_error"] for r in _of(records, case=case) if r["row"] in ("A", "B2", "F")]
        yield _row(f"{case}: slices lost", "2 %", "0", [100 * e["over_2mm"] for e in errors], "{:.1f} %")
        yield _row(f"{case}: mean slice error", "0.25 mm", "0.12 mm", [e["mean_mm"] for e in errors], "{:.2f} mm")


def _bound(records):
    for case in MOVING:
        key = "psnr_core" if case == "B2" else "psnr"
        known = {r["seed"]: r["score"][key] for r in _of(records, "known", case=case)}
        found = [
            known[r["seed"]] - r["score"][key]
            for r in _of(records, case=case)
            if r["row"] in ("A", "B2", "F") and r["seed"] in known
        ]
        yield _row(f"{case}: distance to known poses", "0.3 dB", "0.05 dB", found, "{:.2f} dB")


def _heldout(records):
    ours = {r["case"]: r["heldout"] for r in _of(records, row="heldout")}
    peer = {r["case"]: r["heldout"] for r in _of(records, "SVRTK", row="heldout")}
    for key in ("grad_ncc", "hp_ncc"):
        yield _row(
            f"real, left-out stacks: {key} over SVRTK's",
            "0",
            "+0.03",
            [ours[run][key] - peer[run][key] for run in ours if run in peer],
            "{:+.3f}",
        )


def _robustness(records):
    loss = [r["psnr_loss"] for r in _of(records, row="robust") if "psnr_loss" in r]
    yield _row(
        f"large motion, stacks turned apart: success of {len(loss)} seeds",
        "90 %",
        "100 %",
        [100 * np.mean(np.array(loss) <= 1.0)] if loss else [],
        "{:.0f} %",
    )
    yield _row(
        "20 % of slices corrupted: loss of PSNR",
        "1.0 dB",
        "0.3 dB",
        [r["psnr_loss"] for r in _of(records, row="corrupted") if "psnr_loss" in r],
        "{:.2f} dB",
    )
    for name in ("dilated", "eroded"):
        for key, where in (("psnr_loss", ""), ("psnr_loss_whole", ", whole field of view")):
            yield _row(
                f"masks {name} by 2 pixels, an end slice missing: loss of PSNR{where}",
                "0.5 dB",
                "0.2 dB",
                [r[key] for r in _of(records, row="masks", case=f"A-{name}") if key in r],
                "{:.2f} dB",
            )
    yield _row(
        "shift of all affines: largest change of the volume, share of its range",
        "1e-3",
        "rounding",
        [r["change"]["max"] for r in _of(records, row="origin")],
        "{:.1e}",
    )


def _costs(records):
    fast, slow = ({r["method"]: r for r in records if r["row"] == "speed"}.get(m) for m in ("default", "paper"))
    if fast:
        yield _row("case A, fit only", "60 s", "15 s", [fast["cost"]["fit_s"]], "{:.1f} s")
        final = fast["curve"][-1]["ssim"]
        usable = next(point["seconds"] for point in fast["curve"] if point["ssim"] >= final - 0.05)
        yield _row(
            "preview: SSIM within 0.05 of the final, registration included",
            "10 s",
            "3 s",
            [usable + fast["cost"]["register_s"]],
            "{:.1f} s",
        )
    if fast and slow:
        aim = slow["curve"][-1]["psnr"]
        reached = [point["seconds"] for point in fast["curve"] if point["psnr"] >= aim]
        first = next(point["seconds"] for point in slow["curve"] if point["psnr"] >= aim - 0.05)
        yield _row(
            f"time to the PSNR at which the paper's method ends ({aim:.2f} dB), times faster",
            "10",
            "50",
            [first / reached[0]] if reached else [],
            "{:.0f}",
        )
    yield _row(
        "real subject, 6 stacks, start to report",
        "3 min",
        "1 min",
        [r["cost"]["wall_s"] for r in _of(records, row="real-command")],
        "{:.0f} s",
    )
    yield _row(
        "12 stacks of 320 x 320 x 30: peak memory",
        "4 GB",
        "2 GB",
        [r["cost"]["peak_gb"] for r in _of(records, row="memory")],
        "{:.2f} GB",
    )
