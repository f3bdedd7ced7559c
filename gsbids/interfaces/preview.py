# SPDX-License-Identifier: Apache-2.0
"""Previews in the output folder: written during the fit, and by a quick fit before all preparation."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.interfaces.base import File, InputMultiObject, TraitedSpec, traits

from gsbids.imaging.nifti import save_image
from gsbids.interfaces.base import DeviceInputSpec, NodeInterface, ProgressNote, limit_threads, read_stack
from gsbids.interfaces.masks import choice_of
from gsbids.interfaces.stack import ConformStack, MaskStack

if TYPE_CHECKING:
    from nipype.interfaces.base import Bunch

    from gsbids.imaging.stack import Stack
    from gsbids.recon.volume.preview import Previewer, PreviewVolume

LOGGER = logging.getLogger("gsbids.interfaces")


class PreviewFile:
    """Writer of previews under one name; a callable for :class:`gsbids.recon.volume.preview.Previewer`.

    Parameters
    ----------
    settings : dict
        ``output_dir``, ``entities`` of the task, ``resolution`` in mm, ``first`` iteration, ``sidecar``.
    folder : path
        Folder where the file is made before it is moved to the output.
    stage : str
        Name of the fit, for the sidecar.
    """

    def __init__(self, settings: dict, folder: str | Path, stage: str) -> None:
        self.settings, self.folder, self.stage = settings, Path(folder), stage
        self.usable = True

    def __call__(self, preview: "PreviewVolume") -> None:
        """Replace the preview in the output; a full disk does not stop the fit."""
        from gsbids.bids.sink import Sink

        if not self.usable:
            return
        fields = {
            "Iteration": preview.iteration,
            "MeanAbsoluteResidual": preview.residual,
            "Stage": self.stage,
            "VoxelSize": self.settings["resolution"],
        }
        try:
            made = save_image(self.folder / "preview.nii.gz", preview.image, preview.affine)
            # A new sink every time: one sink, and the registry of a run, refuse to write a name twice.
            Sink(self.settings["output_dir"]).write(
                "preview", self.settings["entities"], made, self.settings["sidecar"] | fields
            )
        except OSError as error:
            self.usable = False
            LOGGER.warning("the preview could not be written (%s); the reconstruction goes on without", error)


def previewer(
    stacks: "list[Stack]", settings: dict, folder: str | Path, stage: str, device: str = "cpu"
) -> "Previewer":
    """Make an observer of a fit that keeps the preview file of the output up to date."""
    from gsbids.recon.volume.preview import Previewer

    return Previewer(stacks, settings["resolution"], PreviewFile(settings, folder, stage), settings["first"], device)


class EarlyPreviewInputSpec(DeviceInputSpec):
    """Inputs of :class:`EarlyPreview`; lists in the order of the task."""

    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="stacks as acquired")
    mask_files = traits.List(traits.Str, mandatory=True, desc="their masks, empty where there is none")
    directions = traits.List(traits.Str, mandatory=True, desc="BIDS SliceEncodingDirection, empty where unknown")
    names = InputMultiObject(traits.Str, mandatory=True, desc="short names")
    thicknesses = InputMultiObject(traits.Float, mandatory=True, desc="slice thicknesses in mm")
    mask_mode = traits.Str("auto", usedefault=True, desc="where masks come from")
    mask_weights = traits.Str("", usedefault=True, desc="of the mask network, empty for those of the package")
    options = traits.Dict(traits.Str(), traits.Any(), usedefault=True, desc="fields of SvrOptions")
    preview = traits.Dict(mandatory=True, desc="settings of PreviewFile")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class EarlyPreviewOutputSpec(TraitedSpec):
    """Outputs of :class:`EarlyPreview`."""

    done = traits.Bool(desc="whether a preview was written")


class EarlyPreview(NodeInterface):
    """Reconstruct a volume from the stacks as acquired, before they are denoised and corrected, by a short fit.

    Errors are logged and not raised: the reconstruction does not need it.
    """

    input_spec = EarlyPreviewInputSpec
    output_spec = EarlyPreviewOutputSpec

    def _run_interface(self, runtime: "Bunch") -> "Bunch":
        from gsbids.kernels.backend import release
        from gsbids.recon.fitting.options import SvrOptions
        from gsbids.recon.registration.register import register_stacks
        from gsbids.recon.svr.fit import fit_svr
        from gsbids.recon.volume.preview import quick_options

        threads = self.inputs.num_threads
        limit_threads(threads)
        self._results["done"] = True
        try:
            stacks = self._stacks(Path(runtime.cwd))
            transforms = register_stacks(stacks, threads).transforms
            options = quick_options(SvrOptions(**self.inputs.options, threads=threads, device=self.inputs.device))
            fit_svr(
                stacks,
                transforms,
                options,
                progress=ProgressNote(runtime.cwd),
                observe=previewer(stacks, self.inputs.preview, runtime.cwd, "stacks as acquired", self.inputs.device),
            )
            release(self.inputs.device)
        except Exception as error:  # the steps proper meet the same data and say what is wrong with them
            self._results["done"] = False
            LOGGER.warning("no early preview: %s: %s", type(error).__name__, error)
        return runtime

    def _stacks(self, folder: Path) -> list:
        """Return the stacks as acquired, without those with doubtful masks where enough others remain."""
        names = list(self.inputs.names)
        files, made = zip(*(self._masked(folder, k) for k in range(len(names))), strict=True)
        choice = choice_of([each.out_mask for each in made], [each.facts for each in made], names)
        parts = zip(files, made, names, self.inputs.thicknesses, strict=True)
        return [
            replace(read_stack(file, each.out_mask, name, thickness), empty=tuple(choice["empty"].get(name, ())))
            for file, each, name, thickness in parts
            if name not in choice["left_out"]
        ]

    def _masked(self, folder: Path, k: int) -> tuple:
        """Return the conformed image of a stack, and the outputs of its mask."""
        inputs = self.inputs
        place = folder / f"stack-{k}"
        place.mkdir(exist_ok=True)
        direction = {"slice_encoding_direction": inputs.directions[k]} if inputs.directions[k] else {}
        conformed = ConformStack(in_file=inputs.in_files[k], **direction).run(cwd=str(place)).outputs.out_file
        given = {"mask_file": inputs.mask_files[k]} if inputs.mask_files[k] else {}
        given |= {"weights": inputs.mask_weights} if inputs.mask_weights else {}
        mask = MaskStack(in_file=conformed, mode=inputs.mask_mode, may_be_empty=True, of_slices=True, **given)
        return conformed, mask.run(cwd=str(place)).outputs
