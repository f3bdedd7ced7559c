# SPDX-License-Identifier: Apache-2.0
"""The masks of all stacks of a task compared, and how later steps read the outcome."""

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiObject, TraitedSpec, isdefined, traits

from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image
from gsbids.interfaces.base import NodeInterface, read_stacks, write_text

if TYPE_CHECKING:
    from nipype.interfaces.base import Bunch

    from gsbids.interfaces.base import StacksInputSpec

LOGGER = logging.getLogger("gsbids.interfaces")


class ChooseStacksInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`ChooseStacks`; lists in the order of the task."""

    in_masks = InputMultiObject(File(exists=True), mandatory=True, desc="brain masks, empty where none was found")
    facts = InputMultiObject(traits.Dict, mandatory=True, desc="facts of MaskStack")
    names = InputMultiObject(traits.Str, mandatory=True, desc="short names")


class ChooseStacksOutputSpec(TraitedSpec):
    """Outputs of :class:`ChooseStacks`."""

    out_file = File(exists=True, desc="JSON: what choice_of returns")
    facts = traits.List(traits.Dict, desc="those that were given, with what is thought of each mask now")


class ChooseStacks(NodeInterface):
    """Mark masks that are unlike the others as doubtful, and leave doubtful stacks out where enough others remain."""

    input_spec = ChooseStacksInputSpec
    output_spec = ChooseStacksOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.qc.exclusions import empty_words

        inputs = self.inputs
        choice, self._results["facts"] = choice_of(inputs.in_masks, inputs.facts, inputs.names), []
        for name, facts in zip(inputs.names, inputs.facts, strict=True):
            LOGGER.info("%s: brain mask: %s", name, facts["MaskSource"])
            told = {"MaskDoubt": choice["doubts"][name]} if name in choice["doubts"] else {}
            if told:
                LOGGER.warning("%s: %s", name, told["MaskDoubt"])
            if name in choice["empty"]:
                LOGGER.warning("%s: %s", name, empty_words(choice["empty"][name]))
            self._results["facts"].append(facts | told)
        self._results["out_file"] = write_text(self.path(runtime, "choice.json"), json.dumps(choice, indent=1))
        return runtime


def choice_of(masks: list[str], facts: list[dict], names: list[str]) -> dict:
    """Compare the masks of all stacks, and choose the stacks of the reconstruction.

    Returns
    -------
    dict
        ``doubts``: sentences about doubtful stacks by name; ``left_out``: names of stacks that are left out; ``made``:
        names of those whose masks were made, not given; ``empty``: slices without information by stack.

    Raises
    ------
    gsbids.errors.InputError
        No stack has a mask.
    """
    from gsbids.masking.doubt import MADE, choose_stacks, mask_length
    from gsbids.masking.stack_masks import litres

    loaded = [load_image(mask) for mask in masks]
    choice = choose_stacks(
        [1e3 * litres(mask > 0, affine) for mask, affine in loaded],
        [mask_length(mask > 0, affine) for mask, affine in loaded],
        [each["MaskMode"] for each in facts],
        [each.get("MaskDoubt", "") for each in facts],
    )
    if all(choice.left_out):
        who = f"{names[0]} and all other stacks" if len(names) > 1 else names[0]
        raise InputError(f"{who}: {choice.doubts[0].rstrip('.')}; give masks with -d/--derivatives")
    words = {name: choice.words(k) for k, name in enumerate(names)}
    return {
        "doubts": {name: text for name, text in words.items() if text},
        "left_out": [name for name, out in zip(names, choice.left_out, strict=True) if out],
        "made": [name for name, each in zip(names, facts, strict=True) if each["MaskMode"] in MADE],
        "empty": {
            name: each["EmptySlices"] for name, each in zip(names, facts, strict=True) if each.get("EmptySlices")
        },
    }


def chosen_stacks(inputs: "StacksInputSpec") -> tuple:
    """Return the stacks that take part in the reconstruction, and which of all do not, (N,), bool.

    Parameters
    ----------
    inputs : gsbids.interfaces.base.StacksInputSpec
    """
    import numpy as np

    choice = read_choice(inputs)
    out = np.isin(inputs.names, choice["left_out"])
    return [
        replace(stack, empty=tuple(choice["empty"].get(stack.name, ())))
        for stack, gone in zip(read_stacks(inputs), out, strict=True)
        if not gone
    ], out


def read_choice(inputs: "StacksInputSpec") -> dict:
    """Read the choice of an interface's input ``choice``; without one, nothing is doubted and all masks are given."""
    choice: dict = {"doubts": {}, "left_out": [], "made": [], "empty": {}}
    if isdefined(inputs.choice):
        with open(inputs.choice, encoding="utf-8") as file:
            choice |= json.load(file)  # one that an earlier version left in a work folder does not have all of it
    return choice
