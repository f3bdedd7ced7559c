# SPDX-License-Identifier: Apache-2.0
"""Nodes of the reconstruction: co-register, fit, simulate stacks, list the motion."""

import json
import logging
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
    write_text,
)
from gsbids.interfaces.masks import chosen_stacks, read_choice
from gsbids.interfaces.outputs import mask_changes, strain_words
from gsbids.interfaces.preview import previewer

if TYPE_CHECKING:
    from nipype.interfaces.base import Bunch


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
