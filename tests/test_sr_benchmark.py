# SPDX-License-Identifier: Apache-2.0
"""What the super-resolution benchmark makes coarse, how it scores, and how it sums up."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the benchmarks need the bench extra")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from sr_results import joined, summarise
from sr_scores import energy_above, scores
from super_resolution import coarsened
from test_sr import phantom


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        ("x2", (18, 20, 16)),
        ("x3", (12, 13, 10)),
        ("arbitrary", (15, 20, 20)),
        ("thick", (36, 40, 8)),
        ("rician", (18, 20, 16)),
    ],
)
def test_cases(case, shape):
    fine, coarse, grid, operator, _ = coarsened(phantom() / 1000, case, 3)
    assert coarse.shape == shape
    assert grid.shape == fine.shape
    miss = np.abs(operator(fine) - coarse)
    if case == "rician":
        assert coarse[0, 0].mean() == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=0.3)  # Rayleigh background
        np.testing.assert_array_equal(coarsened(phantom() / 1000, case, 3)[1], coarse)
    else:
        assert miss.max() < 1e-5


def test_scores_are_their_formulas():
    truth = phantom() / phantom().max()
    noisy = truth + 0.01 * np.random.default_rng(0).standard_normal(truth.shape)
    found, worse = scores(noisy, truth), scores(truth + 5 * (noisy - truth), truth)
    assert found["psnr_inside"] == pytest.approx(40, abs=0.3)
    assert found["psnr"] > found["psnr_inside"]  # what is below 0 in the background is clipped
    for key, sign in {"psnr": -1, "ssim": -1, "ssim_slices": -1, "nrmse": 1, "hfen": 1}.items():
        assert sign * worse[key] > sign * found[key]
    assert scores(truth, truth)["nrmse"] == 0


def test_energy_above_half_nyquist():
    x = np.arange(32)
    low, high = np.cos(2 * np.pi * 2 * x / 32), np.cos(2 * np.pi * 12 * x / 32)
    assert energy_above(np.einsum("i,j,k", low, low, low), 0.5) < 1e-6
    assert energy_above(np.einsum("i,j,k", low, low, high), 0.5) > 0.999
    assert energy_above(np.einsum("i,j,k", low + high, low, low), 0.5) == pytest.approx(0.5, abs=0.01)


def test_gains_are_over_the_spline_of_the_same_case():
    rows = [
        {"volume": v, "case": "x2", "method": m, "psnr": p}
        for v, m, p in (
            ("atlas-GA22", "bspline", 30.0),
            ("atlas-GA22", "gsbids", 33.0),
            ("atlas-GA28", "bspline", 20.0),
            ("atlas-GA28", "gsbids", 21.0),
            ("stroke-T1", "bspline", 20.0),
            ("stroke-T1", "gsbids", 19.0),
        )
    ]
    found = {(r["set"], r["method"]): r for r in summarise(rows)}
    assert found["scoring", "gsbids"]["gain_db"] == 2
    assert found["scoring", "gsbids"]["least_db"] == 1
    assert found["tuning", "gsbids"]["gain_db"] == -1


def test_later_runs_replace_records_of_the_same_case():
    def run(commit, psnr, methods):
        return {
            "machine": {"commit": commit},
            "records": [{"volume": "stroke-T2", "case": "x2", "method": m, "psnr": psnr} for m in methods],
        }

    found = joined(run("a", 20.0, ["bspline", "gsbids"]) | {"seed": 1}, [run("b", 22.0, ["gsbids", "siren"])])
    assert {r["method"]: (r["psnr"], r.get("commit")) for r in found["records"]} == {
        "bspline": (20.0, None),
        "gsbids": (22.0, "b"),
        "siren": (22.0, "b"),
    }
    assert found["seed"] == 1
    assert {r["method"]: r["gain_db"] for r in found["summary"]}["gsbids"] == 2
