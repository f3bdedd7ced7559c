# SPDX-License-Identifier: Apache-2.0
"""Places that libraries write to, where the usual ones cannot be written to.

The whole of it, a reconstruction with a read-only root and one writable folder, is tried by tests/container/run.sh.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gsbids.cli.places import find_places, processor_levels, spare_places, writable_places
from gsbids.errors import InputError

NAMES = (
    "TMPDIR",
    "TEMP",
    "TMP",
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "NUMBA_CACHE_DIR",
    "MPLCONFIGDIR",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "GSBIDS_CACHE",
)


@pytest.fixture
def environ(monkeypatch, tmp_path):
    """A home folder and a temporary folder of our own, and no other variable."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("HOME", "home"), ("TMPDIR", "temporary")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return monkeypatch


def blocked(tmp_path: Path) -> Path:
    """A folder that cannot be made, not even by root: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


def test_nothing_changes_where_all_is_as_usual(environ, tmp_path):
    assert find_places(tmp_path / "spare", os.environ) == {}
    with writable_places(tmp_path / "spare"):
        pass
    assert not (tmp_path / "spare").exists()


def test_given_folders_are_kept_while_they_can_be_written_to(environ, tmp_path):
    environ.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    environ.setenv("MPLCONFIGDIR", str(blocked(tmp_path)))
    assert find_places(tmp_path / "spare", os.environ) == {"MPLCONFIGDIR": str(tmp_path / "spare" / "matplotlib")}


def test_an_unwritable_home_and_installation_lead_to_the_spare_folder(environ, tmp_path):
    environ.setenv("HOME", str(blocked(tmp_path)))
    environ.setattr("gsbids.cli.places._kernels", lambda: tmp_path / "file" / "site-packages")
    with writable_places(tmp_path / "spare"):
        assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "spare" / "numba")
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "spare" / "matplotlib")
    assert "NUMBA_CACHE_DIR" not in os.environ
    assert "MPLCONFIGDIR" not in os.environ


def test_a_user_without_a_name_or_a_home_gets_one(environ, tmp_path):
    environ.delenv("HOME")
    environ.setattr(os.path, "expanduser", lambda path: path)
    changes = find_places(tmp_path / "spare", os.environ)
    assert changes["HOME"] == str(tmp_path / "spare" / "home")


def test_without_a_temporary_folder_there_is_one_in_the_spare_folder(environ, tmp_path):
    environ.setenv("TMPDIR", str(blocked(tmp_path)))
    environ.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.environ["TMPDIR"]])
    with writable_places(tmp_path / "spare"):
        assert tempfile.gettempdir() == str(tmp_path / "spare" / "tmp")
        with tempfile.TemporaryFile():
            pass
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()


def test_the_current_folder_is_no_place_for_temporary_files(environ, tmp_path):
    environ.chdir(tmp_path)
    environ.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path)])
    environ.delenv("TMPDIR")
    assert find_places(tmp_path / "spare", os.environ)["TMPDIR"] == str(tmp_path / "spare" / "tmp")
    environ.setenv("TMPDIR", str(tmp_path))
    assert "TMPDIR" not in find_places(tmp_path / "spare", os.environ)
    environ.delenv("TMPDIR")
    environ.chdir("/tmp")
    environ.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/tmp"])
    environ.setattr(tempfile, "tempdir", None)
    assert "TMPDIR" not in find_places(tmp_path / "spare", os.environ)


def test_the_image_fills_the_caches_and_never_uses_shared_folders(environ, tmp_path):
    kernel = tmp_path / "prepared" / "numba" / "kernels_1" / "a.nbi"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("compiled")
    environ.setenv("GSBIDS_CACHE", str(tmp_path / "prepared"))
    with writable_places(tmp_path / "spare"):
        copy = Path(os.environ["NUMBA_CACHE_DIR"]) / "kernels_1" / "a.nbi"
        assert copy.is_relative_to(tmp_path / "spare")
        assert copy.read_text() == "compiled"
        copy.write_text("compiled again")
    with writable_places(tmp_path / "spare"):
        assert copy.read_text() == "compiled again"
    assert [path.name for path in (tmp_path / "spare").iterdir() if path.name.startswith(".")] == []


def test_a_hidden_folder_beside_the_output_does_not_stay(environ, tmp_path):
    environ.setenv("MPLCONFIGDIR", str(blocked(tmp_path)))
    with spare_places(tmp_path / "volume.nii.gz"):
        folder = Path(os.environ["MPLCONFIGDIR"])
        assert folder.parent.parent == tmp_path
        folder.mkdir(parents=True)
    assert not folder.parent.exists()


def test_nothing_stays_of_what_cannot_be_used(environ, tmp_path):
    (tmp_path / "prepared" / "numba").mkdir(parents=True)
    environ.setenv("GSBIDS_CACHE", str(tmp_path / "prepared"))

    def fails(spare: Path) -> None:
        with writable_places(spare):
            assert (spare / "numba").is_dir()
            raise InputError("there is nothing to reconstruct")

    with pytest.raises(InputError):
        fails(tmp_path / "work" / "here" / ".cache")
    assert not (tmp_path / "work").exists()
    (tmp_path / "work" / "kept").mkdir(parents=True)
    with pytest.raises(InputError):
        fails(tmp_path / "work" / ".cache")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("", []),
        ("sse4_2 avx", []),
        ("abm avx2 bmi1 bmi2 f16c fma movbe", ["x86-64-v3"]),
        ("abm avx2 bmi1 bmi2 f16c fma movbe avx512f", ["x86-64-v3"]),
        ("abm avx2 bmi1 bmi2 f16c fma movbe avx512f avx512bw avx512cd avx512dq avx512vl", ["x86-64-v4", "x86-64-v3"]),
    ],
)
def test_levels_of_processors(flags, levels):
    assert processor_levels(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: avx2\n") == levels


def test_levels_are_what_the_compiler_says_of_this_processor():
    """Of every level that is found, LLVM knows the name; a processor with AVX-512 has the higher one."""
    from llvmlite import binding

    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "flags" not in cpuinfo.read_text():
        pytest.skip("no x86 processor")
    levels = processor_levels(cpuinfo.read_text())
    features = binding.get_host_cpu_features()
    assert ("x86-64-v3" in levels) == (features.get("avx2", False) and features.get("fma", False))
    assert ("x86-64-v4" in levels) == (features.get("avx512bw", False) and features.get("avx512vl", False))


def test_kernels_run_from_a_read_only_installation(tmp_path):
    """Numba refuses to load a kernel that it can keep nowhere; the places are found first."""
    code = (
        "from pathlib import Path\n"
        "from gsbids.cli import places\n"
        f"places._kernels = lambda: Path({str(blocked(tmp_path))!r})\n"
        f"with places.writable_places(Path({str(tmp_path / 'spare')!r})):\n"
        "    from gsbids.kernels.cpu import probe\n"
        "    print(probe.vectors_work())\n"
    )
    environ = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environ | {"HOME": str(blocked(tmp_path))},
        check=False,
    )
    assert done.stdout.split() == ["True"], done.stderr
    assert list((tmp_path / "spare" / "numba").rglob("*.nbi"))
