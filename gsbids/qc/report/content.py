# SPDX-License-Identifier: Apache-2.0
"""Contents of a report, before its figures are drawn."""

from dataclasses import dataclass, field
from pathlib import Path

from gsbids.qc.report.usage import StepUsage


@dataclass(frozen=True)
class StackPanel:
    """Files of one stack, all on the conformed grid (slices along the third axis).

    Attributes
    ----------
    name : str
        Name of the stack, as in ``SvrResult.stack_names``.
    image : Path, optional
        Conformed input.
    n4, mask, simulated : Path, optional
        N4-corrected image, brain mask, slices simulated from the reconstruction.
    mask_reason : str
        Source of the mask, in words.
    mask_mode : str
        Mode that made the mask (``derivatives``, ``network``, ...); empty where it is not known.
    doubt : str
        Reasons why the mask is doubtful, and the consequence, in sentences; empty where it is not doubtful.
    slice_times : tuple of float, optional
        Acquisition time (s) of every slice by its index, where ``SliceTiming`` is known.
    facts : tuple of (label, value)
        Further facts about the stack, for example its file name, spacing and thickness.
    """

    name: str
    image: Path | None = None
    n4: Path | None = None
    mask: Path | None = None
    simulated: Path | None = None
    mask_reason: str = ""
    mask_mode: str = ""
    doubt: str = ""
    slice_times: tuple[float, ...] | None = None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SrPanel:
    """Contents that only the report of a super-resolved volume has.

    Attributes
    ----------
    before : Path, optional
        Input volume.
    interpolated : Path, optional
        Input interpolated by cubic B-splines on the grid of the super-resolved volume.
    chosen : tuple of (label, value)
        Settings of the fit.
    history : dict of str to list
        Columns ``member``, ``iteration`` and ``loss``.
    """

    before: Path | None = None
    interpolated: Path | None = None
    chosen: tuple[tuple[str, str], ...] = ()
    history: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """Contents of a report; parts that are missing are left out of the page, which names them.

    Attributes
    ----------
    title : str
        Heading, for example ``sub-01 ses-01``.
    task : str
        Name of the task (``sub-01_ses-01_T2w``).
    summary : tuple of (label, value)
        Facts at the head of the page.
    warnings : tuple of str
        Warnings of the run.
    volume, unmasked, mask : Path, optional
        Reconstructed volume without and with its surroundings, and its brain mask (one grid).
    coverage, uncertainty : Path, optional
        Number of slices that cover each voxel, and the predicted standard deviation of its error, on the same grid.
    template_xfm : Path, optional
        ITK transform from the scanner to the space of the volume, where that is another one.
    template_similarity : float, optional
        Similarity of the volume and the template that it was aligned to.
    orientation : str
        Sentence on the meaning of the direction letters.
    stacks : tuple of StackPanel
    super_resolution : SrPanel, optional
        Contents of the report of a super-resolved volume, which has neither stacks nor motion.
    result : Path, optional
        File of :meth:`gsbids.recon.svr.result.SvrResult.save`.
    registration : dict, optional
        Fields of ``StackRegistration``: ``template`` (index of a stack), and by stack ``similarity_before``,
        ``similarity_after``, ``accepted``, ``reason``.
    metrics : dict, optional
        Row of :func:`gsbids.qc.metrics.reconstruction_metrics`.
    methods : tuple of str
        Paragraphs with ``[@key]`` citations (:func:`gsbids.qc.report.methods.methods_paragraphs`).
    versions : dict of str to str
        Versions of the packages.
    crashes : tuple of str
        Text of every crash file of this subject.
    run : dict of str to str
        Seed, device and other settings.
    made : dict of str to str
        Date, command line and other facts that differ when a run is repeated.
    help_page : str
        Address of a help page, relative to the report; empty where there is none.
    usage : tuple of StepUsage
        Resources of the steps.
    """

    title: str
    task: str
    summary: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    volume: Path | None = None
    unmasked: Path | None = None
    mask: Path | None = None
    coverage: Path | None = None
    uncertainty: Path | None = None
    template_xfm: Path | None = None
    template_similarity: float | None = None
    orientation: str = "Letters are directions of the scanner (for a fetus, those of the mother)."
    stacks: tuple[StackPanel, ...] = ()
    super_resolution: SrPanel | None = None
    result: Path | None = None
    registration: dict | None = None
    metrics: dict | None = None
    methods: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    crashes: tuple[str, ...] = ()
    run: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    help_page: str = ""
    usage: tuple[StepUsage, ...] = ()
