# SPDX-License-Identifier: Apache-2.0
"""The report: complete in itself, escaped, readable by everyone, written whatever is missing."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from qc_samples import ball, grid, sample_content, sample_result

from gsbids.imaging.nifti import load_image, save_image
from gsbids.qc.report.content import ReportContent, SrPanel, StackPanel
from gsbids.qc.report.page import VERDICT_LOOKS, page_script, render_report, verdict_of, write_report
from gsbids.qc.report.usage import StepUsage
from gsbids.qc.report.words import registration_rows
from gsbids.qc.verdict import judge

SCRIPT = page_script()
EVIL = "<script>alert(\"x\")</script> & 'quotes' </pre></style>"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Content of a complete report, and its page."""
    content = sample_content(tmp_path_factory.mktemp("report"))
    return content, render_report(content)


class Page(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.words.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def section_ids(page):
    return [attributes["id"] for attributes in page.all("section")]


def test_complete_report_has_every_section_and_no_notes(complete):
    page = Page(complete[1])
    assert section_ids(page) == [
        "summary",
        "warnings",
        "reconstruction",
        "masks",
        "worst",
        "excluded",
        "stacks",
        "motion",
        "slices",
        "convergence",
        "methods",
        "about",
        "usage",
        "help",
    ]
    assert "could not be drawn" not in page.text
    assert "Not in this report" not in page.text
    for words in (
        "Finished with 1 warning",
        "look here",
        "run-1, in order of acquisition",
        "no gain",
        "Coverage: 0 slices",
        " 3 slices",
        "Uncertainty: 0",
        "Template: the other",
        "Registered: similarity 0.50, then 0.80",
        "gsbids a b participant",
        "from SliceTiming, 2 passes",
        "average of the stacks",
        "before and after correction",
        "svr fit 2 min 18 s 4 min 0 s 1.2 GB",
        "Sum of all steps 2 min 20 s",
    ):
        assert words in page.text


def test_nothing_is_loaded_from_outside(complete):
    text = complete[1]
    page = Page(text)
    assert page.all("script") == [{}], "the one script stands inside"
    assert not page.all("iframe", "object", "embed", "audio", "video", "base", "form")
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\b", SCRIPT)
    for attributes in page.all("img", "link", "use", "image", "source"):
        for name in ("src", "href", "srcset", "xlink:href"):
            assert not attributes.get(name) or attributes[name].startswith(("data:", "#"))
    assert not re.search(r"url\((?!#|\"?data:)", text)
    assert "@import" not in text
    assert not any(re.match(r"on[a-z]+$", name) for _, attributes in page.tags for name in attributes)
    for found in re.finditer(r"https?://", text):
        before = text[max(0, found.start() - 40) : found.start()]
        assert before.endswith('<a href="') or "xmlns" in before
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy == [f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
    assert f"<script>{SCRIPT}</script>" in text


def test_ids_are_unique_and_links_arrive(complete):
    page = Page(complete[1])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a", "use") if a.get("href", "").startswith("#")}
    targets |= {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert targets <= set(ids)


def test_readable_without_eyes_or_mouse(complete):
    page = Page(complete[1])
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    scrolling = [a for _, a in page.tags if "scroll" in a.get("class", "").split()]
    assert scrolling
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolling)
    assert page.all("a")[0] == {"class": "skip", "href": "#summary"}
    assert all(a.get("scope") for a in page.all("th"))
    sliders = [a for a in page.all("input") if a.get("type") == "range"]
    assert len(sliders) == 1 + 3 + 3 + 3, "for the pictures of planes, each stack, each plane of the viewer, its greys"
    assert all(a.get("aria-label") for a in sliders)
    hidden = [a for a in page.all("label") if a.get("class") == "cut"]
    assert all("hidden" in a for a in hidden), "without the script there is nothing that does nothing"


GOOD = {"ncc_median": 0.97, "ncc_worst_stack": 0.95, "stack_agreement": 0.9, "slices_rejected": 0.1}


@pytest.mark.parametrize(
    ("metrics", "warnings", "badges"),
    [
        (GOOD, (), ["Usable", "Finished without warnings"]),
        (GOOD, ("look here",), ["Usable", "Finished with 1 warning"]),
        (GOOD | {"slices_rejected": 0.6}, (), ["Look at it"]),
        (GOOD | {"stack_agreement": 0.4}, (), ["Do not use"]),
        (None, (), ["Look at it"]),
        (GOOD | {"stack_agreement": 0.4}, ("look here",), ["Do not use", "Finished with 1 warning"]),
    ],
)
def test_the_verdict_comes_first(complete, metrics, warnings, badges):
    text = render_report(ReportContent("a", "b", volume=complete[0].volume, metrics=metrics, warnings=warnings))
    assert [Page(part).text for part in re.findall(r'<p class="badge .*?</p>', text)] == badges[1:]
    assert ("without warnings" in text) == (badges[0] == "Usable" and not warnings)
    # The first thing of the summary, with every reason as a sentence.
    summary = Page(text.partition('id="h-summary"')[2].partition("</section>")[0]).text
    verdict = judge(metrics or {})
    assert summary.startswith(f'class="hidden">Summary {badges[0]}. ')
    assert f'class="verdict {VERDICT_LOOKS[verdict.level]}"' in text
    assert all(reason in summary for reason in verdict.reasons)
    assert ("warnings" in section_ids(Page(text))) == bool(warnings)


def test_no_good_verdict_on_what_failed_and_none_on_super_resolution(complete):
    failed = ReportContent("a", "b", metrics=GOOD, crashes=("x",))
    assert verdict_of(failed) is None
    assert "Usable" not in render_report(failed)
    bad = replace(failed, metrics=GOOD | {"ncc_median": 0.2})
    assert "Do not use" in Page(render_report(bad)).text
    fine = ReportContent("a", "b", volume=complete[0].volume, metrics={"hidden_gain": 1.0}, super_resolution=SrPanel())
    assert verdict_of(fine) is None
    assert "Finished without warnings" in Page(render_report(fine)).text


def test_everything_quoted_is_escaped(tmp_path):
    content = sample_content(tmp_path, names=("run-1", EVIL))
    panels = tuple(replace(panel, mask_reason=EVIL, facts=((EVIL, EVIL),)) for panel in content.stacks)
    content = replace(
        content,
        title=EVIL,
        task=EVIL,
        summary=((EVIL, EVIL),),
        warnings=(EVIL,),
        stacks=panels,
        methods=(EVIL,),
        orientation=EVIL,
        versions={EVIL: EVIL},
        crashes=(EVIL,),
        run={EVIL: EVIL},
        metrics={EVIL: 1.0, "noise": EVIL},
        registration={"reason": [EVIL, EVIL]},
        usage=(StepUsage(EVIL, 1, 1),),
    )
    page = Page(render_report(content))
    assert page.all("script") == [{}]
    assert len(page.all("style")) == 1
    assert page.text.count("</pre></style>") >= 12
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name.startswith(("'", "<", "alert")) for name in names)


def test_worst_slices_come_first_and_what_is_excluded_has_a_reason(complete):
    from gsbids.recon.svr.result import SvrResult

    result = SvrResult.load(complete[0].result)
    page = Page(complete[1])
    shown = re.findall(r"run-\d, slice \d: (\w+).*? \(weight ([\d.]+)\): .*? similarity (\d\.\d+)", page.text)
    counts = [(load_image(panel.mask)[0] > 0).sum(axis=(0, 1)) for panel in complete[0].stacks]
    slivers = np.concatenate([pixels < np.median(pixels) / 4 for pixels in counts])
    assert 0 < slivers.sum() < 8
    bad = (result.rejected | (result.ncc < 0.8)) & ~slivers
    assert [float(ncc) for *_, ncc in shown] == [round(ncc, 2) for ncc in sorted(result.ncc[bad])[:8]]
    assert {(words, weight) for words, weight, _ in shown} == {("rejected", "0.00"), ("kept", "1.00")}
    rows = re.findall(r"(run-\d) slice (\d) ([A-Z][^;]+); residual [\d.]+, [\d.]+ times that of the typical", page.text)
    expected = [
        (result.stack_names[result.stack_index[s]], str(result.slice_index[s])) for s in np.flatnonzero(result.rejected)
    ]
    assert [row[:2] for row in rows] == expected
    assert len(expected) > 2


def test_no_average_and_no_sliders_without_stacks(tmp_path):
    content = replace(sample_content(tmp_path), stacks=())
    page = Page(render_report(content))
    assert not [a for a in page.all("input") if a.get("type") == "range" and "before" in a.get("aria-label", "")]
    assert not [a for a in page.all("label") if a.get("class") == "cut"]
    assert "reconstruction" in section_ids(page)
    assert "worst" not in section_ids(page)


def test_failed_subject_has_a_report_with_its_errors(tmp_path):
    crash = "Node: gsbids_wf.sub_02_T2w_wf.svr_wf.fit\nTraceback\nValueError: <b>\n"
    content = ReportContent("sub-02", "sub-02_T2w", crashes=(crash, "second"))
    path = write_report(tmp_path / "sub-02.html", content)
    page = Page(path.read_text(encoding="utf-8"))
    assert section_ids(page) == ["summary", "errors", "about", "help"]
    assert "Failed: 2 steps ended in an error" in page.text
    assert "Step fit: ValueError: <b>" in page.text
    assert "the crash file does not say why" in page.text
    assert "because it was not made: the reconstruction, the stacks, motion" in page.text
    assert [p.name for p in tmp_path.iterdir()] == ["sub-02.html"]


def test_missing_and_corrupt_files_become_sentences(tmp_path):
    content = sample_content(tmp_path)
    for name in ("volume", "unmasked"):
        getattr(content, name).unlink()
    content.result.write_bytes(b"PK\x03\x04 not an archive")
    content.stacks[0].image.write_bytes(content.stacks[0].image.read_bytes()[:200])
    save_image(content.stacks[1].n4, np.ones((10, 10, 4)), grid((1, 1, 4), (10, 10, 4)))
    page = Page(write_report(tmp_path / "r.html", content).read_text(encoding="utf-8"))
    for words in (
        "The volume could not be drawn: ",
        "Motion and weights could not be drawn: ",
        "Stack run-1 could not be drawn: ",
        "Stack run-2: the corrected image is on another grid",
    ):
        assert words in page.text
    assert "reconstruction" not in section_ids(page)
    assert "stacks" in section_ids(page)


@pytest.mark.parametrize("history", [{}, {"loss": [], "iteration": []}, {"loss": [None, float("nan")]}])
def test_odd_histories(tmp_path, complete, history):
    from gsbids.recon.svr.result import SvrResult

    result = replace(SvrResult.load(complete[0].result), history=history)
    content = ReportContent("a", "b", result=result.save(tmp_path / "r.npz"))
    assert "could not be drawn" not in render_report(content)


def test_metrics_that_are_not_available(complete):
    content = ReportContent("a", "b", metrics={"ncc_median": float("nan"), "noise": None, "new_one": 2})
    text = Page(render_report(content)).text
    assert "not available Similarity, median" in text
    assert "new_one 2.000" in text


def test_registration_words():
    stacks = tuple(StackPanel(name) for name in ("a", "b", "c"))
    table = {"template": 1, "accepted": [False, True], "similarity_before": [0.4, 1.0], "similarity_after": [0.4, 1.0]}
    rows = registration_rows(ReportContent("a", "b", stacks=stacks, registration=table))
    assert rows == {
        "a": "Left where the scanner put it: similarity 0.40, then 0.40.",
        "b": "Template: the other stacks are registered to this one.",
    }


def test_same_content_same_bytes(complete):
    assert render_report(complete[0]) == complete[1]


def test_report_replaces_the_old_one_only_when_complete(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, ReportContent("a", "b"))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"sub-\xff.nii.gz")
    path = write_report(tmp_path / "r.html", ReportContent(name, name, volume=Path(name), crashes=(name,)))
    assert "sub-?" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [4, 14])
