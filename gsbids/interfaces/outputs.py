# SPDX-License-Identifier: Apache-2.0
"""Nodes at the end: quality metrics, files of the output, the report."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    TraitedSpec,
    isdefined,
    traits,
)

from gsbids.imaging.nifti import load_image
from gsbids.interfaces.base import NodeInterface, read_stack, write_metrics, write_text

if TYPE_CHECKING:
    from nipype.interfaces.base import Bunch

    from gsbids.qc.report.page import ReportContent
    from gsbids.qc.report.usage import StepUsage


class QcMetricsInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`QcMetrics`."""

    result = File(exists=True, mandatory=True, desc="npz of SvrResult")
    volume = File(exists=True, mandatory=True, desc="reconstructed volume")
    mask = File(exists=True, mandatory=True, desc="its brain mask")
    coverage = File(exists=True, desc="slices that saw each voxel")
    in_files = InputMultiObject(File(exists=True), desc="prepared stacks, for their agreement")
    in_masks = InputMultiObject(File(exists=True), desc="their brain masks")
    thicknesses = InputMultiObject(traits.Float, desc="their slice thicknesses in mm")
    name = traits.Str(mandatory=True, desc="first column of the table: name of the reconstruction")
    facts = traits.Dict(usedefault=True, desc="numbers of the reconstruction for the sidecar of the volume")


class QcMetricsOutputSpec(TraitedSpec):
    """Outputs of :class:`QcMetrics`."""

    table = File(exists=True, desc="TSV of one row")
    metrics = File(exists=True, desc="JSON, null where there is no number")
    columns = traits.Dict(desc="BIDS description of the columns")
    facts = traits.Dict(desc="those that were given, with the verdict and its reasons")


class QcMetrics(NodeInterface):
    """Compute the quality metrics of a reconstruction, and the verdict that they give."""

    input_spec = QcMetricsInputSpec
    output_spec = QcMetricsOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.qc.metrics import METRIC_DESCRIPTIONS, reconstruction_metrics
        from gsbids.qc.verdict import VERDICT_COLUMN, judge
        from gsbids.recon.svr.result import SvrResult

        inputs, result = self.inputs, SvrResult.load(self.inputs.result)
        volume, affine = load_image(inputs.volume)
        coverage, stacks = None, None
        if isdefined(inputs.coverage):
            coverage = load_image(inputs.coverage)[0]
        if isdefined(inputs.in_files):
            parts = zip(inputs.in_files, inputs.in_masks, result.stack_names, inputs.thicknesses, strict=True)
            stacks = [read_stack(*part) for part in parts]
        row = reconstruction_metrics(
            result, volume, load_image(inputs.mask)[0] > 0, np.linalg.norm(affine[:3, :3], axis=0), coverage, stacks
        )
        verdict = judge(row)
        self._results |= write_metrics(
            runtime.cwd, inputs.name, row | {"verdict": verdict.level}, METRIC_DESCRIPTIONS | VERDICT_COLUMN
        )
        self._results["facts"] = inputs.facts | verdict.fields()
        return runtime


class SaveDerivativeInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`SaveDerivative`."""

    output_dir = traits.Str(mandatory=True, desc="root of the output")
    kind = traits.Str(mandatory=True, desc="a key of gsbids.bids.names.KINDS")
    entities = traits.Dict(traits.Str(), traits.Str(), mandatory=True, desc="of the task or the stack")
    extra = traits.Dict(traits.Str(), traits.Any(), usedefault=True, desc="further entities, as res")
    in_file = File(exists=True, desc="file that is copied; without it a former one is taken away")
    sidecar = traits.Dict(usedefault=True, desc="fields known when the workflow is built")
    more = traits.Dict(usedefault=True, desc="fields known when it has run")
    supersedes = traits.Str(nohash=True, desc="kind of output that is taken away once this one is there")
    registry = traits.Str(nohash=True, desc="folder where one run notes who wrote what")


class SaveDerivativeOutputSpec(TraitedSpec):
    """Outputs of :class:`SaveDerivative`."""

    out_file = traits.Str(desc="path of the derivative")


class SaveDerivative(NodeInterface):
    """Write one file and its sidecar into the output.

    Always runs: the output may have been emptied while the working folder was kept.
    """

    input_spec = SaveDerivativeInputSpec
    output_spec = SaveDerivativeOutputSpec
    _always_run = True

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.bids.sink import Sink

        inputs = self.inputs
        sink = Sink(inputs.output_dir, inputs.registry if isdefined(inputs.registry) else None)
        if not isdefined(inputs.in_file):
            sink.remove(inputs.kind, inputs.entities, **inputs.extra)
            return runtime
        path = sink.write(inputs.kind, inputs.entities, inputs.in_file, inputs.sidecar | inputs.more, **inputs.extra)
        if isdefined(inputs.supersedes):
            sink.remove(inputs.supersedes, inputs.entities)
        self._results["out_file"] = str(path)
        return runtime


class SaveLogInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`SaveLog`."""

    in_file = File(exists=True, mandatory=True, desc="file that is copied")
    out_file = traits.Str(nohash=True, mandatory=True, desc="path of the copy, in the log folder of this run")


class SaveLog(NodeInterface):
    """Put a file into the log of a run; it has no sidecar, and is none of the results.

    Always runs: every run has a log of its own.
    """

    input_spec = SaveLogInputSpec
    output_spec = SaveDerivativeOutputSpec
    _always_run = True

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.atomic import write_atomic

        path = Path(self.inputs.out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.inputs.in_file)
        self._results["out_file"] = str(path)
        return runtime


class ReportInputSpec(BaseInterfaceInputSpec):
    """Inputs of reports of either method."""

    content = traits.Dict(mandatory=True, desc="fields of ReportContent known when the workflow is built")
    facts = traits.Dict(mandatory=True, desc="facts of the methods text known when the workflow is built")
    made = traits.Dict(usedefault=True, nohash=True, desc="date and command line of the run")
    # What steps took differs from run to run, and is no reason to make a report again.
    steps = traits.List(traits.Str, usedefault=True, nohash=True, desc="names of the steps before the report")
    work_folder = traits.Str(nohash=True, desc="folder of the task, below which the steps worked")


class ReportOutputSpec(TraitedSpec):
    """Outputs of reports of either method."""

    out_file = File(exists=True, desc="one HTML file")
    usage = File(exists=True, desc="TSV of what the steps took")


class ReportInterface(NodeInterface):
    """Shared part of the nodes of reports."""

    output_spec = ReportOutputSpec

    def write(self, runtime: "Bunch", gather: Callable[[dict], "ReportContent"]) -> "Bunch":
        """Write the report of the content that ``gather`` makes of the inputs, and the table of the steps."""
        from gsbids.interfaces.usage import gather_usage
        from gsbids.qc.report.page import write_report
        from gsbids.qc.report.usage import format_usage

        found = {name: value for name, value in self.inputs.get().items() if isdefined(value)}
        usage = gather_usage(found.get("work_folder", runtime.cwd), found["steps"])
        found["usage"] = write_text(self.path(runtime, "usage.tsv"), format_usage(usage))
        self._results["usage"] = found["usage"]
        self._results["out_file"] = str(write_report(self.path(runtime, "report.html"), gather(found)))
        return runtime


class SubjectReportInputSpec(ReportInputSpec):
    """Inputs of :class:`SubjectReport`; all files but the static content may be missing."""

    panels = traits.List(traits.Dict, mandatory=True, desc="fields of StackPanel, one a stack")
    conformed = InputMultiObject(File(exists=True), desc="conformed stacks")
    corrected = InputMultiObject(File(exists=True), desc="denoised and bias corrected stacks")
    masks = InputMultiObject(File(exists=True), desc="brain masks of the stacks")
    mask_reasons = InputMultiObject(traits.Str, desc="where the masks come from, in words")
    mask_methods = InputMultiObject(traits.Str, desc="modes that made them")
    simulated = InputMultiObject(File(exists=True), desc="stacks as the reconstruction predicts them")
    choice = File(exists=True, desc="JSON of ChooseStacks")
    registration = File(exists=True, desc="JSON of RegisterStacks")
    placement = File(exists=True, desc="JSON of SampleVolume: how the volume lies")
    template_xfm = File(exists=True, desc="ITK transform from scanner to template, if there is one")
    result = File(exists=True, desc="npz of SvrResult")
    volume = File(exists=True, desc="reconstructed volume")
    unmasked = File(exists=True, desc="the same in the whole field of view")
    mask = File(exists=True, desc="brain mask of the volume")
    coverage = File(exists=True, desc="slices that saw each voxel")
    uncertainty = File(exists=True, desc="predicted standard deviation of the error of each voxel")
    metrics = File(exists=True, desc="JSON of QcMetrics")


