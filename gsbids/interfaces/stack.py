# SPDX-License-Identifier: Apache-2.0
"""Nodes that prepare one stack: conform, mask, denoise, correct the bias field."""

from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, isdefined, traits

from gsbids.imaging.nifti import load_image, save_image
from gsbids.interfaces.base import NodeInterface

if TYPE_CHECKING:
    import numpy as np
    from nipype.interfaces.base import Bunch


class ConformStackInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`ConformStack`."""

    in_file = File(exists=True, mandatory=True, desc="stack as acquired")
    slice_encoding_direction = traits.Str(desc="BIDS SliceEncodingDirection")
    keep_as_is = traits.Bool(False, usedefault=True, desc="keep the order of the axes")


class ConformStackOutputSpec(TraitedSpec):
    """Outputs of :class:`ConformStack`."""

    out_file = File(exists=True, desc="float32, finite, slices along the third axis")


class ConformStack(NodeInterface):
    """Move the slice axis to third place and repair voxels that are not finite or spikes, or only repair."""

    input_spec = ConformStackInputSpec
    output_spec = ConformStackOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.imaging.geometry import conform, slice_axis
        from gsbids.imaging.intensity import without_spikes

        data, affine = load_image(self.inputs.in_file)
        data = without_spikes(data, self.inputs.in_file)
        given = self.inputs.slice_encoding_direction
        axis = 2
        if not self.inputs.keep_as_is:
            axis = slice_axis(data.shape, affine, given if isdefined(given) else None)
        data, affine = conform(data, affine, axis)
        self._results["out_file"] = str(save_image(self.path(runtime, "conformed.nii.gz"), data, affine))
        return runtime


class MaskStackInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`MaskStack`."""

    in_file = File(exists=True, mandatory=True, desc="conformed stack")
    mask_file = File(exists=True, desc="mask from a derivative data set, on any grid")
    mode = traits.Enum(
        "auto", "derivatives", "network", "nonzero", "otsu", "none", usedefault=True, desc="where the mask comes from"
    )
    weights = File(exists=True, desc="of the network, in the place of those of the package")
    may_be_empty = traits.Bool(False, usedefault=True, desc="where no brain is, the mask is empty")
    of_slices = traits.Bool(False, usedefault=True, desc="slices without information are no part of the mask")


class MaskStackOutputSpec(TraitedSpec):
    """Outputs of :class:`MaskStack`."""

    out_mask = File(exists=True, desc="brain mask on the grid of the stack")
    reason = traits.Str(desc="where the mask comes from, in words")
    method = traits.Str(desc="mode that was used in the end")
    facts = traits.Dict(desc="both, and why the mask is doubtful, for its sidecar")


class MaskStack(NodeInterface):
    """Make the brain mask of a stack."""

    input_spec = MaskStackInputSpec
    output_spec = MaskStackOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        import numpy as np

        from gsbids.masking.stack_masks import MadeMask, NoBrain, make_mask

        image, affine = load_image(self.inputs.in_file)
        mask_file = self.inputs.mask_file if isdefined(self.inputs.mask_file) else None
        weights = self.inputs.weights if isdefined(self.inputs.weights) else None
        try:
            made = make_mask(self.inputs.mode, image, affine, mask_file, weights)
        except NoBrain as error:
            if not self.inputs.may_be_empty:
                raise
            made = MadeMask(
                np.zeros(image.shape, bool),
                "There is none.",
                self.inputs.mode,
                f"{error.found[0].upper()}{error.found[1:]}.",
            )
        empty: list[int]
        mask, empty = made.mask, []
        if self.inputs.of_slices:
            made, mask, empty = _without_empty_slices(image, made)
        self._results["out_mask"] = str(save_image(self.path(runtime, "mask.nii.gz"), mask, affine, dtype="uint8"))
        self._results |= {"reason": made.reason, "method": made.method}
        self._results["facts"] = (
            {"MaskMode": made.method, "MaskSource": made.reason}
            | ({"MaskDoubt": made.doubt} if made.doubt else {})
            | ({"EmptySlices": empty} if empty else {})
        )
        return runtime


def _without_empty_slices(image: "np.ndarray", made: Any) -> "tuple[Any, np.ndarray, list[int]]":
    """Remove slices without information from a mask; a stack of nothing else is doubtful.

    Returns
    -------
    gsbids.masking.stack_masks.MadeMask, ndarray of bool, list of int
        What was made, its mask without these slices, and the slices.
    """
    from gsbids.imaging.intensity import empty_slices

    empty = empty_slices(image, made.mask)
    mask = made.mask.copy()
    mask[:, :, empty] = False
    if empty and not mask.any():
        found = "Every slice has one intensity in its mask: there is nothing to see in the stack."
        return made._replace(doubt=f"{made.doubt} {found}".strip()), mask, []
    return made, mask, empty


class FilterStackInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`DenoiseStack` and :class:`CorrectBias`."""

    in_file = File(exists=True, mandatory=True, desc="conformed stack")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on its grid")
    after = traits.Any(nohash=True, desc="output of a step that goes first; not looked at")


class FilterStackOutputSpec(TraitedSpec):
    """Outputs of :class:`DenoiseStack` and :class:`CorrectBias`."""

    out_file = File(exists=True, desc="filtered stack")


class DenoiseStack(NodeInterface):
    """Denoise within each slice by adaptive non-local means (antspyx)."""

    input_spec = FilterStackInputSpec
    output_spec = FilterStackOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.imaging.bias import denoise

        image, affine = load_image(self.inputs.in_file)
        clean = denoise(image, load_image(self.inputs.in_mask)[0] > 0, affine)
        self._results["out_file"] = str(save_image(self.path(runtime, "denoised.nii.gz"), clean, affine))
        return runtime


class CorrectBias(NodeInterface):
    """Correct the bias field by N4 inside the mask (antspyx)."""

    input_spec = FilterStackInputSpec
    output_spec = FilterStackOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.imaging.bias import correct_bias

        image, affine = load_image(self.inputs.in_file)
        even = correct_bias(image, load_image(self.inputs.in_mask)[0] > 0, affine)
        self._results["out_file"] = str(save_image(self.path(runtime, "corrected.nii.gz"), even, affine))
        return runtime
