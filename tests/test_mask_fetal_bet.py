# SPDX-License-Identifier: Apache-2.0
"""Fetal-BET2's checkpoint: what it finds beside MONAI's own way with it, and files of another network.

The weights are random, of the shape of the published ones: these are no part of the project.
"""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.networks.nets import AttentionUnet
from monai.transforms import Spacing
from scipy import ndimage
from test_mask_monaifbs import stack

from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.masking.fetal_bet import FetalBetShape, build_fetal_bet, load_fetal_bet, segment_fetal_bet
from gsbids.masking.found import MaskNetwork
from gsbids.masking.networks import load_network

SPACING = (1.4, 1.6, 40.0)  # 7 and 8 fifths of Fetal-BET2's pixels


def peer_network():
    """The network as the tool's own files set it up, with parameters of its norms that are not those at the start."""
    torch.manual_seed(2)
    network = AttentionUnet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=(64, 128, 256, 512, 1024),
        strides=(2, 2, 2, 2),
        kernel_size=3,
        up_kernel_size=3,
        dropout=0,
    ).eval()
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if ".N." in name:
                tensor.add_(0.3 * torch.randn(tensor.shape))
        for name, tensor in network.named_buffers():
            if name.endswith("running_var"):
                tensor.mul_(0.2)
    return network


def by_monai(network, image, affine):
    """Probability and mask by MONAI's transforms in the order of the tool."""
    spacing = Spacing((1.0, 1.0, -1.0), mode="bilinear", padding_mode="zeros")
    volume = spacing(MetaTensor(torch.from_numpy(image)[None], torch.from_numpy(affine)))
    for k in range(volume.shape[-1]):
        one = volume[..., k]
        volume[..., k] = torch.where(one > 0, one / one[one > 0].std(), one)
    inferer = SliceInferer(roi_size=(224, 224), spatial_dim=2, sw_batch_size=4, overlap=0.25, mode="gaussian")
    with torch.no_grad():
        score = (
            sum(torch.flip(inferer(torch.flip(volume[None], axes), network), axes) for axes in ((), (2,), (3,), (2, 3)))
            / 4
        )
    score = MetaTensor(score[0], affine=volume.affine, applied_operations=volume.applied_operations)
    probability = torch.softmax(spacing.inverse(score).as_tensor(), 0)[1].numpy()
    regions = ndimage.label(probability > 0.5, np.ones((3, 3, 3)))[0]
    return probability, regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_same_is_found_as_by_monai_itself(tmp_path, prefix):
    network, image, affine = peer_network(), stack((200, 60, 1)), np.diag([*SPACING, 1.0])
    image[:6] = 0  # what is not above 0 stays
    with torch.no_grad():
        probability, _ = by_monai(network, image, affine)
        network.model[2].conv.bias[1] -= float(np.median(np.log(probability / (1 - probability))))
    probability, mask = by_monai(network, image, affine)
    assert 0.05 < mask.mean() < 0.95  # there is something to compare
    path = tmp_path / "AttUNet.pth"
    torch.save({prefix + name: tensor for name, tensor in network.state_dict().items()}, path)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "stack.nii.gz")
    assert (
        main(
            [
                "mask",
                str(tmp_path / "stack.nii.gz"),
                str(tmp_path / "mask.nii.gz"),
                "--probability",
                str(tmp_path / "p.nii.gz"),
                "--mask-weights",
                str(path),
                "--nprocs",
                "1",
            ]
        )
        == 0
    )
    found, sure = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("mask", "p"))
    np.testing.assert_allclose(sure, probability, atol=2e-3)
    clear = np.abs(probability - 0.5) > 2e-3
    np.testing.assert_array_equal(found[clear] > 0, mask[clear])
    assert clear.mean() > 0.95


def test_the_3d_network_of_the_same_tool_is_told_by_what_differs(tmp_path):
    torch.manual_seed(0)
    volume = AttentionUnet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,))
    torch.save(volume.state_dict(), tmp_path / "AttUNet3D.pth")
    with pytest.raises(InputError, match=r"AttUNet3D\.pth: no checkpoint of Fetal-BET2's 2D AttentionUnet"):
        load_network(tmp_path / "AttUNet3D.pth")


def test_a_stack_without_signal_has_no_brain():
    shape = FetalBetShape(window=(32, 32), channels=(4, 8))
    torch.manual_seed(0)
    found = segment_fetal_bet(
        np.zeros((40, 44, 3), np.float32), (1.4, 1.6, 4.0), MaskNetwork(build_fetal_bet(shape).eval(), shape)
    )
    assert found.mask.shape == found.probability.shape == (40, 44, 3)
    assert np.isfinite(found.probability).all()


def test_a_layer_that_lacks_is_named():
    state = dict(build_fetal_bet(FetalBetShape()).state_dict())
    state.pop("model.2.conv.bias")
    with pytest.raises(InputError, match=r"a\.pth: .* \(it lacks model\.2\.conv\.bias\)"):
        load_fetal_bet(state, "a.pth")
