# SPDX-License-Identifier: Apache-2.0
"""Files at the root of the output: its description, and what generated it."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from gsbids import __version__
from gsbids.atomic import write_atomic
from gsbids.bids.metadata import read_object
from gsbids.bids.names import DESCRIPTIONS
from gsbids.bids.sink import to_json
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.bids")

BIDS_VERSION = "1.10.1"
FILE = "dataset_description.json"

BIDSIGNORE = (
    "*.html",
    "logs/",
    "sub-*/log",
    "sub-*/figures",
    "*_xfm.*",
    "*_timeseries.*",
    "*_metrics.*",
    "*_model.*",
    "group_*",
)

README = """\
# gsbids

Volumes reconstructed from stacks of slices, or super-resolved from one volume, written by gsbids {version}.

- `sub-<label>[_ses-<label>].html`: report of a reconstruction; opens in any browser, without a network.
- `*_rec-gsvr_res-<mm>_desc-preproc_*.nii.gz`: the reconstructed volume, `desc-unmasked` the same with what is
  around the brain, `desc-brain` the brain alone, `desc-brain_mask` its mask, `desc-coverage` how much the slices say
  about a voxel, `desc-uncertainty` how far its value is likely to be off.
- `*_rec-gsr_*_res-<mm>_desc-preproc_*.nii.gz`: a super-resolved volume; files of it whose suffix does not say the
  contrast have it in `rec-gsr<contrast>`.
- `*_desc-gaussians_model.npz`: the model; `gsbids sample` puts it on any grid.
- `*_run-<n>_*`: one stack each: corrected image, mask, image as predicted by the reconstruction, transforms
  and motion of its slices.
- `descriptions.tsv` says what every `desc-` label means; `sub-<label>/log/` keeps the settings of every run.
"""


def check_folders(bids_dir: Path, output_dir: Path) -> None:
    """Refuse an output folder that belongs to something else, and an input with an unreadable description.

    Raises
    ------
    gsbids.errors.InputError
        The output holds a raw data set or derivatives of another tool, or a description is not JSON.
    """
    _read(bids_dir / FILE)
    found = _read(output_dir / FILE)
    if found is None:
        return
    if found.get("DatasetType", "raw") != "derivative":
        raise InputError(
            f"{output_dir}: the output folder holds a raw BIDS data set "
            f"({found.get('Name', 'without a name')!r}); give another folder"
        )
    tool = _generator(found).get("Name", "an unknown tool")
    if tool != "gsbids":
        raise InputError(f"{output_dir}: the output folder holds derivatives of {tool}; give another folder")
    version = _generator(found).get("Version")
    if version != __version__:
        LOGGER.warning("%s: holds outputs of gsbids %s, this is %s", output_dir, version, __version__)


def dataset_name(folder: Path) -> str:
    """Return the name of a data set: that of its description, or of its folder."""
    name = (_read(folder / FILE) or {}).get("Name")
    return " ".join(name.split()) if isinstance(name, str) and name.strip() else folder.name


def write_description(output_dir: Path, datasets: Mapping[str, Path]) -> None:
    """Write ``dataset_description.json``, ``README.md``, ``.bidsignore`` and ``descriptions.tsv``.

    Files that are there already and say the same are left alone; a README is never touched again.

    Parameters
    ----------
    output_dir : Path
    datasets : mapping of str to Path
        Data sets that ``Sources`` point to: ``raw``, and those with masks.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    description = _description(output_dir, datasets, _read(output_dir / FILE) or {})
    _write_once(output_dir / FILE, to_json(description))
    _write_once(output_dir / ".bidsignore", ("\n".join(BIDSIGNORE) + "\n").encode())
    rows = ["desc_id\tdescription", *(f"desc-{key}\t{text}" for key, text in DESCRIPTIONS.items())]
    _write_once(output_dir / "descriptions.tsv", ("\n".join(rows) + "\n").encode())
    if not (output_dir / "README.md").exists():
        write_atomic(output_dir / "README.md", README.format(version=__version__).encode())


def _description(output_dir: Path, datasets: Mapping[str, Path], before: Mapping) -> dict:
    links = {
        name: os.path.relpath(Path(root).resolve(), output_dir.resolve()) for name, root in datasets.items() if name
    }
    raw = _read(Path(datasets["raw"]) / FILE) or {}
    description = {
        "Name": "gsbids - Gaussian slice-to-volume reconstruction",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "gsbids", "Version": __version__} | _container()],
        # Links of earlier runs stay: what they wrote still points there.
        "DatasetLinks": before.get("DatasetLinks", {}) | links,
    }
    if isinstance(raw.get("License"), str) and raw["License"]:
        description["License"] = raw["License"]
    if isinstance(raw.get("DatasetDOI"), str) and raw["DatasetDOI"]:
        description["SourceDatasets"] = [{"DOI": raw["DatasetDOI"]}]
    return description


def _container() -> dict:
    """Return the container that runs this, when its image says so (``GSBIDS_CONTAINER`` is set in it)."""
    tag = os.environ.get("GSBIDS_CONTAINER")
    if not tag:
        return {}
    kind = "apptainer" if os.environ.get("APPTAINER_CONTAINER") else "docker"
    return {"Container": {"Type": kind, "Tag": tag}}


def _generator(description: Mapping) -> Mapping:
    made_by = description.get("GeneratedBy")
    if isinstance(made_by, list) and made_by and isinstance(made_by[0], dict):
        return made_by[0]
    return {}


def _read(path: Path) -> dict | None:
    """Read a JSON object; None where there is no such file."""
    try:
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_once(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
