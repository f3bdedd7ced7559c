# SPDX-License-Identifier: Apache-2.0
"""A BIDS data set of simulated stacks, their masks, and the truth."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

import gsbids
from gsbids.atomic import write_atomic
from gsbids.errors import InputError
from gsbids.imaging.nifti import save_image
from gsbids.simulate.acquire import (
    ORIENTATIONS,
    AcquiredStack,
    Acquisition,
    Scanner,
    acquisition_order,
    draw_motion,
    rigid_about,
    stack_grid,
)
from gsbids.simulate.phantom import Phantom, band_limited, fetal_phantom

MOTION_COLUMNS = {
    "slice": ("Index along the third array axis of the stack, from 0", None),
    "stack_time_index": ("Position in time within the stack, from 0", None),
    "trans_x": ("Shift t of the slice, R axis", "mm"),
    "trans_y": ("Shift t of the slice, A axis", "mm"),
    "trans_z": ("Shift t of the slice, S axis", "mm"),
    "rot_x": ("Rotation about the R axis", "rad"),
    "rot_y": ("Rotation about the A axis", "rad"),
    "rot_z": ("Rotation about the S axis", "rad"),
    "centre_x": ("Middle c of the slice in the scanner, R axis", "mm"),
    "centre_y": ("Middle c of the slice in the scanner, A axis", "mm"),
    "centre_z": ("Middle c of the slice in the scanner, S axis", "mm"),
    "gain": ("Intensity factor of the slice", None),
    "dropped": ("1 where the slice lost most of its signal", None),
}
CONVENTION = (
    "x_anatomy = R (x_scanner - c) + c + t in world RAS+ mm, with t = trans, c = centre, "
    "R = Rz(rot_z) Ry(rot_y) Rx(rot_x)"
)


@dataclass(frozen=True)
class SimulationSettings:
    """Settings that determine a simulated subject.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    orientations : tuple of str
        Orientation of each stack: ``axial``, ``coronal`` or ``sagittal``.
    seed : int
        Seed of motion, noise, gains, drops and tilts.
    phantom_voxel, brain_ml : float
        Voxel (mm) of the phantom that is scanned, and volume of its brain (ml).
    truth_resolution : float
        Voxel (mm) of the truth that is written.
    acquisition : Acquisition
    angle, shift : float
        Largest motion within the examination, about (degrees) and along (mm) each axis.
    smooth : float
        Correlation length of that motion, in slices.
    stack_angle, stack_shift : float
        Largest offset of a whole stack, degrees and mm.
    tilt : float
        Largest obliqueness of a stack, degrees.
    """

    subject: str = "01"
    orientations: tuple[str, ...] = ("axial", "coronal", "sagittal", "axial")
    seed: int = 1
    phantom_voxel: float = 0.6
    brain_ml: float = 140.0
    truth_resolution: float = 0.8
    acquisition: Acquisition = field(default_factory=Acquisition)
    angle: float = 5.0
    shift: float = 3.0
    smooth: float = 3.0
    stack_angle: float = 5.0
    stack_shift: float = 4.0
    tilt: float = 5.0


@dataclass(frozen=True)
class SimulatedDataset:
    """Paths of the files of a simulated subject.

    Attributes
    ----------
    root, masks_root, truth_root : Path
        Raw data set and its two derivative data sets.
    stacks, masks, motion : tuple of Path
        Per stack: image, brain mask, true motion table (TSV).
    truth, truth_mask : Path
        Band-limited phantom and its brain mask.
    """

    root: Path
    masks_root: Path
    truth_root: Path
    stacks: tuple[Path, ...]
    masks: tuple[Path, ...]
    motion: tuple[Path, ...]
    truth: Path
    truth_mask: Path


def simulate_stacks(settings: SimulationSettings, phantom: Phantom | None = None) -> list[AcquiredStack]:
    """Acquire all stacks of a subject, in memory.

    Parameters
    ----------
    settings : SimulationSettings
    phantom : Phantom, optional
        Phantom to scan instead of that of the settings.

    Returns
    -------
    list of AcquiredStack
        The true motion of a slice is that of its stack, then its own, both about the middle of the brain.
    """
    phantom = phantom or fetal_phantom(settings.phantom_voxel, settings.brain_ml)
    # Streams of their own: another noise level or number of drops leaves the motion as it was.
    rng, *stack_rng = np.random.default_rng(settings.seed).spawn(1 + len(settings.orientations))
    brain = np.argwhere(phantom.mask)
    extent = (np.ptp(brain, axis=0) + 1) * phantom.voxel
    reach = np.radians(settings.angle + settings.stack_angle) * extent.max() / 4
    extent = extent + 2 * (settings.shift + settings.stack_shift + reach + 2)
    grids = []
    for orientation in settings.orientations:
        tilt = Rotation.from_rotvec(rng.uniform(-settings.tilt, settings.tilt, 3), degrees=True)
        grids.append(stack_grid(orientation, settings.acquisition, extent, tilt))
    counts = [shape[2] for _, shape in grids]
    motion = draw_motion(sum(counts), settings.angle, settings.shift, settings.smooth, rng)
    scanner, stacks = Scanner(phantom, settings.acquisition), []
    for (affine, shape), end, noise_rng in zip(grids, np.cumsum(counts), stack_rng, strict=True):
        in_time = motion[end - shape[2] : end]
        own = in_time[acquisition_order(shape[2], settings.acquisition.interleave)]
        offset = rigid_about(
            np.zeros(3),
            np.radians(rng.uniform(-1, 1, 3) * settings.stack_angle),
            rng.uniform(-1, 1, 3) * settings.stack_shift,
        )
        transforms = rigid_about(np.zeros(3), own[:, :3], own[:, 3:]) @ offset
        stacks.append(scanner.acquire(affine, shape, transforms, noise_rng))
    return stacks


def simulate_dataset(out_dir: str | Path, settings: SimulationSettings | None = None) -> SimulatedDataset:
    """Write a simulated subject as BIDS: raw stacks, ``derivatives/masks``, ``derivatives/truth``.

    Parameters
    ----------
    out_dir : path-like
        Raw data set; another subject may be in it already.
    settings : SimulationSettings, optional

    Returns
    -------
    SimulatedDataset

    Raises
    ------
    InputError
        The subject exists already, or a setting is invalid.
    """
    settings = settings or SimulationSettings()
    root, sub = Path(out_dir), f"sub-{settings.subject}"
    _check(settings, root / sub)
    phantom = fetal_phantom(settings.phantom_voxel, settings.brain_ml)
    stacks = simulate_stacks(settings, phantom)
    masks_root, truth_root = root / "derivatives" / "masks", root / "derivatives" / "truth"
    for base in (root, masks_root, truth_root):
        (base / sub / "anat").mkdir(parents=True, exist_ok=True)
    files = [_write_stack(stack, run, root, sub, settings) for run, stack in enumerate(stacks, start=1)]
    truth = band_limited(phantom, settings.truth_resolution)
    name = truth_root / sub / "anat" / sub
    truth_file = save_image(f"{name}_desc-truth_T2w.nii.gz", truth.image, truth.affine)
    mask_file = save_image(f"{name}_desc-brain_mask.nii.gz", truth.mask, truth.affine, dtype="uint8")
    _write_json(
        Path(f"{name}_desc-truth_T2w.json"),
        {
            "Description": "The simulated head, blurred to its voxel size",
            "SkullStripped": False,
            "SpatialReference": "orig",
        },
    )
    _write_json(Path(f"{name}_desc-brain_mask.json"), {"Type": "Brain", "SpatialReference": "orig"})
    _write_json(Path(f"{name}_desc-simulation_settings.json"), asdict(settings))
    _write_descriptions(root, masks_root, truth_root)
    return SimulatedDataset(  # type: ignore[call-arg]
        root,
        masks_root,
        truth_root,
        *(tuple(f) for f in zip(*files, strict=True)),  # type: ignore[arg-type]
        truth_file,
        mask_file,
    )


def _check(settings: SimulationSettings, subject_dir: Path) -> None:
    if subject_dir.exists():
        raise InputError(f"{subject_dir}: this subject is there already; remove it or choose another label")
    if not settings.subject.isalnum():
        raise InputError(f"subject label {settings.subject!r}: only letters and digits are allowed")
    wrong = [o for o in settings.orientations if o not in ORIENTATIONS]
    if wrong or not settings.orientations:
        raise InputError(f"orientations {wrong or 'are missing'}: choose from {', '.join(ORIENTATIONS)}")


def _write_stack(
    stack: AcquiredStack, run: int, root: Path, sub: str, settings: SimulationSettings
) -> tuple[Path, Path, Path]:
    """Write image, sidecar, mask and true motion of one stack; return the paths of image, mask and motion."""
    name = f"{sub}_run-{run}"
    anat = root / sub / "anat"
    image = save_image(anat / f"{name}_T2w.nii.gz", stack.image, stack.affine, dtype="int16")
    repetition = 1.2
    _write_json(
        anat / f"{name}_T2w.json",
        {
            "Modality": "MR",
            "MagneticFieldStrength": 1.5,
            "MRAcquisitionType": "2D",
            "EchoTime": 0.09,
            "RepetitionTime": repetition,
            "FlipAngle": 167,
            "SliceThickness": settings.acquisition.thickness,
            "SpacingBetweenSlices": settings.acquisition.spacing,
            "SliceEncodingDirection": "k",
            "SliceTiming": [round(repetition * int(t), 3) for t in stack.time_index],
        },
    )
    mask_name = root / "derivatives" / "masks" / sub / "anat" / f"{name}_desc-brain_mask"
    mask = save_image(f"{mask_name}.nii.gz", stack.mask, stack.affine, dtype="uint8")
    _write_json(
        Path(f"{mask_name}.json"),
        {"Type": "Brain", "SpatialReference": "orig", "Sources": [f"bids:raw:{sub}/anat/{name}_T2w.nii.gz"]},
    )
    motion = root / "derivatives" / "truth" / sub / "anat" / f"{name}_desc-motion_timeseries.tsv"
    write_motion_table(motion, stack)
    return image, mask, motion


def write_motion_table(path: Path, stack: AcquiredStack) -> None:
    """Write the true motion of a stack as TSV, one row a slice, with a JSON that describes the columns.

    Parameters
    ----------
    path : Path
        Ends with ``.tsv``.
    stack : AcquiredStack
    """
    nx, ny, nz = stack.image.shape
    index = np.stack([np.full(nz, (nx - 1) / 2), np.full(nz, (ny - 1) / 2), np.arange(nz)])
    centre = (stack.affine[:3, :3] @ index + stack.affine[:3, 3:]).T
    turn = stack.transforms[:, :3, :3]
    shift = np.einsum("sij,sj->si", turn, centre) + stack.transforms[:, :3, 3] - centre
    table = np.column_stack([shift, Rotation.from_matrix(turn).as_euler("xyz"), centre, stack.gain])
    rows = ["\t".join(MOTION_COLUMNS)]
    for k in range(nz):
        numbers = [f"{value:.9g}" for value in table[k]]
        rows.append("\t".join([str(k), str(stack.time_index[k]), *numbers, str(int(stack.dropped[k]))]))
    _write_text(path, "\n".join(rows) + "\n")
    columns = {
        name: {"Description": text} | ({"Units": unit} if unit else {}) for name, (text, unit) in MOTION_COLUMNS.items()
    }
    _write_json(path.with_suffix(".json"), {"Convention": CONVENTION} | columns)


def _write_descriptions(root: Path, masks_root: Path, truth_root: Path) -> None:
    """Write the files that make the three folders BIDS data sets."""
    maker = [{"Name": "gsbids simulate", "Version": gsbids.__version__}]
    about = "# Simulated fetal brain MRI\n\n{}\n\nMade by `python -m gsbids.simulate`; nobody was scanned.\n"
    for base, name, text in (
        (root, "Simulated fetal brain stacks", "Thick slices of a moving head with a known answer."),
        (masks_root, "Brain masks of simulated stacks", "One mask per stack, on its grid."),
        (truth_root, "Truth of simulated stacks", "The head at rest; the true motion of each slice."),
    ):
        description: dict[str, Any] = {
            "Name": name,
            "BIDSVersion": "1.10.1",
            "DatasetType": "raw",
            "License": "CC0",
            "GeneratedBy": maker,
        }
        if base != root:
            description |= {"DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}}
            descriptors = {"brain": "Brain mask", "truth": "The head that was scanned"}
            _write_text(
                base / "descriptions.tsv",
                "desc_id\tdescription\n" + "".join(f"desc-{key}\t{value}\n" for key, value in descriptors.items()),
            )
            _write_text(base / ".bidsignore", "*_timeseries.*\n*_settings.json\n")
        _write_json(base / "dataset_description.json", description)
        _write_text(base / "README.md", about.format(text))
    subjects = sorted(path.name for path in root.glob("sub-*"))
    _write_text(root / "participants.tsv", "participant_id\n" + "".join(f"{s}\n" for s in subjects))


def _write_json(path: Path, content: dict) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, text.encode())
