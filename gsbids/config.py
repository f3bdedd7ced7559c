# SPDX-License-Identifier: Apache-2.0
"""Settings of a run: made once by the command line, passed explicitly, stored as TOML."""

import types
import typing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gsbids import __version__
from gsbids.atomic import write_atomic
from gsbids.errors import InputError

DEFAULT_RESOLUTION = 0.8  # mm, of SVR
TAKES_MASKS = ("auto", "derivatives")  # values of --mask-mode with which masks that were given are used
AUTO, NONE = Path("auto"), Path("none")  # values of --template: one of the package; none
TEMPLATE = "template"  # name of the space of --template, and of its folder among the data sets


@dataclass(frozen=True)
class Execution:
    """Input, output, and control of the run.

    Attributes
    ----------
    bids_dir, output_dir, work_dir : Path
        Absolute paths.
    run_uuid : str
        ``YYYYmmdd-HHMMSS_<uuid4>``; names the log folder, and never changes a result.
    command : str
        Command line of the run, for its report; never changes a result.
    participant_label, session_label : tuple of str
        Labels without prefixes; empty: all.
    bids_filters : dict
        Queries ``stacks`` and ``masks`` of ``--bids-filter-file``.
    bids_database_dir : Path or None
        Folder of pybids' index.
    bids_database_wipe : bool
    derivatives : dict of str to Path
        Data sets with masks, by name.
    preview : bool
        Write intermediate volumes; the results are the same.
    clean_workdir, stop_on_first_crash, write_graph, dry_run : bool
    verbosity : int
        Number of ``-v``.
    version : str
        Version of gsbids that wrote the settings.
    """

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    run_uuid: str = ""
    command: str = ""
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: dict[str, dict] = field(default_factory=dict)
    bids_database_dir: Path | None = None
    bids_database_wipe: bool = False
    derivatives: dict[str, Path] = field(default_factory=dict)
    preview: bool = False
    clean_workdir: bool = False
    stop_on_first_crash: bool = False
    write_graph: bool = False
    dry_run: bool = False
    verbosity: int = 0
    version: str = __version__


@dataclass(frozen=True)
class WorkflowOptions:
    """Options of the computation.

    Attributes
    ----------
    mode : {"auto", "svr", "sr"}
    svr_method : {"default", "paper"}
    modality : str
        Suffix of the stacks.
    output_resolution : tuple of float
        Voxel size of the volume in mm, one number or (super-resolution) three; empty: 0.8 for SVR, and for SR
        :func:`gsbids.recon.sr.target.target_grid`.
    sr_factor : tuple of float
        Factor by which voxels become finer, one number or three; empty: not asked for.
    like : Path or None
        Image whose grid super-resolved volumes get.
    orientation : {"scanner", "radiological"}
        Order of the voxels of SVR volumes along the axes of their world.
    template, template_mask : Path or None
        Volume that SVR volumes are aligned to, and its brain mask; :data:`AUTO`: one of the package, where the brain
        looks like it; :data:`NONE`.
    sr_quality : {"full", "fast"}
    sr_profile : {"auto", "trilinear", "box", "gaussian", "kspace"}
        Sampling profile of a voxel.
    slice_thickness : float or None
        Overrides the sidecars, in mm.
    mask_mode : {"auto", "derivatives", "network", "nonzero", "otsu", "none"}
    mask_weights : Path or None
        Weights of the mask network, in the place of those of the package.
    denoise, n4 : bool or None
        None: as the method does by itself, see :meth:`Config.of_method`.
    motion_correction : bool
    random_seed : int
    device : str
        ``cpu``, ``cuda`` or ``cuda:N`` (``auto`` is resolved before the settings are made).
    sloppy : bool
        Few Gaussians and iterations, for testing only.
    """

    mode: str = "auto"
    svr_method: str = "default"
    modality: str = "T2w"
    output_resolution: tuple[float, ...] = ()
    sr_factor: tuple[float, ...] = ()
    like: Path | None = None
    orientation: str = "scanner"
    template: Path = NONE
    template_mask: Path | None = None
    sr_quality: str = "full"
    sr_profile: str = "auto"
    slice_thickness: float | None = None
    mask_mode: str = "auto"
    mask_weights: Path | None = None
    denoise: bool | None = None
    n4: bool | None = None
    motion_correction: bool = True
    random_seed: int = 0
    device: str = "cpu"
    sloppy: bool = False

    @property
    def template_file(self) -> Path | None:
        """Volume of the user that SVR volumes are aligned to."""
        return None if self.template in (AUTO, NONE) else self.template

    @property
    def takes_masks(self) -> bool:
        """Whether brain masks that were given with the stacks are used."""
        return self.mask_mode in TAKES_MASKS

    @property
    def svr_resolution(self) -> float:
        """Voxel size of volumes that are reconstructed from stacks, mm."""
        return self.output_resolution[0] if self.output_resolution else DEFAULT_RESOLUTION


