# SPDX-License-Identifier: Apache-2.0
"""The mask network: its file, what it makes of a stack, and its command."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.imaging.masks import dice, without_appendages
from gsbids.masking.found import MaskNetwork
from gsbids.masking.network import NetworkShape, build_network, normalised, segment
from gsbids.masking.networks import load_network, save_network, segment_stack, weights_file
from gsbids.masking.stack_masks import make_mask

SHAPE = NetworkShape((4, 8, 8), 2.0)


class Bright(torch.nn.Module):
    """Brain is what is brighter than one half."""

    def forward(self, image):
        return 20 * (image - 0.5)


BRIGHT = MaskNetwork(Bright(), SHAPE)


def stack(shape=(90, 80, 16), spacing=(1.1, 1.1, 3.0), radius=22.0, seed=0):
    """Dim tissue with a bright ball (mm), and where the ball is."""
    at = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    ball = sum(a**2 for a in at) < radius**2
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    return (np.where(ball, 800, 200) + noise).astype(np.float32), ball


def crumb():
    """Four slices of dim tissue with something bright of about 2 ml in the corner."""
    image, _ = stack(radius=0)
    image[:2, :38] = 800
    return image[..., :4]


def test_a_ball_is_found_whatever_the_axis_of_the_slices():
    image, ball = stack()
    affine = np.diag([1.1, 1.1, 3.0, 1])
    found = segment_stack(image, affine, BRIGHT)
    assert dice(found.mask, ball) > 0.95
    assert found.confidence > 0.9
    assert found.millilitres(affine) == pytest.approx(ball.sum() * 1.1 * 1.1 * 3 / 1e3, rel=0.05)
    turned = segment_stack(np.moveaxis(image, 2, 0), np.diag([3.0, 1.1, 1.1, 1]), BRIGHT)
    np.testing.assert_array_equal(np.moveaxis(turned.mask, 0, 2), found.mask)


def test_only_the_largest_region_stays_and_its_holes_are_filled():
    image, _ = stack()
    image[:4, :4] = 800
    image[44:47, 38:41, 7:9] = 100
    found = segment(image, (1.1, 1.1, 3.0), BRIGHT).mask
    assert not found[:4, :4].any()
    assert found[44:47, 38:41, 7:9].all()


def test_what_hangs_on_the_brain_by_a_neck_is_cut_off():
    _, ball = stack()
    attached = ball.copy()
    attached[44:47, 50:, 7:9] = True  # a bridge of 3 mm
    attached[40:52, 70:, 5:11] = True  # and what it leads to
    kept = without_appendages(attached, (1.1, 1.1, 3.0))
    assert not kept[:, 66:].any()
    assert dice(kept, ball) > 0.97
    thin = np.zeros(ball.shape, bool)
    thin[:, 40, 8] = True
    np.testing.assert_array_equal(without_appendages(thin, (1.1, 1.1, 3.0)), thin)


def test_a_network_sees_the_neighbours_of_a_slice_and_nothing_beyond_the_ends():
    class Below(torch.nn.Module):
        """Brain is where the slice before is bright."""

        def forward(self, block):
            return 20 * (block[:, :1] - 0.5)

    image, ball = stack()
    found = segment(image, (1.1, 1.1, 3.0), MaskNetwork(Below(), NetworkShape((4, 8, 8), 2.0, 3)))
    assert not (found.probability[..., 0] > 0.5).any()
    lit = np.flatnonzero(ball.any((0, 1)))  # the others are noise between two percentiles
    assert dice(found.probability[..., lit + 1] > 0.5, ball[..., lit]) > 0.95


@pytest.mark.parametrize(
    "image",
    [pytest.param(np.zeros((40, 40, 6), np.float32), id="nothing"), pytest.param(crumb(), id="smaller than any brain")],
)
def test_where_there_is_no_brain_none_is_found(image):
    found = segment(image, (1.1, 1.1, 3.0), BRIGHT)
    assert not found.mask.any()
    assert found.confidence == 0


def test_gain_of_slices_and_unfit_numbers_do_not_matter():
    image, ball = stack()
    gains = np.random.default_rng(1).uniform(0.3, 3, image.shape[2]).astype(np.float32)
    odd = image * gains
    odd[3, 3, 3] = np.nan
    assert dice(segment(odd, (1.1, 1.1, 3.0), BRIGHT).mask, ball) > 0.95


def test_intensities_lie_between_percentiles():
    image = np.linspace(0, 1000, 10_000).reshape(100, 100)
    seen = normalised(image)
    assert seen.min() == 0
    assert 1 < seen.max() < 1.02
    assert not normalised(np.zeros((9, 9))).any()


def test_a_file_of_weights_gives_the_network_back(tmp_path):
    torch.manual_seed(0)
    network = build_network(SHAPE).eval()
    save_network(tmp_path / "a.safetensors", MaskNetwork(network, SHAPE, facts={"config": "seed = 1"}))
    again = load_network(tmp_path / "a.safetensors")
    assert again.shape == SHAPE
    assert again.judge is None
    assert again.facts == {"config": "seed = 1"}
    image = torch.rand(2, 1, 32, 48)
    torch.testing.assert_close(again.network(image), network(image), rtol=0, atol=0)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x10\0\0\0\0\0\0\0" + json.dumps({}).encode()])
def test_a_file_that_holds_no_weights_is_named(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.safetensors: no weights of a mask network"):
        load_network(path)


def test_weights_that_do_not_fit_and_weights_that_are_not_there(tmp_path):
    save_network(tmp_path / "a.safetensors", MaskNetwork(build_network(SHAPE), NetworkShape((4, 8, 16))))
    with pytest.raises(InputError, match="no weights of a mask network"):
        load_network(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="there are no such weights"):
        load_network(weights_file(tmp_path / "none.safetensors"))


def command(tmp_path, *words):
    """The exit code and messages of ``gsbids mask`` with an untrained network, whose answer is anything."""
    torch.manual_seed(0)
    save_network(tmp_path / "w.safetensors", MaskNetwork(build_network(SHAPE), SHAPE))
    return main(["mask", *map(str, words), "--mask-weights", str(tmp_path / "w.safetensors"), "--nprocs", "1"])


def test_the_command_writes_on_the_grid_of_the_stack_or_says_that_there_is_no_brain(tmp_path, capsys):
    image, _ = stack((48, 40, 10))
    affine = np.diag([1.1, 1.1, 3.0, 1])
    affine[:3, 3] = 5, -7, 9
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "stack.nii.gz")
    before = (tmp_path / "stack.nii.gz").read_bytes()
    code = command(
        tmp_path, tmp_path / "stack.nii.gz", tmp_path / "mask.nii.gz", "--probability", tmp_path / "p.nii.gz"
    )
    words = capsys.readouterr().err
    probability = nib.load(tmp_path / "p.nii.gz")
    assert probability.shape == image.shape
    np.testing.assert_allclose(probability.affine, affine, atol=1e-4)
    assert (tmp_path / "mask.nii.gz").exists() == (code == 0)
    assert ("no brain was found" in words) == (code == 1)
    assert code in (0, 1)
    assert (tmp_path / "stack.nii.gz").read_bytes() == before


def test_bad_input_of_the_command_is_one_line(tmp_path, capsys, caplog):
    caplog.set_level(logging.ERROR)
    (tmp_path / "text.nii.gz").write_text("no image")
    for words, told in (
        ((tmp_path / "none.nii.gz", tmp_path / "m.nii.gz"), "none.nii.gz"),
        ((tmp_path / "text.nii.gz", tmp_path / "m.nii.gz"), "text.nii.gz"),
        ((tmp_path / "text.nii.gz", tmp_path / "text.nii.gz"), "this is the input"),
        ((tmp_path / "text.nii.gz", tmp_path / "no" / "m.nii.gz"), "there is no such folder"),
    ):
        assert command(tmp_path, *words) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 1
        assert told in errors[0]
    assert not (tmp_path / "m.nii.gz").exists()


def untrained(tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / "untrained.safetensors", MaskNetwork(build_network(SHAPE), SHAPE))
    return tmp_path / "untrained.safetensors"


def biased(tmp_path, logit):
    """Weights of a network that says the same of every pixel."""
    network = build_network(SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        last.bias.fill_(logit)
    save_network(tmp_path / f"{logit}.safetensors", MaskNetwork(network, SHAPE))
    return tmp_path / f"{logit}.safetensors"


@pytest.mark.parametrize(
    ("logit", "method", "doubt"),
    [
        (5.0, "network", ""),
        (1.75, "network", "The network has low confidence (0.70, below 0.80)."),
        (0.5, "otsu", "The network found no brain in it."),
        (-5.0, "otsu", "The network found no brain in it."),
    ],
)
def test_auto_takes_what_the_network_finds_with_its_doubt_and_a_threshold_where_it_finds_nothing(
    tmp_path, logit, method, doubt
):
    image, ball = stack()
    made = make_mask("auto", image, np.diag([1.1, 1.1, 3.0, 1]), weights=biased(tmp_path, logit))
    assert (made.method, made.doubt) == (method, doubt)
    assert made.mask.all() if method == "network" else dice(made.mask, ball) > 0.98


@pytest.mark.parametrize(("logit", "method"), [(5.0, "network"), (1.75, "otsu"), (-5.0, "otsu")])
def test_a_head_in_air_has_a_threshold_unless_the_network_is_sure(tmp_path, logit, method):
    image, _ = stack()
    image -= 195
    made = make_mask("auto", np.maximum(image, 1), np.diag([1.1, 1.1, 3.0, 1]), weights=biased(tmp_path, logit))
    assert (made.method, made.doubt) == (method, "")


def test_a_network_that_is_in_doubt_or_finds_nothing_says_so(tmp_path):
    weights, affine = untrained(tmp_path), np.diag([1.1, 1.1, 3.0, 1])
    with pytest.raises(InputError, match="no brain was found"):
        make_mask("network", np.zeros((40, 40, 8), np.float32), affine, weights=weights)
    made = make_mask("network", stack()[0], affine, weights=biased(tmp_path, 1.75))
    assert made.method == "network"
    assert "Look at this mask" in made.reason
    assert made.doubt.startswith("The network has low confidence (0.")


def test_weights_that_are_not_there_are_told_of_at_the_start(tmp_path, capsys):
    (tmp_path / "bids").mkdir()
    code = main(
        [
            str(tmp_path / "bids"),
            str(tmp_path / "out"),
            "participant",
            "--mask-mode",
            "network",
            "--mask-weights",
            str(tmp_path / "none.safetensors"),
        ]
    )
    assert code == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["stroke_T1", "stroke_T2"])
def test_an_adult_whose_skull_was_stripped_has_the_voxels_that_are_not_zero(test_data, name):
    image = nib.load(test_data / "adult-stroke" / f"{name}.nii.gz")
    made = make_mask("auto", image.get_fdata(), image.affine)
    assert (made.method, made.doubt) == ("nonzero", "")


def test_air_that_the_scanner_has_set_to_zero_is_no_stripped_skull(test_data):
    image = nib.load(test_data / "fetal-stacks-mialsrtk" / "sub-01" / "anat" / "sub-01_run-3_T2w.nii.gz")
    assert (image.get_fdata() == 0).mean() > 0.2
    assert make_mask("auto", image.get_fdata(), image.affine).method == "network"


def test_the_brain_of_a_real_stack_is_found_without_a_hint(test_data):
    """On a stack that the weights of the package were not trained on."""
    fetal_data = test_data / "fetal-stacks-mialsrtk"
    folder = fetal_data / "sub-01" / "anat"
    image = nib.load(folder / "sub-01_run-5_T2w.nii.gz")
    truth = (
        nib.load(
            fetal_data / "derivatives" / "manual_masks" / "sub-01" / "anat" / "sub-01_run-5_T2w_desc-brain_mask.nii.gz"
        ).get_fdata()
        > 0
    )
    made = make_mask("auto", image.get_fdata(), image.affine)
    assert made.method == "network"
    assert dice(made.mask, truth) > 0.7  # 0.80 was measured
