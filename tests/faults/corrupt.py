# SPDX-License-Identifier: Apache-2.0
"""Seeded corruptions of valid input, one file each: bytes, numbers, JSON values, tables, arrays."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

_HEADER = 352
#: Fields of a NIfTI-1 header that matter most: offset and type.
_FIELDS = {
    "sizeof_hdr": (0, "<i4"),
    "dim0": (40, "<i2"),
    "dim1": (42, "<i2"),
    "dim3": (46, "<i2"),
    "dim4": (48, "<i2"),
    "datatype": (70, "<i2"),
    "bitpix": (72, "<i2"),
    "pixdim1": (80, "<f4"),
    "pixdim3": (88, "<f4"),
    "vox_offset": (108, "<f4"),
    "scl_slope": (112, "<f4"),
    "scl_inter": (116, "<f4"),
    "qform": (252, "<i2"),
    "sform": (254, "<i2"),
    "srow_x": (280, "<f4"),
    "srow_z": (320, "<f4"),
    "magic": (344, "<i4"),
}
_NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 1000, 32767, -32768, 0.5, 1e-30, -1e30, 3e38, np.nan, np.inf, -np.inf)
_VALUES = (
    "",
    "3",
    "<script>alert(1)</script>",
    "a\tb\nc",
    "é\u202e\U0001f9e0",
    -1,
    0,
    1e308,
    10**400,
    3.5,
    True,
    None,
    [],
    [[]],
    {},
    {"a": {"b": 1}},
    [None],
    ["x"],
    [1e400],
    [0.5] * 500,
    "k-",
    "j",
    "x" * 5000,
    "\x00",
    "../../etc",
)
_KEYS = (
    "SliceThickness",
    "SliceTiming",
    "SliceEncodingDirection",
    "EchoTime",
    "RepetitionTime",
    "Manufacturer",
    "MagneticFieldStrength",
    "SequenceName",
    "IntendedFor",
)
_DESCRIPTION = ("Name", "BIDSVersion", "DatasetType", "License", "DatasetDOI", "GeneratedBy", "DatasetLinks")


def header(path: Path, rng: np.random.Generator) -> str:
    """Other bytes or numbers in the header of a NIfTI file, which stays valid gzip."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    if rng.random() < 0.6:
        name = str(rng.choice(list(_FIELDS)))
        at, kind = _FIELDS[name]
        number = float(rng.choice(_NUMBERS))
        with np.errstate(all="ignore"):
            value = np.array(number).astype(kind)
        raw[at : at + value.nbytes] = value.tobytes()
        what = f"{name} = {value}"
    else:
        places = rng.integers(0, _HEADER, rng.integers(1, 6))
        for place in places:
            raw[place] = rng.integers(256)
        what = f"bytes {sorted(places.tolist())}"
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))
    return what


def stream(path: Path, rng: np.random.Generator) -> str:
    """Other bytes in any file as it lies on the disk, a part missing, or something appended."""
    raw = bytearray(path.read_bytes())
    kind = str(rng.choice(["flip", "cut", "zero", "append", "empty", "repeat"], p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05]))
    at = int(rng.integers(0, max(len(raw), 1)))
    if kind == "flip":
        for place in rng.integers(0, len(raw), rng.integers(1, 9)):
            raw[place] ^= int(rng.integers(1, 256))
    elif kind == "cut":
        del raw[at:]
    elif kind == "zero":
        end = min(len(raw), at + int(rng.integers(1, 4096)))
        raw[at:end] = bytes(end - at)
    elif kind == "append":
        raw += rng.bytes(int(rng.integers(1, 200)))
    elif kind == "repeat":
        raw = raw + raw
    else:
        raw.clear()
    path.write_bytes(bytes(raw))
    return f"{kind} at {at}" if kind in ("cut", "zero") else kind


