# SPDX-License-Identifier: Apache-2.0
"""Any data set of valid names, headers and sidecars gives the plan that it was made for, or an error that is there."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gsbids.cli.parser import parse_args
from gsbids.cli.plan import make_plan
from gsbids.errors import InputError
from gsbids.imaging.geometry import slice_axis
from gsbids.imaging.nifti import read_header

quick = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

LABEL = st.text("abcXYZ019+", min_size=1, max_size=5)
ABOVE = ("", "run-7", "sub-99/anat", "ses-x_acq-y", "func", "derivatives", "desc-lesion_mask")
MASKS = (
    "{stack}_desc-brain_mask",
    "{entities}_label-brain_mask",
    "{entities}_desc-brain_mask",
    "{entities}_mask",
    "{entities}_space-orig_desc-brain_mask",
)

#: What may be wrong with one stack, and what the one line says of it; None: it is left out, and the rest is done.
FAULTS = {
    "none": None,
    "label": None,
    "dot": None,
    "phase": None,
    "ignored": None,
    "other mask": None,
    "twin": None,
    "Latin-1": "not a JSON file in UTF-8",
    "list": "holds no JSON object",
    "dangling": "the target of this link is not",
    "metres": "a slice thickness of 0.004 mm is outside",
    "no thickness": "the sidecar has no SliceThickness",
    "same run": "have the same entities",
    "empty": "all voxels are 0",
    "empty mask": "the mask is empty",
    "volumes": "the image has 2 volumes",
    "sheared": "the in-plane axes of the affine are",
}


@dataclass(frozen=True)
class Made:
    """A stack as it was written, and what a plan must say of it."""

    run: str
    axis: int
    thickness: float
    turn: int  # seed of the rotation
    flips: tuple[bool, bool, bool]
    form: str  # which of sform and qform are set
    dtype: str
    ending: str
    place: str  # folder and name of the sidecar
    told: str  # what follows the letter of SliceEncodingDirection; "no" where it has none
    mask: str  # name of the mask; empty: there is none


@st.composite
def made_stacks(draw):
    """Three or four stacks of one subject, whose runs differ as numbers."""
    runs = draw(st.lists(st.integers(0, 99), min_size=3, max_size=4, unique=True))
    return [
        Made(
            f"{run:0{draw(st.integers(1, 3))}}",
            draw(st.integers(0, 2)),
            draw(st.sampled_from([2.5, 3, 4, 4.4])),
            draw(st.integers(0, 999)),
            draw(st.tuples(*[st.booleans()] * 3)),
            draw(st.sampled_from(["both", "sform", "qform"])),
            draw(st.sampled_from(["int16", "float32", ">i2", "u1"])),
            draw(st.sampled_from([".nii", ".nii.gz"])),
            draw(st.sampled_from(["beside", "subject", "root", "root, run alone"])),
            draw(st.sampled_from(["", "-", "no"])),
            draw(st.sampled_from(["", *MASKS])),
        )
        for run in runs
    ]


class Tree:
    """A data set of one subject as it lies on the disk, with its masks beside it."""

    def __init__(self, folder: Path, above: str, entities: dict[str, str]):
        self.root, self.masks = folder / above / "bids", folder / above / "masks"
        self.entities = entities
        anat = Path(*(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities), "anat")
        self.anat, self.mask_folder = self.root / anat, self.masks / anat
        self.anat.mkdir(parents=True)
        self.mask_folder.mkdir(parents=True)
        for path in (self.root, self.root.parent):  # one for all, which those of the stacks go before; one of nobody
            (path / "T2w.json").write_text(json.dumps({"SliceThickness": 9}))

    def name(self, stack: Made, **more: str) -> str:
        """Entities of a stack, as its name has them."""
        known = self.entities | more | {"run": stack.run}
        return "_".join(f"{key}-{known[key]}" for key in ("sub", "ses", "acq", "run", "part") if key in known)

    def image(self, stack: Made) -> Path:
        """Path of a stack."""
        return self.anat / f"{self.name(stack)}_T2w{stack.ending}"

    def mask(self, stack: Made) -> Path:
        """Path of its mask."""
        entities = self.name(stack)
        return self.mask_folder / (stack.mask.format(entities=entities, stack=f"{entities}_T2w") + ".nii.gz")

    def sidecar(self, stack: Made) -> Path:
        """Path of its sidecar, which may be one that it inherits."""
        name = f"{self.name(stack)}_T2w.json"
        return {
            "beside": self.anat / name,
            "subject": self.root / f"sub-{self.entities['sub']}" / name,
            "root": self.root / name,
            "root, run alone": self.root / f"run-{stack.run}_T2w.json",
        }[stack.place]

    def write(self, stack: Made) -> None:
        """Image, sidecar and mask of a stack."""
        shape, spacing = [10, 12, 11], [2.0, 2.2, 2.1]
        shape[stack.axis], spacing[stack.axis] = 6, 4.0
        affine = np.eye(4)
        turn = Rotation.random(random_state=stack.turn).as_matrix()
        affine[:3, :3] = turn * spacing * np.where(stack.flips, -1, 1)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        inside = np.zeros(shape, bool)
        inside[2:-2, 2:-2, 2:-2] = True
        save(self.image(stack), np.where(inside, 100, 10).astype(stack.dtype), affine, stack.form)
        fields: dict = {"SliceThickness": stack.thickness}
        if stack.told != "no":
            fields["SliceEncodingDirection"] = "ijk"[stack.axis] + stack.told
        self.sidecar(stack).write_text(json.dumps(fields))
        if stack.mask:
            save(self.mask(stack), inside.astype("u1"), affine, stack.form)


def save(path: Path, data, affine, form: str = "both") -> None:
    """A NIfTI file with the one or the other form, or both."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=0 if form == "qform" else 1)
    image.set_qform(affine, code=0 if form == "sform" else 1)
    nib.save(image, path)


