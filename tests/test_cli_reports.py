# SPDX-License-Identifier: Apache-2.0
"""``--reports-only`` and ``--boilerplate-only`` without a run; test_end_to_end.py has them after one."""

import re

import pytest

from gsbids.bids.names import derivative_path
from gsbids.cli.main import main
from gsbids.qc.report.boilerplate import bibtex, latex, markdown, plain_text
from gsbids.qc.report.methods import MethodsFacts, methods_paragraphs, references

CRASH = """Node: gsbids_wf.sub_01_T2w_wf.svr_wf.fit
Working directory: /x

Traceback (most recent call last):
	ValueError: the fit went <wrong>
"""


@pytest.fixture
def call(tmp_path, capsys):
    def run(tiny, *options):
        code = main(
            [
                str(tiny.root),
                str(tmp_path / "out"),
                "participant",
                "-w",
                str(tmp_path / "work"),
                "--nprocs",
                "1",
                "-d",
                f"masks={tiny.masks}",
                *options,
            ]
        )
        return code, *capsys.readouterr()

    return run


def test_boilerplate(call, tiny_bids, tmp_path):
    code, out, err = call(tiny_bids(subjects=("01", "02")), "--boilerplate-only", "--output-resolution", "1.2")
    assert code == 0
    assert out.startswith("3 stacks of thick slices were organised as a BIDS data set [1]")
    assert "taken from an existing derivative data set" in out
    assert "1.2 mm isotropic" in out
    assert f"methods text in {tmp_path / 'out' / 'logs' / 'CITATION'}" in err
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["CITATION.bib", "CITATION.html", "CITATION.md", "CITATION.tex"]
    assert not (tmp_path / "work").exists()


def test_all_that_is_cited_is_in_the_list():
    text = methods_paragraphs(MethodsFacts({"gsbids": "1_0"}, 0, "otsu+network", denoised=True, bias_corrected=True))
    keys = {key for part in re.findall(r"\[(@[^\]]+)\]", " ".join(text)) for key in re.findall(r"@([\w.-]+)", part)}
    assert keys <= set(references())
    entries = bibtex(text)
    assert set(re.findall(r"^@misc\{([\w.-]+),", entries, re.M)) == keys
    assert "author = {Otsu, N}" in entries
    assert r"gsbids 1\_0" in latex(text)
    assert set(re.findall(r"[\w.-]+", " ".join(re.findall(r"\\cite\{([^}]+)\}", latex(text))))) == keys
    assert all(f"@{key}" in markdown(text) for key in keys)
    numbers = {int(n) for part in re.findall(r"\[([\d, ]+)\]", plain_text(text)) for n in part.split(",")}
    assert numbers == set(range(1, len(keys) + 1))


def test_nothing_to_report_is_one_line(call, tiny_bids, tmp_path):
    code, _, err = call(tiny_bids(thickness=4.0), "--reports-only")
    assert code == 2
    (line,) = err.splitlines()
    assert line == (
        f"gsbids: error: {tmp_path / 'out'}: holds no outputs of sub-01_T2w; run without --reports-only first"
    )
    assert not (tmp_path / "out").exists()


def test_report_of_a_crash(call, tiny_bids, tmp_path):
    folder = tmp_path / "out" / "sub-01" / "log" / "20260101-000000_x"
    folder.mkdir(parents=True)
    (folder / "crash-1.txt").write_text(CRASH)
    (folder / "gsbids.toml").write_text("damaged [")
    code, _, err = call(tiny_bids(thickness=4.0, subjects=("01", "02")), "--reports-only")
    assert code == 1
    assert [line.partition(",")[0] for line in err.splitlines()] == [
        "gsbids: error: sub-01_T2w: not finished",
        "gsbids: error: sub-02_T2w: no outputs and nothing in the working folder; no report is written",
    ]
    report = tmp_path / "out" / derivative_path({"sub": "01", "suffix": "T2w"}, "report")
    text = report.read_text(encoding="utf-8")
    assert "the fit went &lt;wrong&gt;" in text
    assert "run-1" in text
    assert not list((tmp_path / "out").glob("sub-02*"))


def test_dry_run_goes_first(call, tiny_bids, tmp_path):
    code, out, _ = call(tiny_bids(), "--boilerplate-only", "--dry-run")
    assert code == 0
    assert "sub-01_T2w: 3 stacks" in out
    assert not (tmp_path / "out").exists()


def test_group_level_has_no_reports(tmp_path, capsys):
    for option in ("--reports-only", "--boilerplate-only"):
        assert main([str(tmp_path), str(tmp_path / "out"), "group", option]) == 2
        assert f"{option}: belongs to the participant level" in capsys.readouterr().err