def voxels(path: Path, rng: np.random.Generator) -> str:
    """Voxels that no scanner gives: NaN, infinite, huge, negative, constant, noise."""
    import nibabel as nib

    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    kind = str(rng.choice(["nan", "inf", "huge", "negative", "constant", "noise", "one slice", "tiny"]))
    some = rng.random(data.shape) < rng.choice([0.01, 0.5, 1.0])
    if kind == "noise":
        data = rng.normal(0, 1000, data.shape).astype(np.float32)
    elif kind == "negative":
        data = -data
    elif kind == "tiny":
        data = data * np.float32(1e-30)
    elif kind == "one slice":
        data[..., 1:] = 0
    else:
        data[some] = {"nan": np.nan, "inf": np.inf, "huge": 3e38, "constant": 7}[kind]
    nib.save(nib.Nifti1Image(data, image.affine), path)
    return f"voxels {kind}"


def json_value(path: Path, rng: np.random.Generator) -> str:
    """One value of another kind in a JSON file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    keys = _DESCRIPTION if path.name == "dataset_description.json" else _KEYS
    key, value = str(rng.choice(keys)), _VALUES[rng.integers(len(_VALUES))]
    kind = str(rng.choice(["value", "list", "deep", "twice", "encoding"], p=[0.8, 0.05, 0.05, 0.05, 0.05]))
    text = json.dumps(fields | {key: value})
    if kind == "list":
        text = json.dumps([fields])
    elif kind == "deep":
        text = "[" * 5000 + "]" * 5000
    elif kind == "twice":
        text = text[:-1] + f', "{key}": {json.dumps(value)}' + "}"
    path.write_bytes(text.encode("utf-16") if kind == "encoding" else text.encode())
    return f"{key} = {str(value)[:40]!r}" if kind in ("value", "twice") else kind


def table(path: Path, rng: np.random.Generator) -> str:
    """Another cell, column, row or end of line in a TSV file."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    row = int(rng.integers(len(lines)))
    column = int(rng.integers(len(lines[row])))
    kind = str(rng.choice(["cell", "drop", "add", "row", "bytes", "quote"]))
    values = ("", "n/a", "nan", "inf", "1e999", "x", "=1+1", "<b>", "-", "é", "\x00", "9" * 400)
    if kind == "cell":
        lines[row][column] = values[rng.integers(len(values))]
    elif kind == "drop":
        del lines[row][column]
    elif kind == "add":
        lines[row].insert(column, "y")
    elif kind == "row":
        lines.append(lines[row])
    elif kind == "quote":
        lines[row][column] = '"' + lines[row][column]
    raw = ("\n".join("\t".join(line) for line in lines) + "\n").encode()
    path.write_bytes(b"\xff\xfe" + raw if kind == "bytes" else raw)
    return f"{kind} in row {row}, column {column}"


def arrays(path: Path, rng: np.random.Generator) -> str:
    """Another array or header in a saved model, which stays a valid zip file."""
    with np.load(path, allow_pickle=False) as data:
        found = {name: data[name] for name in data.files}
    name = str(rng.choice([key for key in found if key != "header"]))
    kind = str(rng.choice(["drop", "shape", "nan", "huge", "type", "text", "object", "header", "empty"]))
    value = found[name]
    if kind == "drop":
        del found[name]
    elif kind == "header":
        fields = json.loads(str(found["header"]))
        key = str(rng.choice(list(fields)))
        fields[key] = _VALUES[rng.integers(len(_VALUES))]
        found["header"], name = np.array(json.dumps(fields)), f"header {key}"
    else:
        found[name] = {
            "shape": lambda: value[..., None, :] if value.ndim else value[None],
            "nan": lambda: np.full_like(value, np.nan, dtype=float),
            "empty": lambda: value[:0],
            "huge": lambda: np.full_like(value, 1e30, dtype=float),
            "type": lambda: value.astype(complex),
            "text": lambda: value.astype(str),
            "object": lambda: np.array([{"a": 1}, None], dtype=object),
        }[kind]()
    np.savez_compressed(path, **found)
    return f"{kind}: {name}"


CORRUPTIONS: dict[str, Callable[[Path, np.random.Generator], str]] = {
    "header": header,
    "stream": stream,
    "voxels": voxels,
    "json": json_value,
    "table": table,
    "arrays": arrays,
}
