# SPDX-License-Identifier: Apache-2.0
"""The real workflow in words and drawn: ``--dry-run`` and ``--write-graph``."""

import re
import shutil
from xml.etree import ElementTree

import pytest

from gsbids.cli.main import main


@pytest.fixture
def plan(tiny_bids, tmp_path, capsys):
    """``plan(*options, **tiny)``: exit code, standard output and standard error of a dry run."""

    def call(*options, **tiny):
        data = tiny_bids(**tiny)
        code = main(
            [
                str(data.root),
                str(tmp_path / "out"),
                "participant",
                "-w",
                str(tmp_path / "work"),
                "--dry-run",
                "-d",
                f"masks={data.masks}",
                *options,
            ]
        )
        return code, *capsys.readouterr()

    return call


def test_nodes_with_threads_and_memory(plan, tmp_path):
    code, out, _ = plan("--nprocs", "4", "--omp-nthreads", "3", "--mem", "6G", stacks=2)
    assert code == 0
    found = {
        name: (int(threads), float(memory), bool(rest))
        for name, threads, memory, rest in re.findall(
            r"^  (sub_01_T2w_wf\.\S+) +(\d+) +([\d.]+) GB(  in the main process)?$", out, re.MULTILINE
        )
    }
    assert f"{len(found)} nodes, each with" in out
    assert found["sub_01_T2w_wf.svr_wf.fit"][0] == 3
    assert found["sub_01_T2w_wf.run_2_wf.n4"][0] == 1
    assert found["sub_01_T2w_wf.save_report"][2]
    assert not found["sub_01_T2w_wf.report"][2]
    assert all(memory > 0 for _, memory, _ in found.values())
    assert not [name for name in found if name.endswith(("inputnode", "outputnode"))]
    assert out.endswith("At any time at most 4 threads and 6 GB.\n")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("mode", "parts", "steps"),
    [
        ("svr", {"run_1_wf", "svr_wf", "volume_outputs_wf"}, {"fit (reconstruct)", "sample (sample_volume)"}),
        ("sr", {"volume_wf", "outputs_wf"}, {"super_resolve (super_resolve)", "qc (super_resolve)"}),
    ],
)
def test_graphs(plan, tmp_path, mode, parts, steps):
    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed (Debian: apt install graphviz)")
    code, _, err = plan("--write-graph", "--mode", mode, stacks=2, subjects=("01", "02"))
    assert code == 0
    (folder,) = tmp_path.glob("work/*/gsbids_wf/graphs")
    assert f"graphs of the workflow (orig, flat, hierarchical) are in {folder}" in err
    # All tasks here have one shape, so that one set of graphs shows them.
    kinds = {path.name.rpartition("_")[2] for path in folder.iterdir()}
    assert kinds == {f"{kind}.{ending}" for kind in ("orig", "flat", "hierarchical") for ending in ("dot", "svg")}
    assert len(list(folder.iterdir())) == 6
    words = {
        kind: {
            text.text
            for text in ElementTree.parse(*folder.glob(f"*_{kind}.svg")).iter("{http://www.w3.org/2000/svg}text")
        }
        for kind in ("orig", "flat", "hierarchical")
    }
    assert parts <= words["orig"]
    assert not steps & words["orig"] or mode == "sr"
    # svr_wf.fit.FitSvr.reconstruct
    assert {step.partition(" ")[0] for step in steps} <= {part for text in words["flat"] for part in text.split(".")}
    assert parts | steps <= words["hierarchical"]
    assert not (tmp_path / "out").exists()
