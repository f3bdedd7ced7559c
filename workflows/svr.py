# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction of prepared stacks."""

from dataclasses import asdict

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from gsbids.config import AUTO, WorkflowOptions
from gsbids.interfaces.base import where
from gsbids.interfaces.reconstruct import FitSvr, RegisterStacks
from gsbids.interfaces.sample_volume import SampleVolume
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.svr_paper.fit import PaperOptions

#: What ``--sloppy`` does to the fit, by method: enough to see that everything runs. The fields of the
#: default method are as dense as the data call for: slices find no hold in one that is much coarser than they are.
SLOPPY = {
    "default": {"iterations": 40, "detail_iterations": 40, "doublings": 1, "members": 1},
    "paper": {"iterations": 40, "n_gaussians": 2000},
}

#: Outputs of ``SampleVolume`` that tell how the brain lies.
PLACEMENT = ("template_xfm", "scanner_xfm", "placement", "space", "mask_facts")

#: Options by the values of ``--svr-method``.
METHODS = {"default": SvrOptions, "paper": PaperOptions}


def fit_options(settings: WorkflowOptions, posed: bool = False) -> SvrOptions | PaperOptions:
    """Return the options of the fit from the settings of the run; slices with known poses are not re-registered."""
    own = {}
    if settings.svr_method == "default":
        own = {"device": settings.device} | ({"place": False} if posed else {})
    return METHODS[settings.svr_method](
        seed=settings.random_seed,
        motion_correction=settings.motion_correction,
        **(SLOPPY[settings.svr_method] if settings.sloppy else {}),
        **own,
    )


def sampling_inputs(settings: WorkflowOptions) -> dict:
    """Return the inputs of ``SampleVolume`` from the settings of the run."""
    files = {"template": settings.template_file, "template_mask": settings.template_mask}
    own = {"packaged_templates": settings.modality} if settings.template == AUTO else {}
    return (
        {"resolution": settings.svr_resolution, "orientation": settings.orientation}
        | own
        | {name: str(path) for name, path in files.items() if path}
    )


def init_svr_wf(
    *,
    names: list[str],
    thicknesses: list[float],
    sampling: dict,
    options: SvrOptions | PaperOptions,
    omp_nthreads: int = 1,
    preview: dict | None = None,
    poses: str | None = None,
) -> Workflow:
    """Co-register stacks, fit the Gaussian field with a pose per slice, and sample the volume.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from gsbids.recon.fitting.options import SvrOptions
            from gsbids.workflows.svr import init_svr_wf
            wf = init_svr_wf(names=["run-1", "run-2"], thicknesses=[3.0, 3.0],
                             sampling={"resolution": 0.8}, options=SvrOptions())

    Parameters
    ----------
    names, thicknesses : list of str, list of float
        Short names of the stacks, and their slice thicknesses in mm.
    sampling : dict
        Inputs of :class:`gsbids.interfaces.sample_volume.SampleVolume` that define the grid.
    options : SvrOptions or PaperOptions
        Options of the fit, whose class chooses the method; the volume is sampled on the device of the fit.
    omp_nthreads : int
    preview : dict, optional
        Settings of :class:`gsbids.interfaces.preview.PreviewFile`; without, no preview is written.
    poses : str, optional
        JSON with the pose of every slice, where these are known: stacks are not registered.

    Inputs
    ------
    in_files, in_masks
        Prepared stacks and their masks, in the order of ``names``.
    choice
        Stacks that are left out (JSON of :class:`gsbids.interfaces.masks.ChooseStacks`).

    Outputs
    -------
    registration, result
        JSON of the co-registration; fitted field, poses, gains and weights (npz).
    volume, brain, unmasked, mask, coverage, uncertainty
        Images on the output grid.
    template_xfm, scanner_xfm
        Transforms from scanner to template and back, if there is a template.
    placement, space, mask_facts
        JSON with facts about the template; fields of it that all images have in their sidecars, and the mask.
    facts
        Numbers for the sidecar of the volume.
    """
    workflow = Workflow(name="svr_wf")
    inputnode = Node(IdentityInterface(["in_files", "in_masks", "choice"]), "inputnode")
    images = ("volume", "brain", "unmasked", "mask", "coverage", "uncertainty", *PLACEMENT, "facts")
    outputnode = Node(IdentityInterface(["registration", "result", *images]), "outputnode")
    fixed = {"names": names, "thicknesses": thicknesses, "num_threads": omp_nthreads}
    method = next(name for name, kind in METHODS.items() if isinstance(options, kind))
    place = where(getattr(options, "device", "cpu"))
    # All options, so that other defaults in another version are other inputs; threads and the device change nothing.
    options = {key: value for key, value in asdict(options).items() if key not in ("threads", "device")}  # type: ignore[assignment]
    fit = Node(
        FitSvr(method=method, options=options, preview=preview or {}, **place, **fixed),
        "fit",
        n_procs=omp_nthreads,
        mem_gb=2.0,
    )
    sample = Node(SampleVolume(**sampling, **place, **fixed), "sample", n_procs=omp_nthreads, mem_gb=1.5)
    nodes = [fit, sample]
    if poses:
        fit.inputs.registration = outputnode.inputs.registration = poses
    else:
        register = Node(RegisterStacks(**fixed), "register", n_procs=omp_nthreads, mem_gb=0.6)
        workflow.connect(
            [(register, fit, [("out_file", "registration")]), (register, outputnode, [("out_file", "registration")])]
        )
        nodes.append(register)
    workflow.connect([(inputnode, node, [("choice", "choice")]) for node in nodes])
    # Nipype keeps and changes the lists that it is given: none is given twice.
    for node in nodes:
        workflow.connect([(inputnode, node, [("in_files", "in_files"), ("in_masks", "in_masks")])])
    workflow.connect(
        [
            (fit, sample, [("out_file", "result")]),
            (fit, outputnode, [("out_file", "result")]),
            (sample, outputnode, [(field, field) for field in images]),
        ]
    )
    return workflow
