# SPDX-License-Identifier: Apache-2.0
"""MONAIfbs' checkpoint: its layout, what it finds beside MONAI's own way with it, and files that are none.

The weights are random, of the shape of the published ones: these are no part of the project.
"""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet
from monai.transforms import NormalizeIntensity, Spacing
from scipy import ndimage

from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.masking.checkpoint import read_state
from gsbids.masking.found import MaskNetwork
from gsbids.masking.monaifbs import MonaifbsShape, build_monaifbs, converted, segment_monaifbs
from gsbids.masking.networks import load_network, segment_stack

SPACING = (1.12, 1.28, 40.0)  # 7 / 5 and 8 / 5 of MONAIfbs' pixels; one slice has 101 ml
SMALL = MonaifbsShape(window=(32, 32))  # for what does not depend on the size


def peer_network():
    """The DynUNet of MONAIfbs as its own files set it up, with the heads of its training.

    Its norm, "instance", had parameters of its own in MONAI 0.3.0.
    """
    strides = [[1, 1], *([2, 2] for _ in range(6)), [1, 2]]
    torch.manual_seed(1)
    return DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        kernel_size=[[3, 3]] * 8,
        strides=strides,
        upsample_kernel_size=strides[1:],
        norm_name=("instance", {"affine": True}),
        deep_supervision=True,
        deep_supr_num=2,
        res_block=False,
    ).eval()


def peer_state(network):
    """Its weights under the names and with the layers that they had in MONAI 0.3.0: no skip_layers, six heads."""
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("skip_layers.")}
    for level, channels in enumerate((64, 128, 256, 512, 512, 512)):
        state[f"deep_supervision_heads.{level}.conv.conv.weight"] = torch.zeros(2, channels, 1, 1)
        state[f"deep_supervision_heads.{level}.conv.conv.bias"] = torch.zeros(2)
    return state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network, and the file that a training by ignite would have left of it."""
    network = peer_network()
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if "norm" in name:
                tensor.add_(0.3 * torch.randn(tensor.shape))
        first = ndimage.zoom(stack()[..., 0], (56 / 40, 70 / 44), order=1)
        padded = torch.from_numpy(np.pad((first - first.mean()) / first.std(), ((196, 196), (221, 221))))[None, None]
        score = network(padded)[0, :, 196:252, 221:291]
        network.output_block.conv.conv.bias[1] -= (score[1] - score[0]).median()  # half of it is brain
    path = tmp_path_factory.mktemp("monaifbs") / "checkpoint_dynUnet_DiceXent.pt"
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01, "nesterov": True}]}
    torch.save({"net": peer_state(network), "opt": momentum}, path)
    return network, path


def stack(shape=(40, 44, 1)):
    """Slices with something smooth in them."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.arange(n) for n in shape[:2]), indexing="ij")
    waves = [np.sin(x / 5 + phase) * np.cos(y / 7) for phase in rng.uniform(0, 6, shape[2])]
    return (300 + 200 * np.stack(waves, 2) + rng.normal(0, 20, shape)).astype(np.float32)


def by_monai(network, image, affine):
    """Probability and mask on the fine pixels, by MONAI's transforms in the order of the tool."""
    volume = Spacing((0.8, 0.8, SPACING[2]), mode="bilinear", padding_mode="border", align_corners=False)(
        MetaTensor(torch.from_numpy(image)[None], torch.from_numpy(affine))
    )
    volume = NormalizeIntensity(nonzero=False, channel_wise=True)(volume).as_tensor().float()
    slices = volume[0].permute(2, 0, 1)[:, None]
    window = SlidingWindowInferer((448, 512), 4, 0.0)
    with torch.no_grad():
        score = (
            sum(torch.flip(window(torch.flip(slices, axes), network), axes) for axes in ((), (2,), (3,), (2, 3))) / 4
        )
    probability = torch.softmax(score, 1)[:, 1].permute(1, 2, 0)
    regions = ndimage.label(probability > 0.5, np.ones((3, 3, 3)))[0]  # MONAI's own needs scikit-image
    return probability.numpy(), regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])