class SubjectReport(ReportInterface):
    """Write the report of one reconstruction."""

    input_spec = SubjectReportInputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        return self.write(runtime, gather_content)


def gather_content(found: dict) -> "ReportContent":
    """Make the content of a report from the inputs of :class:`SubjectReport` that are there.

    Parameters
    ----------
    found : dict
        Inputs by name; lists have an entry for every stack, None where a file is missing.

    Returns
    -------
    gsbids.qc.report.content.ReportContent
    """
    from gsbids.qc.report.content import ReportContent, StackPanel
    from gsbids.qc.report.methods import MethodsFacts, methods_paragraphs
    from gsbids.recon.svr.result import SvrResult

    result = SvrResult.load(found["result"]) if "result" in found else None
    choice = result.mask_choice if result else {"doubts": {}, "left_out": []}
    if "choice" in found:
        choice = json.loads(Path(found["choice"]).read_text(encoding="utf-8"))
    lists = {"image": "conformed", "n4": "corrected", "mask": "masks", "simulated": "simulated"}
    panels = []
    for k, fixed in enumerate(found["panels"]):
        files = {field: found[name][k] for field, name in lists.items() if name in found}
        files = {field: Path(file) for field, file in files.items() if file}
        words = {
            field: found.get(name, [""] * (k + 1))[k] or ""
            for field, name in (("mask_reason", "mask_reasons"), ("mask_mode", "mask_methods"))
        }
        told = as_tuples(fixed) | words | {"doubt": choice["doubts"].get(fixed["name"], "")}
        panels.append(StackPanel(**told, **files))
    content = as_tuples(found["content"])
    facts = dict(found["facts"])
    used = [
        method
        for panel, method in zip(panels, found.get("mask_methods", []), strict=False)
        if method and panel.name not in choice["left_out"]
    ]
    facts |= {"masking": "+".join(dict.fromkeys(used)), "n_left_out": len(choice["left_out"])}
    if "resolution" in facts:
        facts["resolution"] = tuple(facts["resolution"])
    if result:
        content["summary"] = (*content.get("summary", ()), *_summary(result))
        content["registration"] = result.settings.get("registration")
        facts["n_gaussians"] = len(result.field)
        name_device(content, facts, result)
    if "placement" in found:
        _tell_placement(content, facts, json.loads(Path(found["placement"]).read_text(encoding="utf-8")))
    for name in ("registration", "metrics"):
        if name in found:
            content[name] = json.loads(Path(found[name]).read_text(encoding="utf-8"))
    if "metrics" in content:
        content["metrics"] = {k: math.nan if v is None else v for k, v in content["metrics"].items()}
    names = ("volume", "unmasked", "mask", "coverage", "uncertainty", "result", "template_xfm")
    images = {name: Path(found[name]) for name in names if name in found}
    return ReportContent(
        stacks=tuple(panels),
        methods=methods_paragraphs(MethodsFacts(**facts)),
        usage=usage_of(found),
        made=dict(found.get("made", {})),
        **images,  # type: ignore[arg-type]
        **content,
    )