def test_many_noisy_stacks_stay_under_15_mb(tmp_path, count):
    """Noise is what PNG compresses worst."""
    rng = np.random.default_rng(0)
    shape = (256, 256, 12)
    affine = grid((1.0, 1.0, 3.0), shape)
    _, mask = ball(shape, affine, 60)
    noise = rng.uniform(0, 100, shape).astype(np.float32)
    files = {
        "image": save_image(tmp_path / "i.nii.gz", noise, affine),
        "n4": save_image(tmp_path / "n.nii.gz", noise, affine),
        "simulated": save_image(tmp_path / "s.nii.gz", noise[::-1], affine),
        "mask": save_image(tmp_path / "m.nii.gz", mask, affine, "uint8"),
    }
    names = tuple(f"s{k}" for k in range(count))
    noise = rng.uniform(0, 100, (180, 180, 180))
    volume = save_image(tmp_path / "v.nii.gz", noise, grid((0.5,) * 3, noise.shape))
    content = ReportContent(
        "a",
        "b",
        volume=volume,
        unmasked=volume,
        coverage=volume,
        uncertainty=volume,
        stacks=tuple(StackPanel(name, **files) for name in names),
        result=sample_result(names).save(tmp_path / "r.npz"),
    )
    path = write_report(tmp_path / "r.html", content)
    page = Page(path.read_text(encoding="utf-8"))
    assert "could not be drawn" not in page.text
    assert len(page.all("img")) > 24 * count + 8 * 4 + 6
    assert path.stat().st_size < 15e6


