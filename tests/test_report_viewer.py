# SPDX-License-Identifier: Apache-2.0
"""The viewer of a report: its images are those of the files, and it works with keys, mouse and nothing from outside."""

import base64
import json
import subprocess
import zlib

import numpy as np
import pytest
from qc_samples import ball, grid, sample_content
from test_qc_report import Page, browser_command

from gsbids.qc.figures.viewer import ViewerImage, viewer_data
from gsbids.qc.report.page import page_script, render_report


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    return render_report(sample_content(tmp_path_factory.mktemp("viewer")))


def voxels(data, layer):
    raw = np.frombuffer(zlib.decompress(base64.b64decode(layer.data)), np.uint8).reshape(data.shape, order="F")
    return layer.low + raw / 255.0 * (layer.high - layer.low)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_bytes_and_places_are_those_of_the_volume(signs):
    shape = (30, 34, 38)
    turned = np.diag([*signs, 1.0])
    turned[:3, 3] = [0 if sign > 0 else count - 1 for sign, count in zip(signs, shape, strict=True)]
    affine = grid((1.0, 1.1, 1.2), shape) @ turned
    volume, mask = ball(shape, affine, radius=8.0)
    data = viewer_data(
        [ViewerImage("volume", "volume", volume), ViewerImage("mask", "mask", mask)], affine, mask, (0, 1)
    )
    assert [layer.key for layer in data.layers] == ["volume", "mask"]
    assert data.shape < shape, "cropped to the mask"
    shown, inside = (voxels(data, layer) for layer in data.layers)
    # Every voxel is found again in the file, by its place in the world.
    index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), axis=-1)
    matrix = np.array(data.affine).reshape(3, 4)
    assert (np.diag(matrix) > 0).all(), "towards right, front and head"
    back = np.linalg.inv(affine)
    own = np.rint((index @ matrix[:, :3].T + matrix[:, 3]) @ back[:3, :3].T + back[:3, 3]).astype(int)
    step = (data.layers[0].high - data.layers[0].low) / 255
    expected = np.clip(volume[tuple(own.T)].T, data.layers[0].low, data.layers[0].high)
    assert np.abs(shown - expected).max() <= step
    assert np.array_equal(inside > 0.5, mask[tuple(own.T)].T)


def test_large_volumes_become_coarser_and_stay_in_place():
    shape = (60, 60, 60)
    affine = grid((0.5,) * 3, shape)
    volume = np.random.default_rng(0).uniform(0, 1, shape)
    data = viewer_data([ViewerImage("volume", "volume", volume)], affine, None, (0, 1), largest=60_000)
    assert data.coarser
    assert len(data.layers[0].data) <= 60_000
    matrix = np.array(data.affine).reshape(3, 4)
    middle = matrix[:, :3] @ ((np.array(data.shape) - 1) / 2) + matrix[:, 3]
    np.testing.assert_allclose(middle, affine[:3, :3] @ np.full(3, 29.5) + affine[:3, 3], atol=1e-4)
    np.testing.assert_allclose(np.multiply(data.shape, data.spacing), [30.0] * 3, rtol=1e-4)


def test_viewer_has_its_images_and_keys(page_text):
    page = Page(page_text)
    layers = {a["data-key"]: a for _, a in page.tags if "data-key" in a}
    assert list(layers) == ["volume", "before", "mask", "coverage", "uncertainty"]
    assert layers["coverage"]["data-unit"] == " slices"
    canvases = page.all("canvas")
    assert len(canvases) == 3
    assert all(a["tabindex"] == "0" and "arrow keys" in a["aria-label"] for a in canvases)
    for key in ("ArrowLeft", "ArrowUp", "PageUp", "keydown", "wheel", "pointermove"):
        assert key in page_script()
    assert "average of the stacks B" in page.text
    letters = [words for words in page.words if words in "RLAPSI" and len(words) == 1]
    assert set(letters) >= set("RLAPSI")


