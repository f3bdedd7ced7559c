# SPDX-License-Identifier: Apache-2.0
"""Brain masks from derivative data sets, matched to stacks by their entities."""

from collections.abc import Mapping
from pathlib import Path

from gsbids.bids.layout import EXTENSIONS, open_derivative, query
from gsbids.bids.names import parse_name
from gsbids.errors import InputError

# These tell one stack of a subject from another: the mask must say the same.
_IDENTITY = ("sub", "ses", "run", "dir", "chunk")

# These belong to the derivative and say nothing about the source.
_OWN = ("space", "res", "den", "label", "desc", "suffix", "extension", "extra")


class MaskIndex:
    """Masks that lie in derivative data sets.

    Their names need not be BIDS: data sets without ``GeneratedBy`` and names such as
    ``sub-01_run-1_T2w_desc-brain_mask.nii.gz`` are understood.

    Parameters
    ----------
    datasets : mapping of str to Path
        Root folders by name.
    filters : mapping
        Further pybids filters, for example ``{"desc": "brain"}``.
    filter_file : str
        Where the filters come from, for messages.

    Raises
    ------
    gsbids.errors.InputError
        A folder is missing or holds no mask.
    """

    def __init__(self, datasets: Mapping[str, Path], filters: Mapping, filter_file: str):
        self._masks = [(path, parse_name(path.name)) for name, root in datasets.items()
                       for path in _list_masks(name, Path(root), filters, filter_file)]

    def find(self, stack: Mapping[str, str]) -> Path | None:
        """Mask of the stack with these entities.

        A mask belongs to a stack when ``sub``, ``ses``, ``run``, ``dir`` and ``chunk`` are the same
        (``run-1`` is ``run-01``), and whatever else both names say, the suffix included, is the same.
        Of several, ``desc-brain`` is taken, else the one that shares the most entities.

        Raises
        ------
        gsbids.errors.InputError
            Several masks fit equally well.
        """
        ranked = [(_rank(stack, mask), path) for path, mask in self._masks if _belongs(stack, mask)]
        if not ranked:
            return None
        best = max(rank for rank, _ in ranked)
        paths = sorted(path for rank, path in ranked if rank == best)
        if len(paths) > 1:
            names = " and ".join(str(path) for path in paths[:2])
            raise InputError(f"{names} both fit the same stack; choose with the query \"masks\" of "
                             "--bids-filter-file or give one data set with --derivatives")
        return paths[0]


def _list_masks(name: str, root: Path, filters: Mapping, filter_file: str) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"--derivatives {name}={root}: there is no such folder")
    default = {"suffix": "mask", "extension": list(EXTENSIONS)}
    found = query(open_derivative(root), default | dict(filters), filter_file)
    if not found:
        why = f" that matches the query \"masks\" of {filter_file}" if filters else ""
        raise InputError(f"--derivatives {name}={root}: no *_mask.nii.gz{why} in it; "
                         "give the root folder of the data set with the masks")
    return [Path(file.path) for file in found if _in_stack_space(parse_name(file.path))]


def _in_stack_space(mask: Mapping[str, str]) -> bool:
    """Masks in other spaces than the scanner's do not lie on the stacks."""
    return mask.get("space", "orig") in ("orig", "scanner")


def _belongs(stack: Mapping[str, str], mask: Mapping[str, str]) -> bool:
    if mask.get("extra", stack["suffix"]) != stack["suffix"]:
        return False
    if any(_value(stack, key) != _value(mask, key) for key in _IDENTITY):
        return False
    return all(_value(stack, key) == _value(mask, key) for key in mask if key not in _OWN)


def _rank(stack: Mapping[str, str], mask: Mapping[str, str]) -> tuple[bool, int]:
    shared = sum(key in mask for key in stack if key != "suffix")
    return "brain" in (mask.get("desc"), mask.get("label")), shared


def _value(entities: Mapping[str, str], key: str) -> str | int | None:
    value = entities.get(key)
    return int(value) if key in ("run", "chunk") and value is not None and value.isdigit() else value
