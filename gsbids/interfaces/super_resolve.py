# SPDX-License-Identifier: Apache-2.0
"""Nodes of super-resolution: a foreground for the filters, the fit, its metrics and its report."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, isdefined, traits

from gsbids.imaging.nifti import load_image, read_header, save_image
from gsbids.interfaces.base import DeviceInputSpec, NodeInterface, limit_threads, write_metrics
from gsbids.interfaces.outputs import ReportInputSpec, ReportInterface, as_tuples, name_device, usage_of

if TYPE_CHECKING:
    import numpy as np
    from nipype.interfaces.base import Bunch

LOGGER = logging.getLogger("gsbids.interfaces")


class ForegroundInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`Foreground`."""

    in_file = File(exists=True, mandatory=True, desc="volume")


class ForegroundOutputSpec(TraitedSpec):
    """Outputs of :class:`Foreground`."""

    out_mask = File(exists=True, desc="where denoising and N4 look; no brain mask")


class Foreground(NodeInterface):
    """Find the largest region above the threshold of Otsu, for filters of a volume that has no mask."""

    input_spec = ForegroundInputSpec
    output_spec = ForegroundOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.masking.stack_masks import full_mask, otsu_mask

        image, affine = load_image(self.inputs.in_file)
        mask = otsu_mask(image)
        mask = mask if mask.any() else full_mask(image)
        self._results["out_mask"] = str(save_image(self.path(runtime, "foreground.nii.gz"), mask, affine, "uint8"))
        return runtime


class SuperResolveInputSpec(DeviceInputSpec):
    """Inputs of :class:`SuperResolve`."""

    in_file = File(exists=True, mandatory=True, desc="volume")
    in_mask = File(exists=True, desc="its brain mask")
    factor = traits.List(traits.Float, usedefault=True, desc="fields of SrTarget")
    spacing = traits.List(traits.Float, usedefault=True, desc="fields of SrTarget")
    like = File(exists=True, desc="image whose grid is asked for")
    thickness = traits.Float(desc="slice thickness in mm")
    profile = traits.Str("auto", usedefault=True, desc="of the voxels")
    options = traits.Dict(traits.Str(), traits.Any(), usedefault=True, desc="fields of SrOptions")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class SuperResolveOutputSpec(TraitedSpec):
    """Outputs of :class:`SuperResolve`."""

    volume = File(exists=True, desc="super-resolved volume")
    interpolated = File(exists=True, desc="cubic B-spline of the input on the same grid")
    mask = File(exists=True, desc="brain mask on the same grid, if there is one of the input")
    model = File(exists=True, desc="npz of SrResult")
    facts = traits.Dict(desc="numbers for the sidecar of the volume")
    quality = traits.Dict(desc="numbers for the metrics")


class SuperResolve(NodeInterface):
    """Super-resolve one volume."""

    input_spec = SuperResolveInputSpec
    output_spec = SuperResolveOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.kernels.backend import release
        from gsbids.recon.sr.fit import super_resolve
        from gsbids.recon.sr.grid import resampled
        from gsbids.recon.sr.options import SrOptions
        from gsbids.recon.sr.quality import data_misfit, hidden_gain
        from gsbids.recon.sr.sample import sample_sr
        from gsbids.recon.sr.target import SrTarget, target_grid, voxel_profile

        inputs = self.inputs
        limit_threads(inputs.num_threads)
        data, affine = load_image(inputs.in_file)
        like = read_header(inputs.like) if isdefined(inputs.like) else None
        grid, other = target_grid(data.shape, affine, SrTarget(tuple(inputs.factor), tuple(inputs.spacing), like))
        thickness = inputs.thickness if isdefined(inputs.thickness) else None
        profile, width = voxel_profile(np.linalg.norm(affine[:3, :3], axis=0), thickness, inputs.profile)
        options = SrOptions(
            profile=profile,
            profile_width=width,
            threads=inputs.num_threads,
            device=inputs.device,
            **_sr_options(inputs.options),
        )
        result = super_resolve(data, affine, grid, options, LOGGER.info)
        self._results["model"] = str(result.save(self.path(runtime, "model.npz")))
        shape, target = (result.volume.shape, result.affine) if other is None else other
        images = {
            "volume": sample_sr(result, target, shape, inputs.device),
            "interpolated": resampled(data, affine, shape, target),
        }
        release(inputs.device)
        for name, image in images.items():
            self._results[name] = str(save_image(self.path(runtime, f"{name}.nii.gz"), image, target))
        if isdefined(inputs.in_mask):
            mask = _mask_on(inputs.in_mask, target, shape)
            self._results["mask"] = str(save_image(self.path(runtime, "mask.nii.gz"), mask, target, "uint8"))
        self._results["facts"] = result_facts(result)
        self._results["quality"] = {"data_misfit": data_misfit(data, grid, options, result)} | hidden_gain(result)
        return runtime


def _sr_options(given: dict) -> dict:
    """Return the fields of ``SrOptions``; schedules are given in them as plain numbers."""
    from gsbids.recon.sr.options import Schedule

    schedules = given.get("schedules")
    return {**given, "schedules": tuple(Schedule(*numbers) for numbers in schedules)} if schedules else dict(given)


