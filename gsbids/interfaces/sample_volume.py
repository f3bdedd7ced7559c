# SPDX-License-Identifier: Apache-2.0
"""The node that samples the volume: its grid, its brain mask and its images."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from gsbids.imaging.nifti import save_image
from gsbids.interfaces.base import (
    DeviceInputSpec,
    NodeInterface,
    StacksInputSpec,
    limit_threads,
    read_stacks,
    write_text,
)
from gsbids.interfaces.masks import read_choice

if TYPE_CHECKING:
    import numpy as np
    from nipype.interfaces.base import Bunch

    from gsbids.imaging.stack import Stack

LOGGER = logging.getLogger("gsbids.interfaces")


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
    mask_facts = traits.Dict(desc="the same, and where the brain mask is from, for its sidecar")
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
        from gsbids.recon.volume.coverage import seen_near, shown_region, vote_mask, without_holes
        from gsbids.recon.volume.sample import in_order, output_grid, sample_result
        from gsbids.recon.volume.template import brain_of_result
        from gsbids.recon.volume.uncertainty import predict_error

        limit_threads(self.inputs.num_threads)
        result, stacks = SvrResult.load(self.inputs.result), read_stacks(self.inputs)
        compared = isdefined(self.inputs.template) or isdefined(self.inputs.packaged_templates)
        brain = brain_of_result(result, stacks) if compared else None
        transform, facts, atlas = self._aligned(brain, runtime)
        affine, shape = output_grid(stacks, result, self.inputs.resolution, transform)
        here = affine if transform is None else np.linalg.inv(transform) @ affine
        image = sample_result(result, here, shape, self.inputs.device)
        mask, coverage = vote_mask(stacks, result, here, shape)
        if self._masks_made():  # with fringes of face and neck, other than those that were given
            mask = without_appendages(mask, np.linalg.norm(here[:3, :3], axis=0))
            if brain and atlas:
                known = seen_near(mask, coverage, here, result.settings["rim"])
                mask, told = self._by_atlas(brain, atlas, (mask, known, here))
                facts |= told
        self._tell_placement(facts, runtime)
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

    def _aligned(self, brain: "Stack | None", runtime: "Bunch") -> "tuple[np.ndarray | None, dict, tuple | None]":
        """Find the transform to the world of the template, facts about it, and the template with its alignment.

        The transform is None where there is no template; the last is None where no template of the package is trusted:
        of the mask of a template of the user's own nothing is known.
        """
        import numpy as np

        from gsbids.imaging.itk import write_itk_transforms

        if brain is None or not brain.mask.any():
            return None, {}, None
        given = isdefined(self.inputs.template)
        found, facts, atlas = self._to_template(brain) if given else self._to_packaged(brain)
        if found is None:
            return None, facts, None
        for name, transform in (("template_xfm", found), ("scanner_xfm", np.linalg.inv(found))):
            self._results[name] = str(write_itk_transforms(self.path(runtime, f"{name}.txt"), transform))
        return found, facts, atlas

    def _by_atlas(self, brain: "Stack", atlas: tuple, voted: tuple) -> "tuple[np.ndarray, dict]":
        """Find the brain mask by the shape of an atlas, or by vote where that fails, and facts of it."""
        from dataclasses import replace

        from gsbids.imaging.masks import without_appendages
        from gsbids.masking.shape_prior import LEAST_OVERLAP, mask_by_atlas

        template, alignment = atlas
        head = replace(brain, mask=without_appendages(brain.mask, tuple(brain.spacing)))
        mask, shared = mask_by_atlas(head, template, alignment.laid(template), *voted)
        facts: dict[str, Any] = {"TemplateMaskOverlap": round(shared, 4)}
        if shared >= LEAST_OVERLAP:
            LOGGER.info("the brain mask of the volume has the shape of the atlas (overlap with the vote %.2f)", shared)
            return mask, facts
        doubt = f"the atlas, laid on the volume, overlaps with it by only {shared:.2f}"
        LOGGER.warning("the brain mask of the volume is the vote of the masks of the slices: %s; look at it", doubt)
        return voted[0], facts | {"TemplateMaskDoubt": doubt}

    def _tell_placement(self, facts: dict, runtime: "Bunch") -> None:
        """Write the facts about template and mask where report and sidecars find them."""
        self._results["placement"] = write_text(self.path(runtime, "placement.json"), json.dumps(facts))
        self._results["space"] = {k: v for k, v in facts.items() if k == "SpatialReference"}
        by_atlas = "TemplateMaskOverlap" in facts and "TemplateMaskDoubt" not in facts
        atlas = f"Shape of the {facts.get('TemplateName')}, laid on the volume"
        source = atlas if by_atlas else "Vote of the masks of the slices"
        self._results["mask_facts"] = self._results["space"] | {"MaskSource": source}

    def _to_template(self, brain: "Stack") -> "tuple[np.ndarray, dict, None]":
        """Align to the template of the user; return the transform and facts about it."""
        from gsbids.masking.template import load_template
        from gsbids.recon.volume.template import align_to_template

        path, mask = self.inputs.template, self.inputs.template_mask
        found = align_to_template(brain, load_template(path, mask if isdefined(mask) else None))
        if found.doubt:
            LOGGER.warning(
                "--template: the brain %s; look at the result, and whether both have one contrast", found.doubt
            )
        told = found.facts(Path(path).name) | ({"TemplateDoubt": found.doubt} if found.doubt else {})
        return found.transform, told, None

    def _to_packaged(self, brain: "Stack") -> "tuple[np.ndarray | None, dict, tuple | None]":
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
                return found.transform, facts | {"SpatialReference": template.reference}, (template.brain, found)
        if facts:
            del facts["TemplateRotation"]  # it was not turned
            facts["TemplateDoubt"] = found.doubt
            LOGGER.warning(
                "keeps the axes of the scanner: the brain %s, compared with the %s; say --template none, or "
                "give a template",
                found.doubt,
                template.name,
            )
        return None, facts, None


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