def test_report_of_real_stacks(test_data, tmp_path):
    folder = test_data / "fetal-stacks-mialsrtk"
    stack = folder / "sub-01/anat/sub-01_run-3_T2w.nii.gz"
    mask = folder / "derivatives/manual_masks/sub-01/anat/sub-01_run-3_T2w_desc-brain_mask.nii.gz"
    volume = test_data / "peer-volumes-svrtk/svrtk_all-runs_T2w.nii.gz"
    if not (stack.is_file() and mask.is_file() and volume.is_file()):
        pytest.skip(f"{folder} or {volume} is not complete")
    panel = StackPanel("run-3", image=stack, mask=mask)
    content = ReportContent("sub-01", "sub-01_T2w", volume=volume, stacks=(panel,))
    path = write_report(tmp_path / "r.html", content)
    page = Page(path.read_text(encoding="utf-8"))
    assert "could not be drawn" not in page.text
    assert len(page.all("img")) >= 3 + 21 + 5


def browser_command(path: Path, *options: str) -> list[str]:
    """How a headless browser is run on a file."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no Chromium here: the page is not rendered (Debian: apt install chromium)")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    return [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        *quiet,
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={path.parent / 'profile'}",
        *options,
        path.as_uri(),
    ]


def browse(path: Path, *options: str) -> str:
    """What the browser says on its standard error."""
    return subprocess.run(
        browser_command(path, *options), capture_output=True, text=True, timeout=120, check=True
    ).stderr


@pytest.mark.parametrize("width", [1200, 420])
def test_browser_renders_without_a_complaint(complete, tmp_path, width):
    from PIL import Image

    page = tmp_path / "report.html"
    page.write_text(complete[1], encoding="utf-8")
    shot = tmp_path / "shot.png"
    said = browse(page, f"--window-size={width},2400", f"--screenshot={shot}")
    assert "CONSOLE" not in said
    with Image.open(shot) as image:
        assert image.width == width
        assert len(np.unique(np.asarray(image.convert("L")))) > 100
    if width == 1200:
        # What the page may not load is refused by its own policy, and the browser says so: the check sees it.
        outside = '<main><img src="https://example.org/a.png" alt="x">'
        page.write_text(complete[1].replace("<main>", outside), encoding="utf-8")
        assert "Content Security Policy" in browse(page, f"--screenshot={shot}")


FRAME = """<!DOCTYPE html><html><body><iframe id="f" src="report.html" width="{width}" height="900"></iframe>
<script>
document.getElementById("f").addEventListener("load", async () => {{
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const input = page.querySelector("[data-compare] input[type=range]"), box = input.closest("[data-compare]");
  const said = {{width: root.scrollWidth, shown: !input.closest("label").hidden}};
  const [before, after] = [...box.querySelectorAll(".pair > span")].map((part) => getComputedStyle(part));
  said.same = before.gridRowStart === after.gridRowStart && before.gridColumnStart === after.gridColumnStart;
  input.value = 80;
  input.dispatchEvent(new Event("input"));
  said.clip = [before.clipPath, after.clipPath];
  said.spoken = input.getAttribute("aria-valuetext");
  root.style.scrollBehavior = "auto";
  page.getElementById("stack-2").open = false;
  document.getElementById("f").contentWindow.location.hash = "#stack-2";
  await new Promise((done) => setTimeout(done, 1500));
  const [top, bar] = ["#stack-2", "nav"].map((name) => page.querySelector(name).getBoundingClientRect());
  said.arrived = [page.getElementById("stack-2").open, top.top >= bar.bottom && top.top < bar.bottom + 200];
  said.unfocusable = [...page.querySelectorAll("a, input, summary, .scroll, pre")].filter((part) =>
    part.tabIndex < 0 || part.disabled).length;
  document.body.dataset.said = JSON.stringify(said);
}});
</script></body></html>"""


@pytest.mark.parametrize("width", [380, 1200])
def test_browser_page_is_as_wide_as_the_screen_and_its_slider_works(complete, tmp_path, width):
    """In a frame of that width: a window cannot be as narrow as a phone."""
    (tmp_path / "report.html").write_text(complete[1], encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    command = browser_command(
        frame, "--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=5000", "--window-size=1400,1000"
    )
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    said = json.loads(Page(page).all("body")[0]["data-said"])
    clip = said.pop("clip")
    assert said == {
        "width": width,
        "shown": True,
        "same": True,
        "arrived": [True, True],
        "unfocusable": 0,
        "spoken": "80 % average of the stacks",
    }
    assert re.search(r"\b20%", clip[0])
    assert re.search(r"\b80%", clip[1])


def test_browser_dark_mode(complete, tmp_path):
    from PIL import Image

    page = tmp_path / "report.html"
    page.write_text(complete[1], encoding="utf-8")
    levels = []
    for scheme in (0, 1):  # of Chromium's own: dark, light
        shot = tmp_path / f"{scheme}.png"
        browse(page, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,700", f"--screenshot={shot}")
        with Image.open(shot) as image:
            levels.append(np.median(np.asarray(image.convert("L"))))
    assert levels[0] < 60
    assert levels[1] > 200
