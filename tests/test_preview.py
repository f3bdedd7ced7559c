# SPDX-License-Identifier: Apache-2.0
"""Previews: when they are shown, what is written, and that the fit takes no notice."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, ball_stack, write_nifti
from qc_samples import sample_result as made_up_result
from test_recon import AXES, QUICK, STILL, acquire, brain

from gsbids.bids.names import derivative_path, sidecar_path
from gsbids.imaging.nifti import load_image
from gsbids.interfaces.outputs import SaveDerivative
from gsbids.interfaces.preview import EarlyPreview, PreviewFile
from gsbids.interfaces.reconstruct import FitSvr, RegisterStacks
from gsbids.recon.svr.fit import SETTLING, fit_svr
from gsbids.recon.volume.preview import Previewer, PreviewVolume
from gsbids.recon.volume.sample import sample_result

TASK = {"sub": "01", "suffix": "T2w"}
OPTIONS = {"iterations": 24, "n_gaussians": 400, "members": 2, "detail_iterations": 20, "seed": 3}


@pytest.fixture(scope="module")
def stack_files(tmp_path_factory):
    """Files of three stacks of a ball, and of their masks."""
    folder = tmp_path_factory.mktemp("stacks")
    images, masks = [], []
    for run in (1, 2, 3):
        image, mask, affine = ball_stack(run)
        images.append(str(write_nifti(folder / f"run-{run}_T2w.nii.gz", image, affine)))
        masks.append(str(write_nifti(folder / f"run-{run}_mask.nii.gz", mask, affine)))
    return images, masks


def settings(out: Path, first: int = 8) -> dict:
    return {
        "output_dir": str(out),
        "entities": TASK,
        "resolution": 2.0,
        "first": first,
        "sidecar": {"Sources": ["bids:raw:sub-01/x.nii.gz"]},
    }


def preview_file(out: Path) -> Path:
    return out / derivative_path(TASK, "preview")


def test_previews_come_early_and_change_no_bit():
    stacks = [acquire(brain(), orientation, noise=0.01) for orientation in AXES]
    options = dataclasses.replace(QUICK, iterations=32, n_gaussians=500, members=2, detail_iterations=40)
    shown = []
    result = fit_svr(stacks, STILL, options, observe=Previewer(stacks, 2.0, shown.append, first=6))
    without = fit_svr(stacks, STILL, options)
    for name in ("mean", "log_scale", "quaternion", "intensity"):
        np.testing.assert_array_equal(getattr(result.field, name), getattr(without.field, name))
    np.testing.assert_array_equal(result.motion.translation, without.motion.translation)
    assert result.history["loss"] == without.history["loss"]
    iterations = [preview.iteration for preview in shown]
    assert iterations[:4] == [6, 9, 14, 21]
    assert iterations == sorted(iterations)
    apart = []
    for preview in shown:
        np.testing.assert_allclose(np.diag(preview.affine)[:3], 2.0)
        final = sample_result(result, preview.affine, preview.image.shape)
        inside = final > 0.3 * final.max()
        apart.append(np.abs(preview.image - final)[inside].mean() / final[inside].mean())
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 0.75 * apart[0] < 0.25


def test_a_state_that_explains_less_is_not_shown():
    """The residuals of the states are 0.10, 0.20, 0.101, 0.05, in this order, and all but the second are shown."""
    shown = []
    observe = Previewer([], 2.0, shown.append, first=1)
    import gsbids.recon.volume.preview as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "output_grid", lambda *_: (np.eye(4), (2, 2, 2)))
        patch.setattr(module, "sample_result", lambda *_: np.zeros((2, 2, 2)))
        for iteration, residual in enumerate((0.10, 0.20, 0.101, 0.05), start=1):
            observe.next = iteration
            state = made_up_result(residual=np.full(24, residual), weight=np.ones(24))
            observe(iteration, lambda state=state: state)
        assert [preview.iteration for preview in shown] == [1, 3, 4]
        # Between its moments nothing is asked for.
        observe.next = 10
        observe(9, lambda: pytest.fail("asked for a state"))


def test_the_fit_keeps_the_file_up_to_date(stack_files, tmp_path):
    images, masks = stack_files
    stacks = {"in_files": images, "in_masks": masks, "names": ["a", "b", "c"], "thicknesses": [3.5] * 3}
    registration = RegisterStacks(**stacks).run(cwd=str(tmp_path)).outputs.out_file
    out, made = tmp_path / "out", {}
    for name, preview in (("with", {"preview": settings(out)}), ("without", {})):
        (tmp_path / name).mkdir()
        node = FitSvr(registration=registration, options=OPTIONS, **stacks, **preview)
        made[name] = node.inputs.get_hashval()[1], Path(node.run(cwd=str(tmp_path / name)).outputs.out_file)
    assert made["with"][0] == made["without"][0]
    assert made["with"][1].read_bytes() == made["without"][1].read_bytes()
    fields = json.loads(sidecar_path(preview_file(out)).read_text())
    detail = OPTIONS["members"] - 1 + SETTLING
    assert 24 <= fields["Iteration"] <= OPTIONS["iterations"] + detail * OPTIONS["detail_iterations"]
    assert fields["Stage"] == "prepared stacks"
    assert fields["Sources"] == ["bids:raw:sub-01/x.nii.gz"]
    image, affine = load_image(preview_file(out))
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0)
    assert image.max() > 500
    assert not list(out.rglob("*.tmp*"))


def test_early_preview(stack_files, tmp_path):
    images, masks = stack_files
    inputs = {
        "in_files": images,
        "mask_files": [*masks[:2], ""],
        "directions": ["", "k", ""],
        "names": ["a", "b", "c"],
        "thicknesses": [3.5] * 3,
        "options": {"n_gaussians": 300},
    }
    out = tmp_path / "out"
    assert EarlyPreview(**inputs, preview=settings(out)).run(cwd=str(tmp_path)).outputs.done
    assert json.loads(sidecar_path(preview_file(out)).read_text())["Stage"] == "stacks as acquired"
    # What cannot be used is left to the steps that say so in full.
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros((28, 28, 14), np.uint8), ball_stack(1)[2])
    inputs["mask_files"] = [str(empty)] * 3
    assert not EarlyPreview(**inputs, preview=settings(tmp_path / "b")).run(cwd=str(tmp_path)).outputs.done
    assert not (tmp_path / "b").exists()


def test_the_volume_takes_the_place_of_the_preview(stack_files, tmp_path):
    state = made_up_result()
    write = PreviewFile(settings(tmp_path / "out"), tmp_path, "prepared stacks")
    for iteration in (8, 12):
        write(PreviewVolume(np.ones((3, 3, 3), np.float32), np.eye(4), iteration, 0.1, state))
        assert json.loads(sidecar_path(preview_file(tmp_path / "out")).read_text())["Iteration"] == iteration
    for _ in range(2):  # also where there is no preview any more
        SaveDerivative(
            output_dir=str(tmp_path / "out"),
            kind="volume",
            entities=TASK,
            extra={"res": 2.0},
            in_file=stack_files[0][0],
            sidecar={"Sources": ["bids:raw:x"]},
            supersedes="preview",
        ).run()
        assert not preview_file(tmp_path / "out").exists()
        assert not sidecar_path(preview_file(tmp_path / "out")).exists()
        assert (tmp_path / "out" / derivative_path(TASK, "volume", res=2.0)).exists()


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "out").write_text("a file where the folder should be")
    write = PreviewFile(settings(tmp_path / "out"), tmp_path, "prepared stacks")
    for iteration in (8, 12):
        write(PreviewVolume(np.ones((3, 3, 3), np.float32), np.eye(4), iteration, 0.1, made_up_result()))
    assert caplog.text.count("the preview could not be written") == 1


def test_the_example_of_the_documentation_works(stack_files, tmp_path, capsys):
    text = (CHECKOUT / "docs" / "python.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n((?:(?!```).)*Previewer.*?)```", text, re.DOTALL)[1]
    whole = "SvrOptions(threads=2)"
    assert whole in example
    example = example.replace(whole, "SvrOptions(iterations=40, n_gaussians=400, members=1)")
    names = {"images": stack_files[0], "masks": stack_files[1], "thickness": 3.5, "folder": tmp_path}
    exec(compile(example, "docs/python.md", "exec"), names)
    assert load_image(tmp_path / "preview.nii.gz")[0].max() > 500
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("iteration 8: similarity")
    assert len(names["result"].field) > 0
