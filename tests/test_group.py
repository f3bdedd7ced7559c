# SPDX-License-Identifier: Apache-2.0
"""The group level: rows of many reconstructions in one table and on one page, and what is missing named."""

import base64
import hashlib
import json
import re
import subprocess

import numpy as np
import pytest
from test_qc_report import Page, browse, browser_command

from gsbids.bids.group import GROUP_STEM
from gsbids.cli.main import main
from gsbids.qc.figures.tiles import grey_png
from gsbids.qc.group import axis_span, metric_spread
from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.metrics_sr import SR_METRIC_DESCRIPTIONS
from gsbids.qc.report.thumbnail import thumbnail
from gsbids.qc.verdict import LEVELS


def write_row(out, sub, ses="", name=None, **changes):
    """One row of plausible numbers, with the report that belongs to it."""
    rng = np.random.default_rng(int(sub))
    values = {key: f"{1 + 0.02 * rng.uniform(-2, 2):.6g}" for key in METRIC_DESCRIPTIONS} | changes
    stem = f"sub-{sub}" + (f"_ses-{ses}" if ses else "")
    folder = out / f"sub-{sub}" / (f"ses-{ses}" if ses else "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}_rec-gsvr_desc-qc_metrics.tsv"
    name = name or f"{stem}_rec-gsvr_res-0p8_desc-preproc_T2w"
    path.write_text("\t".join(["bids_name", *values]) + "\n" + "\t".join([name, *values.values()]) + "\n")
    path.with_suffix(".json").write_text(json.dumps({"bids_name": {"LongName": "Name"}, **METRIC_DESCRIPTIONS}))
    (out / f"{stem}.html").write_text("report")
    return path


@pytest.fixture
def folders(tmp_path):
    """An input with the names of ten subjects and nothing else, and an output with rows of all but one."""
    bids, out = tmp_path / "bids", tmp_path / "out"
    for n in range(1, 11):
        (bids / f"sub-{n:02d}").mkdir(parents=True)
    for n in range(1, 10):
        write_row(out, f"{n:02d}", **({"ncc_median": "0.3", "noise": "n/a"} if n == 3 else {}))
    return bids, out


@pytest.fixture
def group(folders, capsys):
    def call(*options):
        code = main([*map(str, folders), "group", *options])
        return code, capsys.readouterr().err

    return call


def read(out):
    header, *rows = (line.split("\t") for line in (out / f"{GROUP_STEM}.tsv").read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_table_page_and_what_is_missing(group, folders):
    out = folders[1]
    code, said = group()
    assert code == 0
    assert "sub-10: has no outputs here" in said
    assert "9 reconstructions, 1 marked, 1 missing or broken" in said
    rows = read(out)
    assert [row["participant_id"] for row in rows] == [f"sub-{n:02d}" for n in range(1, 10)]
    assert rows[2]["outliers"] == "ncc_median"
    assert rows[2]["noise"] == "n/a"
    described = json.loads((out / f"{GROUP_STEM}.json").read_text())
    assert list(described) == list(rows[0])
    assert all(entry["Description"] for entry in described.values())
    page = Page((out / f"{GROUP_STEM}.html").read_text(encoding="utf-8"))
    links = {a["href"] for a in page.all("a") if a["href"].startswith("sub-")}
    assert links == {f"sub-{n:02d}.html" for n in range(1, 10)}
    assert "Similarity, median 0.300 (median 1.0" in page.text
    assert "more than 3.5 x (1 + 5/n) robust standard deviations" in page.text
    before = {path: path.read_bytes() for path in out.glob("group_*")}
    assert group()[0] == 0
    assert {path: path.read_bytes() for path in out.glob("group_*")} == before


def test_some_participants_and_sessions(group, folders):
    write_row(folders[1], "01", "a")
    write_row(folders[1], "01", "b")
    code, said = group("--participant-label", "01", "sub-02", "77")
    assert code == 0
    assert "sub-77: has no outputs here" in said
    assert [row["bids_name"].split("_rec")[0] for row in read(folders[1])] == [
        "sub-01",
        "sub-01_ses-a",
        "sub-01_ses-b",
        "sub-02",
    ]
    assert group("--session-label", "b")[0] == 0
    assert [row["session_id"] for row in read(folders[1])] == ["ses-b"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("", "0 rows, one is expected"),
        ("bids_name\tncc_median\n", "0 rows"),
        ("bids_name\ta\nsub-01_T2w\t1\nsub-01_T2w\t1\n", "2 rows"),
        ("bids_name\ta\nsub-02_T2w\t1\n", "not of sub-01"),
        ("bids_name\ta\tb\nsub-01_T2w\t1\n", "are not a table"),
        ("bids_name\ta\nsub-01_T2w\tabc\n", "'abc', not a number"),
        ("bids_name\ta\nsub-01_T2w\tinf\n", "not a number"),
        ("bids_name\ta b<\nsub-01_T2w\t1\n", "no name of a metric"),
        ("bids_name\ta\nsub-01_../x_T2w\t1\n", "not of sub-01"),
        ("name\ta\nsub-01_T2w\t1\n", "are not a table"),
        ("bids_name\ta\nsub-01_foo-1_T2w\t1\n", "unknown entities"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        ("x" * (1 << 21), "much too large"),
    ],
)
def test_broken_rows_are_named_and_not_fatal(group, folders, broken, words):
    path = folders[1] / "sub-01" / "anat" / "sub-01_rec-gsvr_desc-qc_metrics.tsv"
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    code, said = group()
    assert code == 0
    (line,) = [line for line in said.splitlines() if "sub-01" in line]
    assert line.startswith(f"gsbids: warning: sub-01/anat/{path.name}: ")
    assert words in line
    assert len(read(folders[1])) == 8
    assert "sub-01.html" in (folders[1] / f"{GROUP_STEM}.html").read_text(encoding="utf-8")


def test_a_report_without_a_row_may_have_failed(group, folders):
    (folders[1] / "sub-11_ses-1.html").write_text("x")
    assert "sub-11_ses-1: has a report and no row of metrics, so it may have failed" in group()[1]


def test_columns_of_other_versions(group, folders):
    path = write_row(folders[1], "02", later="5")
    path.with_suffix(".json").write_text('{"later": {"LongName": "<b>Later</b>", "Description": "What comes"}}')
    write_row(folders[1], "04", undescribed="1")
    assert group()[0] == 0
    row = read(folders[1])[1]
    assert (row["later"], row["undescribed"], read(folders[1])[0]["later"]) == ("5", "n/a", "n/a")
    assert "<b>Later" not in (folders[1] / f"{GROUP_STEM}.html").read_text(encoding="utf-8")


def test_verdicts_are_words_in_the_table_and_counted_on_the_page(group, folders):
    """Rows of other versions and super-resolved volumes have none."""
    for n, verdict in ((1, "usable"), (2, "do not use"), (4, "look at it"), (5, "do not use"), (6, "n/a")):
        write_row(folders[1], f"{n:02d}", **({"stack_agreement": "0.31"} if n == 5 else {}), verdict=verdict)
    code, said = group()
    assert code == 0
    assert "gsbids: warning: 2 not to be used, as their verdict says: sub-02, sub-05\n" in said
    assert [row["verdict"] for row in read(folders[1])] == [
        "usable",
        "do not use",
        "n/a",
        "look at it",
        "do not use",
        "n/a",
        "n/a",
        "n/a",
        "n/a",
    ]
    described = json.loads((folders[1] / f"{GROUP_STEM}.json").read_text())
    assert list(described)[-2:] == ["verdict", "outliers"]
    assert list(described["verdict"]["Levels"]) == list(LEVELS)
    text = (folders[1] / f"{GROUP_STEM}.html").read_text(encoding="utf-8")
    page = Page(text)
    badges = [Page(part).text for part in re.findall(r'<p class="badge .*?</p>', text)]
    assert badges == ["Do not use: 2", "Look at it: 1", "1 missing or broken"]
    assert "2 with the verdict “do not use”" in page.text
    rows = re.findall(r'<tr id="r(\d)".*?</tr>', text, re.S)
    assert len(rows) == 9
    (spoilt,) = re.findall(r'<tr id="r4".*?</tr>', text, re.S)
    assert "Do not use" in Page(spoilt).text
    assert "spoilt" in Page(spoilt).all("tr")[0]["class"]
    # Those with the worst verdict are the first to look at, with the reasons where the numbers give them.
    first = Page(text.partition('id="h-first"')[2].partition("</section>")[0]).text
    assert re.findall(r"sub-\d\d (?:Do not use|Look at it)|sub-\d\d(?= Similarity)", first) == [
        "sub-05 Do not use",
        "sub-02 Do not use",
        "sub-04 Look at it",
        "sub-03",
    ]
    assert "resemble one another by only 0.31" in first
    # A table is read again as it was written, and a word that is none is named.
    write_row(folders[1], "07", verdict="splendid")
    code, said = group()
    assert code == 0
    assert "verdict is 'splendid', none of: usable, look at it, do not use; the row is left out" in said
    assert len(read(folders[1])) == 8


def test_methods_are_compared_with_their_own_kind(group, folders):
    """Sharpness of super-resolved volumes is another thing: nine of them mark no reconstruction, and none of them."""
    for n in range(1, 10):
        folder = folders[1] / f"sub-{n:02d}" / "anat"
        values = dict.fromkeys(SR_METRIC_DESCRIPTIONS, f"{20 + n / 9:g}") | ({"sharpness": "2"} if n == 5 else {})
        (folder / f"sub-{n:02d}_rec-gsrT1w_desc-qc_metrics.tsv").write_text(
            "\t".join(["bids_name", *values])
            + f"\nsub-{n:02d}_rec-gsr_res-1_desc-preproc_T1w\t"
            + "\t".join(values.values())
            + "\n"
        )
    code, said = group()
    assert code == 0
    assert "18 reconstructions, 2 marked" in said
    assert {row["bids_name"]: row["outliers"] for row in read(folders[1]) if row["outliers"] != "n/a"} == {
        "sub-03_rec-gsvr_res-0p8_desc-preproc_T2w": "ncc_median",
        "sub-05_rec-gsr_res-1_desc-preproc_T1w": "sharpness",
    }
    described = json.loads((folders[1] / f"{GROUP_STEM}.json").read_text())
    assert "; with rec-gsr: Mean gradient magnitude inside" in described["sharpness"]["Description"]
    text = (folders[1] / f"{GROUP_STEM}.html").read_text(encoding="utf-8")
    assert "Super-resolution (rec-gsr)</h3>" in text
    page = Page(text)
    drawn = [a["data-method"] for a in page.all("figure")]
    assert drawn == ["gsvr"] * len(METRIC_DESCRIPTIONS) + ["gsr"] * len(SR_METRIC_DESCRIPTIONS)


def test_nothing_there_is_one_line(tmp_path, capsys):
    bids, out = tmp_path / "bids", tmp_path / "out"
    cases = [
        ((bids, out), "bids_dir"),
        ((bids, out), "output_dir"),
        ((bids, out), "no metrics (sub-*"),
        ((bids, bids), "is the same as"),
        ((bids, bids / "out"), "is inside"),
        ((bids, bids / "derivatives" / "gsbids"), "no metrics (sub-*"),
    ]
    for n, (arguments, words) in enumerate(cases):
        assert main([*map(str, arguments), "group"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("gsbids: error: ")
        assert said.count("\n") == 1
        assert words in said
        if n < 2:
            (bids, out)[n].mkdir()
        for inside in ("out", "derivatives/gsbids"):
            (bids / inside).mkdir(parents=True, exist_ok=True)
    assert list(out.iterdir()) == []


def test_page_is_complete_in_itself(group, folders):
    group()
    text = (folders[1] / f"{GROUP_STEM}.html").read_text(encoding="utf-8")
    page = Page(text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not page.all("img", "iframe", "object", "embed", "form", "base")
    assert not re.search(r"https?://", text)
    assert not any(re.match(r"on[a-z]+$", name) for _, attributes in page.tags for name in attributes)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(a["href"][1:] in ids for a in page.all("a") if a["href"].startswith("#"))


def test_the_script_runs_in_a_browser(group, folders, tmp_path):
    group()
    path = folders[1] / f"{GROUP_STEM}.html"
    assert "CONSOLE" not in browse(path, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=420,900")
    # It counts the rows, and shows what works with it alone.
    dom = subprocess.run(
        browser_command(path, "--dump-dom"), capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert re.search(r'id="count"[^>]*>9 rows<', dom)
    assert 'data-script="" hidden' not in dom


def page_of(out):
    text = (out / f"{GROUP_STEM}.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_few_are_too_few_to_judge(group, folders):
    assert group("--participant-label", "01", "02")[0] == 0
    text, page = page_of(folders[1])
    assert [Page(part).text for part in re.findall(r'<p class="badge .*?</p>', text)] == ["Too few to judge (2 of 8)"]
    assert "Slice-to-volume reconstruction: too few to judge (2 of 8); nothing is marked." in page.text
    assert "stands out." not in page.text
    assert group("--participant-label", *(f"{n:02d}" for n in (1, 2, 4, 5, 6, 7, 8, 9)))[0] == 0
    text, page = page_of(folders[1])
    assert "Nothing stands out" in page.text
    assert "too few" not in page.text.lower()


def test_axes_do_not_make_small_differences_large(group, folders):
    for n in (1, 2):
        write_row(folders[1], f"{n:02d}", ncc_median=f"{0.975 + n / 1000}", slices_rejected="0.01")
    assert group("--participant-label", "01", "02")[0] == 0
    text, _ = page_of(folders[1])
    label, chart = re.findall(r'aria-label="(Similarity, median: [^"]*)">(.*?)</svg>', text, re.S)[0]
    assert label.startswith("Similarity, median: 0.976 to 0.977,"), "the range of the values is said as it is"
    ends = [float(words) for words in re.findall(r">([\d.]+)</text>", chart)]
    assert ends[1] - ends[0] >= 10 * 0.005 - 1e-6
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert max(places) - min(places) < 20
    assert axis_span(0.0, 0.01, 0.2) == (0.0, 0.2)
    assert axis_span(-5.0, -4.0, 3.0) == (-6.0, -3.0)


def test_pictures_come_from_the_reports_and_open_them(group, folders, tmp_path):
    planes = np.zeros((300, 200))
    planes[50:100, 20:60] = 200.0
    uri = thumbnail(grey_png(planes, (0, 255)))
    head = f'<html><meta name="gsbids-thumbnail" content="{uri}"></html>'
    (folders[1] / "sub-02.html").write_text(head)
    (folders[1] / "sub-04.html").write_text(head.replace("base64,", "base64,<script>"))
    (folders[0] / "dataset_description.json").write_text('{"Name": "Brains <b>& co"}')
    assert group()[0] == 0
    text, page = page_of(folders[1])
    assert [a["src"] for a in page.all("img")] == [uri]
    assert page.all("img")[0]["alt"] == "sub-02, axial plane"
    assert f'<a href="sub-02.html"><img src="{uri}"' in text
    assert "Brains <b>& co: 9 reconstructions" in page.text
    assert "<title>Brains &lt;b&gt;&amp; co: 9 reconstructions" in text


def test_the_rule():
    rng = np.random.default_rng(0)
    usual = rng.normal(10, 1, 2000)
    for side in ("low", "high", "both"):
        spread = metric_spread(usual, side)
        assert np.mean([spread.stands_out(value) for value in usual]) < 0.002
        assert spread.stands_out(3.0) == (side != "high")
        assert spread.stands_out(17.0) == (side != "low")
    # A skewed metric is not marked for being skewed; a fifth of all values may be bad without hiding one another.
    skewed = metric_spread(rng.exponential(1, 2000), "high")
    assert skewed.high > metric_spread(usual - 9.5, "high").high * 0.8
    assert metric_spread([1.0] * 12 + [50.0, 60.0, 70.0], "high", 0.1).stands_out(50)
    assert not metric_spread([1, 1, 1, 1, 1, 1, 99], "high").stands_out(99)
    assert not metric_spread([0] * 20, "high", 0.02).stands_out(0.05)
    empty = metric_spread([np.nan] * 9)
    assert np.isnan(empty.median)
    assert not empty.stands_out(5)
    assert not metric_spread(usual).stands_out(np.nan)
