# SPDX-License-Identifier: Apache-2.0
"""The one place that writes outputs: BIDS names, JSON sidecars, no partly written files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsbids.atomic import write_atomic
from gsbids.bids.names import DESCRIPTIONS, KINDS, derivative_path, parse_name, resolution_words, sidecar_path


class Sink:
    """Writer of derivatives.

    Parameters
    ----------
    output_dir : path
    registry : path, optional
        Folder that all processes of one run share, which records the source of every output. Without it
        only this object's own writes are compared.
    """

    def __init__(self, output_dir: str | Path, registry: str | Path | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.registry = None if registry is None else Path(registry)
        self._owners: dict[Path, str] = {}

    def write(
        self,
        kind: str,
        entities: Mapping[str, str],
        source: str | Path | bytes,
        sidecar: Mapping[str, object] | None = None,
        **extra: str | float,
    ) -> Path:
        """Write one output and its sidecar, each under a temporary name that is then renamed.

        Parameters
        ----------
        kind : str
            A key of ``names.KINDS``.
        entities : mapping
            Entities of the task or of the stack.
        source : path or bytes
            A file to copy, or the contents.
        sidecar : mapping, optional
            Fields of the JSON beside it, over those that the kind has by itself (``SkullStripped``,
            ``SpatialReference``, ``Resolution``, ``Description``). Reports and figures have none.
        **extra
            Further entities, as ``res``.

        Returns
        -------
        Path
            Path of the file that was written.

        Raises
        ------
        ValueError
            An image without ``Sources``, or a source with another extension than the output.
        FileExistsError
            Another source was written to the same name in this run.
        """
        relative = derivative_path(entities, kind, **extra)
        extension = parse_name(relative.name)["extension"]
        if not isinstance(source, bytes) and not str(source).endswith(extension):
            raise ValueError(f"{source}: cannot become {relative.name}: the extension differs")
        fields = complete_sidecar(kind, relative, sidecar or {})
        if relative.name.endswith(".nii.gz") and not fields.get("Sources"):
            raise ValueError(f"{relative}: images need Sources in their sidecar")
        self._claim(relative, source)
        path = self.output_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if KINDS[kind].folder == "anat":
            # First, so that no image ever stands there without its sidecar.
            write_atomic(sidecar_path(path), to_json(fields))
        write_atomic(path, source)
        return path

    def remove(self, kind: str, entities: Mapping[str, str], **extra: str | float) -> None:
        """Remove an output and its sidecar, if they are there; parameters as for :meth:`write`."""
        path = self.output_dir / derivative_path(entities, kind, **extra)
        path.unlink(missing_ok=True)
        sidecar_path(path).unlink(missing_ok=True)

    def _claim(self, relative: Path, source: str | Path | bytes) -> None:
        """Record who writes a name; a resumed run may write the same again."""
        contents = isinstance(source, bytes)
        owner = hashlib.sha256(source).hexdigest() if contents else str(Path(source).absolute())  # type: ignore[arg-type]
        if self._owners.setdefault(relative, owner) != owner:
            raise FileExistsError(f"{relative} was written from {self._owners[relative]}, now from {owner}")
        if self.registry is None:
            return
        self.registry.mkdir(parents=True, exist_ok=True)
        note = self.registry / "__".join(relative.parts)
        try:
            with open(note, "x", encoding="utf-8") as file:
                file.write(owner)
        except FileExistsError:
            before = note.read_text(encoding="utf-8")
            if before not in ("", owner):  # empty: its writer was killed
                raise FileExistsError(f"{relative} was written from {before}, now from {owner}") from None


def complete_sidecar(kind: str, relative: Path, sidecar: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a sidecar, with those that follow from the kind and the name.

    >>> fields = complete_sidecar("volume_brain", Path("sub-01_res-0p8_desc-brain_T2w.nii.gz"), {})
    >>> fields["Resolution"], fields["SkullStripped"]
    ('0.8 mm isotropic', True)
    """
    entities = parse_name(relative.name)
    fields: dict[str, object] = {}
    if entities.get("desc") in DESCRIPTIONS:
        fields["Description"] = DESCRIPTIONS[entities["desc"]]
    fields |= KINDS[kind].sidecar
    if "res" in entities:
        fields["Resolution"] = resolution_words(entities["res"])
    return fields | dict(sidecar)


def to_json(fields: Mapping[str, object]) -> bytes:
    """Convert a mapping to JSON text; numpy numbers and arrays become plain ones, NaN is refused."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    return (json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False, default=plain) + "\n").encode()
