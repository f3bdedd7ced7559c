# SPDX-License-Identifier: Apache-2.0
"""What ``gsbids`` alone and ``gsbids help`` print, mistyped commands and options, and the words of other BIDS-Apps."""

import shlex

import pytest

from gsbids import __version__
from gsbids.cli.main import COMMANDS, main
from gsbids.cli.overview import BIDS_COMMANDS, FILE_COMMANDS
from gsbids.cli.parser import WITHOUT_EFFECT, parse_args


def test_gsbids_alone_shows_the_commands(capsys):
    assert main([]) == 2
    alone = capsys.readouterr()
    assert main(["help"]) == 0
    assert alone.err == capsys.readouterr().out
    assert alone.out == ""
    assert __version__ in alone.err
    assert [usage for usage, _, _ in FILE_COMMANDS] == list(COMMANDS)
    for usage, what, example in (*BIDS_COMMANDS, *FILE_COMMANDS):
        assert f"gsbids {usage}" in alone.err
        assert what in alone.err
        assert example in alone.err


@pytest.mark.parametrize("example", [example for _, _, example in (*BIDS_COMMANDS, *FILE_COMMANDS)])
def test_examples_are_understood(example):
    program, first, *rest = shlex.split(example)
    assert program == "gsbids"
    assert COMMANDS[first].parse(rest) if first in COMMANDS else parse_args([first, *rest])


def test_help_of_a_command_is_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        main(["help", "mask"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: gsbids mask ")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["super-resolv", "a", "b"], "super-resolve"),
        (["recontruct", "--input-stacks", "a"], "reconstruct"),
        (["maks"], "mask"),
        (["smaple", "m.npz", "o.nii.gz"], "sample"),
        (["hepl"], "help"),
    ],
)
def test_a_mistyped_command_is_named(words, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"there is no command {words[0]!r}; did you mean {meant!r}?" in said
    assert said.count("\n") == 1


def test_a_folder_is_no_mistyped_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    assert main(["masks", "out", "participant"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in", "out", "participant", "--particpant-label", "01"], "did you mean --participant-label? (gsbids --help"),
        (["mask", "a", "b", "--probabilty", "c"], "did you mean --probability? (gsbids mask --help"),
        (["in", "out", "participant", "--frobnicate"], "--frobnicate (gsbids --help"),
    ],
)
def test_a_mistyped_option_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_words_of_other_bids_apps_are_taken():
    args = parse_args(
        [
            "in",
            "out",
            "participant",
            "--participant-labels",
            "sub-01",
            "02",
            "--session-id",
            "a",
            "-m",
            "T1w",
            "--debug",
            *WITHOUT_EFFECT,
        ]
    )
    assert list(args.participant_label) == ["01", "02"]
    assert list(args.session_label) == ["a"]
    assert (args.modality, args.verbosity) == ("T1w", 2)
    assert parse_args(["in", "out", "participant", "--modalities", "T1w"]).modality == "T1w"
