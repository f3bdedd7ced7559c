# SPDX-License-Identifier: Apache-2.0
"""Arguments, and settings as TOML."""

import pytest

from gsbids.cli.parser import parse_args
from gsbids.cli.plan import make_config, parse_derivatives
from gsbids.errors import InputError


def parse(text: str = "", **more):
    return parse_args(["in", "out", "participant", *text.split()])


def refusal(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        parse_args(argv)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gsbids: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("text", "gb"),
    [
        ("--mem 1.5G", 1.5),
        ("--mem 800M", 0.8),
        ("--mem 4000", 4.0),
        ("--mem-mb 4000", 4.0),
        ("--mem-gb 3", 3.0),
        ("--mem 2GB", 2.0),
        ("--mem 500000K", 0.5),
        ("--mem-gb 512M", 0.512),
        ("--mem 1.5gib", 1.5),
        ("--mem .5T", 500),
    ],
)
def test_memory(text, gb):
    assert parse(text).memory_gb == pytest.approx(gb)


@pytest.mark.parametrize(
    "argv",
    [
        "--mem 1.5X",
        "--mem G",
        "--mem 0",
        "--mem -3",
        "--output-resolution 0",
        "--output-resolution 50",
        "--output-resolution nan",
        "--output-resolution big",
        "--slice-thickness 0",
        "--nprocs 0",
        "--nprocs 1.5",
        "--random-seed -1",
        "--device gpu",
        "--mode srr",
        "--sr-factor 0.5",
        "--sr-factor 2 2",
        "--sr-quality best",
        "--output-resolution 1 1",
        "--sr-profile sharp",
        "--svr-method gsvr",
        "--mask-mode magic",
        "--participant-label 0.1",
        "--nonsense",
        "--part 01",
    ],
)
def test_values_that_cannot_be(capsys, argv):
    option = argv.split()[0]
    assert option in refusal(capsys, "in", "out", "participant", *argv.split())


def test_levels(capsys):
    assert parse_args(["in", "out", "group"]).analysis_level == "group"
    assert "unknown level 'subject'" in refusal(capsys, "in", "out", "subject")
    assert "required: output_dir" in refusal(capsys, "in")
    assert "required: bids_dir" in refusal(capsys)


def test_prefixes_are_stripped():
    args = parse("--participant-label sub-01 02 --session-label ses-a")
    assert (args.participant_label, args.session_label) == (["01", "02"], ["a"])


def test_underscores_are_dashes():
    args = parse("--participant_label 01 --work_dir=my_work --n_cpus 3 --output_resolution 1")
    assert (args.participant_label, str(args.work_dir), args.nprocs) == (["01"], "my_work", 3)
    assert args.output_resolution == (1.0,)


def test_names_of_other_apps():
    args = parse("--nthreads 2 --nipype-plugin-file p.yml --notrack -vv")
    assert (args.nprocs, str(args.use_plugin), args.verbosity) == (2, "p.yml", 2)


def test_help_names_every_option_once(capsys):
    with pytest.raises(SystemExit) as left:
        parse_args(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "_" not in "".join(word for word in text.split() if word.startswith("--"))
    assert "Exit codes" in text


def test_derivatives_have_names(tmp_path):
    for name in ("m", "manual_masks"):
        (tmp_path / name).mkdir()
    named = parse_derivatives([f"masks={tmp_path / 'm'}", str(tmp_path / "manual_masks")])
    assert named == {"masks": tmp_path / "m", "manualmasks": tmp_path / "manual_masks"}


def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch):
    """Also where it could be read as a name and a path."""
    for name in ("data=v2/masks", "v2/masks", "data=masks"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_derivatives(["data=v2/masks"]) == {"masks": tmp_path / "data=v2" / "masks"}
    assert parse_derivatives([f"a={tmp_path / 'data=v2' / 'masks'}"]) == {"a": tmp_path / "data=v2" / "masks"}
    assert parse_derivatives(["data=masks", "b=v2/masks"]) == {
        "datamasks": tmp_path / "data=masks",
        "b": tmp_path / "v2" / "masks",
    }
    with pytest.raises(InputError, match=r"^--derivatives my_masks=v2/masks: a NAME holds letters and digits only"):
        parse_derivatives(["my_masks=v2/masks"])
    with pytest.raises(InputError, match=r"^--derivatives c=v3/masks: there is no such folder"):
        parse_derivatives(["c=v3/masks"])


def test_config_file_gives_defaults(tiny_bids, tmp_path):
    tiny = tiny_bids(stacks=2)
    filters = tmp_path / "f.json"
    filters.write_text('{"stacks": {"acquisition": null, "run": [1, 2]}}')
    options = (
        "--participant-label 01 --output-resolution 1.2 --no-n4 --mem 3G --nprocs 3 --omp-nthreads 2 "
        f"-v --random-seed 7 --stop-on-first-crash -d masks={tiny.masks} --dry-run "
        f"--bids-filter-file {filters}"
    )
    base = [str(tiny.root), str(tmp_path / "out"), "participant"]
    first = make_config(parse_args(base + options.split()))
    file = first.to_toml(tmp_path / "gsbids.toml")

    again = make_config(parse_args([*base, "--config-file", str(file)]))
    assert again.workflow == first.workflow
    assert again.nipype == first.nipype
    kept = again.replace("execution", run_uuid=first.execution.run_uuid, dry_run=True)
    assert kept == first
    assert not again.execution.dry_run

    over = make_config(parse_args([*base, f"--config-file={file}", "--output-resolution", "2", "--n4"]))
    assert (over.workflow.output_resolution, over.workflow.n4, over.workflow.random_seed) == ((2.0,), True, 7)


def test_one_way_to_say_the_size(tiny_bids, tmp_path):
    """A settings file may say it in another way than the command line; what earlier versions wrote is understood."""
    base = [str(tiny_bids().root), str(tmp_path / "out"), "participant"]
    first = make_config(parse_args([*base, "--mode", "sr", "--sr-factor", "2", "2", "3", "--sr-quality", "fast"]))
    file = first.to_toml(tmp_path / "gsbids.toml")
    assert make_config(parse_args([*base, f"--config-file={file}"])).workflow == first.workflow
    over = make_config(parse_args([*base, "--config-file", str(file), "--output-resolution", "1.5"])).workflow
    assert (over.sr_factor, over.output_resolution, over.sr_quality) == ((), (1.5,), "fast")
    file.write_text("[workflow]\noutput_resolution = 1.2\n")
    assert make_config(parse_args([*base, f"--config-file={file}"])).workflow.svr_resolution == 1.2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[workflow]\noutput_resolution = 50.0", "50.0 mm is out of range"),
        ("[workflow]\ndevice = 'tpu'", "'tpu' is not a device"),
    ],
)
def test_config_file_is_checked_like_options(tmp_path, capsys, text, what):
    (tmp_path / "c.toml").write_text(text)
    assert what in refusal(capsys, "in", "out", "participant", "--config-file", str(tmp_path / "c.toml"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[workflow", "not a TOML file"),
        ("[work]\na = 1", "unknown section 'work'"),
        ("[workflow]\ncolour = 1", "unknown setting 'colour'"),
        (None, "cannot be read"),
        ("[workflow]\nn4 = 'yes'", "n4 in .workflow.: 'yes' is not of type bool"),
    ],
)
def test_config_file_that_is_none(tmp_path, text, what):
    file = tmp_path / "c.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=what):
        parse(f"--config-file {file}")