def spoil(tree: Tree, stack: Made, fault: str) -> Made | None:
    """Do to a written stack what a fault says; the stack as the plan must have it, or None where it is left out."""
    image, sidecar, mask = tree.image(stack), tree.sidecar(stack), tree.mask(stack) if stack.mask else None
    if fault in ("label", "dot"):
        image.rename(tree.anat / f"{tree.name(stack, acq='a-b' if fault == 'label' else 'a.5')}_T2w{stack.ending}")
        return None
    if fault == "ignored":
        (tree.root / ".bidsignore").write_text(f"# moved\n{image.name}\n")
        return None
    if fault == "phase":
        (tree.anat / f"{tree.name(stack, part='phase')}_T2w{stack.ending}").write_bytes(image.read_bytes())
    elif fault == "other mask":
        if mask:
            mask.rename(tree.mask_folder / f"{tree.name(stack)}_label-uterus_mask.nii.gz")
        return replace(stack, mask="")
    elif fault == "twin" and stack.ending == ".nii.gz":
        image.with_suffix("").write_bytes(b"")
    elif fault == "Latin-1":
        sidecar.write_bytes('{"ProtocolName": "Schädel"}'.encode("latin-1"))
    elif fault == "list":
        sidecar.write_text("[]")
    elif fault == "dangling":
        sidecar.unlink()
        sidecar.symlink_to("nowhere")
    elif fault == "metres":
        sidecar.write_text('{"SliceThickness": 0.004}')
    elif fault == "no thickness":
        for path in tree.root.rglob("*_T2w.json"):
            path.write_text("{}")
        (tree.root / "T2w.json").unlink()
    elif fault == "same run":
        (tree.anat / f"{tree.name(replace(stack, run='0' + stack.run))}_T2w.nii.gz").write_bytes(image.read_bytes())
    else:
        spoil_voxels(image, mask, fault)
    return stack


def spoil_voxels(image: Path, mask: Path | None, fault: str) -> None:
    """The faults that are in an image or a mask."""
    path = mask if fault == "empty mask" else image
    if path is None or fault not in ("empty", "empty mask", "volumes", "sheared"):
        return
    data, affine = nib.load(path).get_fdata().astype("i2"), nib.load(path).affine
    if fault == "sheared":
        longest = int(np.argmax(np.linalg.norm(affine[:3, :3], axis=0)))
        one, two = (k for k in range(3) if k != longest)
        affine[:3, one] += 0.1 * affine[:3, two]
    save(
        path,
        np.stack([data, data], -1) if fault == "volumes" else data * int(fault == "sheared"),
        affine,
        "sform" if fault == "sheared" else "both",
    )


@pytest.mark.parametrize("fault", FAULTS)
@quick
@given(
    stacks=made_stacks(),
    above=st.sampled_from(ABOVE),
    sub=LABEL,
    ses=st.none() | LABEL,
    acq=st.none() | LABEL,
    which=st.integers(0, 2),
)
def test_the_plan_is_that_of_the_data_or_the_error_is_there(fault, stacks, above, sub, ses, acq, which):
    entities = {key: value for key, value in (("sub", sub), ("ses", ses), ("acq", acq)) if value}
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder).resolve(), above, entities)
        for stack in stacks:
            tree.write(stack)
        save(tree.mask_folder / "sub-none_desc-brain_mask.nii.gz", np.ones((2, 2, 2), "u1"), np.eye(4))
        expected = [*stacks[:which], spoil(tree, stacks[which], fault), *stacks[which + 1 :]]
        args = parse_args(
            [
                str(tree.root),
                f"{folder}/out",
                "participant",
                "--mode",
                "svr",
                "--nprocs",
                "1",
                "-w",
                f"{folder}/work",
                "-d",
                str(tree.masks),
                "--device",
                "cpu",
            ]
        )
        if FAULTS[fault] and not (fault == "empty mask" and not stacks[which].mask):
            with pytest.raises(InputError, match=FAULTS[fault]):
                make_plan(args)
            return
        (task,) = make_plan(args).tasks
        assert {
            stack.path: (
                stack.thickness,
                stack.mask,
                slice_axis(*read_header(stack.path), stack.metadata.get("SliceEncodingDirection")),
            )
            for stack in task.stacks
        } == {
            tree.image(stack): (stack.thickness, tree.mask(stack) if stack.mask else None, stack.axis)
            for stack in expected
            if stack
        }
