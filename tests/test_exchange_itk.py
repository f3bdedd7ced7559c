# SPDX-License-Identifier: Apache-2.0
"""The transforms that are written, applied by antspyx and by SimpleITK as their users would."""

import numpy as np
import pytest
from test_template import rigid

from gsbids.bids.names import KINDS
from gsbids.imaging.bias import load_ants
from gsbids.imaging.itk import read_itk_transforms, write_itk_transforms
from gsbids.imaging.nifti import save_image
from gsbids.interfaces.reconstruct import MotionTable
from gsbids.recon.volume.coverage import vote_mask
from gsbids.recon.volume.sample import output_grid, sample_result, simulate_stack

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (it is one of the test requirements)")


def ncc(one, other):
    return float(np.corrcoef(one, other)[0, 1])


@pytest.fixture(scope="module")
def files(moving_brain, tmp_path_factory):
    """Volume, acquired stacks, and the transforms that the motion step writes for them."""
    _, stacks, result, _ = moving_brain
    folder = tmp_path_factory.mktemp("itk")
    model = result.save(folder / "result.npz")
    affine, shape = output_grid(stacks, result, 1.0)
    volume = save_image(folder / "volume.nii.gz", sample_result(result, affine, shape), affine)
    written = []
    for n, stack in enumerate(stacks):
        own = folder / str(n)
        own.mkdir()
        image = save_image(own / "stack.nii.gz", stack.image, stack.affine)
        outputs = MotionTable(result=str(model), index=n, in_file=str(image), slice_timing=[]).run(cwd=str(own)).outputs
        written.append((image, outputs.stack_xfm, outputs.slices_xfm))
    return folder, volume, written


def slices_with_brain(stacks, result):
    """Stack and index of every second slice that shows much brain."""
    for n, stack in enumerate(stacks):
        used = result.slice_index[(result.stack_index == n) & ~result.rejected]
        yield from ((n, int(k)) for k in used[::2] if stack.mask[:, :, k].sum() > 300)


def test_the_volume_is_put_onto_acquired_slices(moving_brain, files):
    """Resampled by the inverse of its transform, the volume is what the slice shows; without it, less so."""
    _, stacks, result, _ = moving_brain
    folder, volume, written = files
    ants, rows = load_ants(), []
    moving, moving_sitk = ants.image_read(str(volume)), sitk.ReadImage(str(volume))
    for n, k in slices_with_brain(stacks, result):
        stack, inside = stacks[n], stacks[n].mask[:, :, k]
        affine = stack.affine.copy()
        affine[:3, 3] += k * affine[:3, 2]
        acquired = save_image(folder / "slice.nii.gz", stack.image[:, :, k : k + 1], affine)
        one = write_itk_transforms(folder / "one.txt", read_itk_transforms(written[n][2])[k])
        fixed = ants.image_read(str(acquired))
        placed = ants.read_transform(str(one)).invert().apply_to_image(moving, reference=fixed).numpy()[:, :, 0]
        still = ants.resample_image_to_target(moving, fixed, interp_type="linear").numpy()[:, :, 0]
        again = sitk.GetArrayFromImage(
            sitk.Resample(
                moving_sitk, sitk.ReadImage(str(acquired)), sitk.ReadTransform(str(one)).GetInverse(), sitk.sitkLinear
            )
        )
        np.testing.assert_allclose(again[0].T, placed, atol=1e-3 * placed.max())
        simulated = simulate_stack(result, stack, n)[:, :, k]
        rows.append(
            (
                ncc(placed[inside], simulated[inside]),
                ncc(placed[inside], stack.image[:, :, k][inside]),
                ncc(still[inside], stack.image[:, :, k][inside]),
            )
        )
    like_simulated, like_acquired, without = np.array(rows).T
    assert len(rows) >= 10
    print(np.round([np.median(like_simulated), np.median(like_acquired), np.median(without)], 3))
    # The volume has no slice profile; else they are the same.
    assert like_simulated.min() > 0.97
    assert np.median(like_acquired) > 0.95
    assert (like_acquired > without + 0.1).all()


def test_whole_stacks_are_put_onto_the_volume(moving_brain, files):
    """The other direction, as the sidecar says: the file as it is resamples the stack onto the volume."""
    _, stacks, result, _ = moving_brain
    _, volume, written = files
    assert "resampling with it puts the stack onto the volume" in KINDS["stack_xfm"].sidecar["Description"]
    ants = load_ants()
    fixed, turned = ants.image_read(str(volume)), []
    for image, stack_xfm, _ in written:
        moving = ants.image_read(str(image))
        placed = ants.apply_transforms(fixed=fixed, moving=moving, transformlist=[stack_xfm]).numpy()
        again = sitk.GetArrayFromImage(
            sitk.Resample(
                sitk.ReadImage(str(image)), sitk.ReadImage(str(volume)), sitk.ReadTransform(stack_xfm), sitk.sitkLinear
            )
        ).T
        np.testing.assert_allclose(again, placed, atol=1e-3 * placed.max())
        seen = placed > 0
        turned.append(ncc(placed[seen], fixed.numpy()[seen]))
    assert min(turned) > 0.5
    assert result.stack_affine.shape == (len(stacks), 4, 4)


def test_a_chain_of_transforms_puts_a_stack_onto_a_template(moving_brain, files, tmp_path):
    """Stack -> volume where it lay in the scanner -> template: in antspyx's order, the template's transform first."""
    _, stacks, result, _ = moving_brain
    _, _, written = files
    to_template = rigid((70, -40, 110), (3, -2, 5))
    affine, shape = output_grid(stacks, result, 1.5, to_template)
    here = np.linalg.inv(to_template) @ affine
    image, (inside, _) = sample_result(result, here, shape), vote_mask(stacks, result, here, shape)
    volume = save_image(tmp_path / "volume.nii.gz", image, affine)
    xfm = write_itk_transforms(tmp_path / "template.txt", to_template)
    ants = load_ants()
    # The stack as it would be had nothing moved within it.
    still = sample_result(result, result.stack_affine[0] @ stacks[0].affine, stacks[0].image.shape)
    stack = save_image(tmp_path / "stack.nii.gz", still, stacks[0].affine)
    fixed, moving = ants.image_read(str(volume)), ants.image_read(str(stack))
    chains = {"right": [str(xfm), written[0][1]], "half": [written[0][1]]}
    alike = {}
    for name, chain in chains.items():
        placed = ants.apply_transforms(fixed=fixed, moving=moving, transformlist=chain).numpy()
        alike[name] = ncc(placed[inside], fixed.numpy()[inside])
    print({name: round(value, 3) for name, value in alike.items()})
    assert alike["right"] > 0.8
    assert alike["half"] < 0.4