@dataclass(frozen=True)
class NipypeOptions:
    """Options of the execution of the nodes.

    Attributes
    ----------
    nprocs : int
        Threads and processes in use at any time.
    omp_nthreads : int
        Threads of one node.
    memory_gb : float
        Memory that the nodes that run at one time may plan with.
    plugin : str
        ``auto``: MultiProc, or Linear with one process.
    plugin_args : dict
        Arguments of the plugin, as in the file of ``--use-plugin``.
    """

    nprocs: int = 1
    omp_nthreads: int = 1
    memory_gb: float = 4.0
    plugin: str = "auto"
    plugin_args: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    execution: Execution
    workflow: WorkflowOptions = field(default_factory=WorkflowOptions)
    nipype: NipypeOptions = field(default_factory=NipypeOptions)

    @property
    def datasets(self) -> dict[str, Path]:
        """Folders by the names that BIDS URIs use; ``""`` is the output."""
        run, template = self.execution, self.workflow.template_file
        given = {TEMPLATE: template.parent} if template else {}
        return {"": run.output_dir, "raw": run.bids_dir, **run.derivatives, **given}

    def replace(self, section: str, **changes: Any) -> "Config":
        """Return a copy with some settings of one section replaced."""
        return replace(self, **{section: replace(getattr(self, section), **changes)})

    def of_method(self, method: str) -> "Config":
        """Return a copy in which denoising and N4 are decided.

        Unless the user decides, stacks of SVR get both, volumes none.

        Parameters
        ----------
        method : {"svr", "sr"}
        """
        usual = method == "svr"
        settled = {
            name: usual if getattr(self.workflow, name) is None else getattr(self.workflow, name)
            for name in ("denoise", "n4")
        }
        return self.replace("workflow", **settled)

    def to_toml(self, path: str | Path) -> Path:
        """Write as TOML (under a temporary name, then renamed)."""
        import tomli_w

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, tomli_w.dumps(_plain(asdict(self))).encode())
        return path

    @classmethod
    def from_toml(cls, path: str | Path) -> "Config":
        """Read the settings of a former run.

        Raises
        ------
        InputError
            No such file, not TOML, an unknown section or setting, or a value of another type.
        """
        sections = read_toml(path)
        if not {"bids_dir", "output_dir", "work_dir"} <= set(sections["execution"]):
            raise InputError(
                f"{path}: bids_dir, output_dir or work_dir is missing in [execution]; "
                "give a gsbids.toml that a run has written"
            )
        return cls(**{name: kind(**sections[name]) for name, kind in SECTIONS.items()})


SECTIONS = {"execution": Execution, "workflow": WorkflowOptions, "nipype": NipypeOptions}


def read_toml(path: str | Path) -> dict[str, dict[str, object]]:
    """Read the settings of a TOML file, by section, with the types of the dataclasses.

    Raises
    ------
    InputError
        As :meth:`Config.from_toml`.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise InputError(f"--config-file {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config-file {path}: not a TOML file ({error})") from error
    strange = [name for name in found if name not in SECTIONS or not isinstance(found[name], dict)]
    if strange:
        raise InputError(f"--config-file {path}: unknown section {strange[0]!r}; sections are {', '.join(SECTIONS)}")
    return {name: _typed_section(path, name, found.get(name, {})) for name in SECTIONS}


def _typed_section(path: str | Path, name: str, values: dict) -> dict[str, object]:
    hints = typing.get_type_hints(SECTIONS[name])
    known = {entry.name for entry in fields(SECTIONS[name])}
    for key in values:
        if key not in known:
            raise InputError(f"--config-file {path}: unknown setting {key!r} in [{name}]")
    try:
        return {key: _typed(value, hints[key]) for key, value in values.items()}
    except TypeError as error:
        key = next(key for key, value in values.items() if not _fits(value, hints[key]))
        raise InputError(f"--config-file {path}: {key} in [{name}]: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    try:
        _typed(value, hint)
    except TypeError:
        return False
    return True


def _typed(value: Any, hint: Any) -> Any:
    """Convert a TOML value to the type of its field; raise TypeError where it is another."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _typed(value, next(part for part in parts if part is not types.NoneType))
    if origin is tuple and isinstance(value, list | int | float):
        # One number alone is what earlier versions wrote.
        return tuple(_typed(item, parts[0]) for item in (value if isinstance(value, list) else [value]))
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, parts[1]) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and origin is None and type(value) is hint:
        return value
    raise TypeError(f"{value!r} is not of type {getattr(hint, '__name__', hint)}")


def _plain(value: Any) -> Any:
    """Convert a value to what TOML can express: no None, no paths, no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
