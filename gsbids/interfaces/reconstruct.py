# SPDX-License-Identifier: Apache-2.0
"""Nodes of the reconstruction: co-register, fit, sample the volume, simulate stacks, list the motion."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, isdefined, traits

from gsbids.imaging.nifti import read_header, save_image
from gsbids.interfaces.base import (
    DeviceInputSpec,
    NodeInterface,
    ProgressNote,
    StacksInputSpec,
    limit_threads,
    read_stack,
    read_stacks,
    write_text,
)
from gsbids.interfaces.masks import chosen_stacks, read_choice
from gsbids.interfaces.outputs import mask_changes, strain_words
from gsbids.interfaces.preview import previewer

if TYPE_CHECKING:
    import numpy as np
    from nipype.interfaces.base import Bunch

    from gsbids.imaging.stack import Stack

LOGGER = logging.getLogger("gsbids.interfaces")


class RegisterStacksOutputSpec(TraitedSpec):
    """Outputs of :class:`RegisterStacks`."""

    out_file = File(exists=True, desc="JSON with the fields of StackRegistration")


class RegisterStacks(NodeInterface):
    """Bring whole stacks into one space by rigid registration."""

    input_spec = StacksInputSpec
    output_spec = RegisterStacksOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from dataclasses import asdict

        from gsbids.recon.registration.register import register_stacks
        from gsbids.recon.svr.exclude import registered_without

        stacks, out = chosen_stacks(self.inputs)
        found: Any = register_stacks(stacks, self.inputs.num_threads)
        found = asdict(registered_without(found, out, "Left out, as its mask is doubtful."))
        # JSON keeps every bit of a double.
        text = json.dumps({k: v.tolist() if hasattr(v, "tolist") else v for k, v in found.items()}, indent=1)
        self._results["out_file"] = write_text(self.path(runtime, "registration.json"), text)
        return runtime


class FitSvrInputSpec(StacksInputSpec, DeviceInputSpec):
    """Inputs of :class:`FitSvr`."""

    registration = File(exists=True, mandatory=True, desc="JSON of RegisterStacks")
    method = traits.Enum("default", "paper", usedefault=True, desc="fit_svr, or fit_paper")
    options = traits.Dict(traits.Str(), traits.Any(), usedefault=True, desc="fields of the method's options")
    # The result is the same with and without.
    preview = traits.Dict(nohash=True, desc="settings of PreviewFile: keep a preview in the output on the way")


class FitSvrOutputSpec(TraitedSpec):
    """Outputs of :class:`FitSvr`."""

    out_file = File(exists=True, desc="npz of SvrResult")


class FitSvr(NodeInterface):
    """Fit the Gaussian field and a pose per slice."""

    input_spec = FitSvrInputSpec
    output_spec = FitSvrOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from dataclasses import replace

        import numpy as np

        from gsbids.kernels.backend import release
        from gsbids.recon.fitting.options import SvrOptions
        from gsbids.recon.svr.exclude import with_excluded
        from gsbids.recon.svr.fit import fit_svr
        from gsbids.recon.svr_paper.fit import PaperOptions, fit_paper

        fit, kind = {"default": (fit_svr, SvrOptions), "paper": (fit_paper, PaperOptions)}[self.inputs.method]
        place = {"device": self.inputs.device} if kind is SvrOptions else {}
        limit_threads(self.inputs.num_threads)
        with open(self.inputs.registration, encoding="utf-8") as file:
            registration = json.load(file)
        transforms = np.array(registration.pop("transforms"))
        options = kind(**self.inputs.options, threads=self.inputs.num_threads, **place)
        choice, settings = read_choice(self.inputs), self.inputs.preview
        stacks, out = chosen_stacks(self.inputs)
        observe = None
        if isdefined(settings) and settings:
            observe = previewer(stacks, settings, runtime.cwd, "prepared stacks", self.inputs.device)
        result = fit(stacks, transforms[~out], options, progress=ProgressNote(runtime.cwd), observe=observe)  # type: ignore[operator]
        release(self.inputs.device)
        if moved := result.settings.get("placed_anew"):
            LOGGER.warning(
                "%s did not fit where the co-registration had put it, and was re-registered: look at it",
                ", ".join(moved),
            )
        if strain := result.settings.get("strain"):
            LOGGER.info(strain_words(strain))
        if changes := mask_changes(result):
            LOGGER.info("masks follow what moves with the head (%s)", "; ".join(changes))
        if strange := result.settings.get("excluded"):
            LOGGER.warning(
                "%s was left out: it looks like no part of what the other stacks show; check that it is of "
                "this subject and contrast, and its mask",
                ", ".join(strange),
            )
        if out.any():
            starts = transforms.reshape(len(out), -1, 4, 4)[:, 0]
            result = with_excluded(result, tuple(self.inputs.names), starts, out)
        # So that the model alone tells all that the report does.
        shifts = {stack.name: stack.offset for stack in stacks if stack.offset}
        for name, offset in shifts.items():
            LOGGER.info("%s: %.3g is added to its intensities for the fit, and taken off its outputs", name, -offset)
        told = {"registration": registration, "shifts": shifts} | (
            {"mask_choice": choice} if choice["doubts"] or choice["empty"] else {}
        )
        result = replace(result, settings=result.settings | told)
        self._results["out_file"] = str(result.save(self.path(runtime, "result.npz")))
        return runtime


class SampleVolumeInputSpec(StacksInputSpec, DeviceInputSpec):
    """Inputs of :class:`SampleVolume`."""

    result = File(exists=True, mandatory=True, desc="npz of SvrResult")
    resolution = traits.Float(mandatory=True, desc="voxel size in mm")
    orientation = traits.Enum("scanner", "radiological", usedefault=True, desc="order of the voxels")
    template = File(exists=True, desc="volume that the brain is aligned to")
    template_mask = File(exists=True, desc="its brain mask")
    packaged_templates = traits.Str(
        desc="contrast of the stacks, as T2w: without a template, one of the package is looked for"
    )


class SampleVolumeOutputSpec(TraitedSpec):
    """Outputs of :class:`SampleVolume`."""

    volume = File(exists=True, desc="volume, zero outside the brain and a narrow rim")
    brain = File(exists=True, desc="volume, zero outside the brain mask")
    unmasked = File(exists=True, desc="volume in the whole field of view")
    mask = File(exists=True, desc="brain mask")
    coverage = File(exists=True, desc="slices that saw each voxel")
    uncertainty = File(exists=True, desc="predicted standard deviation of the error of each voxel")
    template_xfm = File(exists=True, desc="ITK transform from scanner to template, if there is one")
    scanner_xfm = File(exists=True, desc="ITK transform from template to scanner, if there is one")
    placement = File(exists=True, desc="JSON: template, similarity, angle, and why it is none")
    space = traits.Dict(desc="SpatialReference of the images, if it is that of a template of the package")
    facts = traits.Dict(desc="numbers of the reconstruction for the sidecar of the volume")


class SampleVolume(NodeInterface):
    """Sample the field on the output grid, vote on the brain mask, and predict the error.

    With a template the grid is aligned to the axes of the template: the field is sampled there, once, and no image is
    interpolated. Of the templates of the package the most similar one is taken; where the similarity is low, or as high
    in another orientation, the grid keeps the axes of the scanner.
    """

    input_spec = SampleVolumeInputSpec
    output_spec = SampleVolumeOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.imaging.masks import without_appendages
        from gsbids.kernels.backend import release
        from gsbids.recon.svr.result import SvrResult
        from gsbids.recon.volume.coverage import shown_region, vote_mask, without_holes
        from gsbids.recon.volume.sample import in_order, output_grid, sample_result
        from gsbids.recon.volume.uncertainty import predict_error

        limit_threads(self.inputs.num_threads)
        result, stacks = SvrResult.load(self.inputs.result), read_stacks(self.inputs)
        transform, facts = self._aligned(result, stacks, runtime)
        affine, shape = output_grid(stacks, result, self.inputs.resolution, transform)
        here = affine if transform is None else np.linalg.inv(transform) @ affine
        image = sample_result(result, here, shape, self.inputs.device)
        mask, coverage = vote_mask(stacks, result, here, shape)
        if self._masks_made():  # with fringes of face and neck, other than those that were given
            mask = without_appendages(mask, np.linalg.norm(here[:3, :3], axis=0))
        image = without_holes(image, mask, here, result.intensity_offset)
        shown = shown_region(mask, coverage, here, result.settings["rim"])
        sigma = predict_error(result, stacks, here, image, self.inputs.device).sigma
        release(self.inputs.device)
        for name, data, dtype in (
            ("volume", image * shown, "float32"),
            ("brain", image * mask, "float32"),
            ("unmasked", image, "float32"),
            ("mask", mask, "uint8"),
            ("coverage", coverage, "float32"),
            ("uncertainty", sigma, "float32"),
        ):
            data, ordered = in_order(data, affine, self.inputs.orientation)
            self._results[name] = str(save_image(self.path(runtime, f"{name}.nii.gz"), data, ordered, dtype))
        self._results["facts"] = result_facts(result) | facts
        return runtime

    def _masks_made(self) -> bool:
        """Return whether most of the masks that voted were made, by network or threshold."""
        choice = read_choice(self.inputs)
        voted = set(self.inputs.names) - set(choice["left_out"])
        return 2 * len(voted & set(choice["made"])) > len(voted)

    def _aligned(self, result: Any, stacks: "list[Stack]", runtime: "Bunch") -> "tuple[np.ndarray | None, dict]":
        """Find the transform to the world of the template, and facts about it.

        The transform is None where there is no template.
        """
        import numpy as np

        from gsbids.imaging.itk import write_itk_transforms
        from gsbids.recon.volume.template import brain_of_result

        given, contrast = isdefined(self.inputs.template), isdefined(self.inputs.packaged_templates)
        brain: Any = brain_of_result(result, stacks) if given or contrast else None
        given, contrast = (each and brain.mask.any() for each in (given, contrast))
        found, facts = self._to_template(brain) if given else self._to_packaged(brain) if contrast else (None, {})
        self._results["placement"] = write_text(self.path(runtime, "placement.json"), json.dumps(facts))
        self._results["space"] = {k: v for k, v in facts.items() if k == "SpatialReference"}
        if found is None:
            return None, facts
        for name, transform in (("template_xfm", found), ("scanner_xfm", np.linalg.inv(found))):
            self._results[name] = str(write_itk_transforms(self.path(runtime, f"{name}.txt"), transform))
        return found, facts

    def _to_template(self, brain: "Stack") -> "tuple[np.ndarray, dict]":
        """Align to the template of the user; return the transform and facts about it."""
        from gsbids.masking.template import load_template
        from gsbids.recon.volume.template import align_to_template

        path, mask = self.inputs.template, self.inputs.template_mask
        found = align_to_template(brain, load_template(path, mask if isdefined(mask) else None))
        if found.doubt:
            LOGGER.warning(
                "--template: the brain %s; look at the result, and whether both have one contrast", found.doubt
            )
        return found.transform, found.facts(Path(path).name) | ({"TemplateDoubt": found.doubt} if found.doubt else {})

    def _to_packaged(self, brain: "Stack") -> "tuple[np.ndarray | None, dict]":
        """Align to a template of the package; return the transform, None where none fits, and facts about it."""
        from gsbids.masking.template import packaged_templates
        from gsbids.recon.volume.template import align_to_templates, millilitres

        facts = {}
        for templates in packaged_templates(self.inputs.packaged_templates, millilitres(brain)):
            number, found = align_to_templates(brain, [template.brain for template in templates])
            template = templates[number]
            facts = found.facts(template.name)
            if not found.doubt:
                LOGGER.info("lies as in the %s (similarity %.2f)", template.name, found.similarity)
                return found.transform, facts | {"SpatialReference": template.reference}
        if facts:
            del facts["TemplateRotation"]  # it was not turned
            facts["TemplateDoubt"] = found.doubt
            LOGGER.warning(
                "keeps the axes of the scanner: the brain %s, compared with the %s; say --template none, or "
                "give a template",
                found.doubt,
                template.name,
            )
        return None, facts


def result_facts(result: Any) -> dict:
    """Return plain numbers of a result under the names they have in the sidecar of the volume."""
    return {
        "NumberOfGaussians": len(result.field),
        "NumberOfStacksUsed": len({int(n) for n in result.stack_index}),
        "NumberOfSlicesUsed": int((~result.rejected).sum()),
        "NumberOfSlicesRejected": int(result.rejected.sum()),
        "PSFModel": "Gaussian, full width at half maximum 1.2 x pixel size in the plane and slice thickness through it",
        "RandomSeed": int(result.settings.get("seed", 0)),
        "ComputeDevice": result.settings.get("device", "cpu"),
    }


class StackOfResultInputSpec(BaseInterfaceInputSpec):
    """A stack and the result it was part of."""

    result = File(exists=True, mandatory=True, desc="npz of SvrResult")
    index = traits.Int(mandatory=True, desc="number of the stack in the result, from 0")
    in_file = File(exists=True, mandatory=True, desc="conformed image of the stack")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class SimulateStackInputSpec(StackOfResultInputSpec, DeviceInputSpec):
    """Inputs of :class:`SimulateStack`."""

    in_mask = File(exists=True, mandatory=True, desc="brain mask of the stack")
    thickness = traits.Float(mandatory=True, desc="slice thickness in mm")


class SimulateStackOutputSpec(TraitedSpec):
    """Outputs of :class:`SimulateStack`."""

    out_file = File(exists=True, desc="stack as the reconstruction predicts it")


class SimulateStack(NodeInterface):
    """Predict one stack from the reconstruction, in its own geometry."""

    input_spec = SimulateStackInputSpec
    output_spec = SimulateStackOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.kernels.backend import release
        from gsbids.recon.svr.result import SvrResult
        from gsbids.recon.volume.sample import simulate_stack

        limit_threads(self.inputs.num_threads)
        stack = read_stack(self.inputs.in_file, self.inputs.in_mask, "", self.inputs.thickness)
        result, index = SvrResult.load(self.inputs.result), self.inputs.index
        image = simulate_stack(result, stack, index, self.inputs.device)
        image[:, :, result.slice_index[result.stack_index == index]] += np.float32(stack.offset)
        release(self.inputs.device)
        self._results["out_file"] = str(save_image(self.path(runtime, "simulated.nii.gz"), image, stack.affine))
        return runtime


class MotionTableInputSpec(StackOfResultInputSpec):
    """Inputs of :class:`MotionTable`."""

    slice_timing = traits.List(traits.Float, desc="BIDS SliceTiming in s")
    to_volume = File(
        exists=True, desc="ITK transform from the world of the model to that of the volume, if they differ"
    )


class MotionTableOutputSpec(TraitedSpec):
    """Outputs of :class:`MotionTable`."""

    table = File(exists=True, desc="TSV, one row a slice")
    columns = traits.Dict(desc="BIDS description of its columns")
    stack_xfm = File(exists=True, desc="ITK transform of the stack as a whole")
    slices_xfm = File(exists=True, desc="ITK transforms, one a slice")


class MotionTable(NodeInterface):
    """Write the motion of one stack's slices as a table and as transforms."""

    input_spec = MotionTableInputSpec
    output_spec = MotionTableOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.imaging.itk import read_itk_transforms, write_itk_transforms
        from gsbids.recon.svr.result import SvrResult
        from gsbids.recon.volume.motion_table import COLUMNS, format_table, motion_table, slice_transforms

        result, index = SvrResult.load(self.inputs.result), self.inputs.index
        depth = read_header(self.inputs.in_file)[0][2]
        rows = motion_table(result, index, depth, self.inputs.slice_timing)
        self._results["table"] = write_text(self.path(runtime, "motion.tsv"), format_table(rows))
        self._results["columns"] = COLUMNS
        turn = read_itk_transforms(self.inputs.to_volume)[0] if isdefined(self.inputs.to_volume) else np.eye(4)
        for name, transforms in (
            ("stack_xfm", result.stack_affine[index]),
            ("slices_xfm", slice_transforms(result, index, depth)),
        ):
            self._results[name] = str(write_itk_transforms(self.path(runtime, f"{name}.txt"), turn @ transforms))
        return runtime
