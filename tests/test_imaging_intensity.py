# SPDX-License-Identifier: Apache-2.0
"""What stands for nothing in images that are no magnitudes."""

import numpy as np
import pytest

from gsbids.imaging.intensity import above_background, background, darkest, empty_slices, without_spikes
from gsbids.masking.stack_masks import make_mask


@pytest.fixture(scope="module")
def brain():
    """Intensities of a ball, and the ball."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 31),) * 3, indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.5
    return np.random.default_rng(4).normal(0, 1, mask.shape).astype(np.float32), mask


def test_background_is_0_or_the_least(brain):
    noise, mask = brain
    assert background(np.where(mask, noise, 0)) == 0  # brought to mean 0 within the brain
    assert background(np.where(mask, 30 + noise, -1024)) == -1024  # CT
    whole = np.where(mask, 2 + noise / 4, -0.6)
    assert background(whole) == whole.min()
    ringing = np.where(mask, 500 + noise, np.abs(noise))
    ringing[0, 0, :20] = -3
    assert background(ringing) == 0
    assert above_background(ringing).min() == 0


def test_darkest_of_the_brain(brain):
    noise, mask = brain
    image = np.where(mask, noise, -50)
    assert darkest(image, mask) == noise[mask].min()
    image[15, 15, 15] = -1e6
    assert -20 < darkest(image, mask) < -3
    assert darkest(np.where(mask, 100 + noise, -1024), mask) == 0
    assert darkest(noise, np.zeros_like(mask)) == noise.min()


def test_of_shifted_intensities_air_stands_for_nothing(brain):
    """Where it is seen, and is no constant that someone has set."""
    noise, mask = brain
    magnitude = np.where(mask, 60 + 5 * noise, np.abs(noise))
    assert abs(darkest(magnitude - 500, mask) + 500) < 0.5
    masked = np.where(mask, magnitude, 0) - 500
    assert darkest(masked, mask) == masked[mask].min()


@pytest.mark.parametrize("surroundings", [0.0, -7.0])
def test_a_stripped_brain_with_negative_intensities_is_its_mask(brain, surroundings):
    noise, mask = brain
    made = make_mask("auto", np.where(mask, noise, surroundings), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert made.method == "nonzero"
    np.testing.assert_array_equal(made.mask, mask)


@pytest.mark.parametrize("value", [0.0, 300.0, -2.0])
def test_slices_of_one_intensity_are_empty(brain, value):
    noise, mask = brain
    image = noise + 10
    image[:, :, (9, 17)] = value
    image[15, 15, 17] = 4000  # one bright pixel is no brain
    image[:, :, 20] *= 0.1  # dark, not empty
    image[:16, :, 22] = value  # half of it was lost
    assert empty_slices(image, mask) == [9, 17]
    assert empty_slices(np.zeros_like(image), mask) == np.flatnonzero(mask.any((0, 1))).tolist()
    assert empty_slices(image, np.zeros_like(mask)) == []
    tip = mask.copy()
    tip[:, :, 12] = False
    tip[8, 8:11, 12] = True  # the end of a mask is not a slice lost by conversion
    image[8, 8:11, 12] = 100
    assert empty_slices(image, tip) == [9, 17]


@pytest.mark.parametrize("count", [1, 2])
def test_broken_voxels_are_cut_off_and_said(caplog, count):
    image = np.zeros((30, 30, 30), np.float32)
    image[8:22, 8:22, 8:22] = np.random.default_rng(0).gamma(4, 100, (14, 14, 14))
    assert without_spikes(image, "a.nii") is image
    assert caplog.messages == []
    broken = image.copy()
    broken[15, 15, 10 : 10 + count] = 3e6
    found = without_spikes(broken, "a.nii")
    sound = broken == image
    np.testing.assert_array_equal(found[sound], image[sound])
    assert (found[~sound] == image[sound].max()).all()
    (said,) = caplog.messages
    assert said.startswith(f"a.nii: {count} voxels are more than 20 times as bright as nearly all others (up to 3e+06)")