def _tell_placement(content: dict, facts: dict, placement: dict) -> None:
    """Add the template that a volume is aligned to, or why it is aligned to none."""
    name, doubt = placement.get("TemplateName", ""), placement.get("TemplateDoubt", "")
    if doubt and "TemplateRotation" not in placement:
        content["summary"] = (*content.get("summary", ()), ("Axes", f"those of the scanner: the brain {doubt}"))
    elif name:
        row = (
            "Aligned to",
            f"{name}, similarity {placement['TemplateSimilarity']:.2f}, turned by "
            f"{placement['TemplateRotation']:.0f} degrees" + (f". Doubtful: the brain {doubt}" if doubt else ""),
        )
        content["summary"] = (*content.get("summary", ()), row)
        content["orientation"] = (
            f"Letters are directions of the child, as in {name}; stacks are shown as they lay in the scanner."
        )
        content["template_similarity"], facts["template"] = placement["TemplateSimilarity"], name
    if "TemplateMaskOverlap" in placement:
        shared, doubt = placement["TemplateMaskOverlap"], placement.get("TemplateMaskDoubt")
        words = f"vote of the masks of the slices: {doubt}" if doubt else f"shape of the template, overlap {shared:.2f}"
        content["summary"] = (*content["summary"], ("Brain mask of the volume", words))


def usage_of(found: dict) -> "tuple[StepUsage, ...]":
    """Return the resources that the steps used, where there is a table of them among the inputs of a report."""
    from gsbids.qc.report.usage import read_usage

    return read_usage(found["usage"]) if found.get("usage") else ()


def name_device(content: dict, facts: dict, result: Any) -> None:
    """Add the device on which a result was computed, which may differ from that of this run."""
    if device := result.settings.get("device"):
        content["run"], facts["device"] = content.get("run", {}) | {"Device": device}, device


def _summary(result: Any) -> tuple[tuple[str, str], ...]:
    """Return the rows that describe a result."""
    rows: tuple[tuple[str, str], ...] = (
        ("Slices", f"{len(result.weight)} with brain, {int(result.rejected.sum())} rejected"),
        ("Gaussians", f"{len(result.field)}"),
    )
    if moved := result.settings.get("placed_anew"):
        rows += (
            (
                "Re-registered",
                f"{', '.join(moved)}: slices did not fit where the co-registration put the stack, "
                "and fit better in another place",
            ),
        )
    if strain := result.settings.get("strain"):
        rows += (("Free strain", strain_words(strain)),)
    if shifts := result.settings.get("shifts"):
        added = "; ".join(f"{name}: {-offset:.3g} added" for name, offset in shifts.items())
        rows += (
            ("Negative intensities", f"{added} for the fit; the volume and all other images have those of the input"),
        )
    if changes := mask_changes(result):
        rows += (("Masks refined", f"{'; '.join(changes)}: the fit follows what moves with the head"),)
    if empty := result.mask_choice["empty"]:
        rows += (
            (
                "Slices without information",
                "; ".join(f"{name}: {', '.join(map(str, slices))}" for name, slices in empty.items())
                + " (see Excluded): no part of the fit",
            ),
        )
    out, left_out = result.settings.get("excluded", []), result.mask_choice["left_out"]
    for doubtful, words in (
        (True, "has a doubtful mask (see Warnings)"),
        (False, "looks like no part of what the other stacks show"),
    ):
        if names := [name for name in out if (name in left_out) == doubtful]:
            rows += (("Excluded", f"{', '.join(names)}: {words}, and is no part of the volume"),)
    return rows


def strain_words(strain: float) -> str:
    """Describe the search along a strain that the stacks leave free (:mod:`gsbids.recon.fitting.strain`)."""
    return (
        "stacks of so few directions leave a strain of the brain open (of two, the angle between them); it was "
        f"found by how well a field explains the slices, {strain:.1%} from where they had settled"
    )


def mask_changes(result: Any) -> list[str]:
    """Describe what the fit has left out of the stacks' masks and added to them, where it changed them."""
    changes = result.settings.get("mask_changes", {})
    return [
        f"{name}: {change['lost']:.0%} left out, {change['won']:.0%} added"
        for name, change in changes.items()
        if change["lost"] or change["won"]
    ]


def as_tuples(fields: dict) -> dict:
    """Convert lists, also those within lists, to the tuples that frozen dataclasses hold."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value

    return {name: frozen(value) for name, value in fields.items()}
