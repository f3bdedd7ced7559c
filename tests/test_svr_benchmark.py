# SPDX-License-Identifier: Apache-2.0
"""What the SVR benchmark does to simulated cases, and what it makes of its records."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti
from scipy.spatial.transform import Rotation

from gsbids.imaging.nifti import load_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from svr_cases import POSE_COLUMNS, Case, read_motion, write_motion
from svr_change import dilated, resized, turned_apart, with_masks
from svr_summary import as_text, summarise

SHAPE = (8, 9, 5)


@pytest.fixture
def case(tmp_path):
    """Two small stacks with random motion, in the folders of the simulator."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "case_seed-1"
    anat, masks, truth = (
        folder / part for part in ("sub-01/anat", "derivatives/masks/sub-01/anat", "derivatives/truth/sub-01/anat")
    )
    for path in (anat, masks, truth):
        path.mkdir(parents=True)
    for run in (1, 2):
        affine = np.diag([1.1, 1.1, 3.0, 1.0])
        affine[:3, 3] = [-4, run, -6]
        mask = np.zeros(SHAPE)
        mask[3:5, 3:6, 1:4] = 1
        write_nifti(anat / f"sub-01_run-{run}_T2w.nii.gz", rng.uniform(1, 999, SHAPE).round(), affine)
        (anat / f"sub-01_run-{run}_T2w.json").write_text(json.dumps({"SliceThickness": 3.0}))
        write_nifti(masks / f"sub-01_run-{run}_desc-brain_mask.nii.gz", mask, affine)
        rows = ["\t".join(POSE_COLUMNS)]
        for k in range(SHAPE[2]):
            quaternion = Rotation.random(random_state=10 * run + k).as_quat(scalar_first=True)
            rows.append("\t".join(map(str, [*quaternion, *rng.normal(size=3), *rng.normal(size=3)])))
        (truth / f"sub-01_run-{run}_desc-motion_transforms.tsv").write_text("\n".join(rows) + "\n")
    return Case("case", folder, 1)


def test_motion_is_read_as_the_simulator_says_and_written_back(case, tmp_path):
    row = [float(word) for word in case.true_motion[0].read_text().splitlines()[3].split("\t")]
    quaternion, shift, centre = np.array(row[:4]), np.array(row[4:7]), np.array(row[7:])
    point = np.array([3.0, -4.0, 5.0])
    turn = Rotation.from_quat(quaternion[[1, 2, 3, 0]]).as_matrix()
    found = read_motion(case.true_motion[0])
    np.testing.assert_allclose(found[2, :3, :3] @ point + found[2, :3, 3], turn @ (point - centre) + centre + shift)
    again = read_motion(write_motion(tmp_path / "again.tsv", found))
    np.testing.assert_allclose(again, found, atol=1e-9)
    assert case.true_transforms().shape == (2, SHAPE[2], 4, 4)


def test_turned_stacks_have_their_anatomy_where_it_was(case):
    changed = turned_apart(case, 30.0)
    for n in range(2):
        old, new = load_image(case.images[n])[1], load_image(changed.images[n])[1]
        np.testing.assert_allclose(load_image(changed.masks[n])[1], new, atol=1e-4)
        angle = np.degrees(Rotation.from_matrix((new @ np.linalg.inv(old))[:3, :3]).magnitude())
        assert angle == pytest.approx(0, abs=1e-3) if n == 0 else 1 < angle < 30
        before, after = read_motion(case.true_motion[n]), read_motion(changed.true_motion[n])
        # The same pixel shows the same point of the anatomy.
        np.testing.assert_allclose(after @ new, before @ old, atol=1e-3)


def test_masks_with_errors_miss_an_end_slice(case):
    changed = with_masks(case, "dilated", dilated)
    before, wide, counted = (
        load_image(path)[0] > 0 for path in (case.masks[0], changed.masks[0], changed.true_masks[0])
    )
    assert list(np.flatnonzero(wide.any((0, 1)))) == list(np.flatnonzero(counted.any((0, 1)))) == [2, 3]
    np.testing.assert_array_equal(counted[:, :, 2:], before[:, :, 2:])
    assert wide[:, :, 2].sum() > 2 * before[:, :, 2].sum()
    assert case.true_masks == case.masks


def test_resized_stacks_keep_their_place(case):
    changed = resized(case, (12, 6, 4))
    (data, affine), (old, old_affine) = load_image(changed.images[1]), load_image(case.images[1])
    assert data.shape == (12, 6, 4)
    where = np.argwhere(data > 0)
    world = where @ affine[:3, :3].T + affine[:3, 3]
    there = np.rint((world - old_affine[:3, 3]) / np.diag(old_affine)[:3]).astype(int)
    np.testing.assert_array_equal(data[tuple(where.T)], old[tuple(there.T)])
    assert len(where) == 8 * 6 * 4


def score(psnr, lost=0.0):
    return {
        "psnr": psnr,
        "ssim": 0.93,
        "psnr_core": psnr,
        "ssim_core": 0.93,
        "slice_error": {"mean_mm": 0.2, "over_2mm": lost},
    }


def test_summary():
    records = [
        {"row": "A", "case": "A", "seed": seed, "method": method, "score": score(psnr, 0.05)}
        for seed, method, psnr in ((1, "default", 31.8), (1, "known", 32.0), (1, "paper", 30.0), (2, "default", 31.3))
    ]
    records += [
        {
            "row": "robust",
            "case": "A-severe-turned",
            "seed": seed,
            "method": "default",
            "score": score(30),
            "psnr_loss": loss,
        }
        for seed, loss in ((1, 0.2), (2, 3.0), (3, -0.1), (4, 1.0))
    ]
    curve = [{"seconds": t, "psnr": p, "ssim": s} for t, p, s in ((1, 20, 0.5), (2, 29.8, 0.9), (4, 31.8, 0.93))]
    slow = [{"seconds": 50 * point["seconds"], "psnr": point["psnr"] - 2.5, "ssim": 0.9} for point in curve]
    records += [
        {
            "row": "speed",
            "case": "A",
            "method": method,
            "curve": points,
            "cost": {"fit_s": points[-1]["seconds"], "register_s": 0.5},
        }
        for method, points in (("default", curve), ("paper", slow))
    ]
    found = {row["what"]: row["measured"] for row in summarise(records)}
    assert found["A: PSNR over the reference's 30.8"] == "+0.75 (+0.50 to +1.00)"
    assert found["A: PSNR over `--svr-method paper`"] == "+1.80"
    assert found["A: distance to known poses"] == "0.20 dB"
    assert found["A: slices lost"] == "5.0 % (5.0 % to 5.0 %)"
    assert found["large motion, stacks turned apart: success of 4 seeds"] == "75 %"
    assert found["preview: SSIM within 0.05 of the final, registration included"] == "2.5 s"
    assert found["time to the PSNR at which the paper's method ends (29.30 dB), times faster"] == "100"
    assert "B0 core: PSNR" not in found
    assert "| case A, fit only | 60 s | 15 s | 4.0 s |" in as_text(summarise(records))
