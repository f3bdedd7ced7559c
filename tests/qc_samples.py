# SPDX-License-Identifier: Apache-2.0
"""Made-up reconstructions for the tests of metrics, figures and report."""

import numpy as np

from gsbids.imaging.nifti import save_image
from gsbids.qc.metrics import reconstruction_metrics
from gsbids.qc.report.content import ReportContent, StackPanel
from gsbids.qc.report.methods import MethodsFacts, methods_paragraphs
from gsbids.qc.report.usage import StepUsage
from gsbids.recon.field import GaussianField
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr.result import SvrResult

DEPTH = 8
SPACING = 4.0
NAMES = ("run-1", "run-2", "run-3")


def field(middle=(0.0, 0.0, 0.0), count=50) -> GaussianField:
    """Gaussians around ``middle``."""
    ones = np.ones(count, np.float32)
    spread = np.random.default_rng(3).normal(0, 5, (count, 3)).astype(np.float32)
    spread -= np.median(spread, axis=0) if count else 0
    turn = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    return GaussianField(spread, 0 * spread, turn, ones, 0 * ones, np.array(middle, float))


def sample_result(names=NAMES, transforms=None, middle=(0.0, 0.0, 0.0), **changes) -> SvrResult:
    """Stacks of ``DEPTH`` slices in three orientations; ``transforms`` (S, 4, 4) moves their slices."""
    rotations, centres = [], []
    for n in range(len(names)):
        # Columns: row, column and normal directions; the normal runs along one of the world axes.
        axes = np.roll(np.eye(3), n % 3, axis=0)
        for k in range(DEPTH):
            rotations.append(axes)
            centres.append(axes[:, 2] * SPACING * (k - (DEPTH - 1) / 2) + axes[:, 0] * 30 + middle)
    nominal = RigidMotion(np.array(rotations), np.array(centres))
    count = len(nominal)
    rng = np.random.default_rng(1)
    values = {
        "field": field(middle),
        "stack_names": tuple(names),
        "nominal": nominal,
        "stack_index": np.repeat(np.arange(len(names)), DEPTH),
        "slice_index": np.tile(np.arange(DEPTH), len(names)),
        "motion": nominal if transforms is None else nominal.moved(transforms),
        "stack_affine": np.tile(np.eye(4), (len(names), 1, 1)),
        "gain": np.exp(rng.normal(0, 0.05, count)),
        "weight": np.where(np.arange(count) % 7 == 3, 0.0, 1.0),
        "ncc": rng.uniform(0.7, 0.98, count),
        "residual": rng.uniform(0.02, 0.06, count),
        "psf": np.ones((count, 3)),
        "intensity_scale": 100.0,
        "history": {"iteration": [0, 1, 2, 3], "loss": [0.3, 0.1, 0.06, 0.05], "held_out": [0.3, 0.12, 0.07, None]},
        "settings": {
            "seed": 1,
            "placed_anew": [],
            "agreement": [0.97, 0.95, 0.93][: len(names)],
            "placing_margin": 0.82,
            "mask_changes": {name: {"lost": 0.02 * n, "won": 0.01} for n, name in enumerate(names)},
        },
    }
    return SvrResult(**(values | changes))


def ball(shape, affine, radius=14.0, centre=(0.0, 0.0, 0.0)):
    """A textured ball and its mask."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3] - centre
    mask = np.linalg.norm(world, axis=-1) < radius
    image = (100 + 40 * np.sin(world[..., 0] / 2.5) * np.cos(world[..., 1] / 3)) * (0.3 + 0.7 * mask)
    return image.astype(np.float32), mask


def grid(spacing, shape):
    """Affine of a grid around the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.multiply(spacing, np.subtract(shape, 1)) / 2
    return affine


def sample_content(folder, names=NAMES, **changes) -> ReportContent:
    """A complete report's content, its files written into ``folder``."""
    shape = (40, 42, 44)
    affine = grid((0.9, 0.9, 0.9), shape)
    volume, mask = ball(shape, affine)
    files = {
        name: save_image(folder / f"{name}.nii.gz", data, affine)
        for name, data in (
            ("volume", volume * mask),
            ("unmasked", volume),
            ("mask", mask),
            ("coverage", 3.0 * mask),
            ("uncertainty", 0.1 * volume),
        )
    }
    result = sample_result(names)
    panels = []
    for n, name in enumerate(names):
        shape, spacing = (48, 44, DEPTH), (1.1, 1.1, SPACING)
        image, inside = ball(shape, grid(spacing, shape))
        paths = {
            kind: save_image(folder / f"stack{n}-{kind}.nii.gz", data, grid(spacing, shape))
            for kind, data in (("image", image), ("n4", 1.1 * image), ("mask", inside), ("simulated", image * inside))
        }
        times = tuple(1.2 * (k // 2 + DEPTH // 2 * (k % 2)) for k in range(DEPTH)) if n == 0 else None
        panels.append(StackPanel(name, **paths, mask_reason="given", slice_times=times))
    versions = {"gsbids": "0.1.0", "torch": "2.13.0"}
    facts = MethodsFacts(versions, len(names), "derivatives", denoised=True, bias_corrected=True, seed=1)
    values = {
        "title": "sub-01",
        "task": "sub-01_T2w",
        "summary": (("Stacks", str(len(names))),),
        "warnings": ("look here",),
        "stacks": tuple(panels),
        "result": result.save(folder / "result.npz"),
        "registration": {
            "template": 0,
            "similarity_before": [1.0, 0.5, 0.6],
            "similarity_after": [1.0, 0.8, 0.6],
            "accepted": [True, True, False],
            "reason": ["", "", "Left in the scanner's space: no gain."],
        },
        "metrics": reconstruction_metrics(result, volume * mask, mask, (0.9,) * 3),
        "methods": methods_paragraphs(facts),
        "versions": versions,
        "run": {"Command": "gsbids a b participant"},
        "usage": (StepUsage("run_1 conform", 2.0, 1.5), StepUsage("svr fit", 138.0, 240.0, 1.2)),
    }
    return ReportContent(**(values | files | changes))
