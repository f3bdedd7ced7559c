# SPDX-License-Identifier: Apache-2.0
"""Names of files: the one list of output patterns, and BIDS URIs.

Entities are plain dictionaries with the short BIDS keys in any order, and the suffix beside them:
``{"sub": "01", "ses": "02", "run": "1", "suffix": "T2w"}``. A task's entities have no ``run``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

LABEL = re.compile(r"[A-Za-z0-9+]+")

METHOD = "gsvr"
SR_METHOD = "gsr"

#: Order of entities in a file name (BIDS schema, then the proposal for transforms; ``desc`` is last).
# fmt: off
ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "acq", "ce", "trc", "rec", "dir", "run", "mod", "echo", "flip",
    "inv", "mt", "part", "proc", "chunk", "space", "res", "den", "label", "from", "to", "mode", "desc",
)
# fmt: on

# Names with these belong to derivatives, wherever they lie.
_DERIVED = ("space", "res", "den", "label", "from", "to", "mode", "desc")

#: What the ``desc`` labels of our outputs mean: written to ``descriptions.tsv``.
DESCRIPTIONS = {
    "preproc": "Reconstructed volume, zero outside the brain and a rim; with rec-gsr super-resolved, and whole",
    "unmasked": "Reconstructed volume, whole field of view",
    "brain": "Brain mask, or the reconstructed volume, zero outside of it",
    "coverage": "Acquired slices within whose thickness each voxel of the reconstructed volume lies",
    "uncertainty": "Predicted standard deviation of the error of the reconstructed volume",
    "preview": "State of the reconstruction on the way to the volume, replaced until that is there",
    "n4": "Image after denoising and N4 bias field correction, as far as these were asked for",
    "simulated": "Stack as the reconstruction predicts it, in the geometry of the acquired stack",
    "slices": "One transform a slice",
    "motion": "Estimated motion of every slice, with its weight and similarity",
    "gaussians": "Gaussian field of the reconstruction, with poses, gains and weights of the slices; with rec-gsr the "
    "fields and the rest of the super-resolved volume",
    "qc": "Quality metrics of the reconstruction",
}


@dataclass(frozen=True)
class Kind:
    """Naming of one kind of output.

    Attributes
    ----------
    level : {"task", "volume", "stack"}
        ``task``: one file a reconstruction, with ``rec-gsvr``; ``volume``: one file a super-resolved volume, with
        ``rec-gsr`` and the whole name of the source; ``stack``: one file a stack, with the whole name of the source.
    extension : str
    entities : dict
        Fixed entities, for example ``{"desc": "n4"}``.
    suffix : str or None
        None: the suffix of the source (``T2w``).
    needs : tuple of str
        Entities that the caller has to give.
    folder : str
        ``anat`` below subject and session; ``figures`` and ``log`` below the subject; ``""`` for the root.
    sidecar : dict
        Fixed fields of the JSON sidecar.
    """

    level: str
    extension: str
    entities: Mapping[str, str] = field(default_factory=dict)
    suffix: str | None = None
    needs: tuple[str, ...] = ()
    folder: str = "anat"
    sidecar: Mapping[str, object] = field(default_factory=dict)


#: What ``rec-`` says of the two methods, by level.
_LABELS = {"task": METHOD, "volume": SR_METHOD}

_IMAGE = {"SpatialReference": "orig", "SkullStripped": False}
_MASK = {"Description": "Brain mask", "SpatialReference": "orig", "Type": "Brain"}
_XFM = {"from": "orig", "to": METHOD, "mode": "image"}
_DIRECTION = (
    "ITK transform in LPS millimetres: takes points of the reconstructed volume to points of the "
    "acquired stack, so that resampling with it puts the stack onto the volume"
)

#: The one pattern list: every file that a reconstruction writes.
KINDS: dict[str, Kind] = {
    # One file a reconstruction.
    "volume": Kind("task", ".nii.gz", {"desc": "preproc"}, needs=("res",), sidecar=_IMAGE),
    "volume_brain": Kind(
        "task",
        ".nii.gz",
        {"desc": "brain"},
        needs=("res",),
        sidecar=_IMAGE | {"Description": "Reconstructed volume, zero outside the brain mask", "SkullStripped": True},
    ),
    "volume_unmasked": Kind("task", ".nii.gz", {"desc": "unmasked"}, needs=("res",), sidecar=_IMAGE),
    "volume_mask": Kind("task", ".nii.gz", {"desc": "brain"}, "mask", needs=("res",), sidecar=_MASK),
    "coverage": Kind("task", ".nii.gz", {"desc": "coverage"}, needs=("res",), sidecar=_IMAGE),
    "uncertainty": Kind(
        "task", ".nii.gz", {"desc": "uncertainty"}, needs=("res",), sidecar=_IMAGE | {"Units": "arbitrary"}
    ),
    "preview": Kind("task", ".nii.gz", {"desc": "preview"}, sidecar=_IMAGE),
    "template_xfm": Kind(
        "task",
        ".txt",
        {"to": "template", "mode": "image"},
        "xfm",
        needs=("from",),
        sidecar={
            "Description": "ITK transform in LPS millimetres: takes points of the template to points of the "
            "reconstruction where it lay in the scanner, so that resampling with it puts images of that space onto the "
            "template"
        },
    ),
    "scanner_xfm": Kind(
        "task",
        ".txt",
        {"from": "template", "mode": "image"},
        "xfm",
        needs=("to",),
        sidecar={
            "Description": "ITK transform in LPS millimetres: takes points of the reconstruction where it lay in the "
            "scanner to points of the template, so that resampling with it puts images in the space of the "
            "template onto that of the scanner"
        },
    ),
    "model": Kind("task", ".npz", {"desc": "gaussians"}, "model"),
    "metrics": Kind("task", ".tsv", {"desc": "qc"}, "metrics"),
    "report": Kind("task", ".html", folder=""),
    "figure": Kind("task", ".svg", needs=("desc",), folder="figures"),
    # One file a super-resolved volume.
    "sr_volume": Kind(
        "volume",
        ".nii.gz",
        {"desc": "preproc"},
        needs=("res",),
        sidecar=_IMAGE | {"Description": "Super-resolved volume, whole field of view"},
    ),
    "sr_mask": Kind("volume", ".nii.gz", {"desc": "brain"}, "mask", needs=("res",), sidecar=_MASK),
    "sr_model": Kind(
        "volume",
        ".npz",
        {"desc": "gaussians"},
        "model",
        sidecar={
            "Description": "Gaussian fields and what they leave of the super-resolved volume; "
            "gsbids sample puts it on any grid"
        },
    ),
    "sr_metrics": Kind(
        "volume", ".tsv", {"desc": "qc"}, "metrics", sidecar={"Description": "Quality metrics of the super-resolution"}
    ),
    # One file a stack.
    "stack": Kind("stack", ".nii.gz", {"desc": "n4"}, sidecar=_IMAGE),
    "stack_mask": Kind("stack", ".nii.gz", {"desc": "brain"}, "mask", sidecar=_MASK),
    "simulated": Kind("stack", ".nii.gz", {"desc": "simulated"}, sidecar=_IMAGE),
    "stack_xfm": Kind("stack", ".txt", _XFM, "xfm", sidecar={"Description": _DIRECTION}),
    "slices_xfm": Kind(
        "stack",
        ".txt",
        _XFM | {"desc": "slices"},
        "xfm",
        sidecar={"Description": f"{_DIRECTION}; one transform a slice, in array order"},
    ),
    "motion": Kind("stack", ".tsv", {"desc": "motion"}, "timeseries"),
}


def resolution_label(resolution: float | Sequence[float]) -> str:
    """Return the label of ``res-`` for a voxel size in mm, one number or three; it has letters and digits only.

    >>> resolution_label(0.8), resolution_label(1.0), resolution_label((0.5, 0.5, 0.5)), resolution_label((0.5, 0.5, 2))
    ('0p8', '1', '0p5', '0p5x0p5x2')
    """
    if isinstance(resolution, Sequence):
        sides = [f"{round(side, 3):g}" for side in resolution]
        return (sides[0] if len(set(sides)) == 1 else "x".join(sides)).replace(".", "p")
    return f"{resolution:g}".replace(".", "p")


def resolution_words(label: str) -> str:
    """Return the voxel size that a label of ``res-`` stands for, as text.

    >>> resolution_words("0p8"), resolution_words("0p5x0p5x2")
    ('0.8 mm isotropic', '0.5 x 0.5 x 2 mm')
    """
    words = " x ".join(label.replace("p", ".").split("x"))
    return f"{words} mm" if "x" in label else f"{words} mm isotropic"


def parse_name(name: str) -> dict[str, str]:
    """Parse a BIDS file name to entities, suffix and extension, in the order they stand in.

    Parts without a dash before the suffix are kept under ``extra``, as some derivative data sets
    put the suffix of the source before ``desc``.

    >>> parse_name("sub-01_run-1_T2w.nii.gz")
    {'sub': '01', 'run': '1', 'suffix': 'T2w', 'extension': '.nii.gz'}
    >>> parse_name("sub-01_T2w_desc-brain_mask.nii.gz")["extra"]
    'T2w'
    >>> parse_name("sub-01_acq-0.8mm_T2w.nii.gz")
    {'sub': '01', 'acq': '0.8mm', 'suffix': 'T2w', 'extension': '.nii.gz'}
    """
    *parts, last = Path(name).name.split("_")
    suffix, dot, extension = last.partition(".")
    entities: dict[str, str] = {}
    for part in parts:
        key, dash, value = part.partition("-")
        entities[key if dash else "extra"] = value if dash else key
    return entities | {"suffix": suffix, "extension": dot + extension}


def entity_value(entities: Mapping[str, str], key: str) -> str | int | None:
    """Return the value of an entity as it is compared: ``run-1`` is ``run-01``."""
    value = entities.get(key)
    return int(value) if key in ("run", "chunk") and value is not None and value.isdecimal() else value


def raw_fault(below: PurePath) -> str:
    """Describe what keeps the name of a file from being one of raw data; empty where nothing does.

    Parameters
    ----------
    below : path
        Path relative to the root of the data set.

    >>> raw_fault(PurePosixPath("sub-01/anat/sub-01_acq-T2-HASTE_T2w.nii.gz"))
    "acq-T2-HASTE: BIDS labels hold letters, digits and '+' only"
    >>> raw_fault(PurePosixPath("sub-01/ses-1/anat/sub-01_T2w.nii.gz"))
    'it lies in ses-1, and the name does not say so'
    >>> raw_fault(PurePosixPath("sub-01/anat/old/sub-01_T2w.nii.gz"))
    'it lies in sub-01/anat/old, and images lie in the folder anat of their subject or session'
    """
    entities = parse_name(below.name)
    strange = [
        repr(value) if key == "extra" else key
        for key, value in entities.items()
        if key in _DERIVED or key not in (*ENTITY_ORDER, "suffix", "extension")
    ]
    if strange:
        return ", ".join(strange)
    keys = [part.partition("-")[0] for part in below.name.split("_")[:-1]]
    for key, value in _without(entities, "suffix", "extension").items():
        if not LABEL.fullmatch(value):
            return f"{key}-{value}: BIDS labels hold letters, digits and '+' only"
        if keys.count(key) > 1:
            return f"{key}- stands in it twice"
    for folder in below.parts[:-1]:
        key, _, label = folder.partition("-")
        if key in ("sub", "ses") and entities.get(key) != label:
            return f"it lies in {folder}, and the name does not say so"
    place = [part for part in below.parts[:-1] if part.partition("-")[0] not in ("sub", "ses")]
    if place != ["anat"] or below.parts[-2] != "anat":
        return f"it lies in {below.parent}, and images lie in the folder anat of their subject or session"
    return ""


def build_name(entities: Mapping[str, str], suffix: str, extension: str = "") -> str:
    """Return the file name with the entities in the order of BIDS.

    >>> build_name({"desc": "n4", "run": "1", "sub": "01"}, "T2w", ".nii.gz")
    'sub-01_run-1_desc-n4_T2w.nii.gz'
    """
    unknown = [key for key in entities if key not in ENTITY_ORDER]
    if unknown:
        raise ValueError(f"unknown entities: {', '.join(unknown)}")
    for key, value in entities.items():
        if not LABEL.fullmatch(value):
            raise ValueError(f"{key}-{value}: labels have letters and digits only")
    parts = [f"{key}-{entities[key]}" for key in ENTITY_ORDER if key in entities]
    return "_".join([*parts, suffix]) + extension


def task_name(entities: Mapping[str, str]) -> str:
    """Return the name of a reconstruction task: the part that its stacks' names have in common.

    >>> task_name({"sub": "01", "acq": "haste", "suffix": "T2w"})
    'sub-01_acq-haste_T2w'
    """
    return build_name(_without(entities, "suffix"), entities["suffix"])


def derivative_path(entities: Mapping[str, str], kind: str, **extra: str | float | Sequence[float]) -> Path:
    """Return the path of an output below the output folder.

    Parameters
    ----------
    entities : mapping
        Entities of the task (``ReconstructionTask.entities``) or of the stack (``StackFile.entities``).
    kind : str
        A key of ``KINDS``.
    **extra
        Further entities, as ``res`` (label, or voxel size in mm) or ``desc``; ``extension`` replaces the
        extension of the kind (a figure may be ``.svg`` or ``.png``).

    Examples
    --------
    >>> str(derivative_path({"sub": "01", "suffix": "T2w"}, "volume", res=0.8))
    'sub-01/anat/sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz'
    >>> str(derivative_path({"sub": "01", "suffix": "T1w"}, "sr_model"))
    'sub-01/anat/sub-01_rec-gsrT1w_desc-gaussians_model.npz'
    """
    pattern = KINDS[kind]
    extension = str(extra.pop("extension", pattern.extension))
    missing = [key for key in pattern.needs if key not in extra]
    if missing:
        raise ValueError(f"{kind}: {', '.join(missing)} is missing")
    if pattern.level == "stack" and extra:
        raise ValueError(f"{kind}: takes no further entities, got {', '.join(extra)}")
    if "res" in extra and not isinstance(extra["res"], str):
        extra["res"] = resolution_label(extra["res"])
    suffix_of_source = entities["suffix"]
    suffix = pattern.suffix or suffix_of_source
    if kind == "report":
        return Path(_report_name(entities))
    named = _without(entities, "suffix", "extension", "extra") | dict(pattern.entities)
    if pattern.level in _LABELS:
        # Two tasks may differ in rec- alone: the label of the source is kept in front of ours. They may differ in the
        # contrast alone: where the suffix does not say it, the label does (a mask has no entity for it).
        told = pattern.suffix is None or (pattern.level == "task" and suffix_of_source == "T2w")
        named["rec"] = f"{named.get('rec', '')}{_LABELS[pattern.level]}{'' if told else suffix_of_source}"
    name = build_name(named | {k: str(v) for k, v in extra.items()}, suffix, extension)
    folder = subject_folder(entities)
    if pattern.folder == "anat" and "ses" in entities:
        folder = folder / f"ses-{entities['ses']}"
    return folder / pattern.folder / name


def sidecar_path(path: str | Path) -> Path:
    """Return the JSON file beside a data file.

    >>> str(sidecar_path("sub-01_desc-n4_T2w.nii.gz"))
    'sub-01_desc-n4_T2w.json'
    """
    path = Path(path)
    return path.with_name(path.name.partition(".")[0] + ".json")


def subject_folder(entities: Mapping[str, str]) -> Path:
    """Return the folder of the subject below the output folder."""
    return Path(f"sub-{entities['sub']}")


def log_folder(entities: Mapping[str, str], run_uuid: str) -> Path:
    """Return the folder for the settings and the crash files of one run."""
    return subject_folder(entities) / "log" / run_uuid


def bids_uri(dataset: str, relative: str | Path) -> str:
    """Return the BIDS URI of a file; the data set is a key of ``DatasetLinks``, or empty for the output itself.

    >>> bids_uri("raw", "sub-01/anat/sub-01_T2w.nii.gz"), bids_uri("", "sub-01/x.nii.gz")
    ('bids:raw:sub-01/anat/sub-01_T2w.nii.gz', 'bids::sub-01/x.nii.gz')
    """
    return f"bids:{dataset}:{PurePosixPath(relative)}"


def uri_of(path: str | Path, datasets: Mapping[str, str | Path]) -> str:
    """Return the BIDS URI of a file that lies in one of several data sets.

    Parameters
    ----------
    path : path
    datasets : mapping of str to path
        Folders by name, ``""`` for the output; the deepest folder that holds the file is taken.

    Raises
    ------
    ValueError
        The file is in none of them.
    """
    path = Path(path).absolute()
    inside = {
        name: Path(root).absolute() for name, root in datasets.items() if path.is_relative_to(Path(root).absolute())
    }
    if not inside:
        raise ValueError(f"{path} is in none of the data sets {', '.join(map(str, datasets.values()))}")
    name = max(inside, key=lambda key: len(inside[key].parts))
    return bids_uri(name, path.relative_to(inside[name]))


def _report_name(entities: Mapping[str, str]) -> str:
    """Return ``sub-01.html``; further entities and a suffix other than T2w keep several reports apart."""
    named = _without(entities, "suffix", "extension", "extra")
    parts = [f"{key}-{named[key]}" for key in ENTITY_ORDER if key in named]
    if entities["suffix"] != "T2w":
        parts.append(entities["suffix"])
    return "_".join(parts) + ".html"


def _without(entities: Mapping[str, str], *keys: str) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in keys}
