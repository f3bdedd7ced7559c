# SPDX-License-Identifier: Apache-2.0
"""Metadata of images in the JSON files of a data set."""

import json
from collections.abc import Mapping
from pathlib import Path

from gsbids.bids.names import entity_value, parse_name
from gsbids.errors import InputError, not_fetched


class Sidecars:
    """Metadata of the files of one data set, with what BIDS lets them inherit.

    A JSON file applies to the files at and below its folder that have its suffix and all of its entities. The nearer
    folder goes first, and in one folder the name with more entities. Nothing above the root is read, nor are the names
    of folders used. (pybids matches entities anywhere in absolute paths, and stops at the first file it cannot read.)

    Parameters
    ----------
    root : path
        Root folder of the data set.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._folders: dict[Path, list[tuple[Path, dict[str, str]]]] = {}
        self._contents: dict[Path, dict] = {}

    def of(self, path: Path) -> dict:
        """Return the metadata of a file below the root; fields that are null are left out.

        Raises
        ------
        gsbids.errors.InputError
            One of the JSON files that apply to it cannot be read.
        """
        entities = parse_name(path.name)
        below = path.parent.relative_to(self.root)
        found: dict = {}
        for folder in reversed((below, *below.parents)):
            for sidecar, own in self._listed(self.root / folder):
                if _speaks_for(own, entities):
                    found |= self._read(sidecar)
        return {key: value for key, value in found.items() if value is not None}

    def readable(self, path: Path) -> dict | None:
        """Return the metadata of a file, and None where a JSON file cannot be read (which is reported elsewhere)."""
        try:
            return self.of(path)
        except InputError:
            return None

    def _listed(self, folder: Path) -> list[tuple[Path, dict[str, str]]]:
        """List the JSON files of a folder with their entities, the most general first."""
        if folder not in self._folders:
            named = [
                (path, parse_name(path.name)) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")
            ]
            self._folders[folder] = sorted(named, key=lambda item: len(item[1]))
        return self._folders[folder]

    def _read(self, sidecar: Path) -> dict:
        if sidecar not in self._contents:
            self._contents[sidecar] = read_object(sidecar)
        return self._contents[sidecar]


def read_object(path: Path) -> dict:
    """Read the object that a JSON file holds.

    Raises
    ------
    FileNotFoundError
        There is no such file, nor a link of this name.
    gsbids.errors.InputError
        A file without content, that is not JSON in UTF-8, or that holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a JSON file in UTF-8 ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(not_fetched(path) or f"{path}: not a JSON file ({error}); correct it") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
            raise
        raise InputError(
            not_fetched(path) or f"{path}: cannot be read ({error.strerror}); make it readable or remove it"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object {{...}}; correct it")
    return found


def _speaks_for(sidecar: Mapping[str, str], image: Mapping[str, str]) -> bool:
    return all(entity_value(sidecar, key) == entity_value(image, key) for key in sidecar if key != "extension")
