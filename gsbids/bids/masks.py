# SPDX-License-Identifier: Apache-2.0
"""Brain masks from derivative data sets, matched to stacks by their entities."""

import logging
from collections.abc import Mapping
from pathlib import Path

from gsbids.bids.layout import EXTENSIONS, compressed_twin, open_derivative, query
from gsbids.bids.metadata import Sidecars
from gsbids.bids.names import entity_value, parse_name
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.bids")

# These tell one stack of a subject from another: the mask must say the same.
_IDENTITY = ("sub", "ses", "run", "dir", "chunk")

# These belong to the derivative and say nothing about the source.
_OWN = ("space", "res", "den", "label", "desc", "suffix", "extension", "extra", "seg", "roi", "hemi", "atlas")

# Masks with these are of a part of the brain, or of something else; and what pybids calls all that says of what.
_PARTS = ("seg", "roi", "hemi", "atlas")
_OF_WHAT = {"label", "desc", "segmentation", "roi", "hemi", "atlas"}

_CHOOSE = 'choose with the query "masks" of --bids-filter-file'

# Why a mask is not taken, and what to do.
_NO_BRAIN = f"by its name or sidecar it is not of the brain; call it desc-brain if it is, or {_CHOOSE}"
_ELSEWHERE = "by its name it lies in another space than the scanner's; take space- out of the name if it lies there too"


class MaskIndex:
    """Index of the masks in derivative data sets.

    Their names need not be BIDS: data sets without ``GeneratedBy`` and names such as
    ``sub-01_run-1_T2w_desc-brain_mask.nii.gz`` are understood. A mask is one of the brain where ``label``, or else
    ``desc``, says so, or where it has neither and its sidecar no other ``Type``; none with ``seg``, ``roi``, ``hemi``
    or ``atlas`` is. Where a filter asks for one of these entities, what it finds is taken.

    Parameters
    ----------
    datasets : mapping of str to Path
        Root folders by name.
    filters : mapping
        Further pybids filters, for example ``{"desc": "brain"}``.
    filter_file : str
        Origin of the filters, for messages.
    output_dir : Path, optional
        Output folder, in which masks are not input.

    Raises
    ------
    gsbids.errors.InputError
        A folder is missing or holds no brain mask.
    """

    def __init__(
        self, datasets: Mapping[str, Path], filters: Mapping, filter_file: str, output_dir: Path | None = None
    ) -> None:
        self._masks: list[tuple[Path, dict[str, str]]] = []
        self._others: list[tuple[Path, dict[str, str], str]] = []
        for name, root in datasets.items():
            sidecars = Sidecars(Path(root).absolute())
            listed, elsewhere = _list_masks(name, Path(root), filters, filter_file, output_dir)
            trusted = bool(_OF_WHAT & set(filters))
            known = len(self._masks)
            self._others += [(*mask, _ELSEWHERE) for mask in elsewhere]
            for mask in listed:
                if trusted or _is_brain(*mask, sidecars):  # type: ignore[call-arg]
                    self._masks.append(mask)
                else:
                    self._others.append((*mask, _NO_BRAIN))
            if len(self._masks) == known:
                raise InputError(
                    f"--derivatives {name}={root}: no mask of the brain in it (desc-brain or label-brain) "
                    f"but of something else, as {listed[0][0]}; add brain masks, or {_CHOOSE}"
                )

    def find(self, stack: Mapping[str, str]) -> Path | None:
        """Return the mask of the stack with these entities.

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
            for path, mask, why in self._others:
                if _belongs(stack, mask):
                    LOGGER.warning("%s: not taken as the mask of its stack, which has no other: %s", path, why)
            return None
        best = max(rank for rank, _ in ranked)
        paths = sorted(path for rank, path in ranked if rank == best)
        if len(paths) > 1:
            names = " and ".join(str(path) for path in paths[:2])
            raise InputError(f"{names} both fit the same stack; {_CHOOSE}, or give one data set with --derivatives")
        return paths[0]


def _list_masks(
    name: str, root: Path, filters: Mapping, filter_file: str, output_dir: Path | None
) -> tuple[list, list]:
    """List masks in the space of the stacks, and those in other spaces: paths with their entities."""
    if not root.is_dir():
        raise InputError(f"--derivatives {name}={root}: there is no such folder")
    own = output_dir and output_dir.resolve()
    if own and root.resolve().is_relative_to(own):
        raise InputError(
            f"--derivatives {name}={root}: lies in output_dir {output_dir}, where this run writes; give "
            "another output_dir, or a copy of these masks"
        )
    default = {"suffix": "mask", "extension": list(EXTENSIONS)}
    found = {
        path: parse_name(path.name)
        for path in query(open_derivative(root), default | dict(filters), filter_file)
        if not (own and path.resolve().is_relative_to(own))
    }
    if not found:
        why = f' that matches the query "masks" of {filter_file}' if filters else ""
        raise InputError(
            f"--derivatives {name}={root}: no *_mask.nii.gz{why} in it; "
            "give the root folder of the data set with the masks"
        )
    there = {path: mask for path, mask in found.items() if _in_stack_space(mask)}
    if not there:
        raise InputError(
            f"--derivatives {name}={root}: no mask in the space of the scanner, where the stacks lie, but "
            f"of others, as {next(iter(found))}; add masks of the stacks"
        )
    twins = {path: twin for path in there if (twin := compressed_twin(path, there))}
    for path, twin in twins.items():
        LOGGER.warning("%s: left out, as %s has the same name and is taken; remove one of the two", path, twin)
    elsewhere = [(path, mask) for path, mask in found.items() if path not in there]
    return [(path, mask) for path, mask in there.items() if path not in twins], elsewhere


def _in_stack_space(mask: Mapping[str, str]) -> bool:
    """Return whether a mask lies in the space of the scanner, as the stacks do."""
    return mask.get("space", "orig") in ("orig", "scanner")


def _is_brain(path: Path, mask: Mapping[str, str], sidecars: Sidecars) -> bool:
    what = next((key for key in _PARTS if key in mask), mask.get("label", mask.get("desc")))
    if what is None:
        what = (sidecars.readable(path) or {}).get("Type", "brain")
    return str(what).lower() == "brain"


def _belongs(stack: Mapping[str, str], mask: Mapping[str, str]) -> bool:
    if mask.get("extra", stack["suffix"]) != stack["suffix"]:
        return False
    if any(entity_value(stack, key) != entity_value(mask, key) for key in _IDENTITY):
        return False
    return all(entity_value(stack, key) == entity_value(mask, key) for key in mask if key not in _OWN)


def _rank(stack: Mapping[str, str], mask: Mapping[str, str]) -> tuple[bool, int]:
    shared = sum(key in mask for key in stack if key != "suffix")
    return "brain" in (mask.get("desc"), mask.get("label")), shared
