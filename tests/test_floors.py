# SPDX-License-Identifier: Apache-2.0
"""The floors of the house: every module imports only what is below it."""

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# From the top: a floor may import itself and all floors below, and nothing beside it.
FLOORS = [
    ("cli",),
    ("workflows",),
    ("interfaces",),
    ("qc", "recon", "masking", "simulate", "bids"),
    ("imaging",),
    ("kernels",),
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

# Allowed on every floor.
EVERYWHERE = {"gsbids", "gsbids.atomic", "gsbids.errors"}

# The report reads the result of a reconstruction.
BESIDE = {("qc", "recon")}

# The rooms of the science, from the top; what lies in the folder itself is below its rooms. Rooms of one entry do not
# know each other.
ROOMS = {
    "recon": [("models",), ("volume",), ("svr_paper",), ("svr",), ("fitting", "registration", "sr")],
    "kernels": [("ops", "points"), ("backend",), ("cpu", "cuda")],
    "qc": [("report",), ("figures",)],
    "cli": [("main",), ("commands",), ("running",)],
}

# Settings are made by the command line and read by the builders; steps get values.
CONFIG = {"cli", "workflows"}

# So that they run on a bare GPU machine.
SCIENCE = {"recon", "kernels"}
SCIENCE_PACKAGES = {"numpy", "scipy", "torch", "numba", "llvmlite"}
LATE_PACKAGES = {"sklearn", "threadpoolctl"}  # where an edge is learned: not needed on a bare GPU machine

MODULES = sorted(path for folder in ("gsbids", "workflows", "kernels") for path in (CHECKOUT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    """``workflows/base.py`` is ``gsbids.workflows.base``."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    parts = parts if parts[0] == "gsbids" else ("gsbids", *parts)
    return ".".join(part for part in parts if part != "__init__")


NAMES = {dotted(path) for path in MODULES}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, with whether that happens when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [node.module]
                if node.module not in ("gsbids", *(f"gsbids.{name}" for name in LEVEL))
                else [f"{node.module}.{alias.name}" for alias in node.names]
            )
            # `from gsbids.kernels import ops` is a module, `from gsbids import __version__` is not.
            names = [
                name
                if name in NAMES or not name.startswith("gsbids.")
                else name
                if node.module not in NAMES
                else node.module
                for name in names
            ]
        else:
            continue
        found += [(name, id(node) not in inner) for name in names]
    return found


def floor(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else None


def room(module: str) -> tuple[str, int] | None:
    """Floor of a module, and how high its room lies there; None where a floor has no rooms."""
    own = floor(module)
    if own not in ROOMS:
        return None
    inner = module.split(".")[2:3]
    heights = {name: len(ROOMS[own]) - height for height, names in enumerate(ROOMS[own]) for name in names}
    return own, heights.get(*inner, 0) if inner else 0


def test_the_test_sees_something():
    assert "gsbids.cli.main" in NAMES
    assert "gsbids.kernels.reference" in NAMES
    found = dict(imports(CHECKOUT / "gsbids" / "cli" / "main.py"))
    assert found["gsbids.cli.parser"] is True
    assert found["gsbids.cli.running.run"] is False


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_floors_below_are_imported(path):
    own = floor(dotted(path))
    for name, _ in imports(path):
        if not name.startswith("gsbids") or name in EVERYWHERE:
            continue
        if name == "gsbids.config":
            assert own in CONFIG or own is None, f"{dotted(path)} imports {name}"
            continue
        other = floor(name)
        assert other is not None, f"{dotted(path)} imports {name}, which is on no floor"
        if own is None:
            # Modules of the root: only the entry point may look inside.
            assert dotted(path) == "gsbids.__main__", f"{dotted(path)} imports {name}"
            continue
        allowed = own == other or LEVEL[own] < LEVEL[other] or (own, other) in BESIDE
        assert allowed, f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if room(dotted(path))], ids=dotted)
def test_only_rooms_below_are_imported(path):
    own = dotted(path)
    for name, _ in imports(path):
        if floor(name) != floor(own):
            continue
        same = name.split(".")[2:3] == own.split(".")[2:3]
        assert same or room(name)[1] < room(own)[1] or room(name) == room(own) == (floor(own), 0), f"{own}: {name}"


def test_rooms_are_no_halls():
    for folder in {path.parent for path in MODULES}:
        if floor(dotted(folder / "__init__.py")) in ROOMS:
            assert len(list(folder.glob("*.py"))) <= 17, folder


@pytest.mark.parametrize("path", [path for path in MODULES if floor(dotted(path)) in SCIENCE], ids=dotted)
def test_science_needs_little(path):
    import sys

    for name, early in imports(path):
        package = name.partition(".")[0]
        known = package in sys.stdlib_module_names or package in SCIENCE_PACKAGES or package == "gsbids"
        known = known or (package in LATE_PACKAGES and not early)
        assert known, f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if floor(dotted(path)) in ("cli", "bids", None)], ids=dotted)
def test_heavy_packages_are_imported_late(path):
    for name, early in imports(path):
        heavy = name.partition(".")[0] in {"torch", "nipype", "bids", "numba", "ants", "matplotlib", "nilearn"}
        assert not (early and heavy), f"{dotted(path)} imports {name} when it is imported"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 400
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        code = [
            line
            for line in lines[first.lineno - 1 : node.end_lineno]
            if line.strip() and not line.strip().startswith("#")
        ]
        assert len(code) <= 60, f"{node.name} has {len(code)} lines"
        parameters = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        # Kernels get plain arrays, as numba and autograd want them.
        if floor(dotted(path)) != "kernels":
            assert len(set(parameters) - {"self", "cls"}) <= 7, f"{node.name} has {len(parameters)} parameters"