def result_facts(result: Any) -> dict:
    """Return plain numbers of a result under the names they have in the sidecar of the volume."""
    settings = result.settings
    profile = settings["profile"]
    facts = {
        "UpsamplingFactor": [round(float(f), 6) for f in settings["factor"]],
        "SamplingProfile": [profile] * 3 if isinstance(profile, str) else list(profile),
        "SamplingProfileWidth": list(settings["profile_width"]),
        "SuperResolutionQuality": settings["quality"],
        "NumberOfFields": len(result.fields),
        "NumberOfGaussians": sum(len(f) for f in result.fields),
        "RandomSeed": int(settings["seed"]),
        "ComputeDevice": settings.get("device", "cpu"),
    }
    if settings.get("magnitude_noise"):
        facts["MagnitudeNoise"] = float(f"{settings['magnitude_noise'] * result.intensity_scale:.6g}")
    choice = settings.get("choice")
    if not choice:
        return facts
    deep = {"BlendFarFromBackground": choice["deep"]["blend"]} if choice.get("deep") else {}
    return facts | {"Blend": choice["blend"], **deep, "EdgeSharpened": bool(choice.get("edge"))}


class SrMetricsInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`SrMetrics`."""

    volume = File(exists=True, mandatory=True, desc="super-resolved volume")
    interpolated = File(exists=True, mandatory=True, desc="cubic B-spline of the input on its grid")
    mask = File(exists=True, desc="brain mask on its grid")
    facts = traits.Dict(mandatory=True, desc="as from SuperResolve")
    quality = traits.Dict(mandatory=True, desc="as from SuperResolve")
    name = traits.Str(mandatory=True, desc="first column of the table: name of the volume")


class SrMetricsOutputSpec(TraitedSpec):
    """Outputs of :class:`SrMetrics`."""

    table = File(exists=True, desc="TSV of one row")
    metrics = File(exists=True, desc="JSON, null where there is no number")
    columns = traits.Dict(desc="BIDS description of the columns")


class SrMetrics(NodeInterface):
    """Compute the quality metrics of a super-resolved volume."""

    input_spec = SrMetricsInputSpec
    output_spec = SrMetricsOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.qc.metrics_sr import SR_METRIC_DESCRIPTIONS, super_resolution_metrics

        inputs = self.inputs
        volume, affine = load_image(inputs.volume)
        mask = load_image(inputs.mask)[0] > 0 if isdefined(inputs.mask) else None
        row = super_resolution_metrics(
            volume, load_image(inputs.interpolated)[0], affine, mask, inputs.facts | inputs.quality
        )
        self._results |= write_metrics(runtime.cwd, inputs.name, row, SR_METRIC_DESCRIPTIONS)
        return runtime


class SrReportInputSpec(ReportInputSpec):
    """Inputs of :class:`SrReport`; all files but the static content may be missing."""

    before = File(exists=True, desc="the volume that was super-resolved")
    interpolated = File(exists=True, desc="cubic B-spline of it on the fine grid")
    volume = File(exists=True, desc="super-resolved volume")
    mask = File(exists=True, desc="brain mask on its grid")
    mask_reason = traits.Str(desc="where the mask comes from, in words")
    model = File(exists=True, desc="npz of SrResult")
    metrics = File(exists=True, desc="JSON of SrMetrics")


class SrReport(ReportInterface):
    """Write the report of one super-resolved volume."""

    input_spec = SrReportInputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        return self.write(runtime, gather_sr_content)


def gather_sr_content(found: dict) -> Any:
    """Make the content of a report from the inputs of :class:`SrReport` that are there.

    Returns
    -------
    gsbids.qc.report.content.ReportContent
    """
    from gsbids.qc.report.content import ReportContent, SrPanel
    from gsbids.qc.report.methods_sr import SrMethodsFacts, sr_methods_paragraphs
    from gsbids.recon.sr.quality import choice_rows
    from gsbids.recon.sr.result import SrResult

    chosen: Any
    history: Any
    content, facts, chosen, history = as_tuples(found["content"]), dict(found["facts"]), (), {}
    facts["resolution"] = tuple(facts.get("resolution", ()))
    if "model" in found:
        result = SrResult.load(found["model"])
        chosen, history = choice_rows(result), result.history
        name_device(content, facts, result)
        facts |= {
            "settings": result.settings,
            "n_fields": len(result.fields),
            "n_gaussians": sum(len(f) for f in result.fields),
        }
    if found.get("mask_reason"):
        content["summary"] = (*content.get("summary", ()), ("Mask", found["mask_reason"]))
    if "metrics" in found:
        plain = json.loads(Path(found["metrics"]).read_text(encoding="utf-8"))
        content["metrics"] = {k: math.nan if v is None else v for k, v in plain.items()}
    images: dict[str, Any] = {name: Path(found[name]) for name in ("volume", "mask") if name in found}
    panel = SrPanel(  # type: ignore[misc]
        *(Path(found[name]) if name in found else None for name in ("before", "interpolated")),  # type: ignore[arg-type]
        chosen=chosen,
        history=history,
    )
    return ReportContent(
        super_resolution=panel,
        methods=sr_methods_paragraphs(SrMethodsFacts(**facts)),
        usage=usage_of(found),
        made=dict(found.get("made", {})),
        **images,
        **content,
    )


def _mask_on(mask_file: str, affine: "np.ndarray", shape: Sequence[int]) -> "np.ndarray":
    from gsbids.imaging.masks import resample_mask

    mask, mask_affine = load_image(mask_file)
    return resample_mask(mask > 0, mask_affine, affine, shape)