DRIVE = """<!DOCTYPE html><html><body><iframe id="f" src="report.html" width="1200" height="900"></iframe>
<script>
document.getElementById("f").addEventListener("load", async () => {
  const view = document.getElementById("f").contentWindow, page = view.document;
  const box = page.querySelector("[data-viewer]"), part = (name) => box.querySelector(name);
  // Virtual time runs ahead of the frames of a busy machine: timers draw in their place.
  view.requestAnimationFrame = (draw) => view.setTimeout(draw, 16);
  const wait = () => new Promise((done) => setTimeout(done, 60));
  for (let n = 0; n < 60 && !box.dataset.ready; n += 1) await wait();
  await wait();
  const axial = part("canvas"), said = {ready: box.dataset.ready, hidden: box.hidden};
  const grey = () => {
    const own = document.createElement("canvas");
    [own.width, own.height] = [axial.width, axial.height];
    const pen = own.getContext("2d", {willReadFrequently: true});
    pen.drawImage(axial, 0, 0);
    const all = pen.getImageData(0, 0, own.width, own.height).data;
    return [...all].reduce((sum, value, at) => sum + (at % 4 < 3 ? value : 0), 0);
  };
  const places = () => [...box.querySelectorAll(".slice input")].map((input) => Number(input.value));
  const width = () => Number(part("[data-control=width]").value);
  const send = async (kind, name, options) => {
    axial.dispatchEvent(new view[kind](name, {bubbles: true, cancelable: true, ...options}));
    await wait();
  };
  const key = (name) => send("KeyboardEvent", "keydown", {key: name});
  said.start = places();
  said.greys = [grey()];
  await key("PageUp");
  said.up = places();
  await key("ArrowLeft");
  await key("ArrowUp");
  said.moved = places();
  said.under = part("[data-under]").textContent;
  await key("b");
  said.before = part("[data-control=before]").checked;
  said.greys.push(grey());
  await key("b");
  await key("o");
  said.overlay = part("[data-control=overlay]").value;
  said.greys.push(grey());
  said.bar = part("[data-bar]").textContent.trim().replace(/\\s+/g, " ");
  await key("r");
  said.reset = places();
  await send("WheelEvent", "wheel", {deltaY: 100});
  said.wheel = places();
  const area = axial.getBoundingClientRect();
  await send("PointerEvent", "pointermove", {clientX: area.left + 2, clientY: area.top + 2});
  said.corner = part("[data-under]").textContent;
  said.widths = [width()];
  for (const name of ["[", "]"]) {
    await key(name);
    said.widths.push(width());
  }
  document.body.dataset.said = JSON.stringify(said);
});
</script></body></html>"""


def test_viewer_works_in_a_browser_without_a_gpu(page_text, tmp_path):
    (tmp_path / "report.html").write_text(page_text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(DRIVE, encoding="utf-8")
    command = browser_command(
        frame, "--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=20000", "--window-size=1400,1000"
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in done.stderr
    said = json.loads(Page(done.stdout).all("body")[0]["data-said"])
    assert (said["ready"], said["hidden"]) == ("yes", False)
    axial, coronal, sagittal = said["start"]
    assert said["up"] == [axial + 1, coronal, sagittal]
    # Right is on the left: the left arrow goes to the right side, the upper one to the front.
    assert said["moved"] == [axial + 1, coronal + 1, sagittal + 1]
    assert said["reset"] == said["start"]
    assert said["wheel"] == [axial - 1, coronal, sagittal]
    assert said["before"] is True
    assert said["overlay"] == "coverage"
    assert said["bar"] == "coverage: 0 3 slices"
    assert len(set(said["greys"])) == 3, "the volume, the average and the overlay look different"
    assert "inside the mask" in said["under"]
    assert "coverage 3 slices" in said["under"]
    assert said["corner"].startswith("R ")
    assert "outside the mask" in said["corner"]
    first, narrow, back = said["widths"]
    assert narrow < first == back
