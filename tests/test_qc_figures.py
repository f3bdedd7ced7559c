# SPDX-License-Identifier: Apache-2.0
"""Pictures show the right side on the right side; curves are valid SVG that a page can hold."""

import io
import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from qc_samples import DEPTH, ball, grid, sample_result

from gsbids.qc.displacement import slice_displacement
from gsbids.qc.figures import curves
from gsbids.qc.figures.panels import StackImages, mid_planes, middle_slices, mosaic, stack_rows
from gsbids.qc.figures.style import PALETTE, inline_svg
from gsbids.qc.figures.tiles import cut, grey_png, outline_path, plane_edges, to_ras, window
from gsbids.qc.report.methods import MethodsFacts, methods_paragraphs, number_citations, references


def pixels(tile):
    return np.asarray(Image.open(io.BytesIO(tile.png)).convert("L"), float)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_right_front_and_head_are_where_radiologists_expect_them(order, signs):
    """A mark at the right front top of the head, in arrays of every orientation."""
    ras = np.zeros((5, 6, 7))
    ras[-1, -1, -1] = 1.0
    data = np.transpose(ras, order)[tuple(slice(None, None, s) for s in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):
        affine[world, axis] = signs[axis] * (world + 1)
        affine[world, 3] += 0 if signs[axis] > 0 else (world + 1) * (data.shape[axis] - 1)
    image = to_ras(data, affine)
    assert np.array_equal(image.data, ras)
    assert image.spacing == pytest.approx([1, 2, 3])
    for axis in range(3):
        assert cut(image.data, axis, image.data.shape[axis] - 1)[0, 0] == 1, "not at the top left"
    for axis in range(3):
        last = data.shape[axis] - 1 if signs[axis] > 0 else 0
        assert image.index_of(image.axis_of(axis), last) == ras.shape[order[axis]] - 1


def test_letters_at_the_edges():
    assert plane_edges(2) == ("R", "L", "A", "P")
    assert plane_edges(1) == ("R", "L", "S", "I")
    assert plane_edges(0) == ("A", "P", "S", "I")


def test_outline_encloses_the_mask():
    mask = np.zeros((20, 30))
    mask[4:12, 6:21] = 1
    path = outline_path(mask, (2.0, 0.5))
    points = np.array([[float(v) for v in p.split()] for p in re.findall(r"[\d.]+ [\d.]+", path)])
    assert points.min(axis=0) == pytest.approx([6 * 0.5, 4 * 2.0])
    assert points.max(axis=0) == pytest.approx([21 * 0.5, 12 * 2.0])
    assert path.count("M") == path.count("Z") == 1
    assert outline_path(np.zeros((4, 4)), (1, 1)) == ""
    assert outline_path(np.ones((4, 4)), (1, 1)).count("Z") == 1


def test_grey_png_keeps_values_and_survives_nan():
    picture = np.array([[0.0, 5.0], [10.0, np.nan]])
    back = np.asarray(Image.open(io.BytesIO(grey_png(picture, (0, 10)))))
    assert back.tolist() == [[0, 128], [255, 0]]
    assert window(np.zeros((3, 3, 3)), None) == (0.0, 1.0)


def test_volume_pictures_are_cropped_labelled_and_described():
    shape = (60, 50, 40)
    affine = grid((0.8, 0.8, 0.8), shape)
    volume, mask = ball(shape, affine, radius=9.0)
    planes = mid_planes(volume, affine, mask, outlined=True)
    assert [tile.edges[:2] for tile in planes] == [("R", "L"), ("R", "L"), ("A", "P")]
    for tile in planes:
        assert max(tile.width, tile.height) < 9 * 2 + 2 * 6 + 3
        assert tile.alt.endswith("at the top.")
        assert tile.outline.startswith("M")
        assert tile.label in ("R 0 mm", "A 0 mm", "S 0 mm", "L 0 mm", "P 0 mm", "I 0 mm")
    rows = mosaic(volume, affine, None, count=3)
    assert [row.label for row in rows] == ["Axial", "Coronal", "Sagittal"]
    assert all(len(row.tiles) == 3 and not row.tiles[0].outline for row in rows)


@pytest.mark.parametrize("flip", [1, -1])
def test_stack_pictures_show_the_slice_they_name(flip):
    data = np.zeros((24, 20, 6), np.float32) + np.arange(1, 7) * 10
    affine = np.array([[0, 0, 3.0 * flip, 0], [1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
    rows = stack_rows(StackImages(data, affine), {4: "Slice 4", 1: "Slice 1"})
    assert [row.label for row in rows] == [
        "Slice 4",
        "Slice 1",
        "Across the slices (coronal cut)",
        "Across the slices (axial cut)",
    ]
    assert pixels(rows[0].tiles[0]).mean() / pixels(rows[1].tiles[0]).mean() == pytest.approx(5 / 2, rel=0.02)
    # Right is on the left: with the slice axis towards R, the last slices are at the left edge.
    across = pixels(rows[2].tiles[0]).mean(axis=0)
    assert (across[0] > across[-1]) == (flip > 0)


def test_stack_pictures_compare_acquired_and_simulated():
    shape = (40, 44, DEPTH)
    affine = grid((1.1, 1.1, 4.0), shape)
    image, mask = ball(shape, affine)
    row = stack_rows(StackImages(image, affine, mask, image, image * mask), {4: "Slice 4"})[0]
    assert [tile.label for tile in row.tiles] == ["Acquired", "N4-corrected", "Simulated", "Difference"]
    assert pixels(row.tiles[3]).max() == 0, "equal images have no difference"
    darker = StackImages(image, affine, mask, image, 0.7 * image * mask)
    darker = stack_rows(darker, {4: "Slice 4"})[0].tiles[3]
    red, _, blue = np.asarray(Image.open(io.BytesIO(darker.png)).convert("RGB"), float).reshape(-1, 3).T
    assert red.sum() > 3 * blue.sum(), "acquired brighter than simulated is orange"


def test_middle_slices_lie_in_the_mask():
    mask = np.zeros((4, 4, 20), bool)
    mask[:, :, 10:15] = True
    assert middle_slices(mask, 20) == [11, 12, 13]
    assert middle_slices(None, 11) == [3, 5, 7]
    assert middle_slices(np.zeros((4, 4, 5)), 5) == [1, 2, 3]


def svgs(result):
    moved = slice_displacement(result)
    times = tuple(k // 2 + DEPTH * (k % 2) for k in range(DEPTH))
    stacks = [curves.stack_motion(result, moved, i, times) for i in range(len(result.stack_names))]
    limits = curves.motion_limits(stacks)
    return [
        curves.motion_curves(stacks[0], limits),
        curves.motion_curves(stacks[0], limits, in_time=True),
        curves.slice_heat(result, result.ncc, "similarity", (0.5, 1)),
        curves.similarity_dots(result),
        curves.convergence(result.history),
    ]


def test_curves_are_the_same_bytes_each_time_and_valid_xml():
    names = ("$x_1$", "<script>alert(1)</script>", 'a & "b"')
    first, second = svgs(sample_result(names)), svgs(sample_result(names))
    assert first == second
    for svg in first:
        ET.fromstring(svg)
    heat = first[2].decode()
    assert "$x_1$" in heat
    assert "<script>" not in heat
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, slice 3: similarity" in heat


def test_curves_survive_missing_values():
    count = 3 * DEPTH
    result = sample_result(ncc=np.full(count, np.nan), weight=np.zeros(count), history={"loss": [1.0, 0.5]})
    for svg in svgs(result):
        ET.fromstring(svg)
    ET.fromstring(curves.convergence({"iteration": [0, 1], "held_out": [None, float("nan")], "loss": []}))


def test_inline_svg_has_own_ids_and_the_colours_of_the_page():
    texts = [inline_svg(svg, key, 'a "label" <b>') for svg in svgs(sample_result()) for key in ("one", "two")]
    ids = [name for text in texts[:2] for name in re.findall(r'\bid="([^"]+)"', text)]
    assert len(ids) == len(set(ids))
    for text in texts:
        assert text.startswith("<svg viewBox=")
        assert 'aria-label="a &quot;label&quot; &lt;b&gt;"' in text
        assert "var(--ink)" in text
        assert not any(f": {colour}" in text for colour in vars(PALETTE).values())
        own = set(re.findall(r'\bid="([^"]+)"', text))
        assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= own


def test_citations_are_numbered_in_order_and_all_known():
    facts = MethodsFacts(
        {"gsbids": "1.0"}, 3, "derivatives+otsu", True, True, True, True, "default", 30000, (0.8,) * 3, 7, "cuda:0"
    )
    paragraphs = methods_paragraphs(facts)
    assert not set(re.findall(r"@([\w-]+)", " ".join(paragraphs))) - set(references())
    pieces, cited = number_citations(paragraphs)
    numbers = [n for paragraph in pieces for piece in paragraph if isinstance(piece, list) for n in piece]
    assert list(dict.fromkeys(numbers)) == list(range(1, len(cited) + 1))
    text = " ".join(paragraphs)
    for words in ("gsbids 1.0", "Otsu", "N4", "30 000 Gaussians", "0.8 mm isotropic", "GPU", "seed was 7"):
        assert words in text


@pytest.mark.parametrize(("count", "words"), [(None, " of Gaussians"), (30000, " of 30 000 Gaussians")])
def test_the_sentence_on_the_field_is_whole(count, words):
    text = " ".join(methods_paragraphs(MethodsFacts(n_gaussians=count)))
    assert f"The brain was represented as a normalised field{words} of free position, size, orientation and" in text


def test_methods_tell_only_what_was_done():
    text = " ".join(methods_paragraphs(MethodsFacts(motion_corrected=False, resolution=(1, 1, 2))))
    for words in ("N4", "denoised", "co-registered", "Levenberg", "seed", "None"):
        assert words not in text
    assert "not corrected for motion" in text
    assert "1 x 1 x 2 mm" in text


def test_unknown_citations_stay_as_they_are():
    assert number_citations(("see [@nobody] and [1]",)) == ([["see ", "[@nobody]", " and [1]"]], [])
    pieces, cited = number_citations(("both [@n4; @ants], again [@ants]",))
    assert pieces == [["both ", [1, 2], ", again ", [2]]]
    assert len(cited) == 2