def test_the_same_is_found_as_by_monai_itself(checkpoint, tmp_path):
    network, path = checkpoint
    seen = torch.randn(1, 1, 448, 512)
    with torch.no_grad():
        torch.testing.assert_close(load_network(path).network(seen), network(seen), rtol=0, atol=0)
    image, affine = stack(), np.diag([*SPACING, 1.0])
    affine[:3, 3] = 5, -7, 9
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
    found, probability = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("mask", "p"))
    fine_probability, fine_mask = by_monai(network, image, affine)
    assert 0.05 < fine_mask.mean() < 0.95  # there is something to compare
    i, j = np.rint(np.arange(40) * SPACING[0] / 0.8), np.rint(np.arange(44) * SPACING[1] / 0.8)
    np.testing.assert_array_equal(found, fine_mask[np.ix_(i.astype(int), j.astype(int))])
    exact, fine = np.ix_(np.arange(0, 40, 5), np.arange(0, 44, 5)), np.ix_(np.arange(0, 56, 7), np.arange(0, 71, 8))
    np.testing.assert_allclose(probability[exact], fine_probability[fine], atol=2e-4)


def test_a_wide_stack_is_seen_in_pieces_and_another_axis_of_slices_is_found():
    torch.manual_seed(0)
    known, image = MaskNetwork(build_monaifbs(SMALL).eval(), SMALL), stack((44, 30, 2))
    found = segment_monaifbs(image, SPACING, known)
    assert found.probability.shape == found.mask.shape == image.shape
    turned = segment_stack(np.moveaxis(image, 2, 0), np.diag([SPACING[2], *SPACING[:2], 1]), known)
    np.testing.assert_array_equal(np.moveaxis(turned.mask, 0, 2), found.mask)
    assert 0 <= found.confidence <= 1


def test_names_of_other_versions_are_understood(tmp_path):
    torch.manual_seed(0)
    network = build_monaifbs(SMALL)
    state = network.state_dict()
    renamed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"net": renamed}, tmp_path / "a.pt")
    again = converted(read_state(tmp_path / "a.pt"), state, "a.pt")
    assert set(again) == {name for name in state if not name.startswith("skip_layers.")}
    assert all(torch.equal(again[name], state[name]) for name in again)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("output_block.conv.conv.bias"), "it lacks output_block.conv.conv.bias"),
        (lambda state: state.update(more=torch.zeros(1)), "it has more"),
        (
            lambda state: state.update({"output_block.conv.conv.bias": torch.zeros(3)}),
            "output_block.conv.conv.bias has 3, not 2",
        ),
    ],
)
def test_another_network_is_told_by_what_differs(change, told):
    wanted = build_monaifbs(SMALL).state_dict()
    state = dict(wanted)
    change(state)
    with pytest.raises(InputError, match=rf"b\.pt: no checkpoint of MONAIfbs' DynUNet \({told}\)"):
        converted(state, wanted, "b.pt")


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_no_checkpoint_are_one_line_and_run_nothing(tmp_path, capsys):
    nib.save(nib.Nifti1Image(stack(), np.diag([*SPACING, 1])), tmp_path / "stack.nii.gz")
    trace = tmp_path / "was-run"
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"net": Trap(trace)}))
    torch.save({"net": Trap(trace)}, tmp_path / "trap2.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"net": {"a": torch.zeros(2)}}, tmp_path / "other.pt")
    for name in ("text.pt", "empty.pth", "trap.pt", "trap2.pt", "list.pt", "other.pt", "none.pt"):
        code = main(
            [
                "mask",
                str(tmp_path / "stack.nii.gz"),
                str(tmp_path / "mask.nii.gz"),
                "--mask-weights",
                str(tmp_path / name),
                "--nprocs",
                "1",
            ]
        )
        errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert code == 2
        assert len(errors) == 1, errors
        assert name in errors[0]
    assert not trace.exists()
    assert not (tmp_path / "mask.nii.gz").exists()
