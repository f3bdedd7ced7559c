# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: length of lines, links, commands, and the list of options."""

import argparse
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from conftest import CHECKOUT

from gsbids.cli.main import COMMANDS
from gsbids.cli.parser import parse_args

DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "CHANGES.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, *sorted((DOCS / "notebook").glob("*.md"))]
LONGEST, LONGEST_ROW = 120, 200

SIMULATE = "gsbids.simulate"
PROGRAMS = ("gsbids", ".venv/bin/gsbids")


def page_id(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_lines_are_short(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    long = [
        f"{path.name}:{number}: {len(line)} characters"
        for number, line in lines
        if len(line) > (LONGEST_ROW if line.lstrip().startswith("|") else LONGEST)
    ]
    assert not long


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("path", LINKED, ids=page_id)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", LINKED, ids=page_id)
def test_results_are_there(path):
    named = re.findall(r"results/(\w+\.json)", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (DOCS / "results" / name).exists()] == []


def shell_lines(text: str) -> list[str]:
    """Lines of indented and shell code blocks, those that go on after a backslash joined."""
    code, language, before = [], None, ""
    for line in text.splitlines():
        fence = re.match(r"```(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
        elif language in ("bash", "sh", "console"):
            code.append(line)
        elif language is None and line.startswith("    ") and not re.match(r"\s*(?:[-*]|\d+\.) ", before):
            code.append(line[4:])
        if line.strip():
            before = line if not line.startswith("    ") else before
    return "\n".join(code).replace("\\\n", " ").splitlines()


def commands(text: str) -> list[list[str]]:
    """Words after ``gsbids`` of every command, containers included; ``python -m gsbids.simulate`` with its module."""
    found = []
    for line in shell_lines(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        if words[:1] in (["apptainer"], ["docker"]) and words[1:2] != ["run"]:
            continue
        for number, word in enumerate(words):
            if word in PROGRAMS and number == 0:
                found.append(words[1:])
            elif word.endswith(("gsbids.sif", "$image")) or (word in PROGRAMS and words[:2] == ["docker", "run"]):
                found.append(words[number + 1 :])
                break
            elif word == SIMULATE and words[number - 1] == "-m":
                found.append(words[number:])
                break
            elif "gsbids.sif /data" in word:  # a command in quotes, for sbatch --wrap
                found.append(shlex.split(word.partition("gsbids.sif")[2]))
    return [words for words in found if words]


DOCUMENTED = [(path, words) for path in PAGES for words in commands(path.read_text(encoding="utf-8"))]


@pytest.fixture
def any_path(monkeypatch):
    """Files that an option reads while it is parsed are not there."""
    monkeypatch.setattr("gsbids.cli.parser._settings", lambda path: {})


@pytest.mark.parametrize(
    ("path", "words"), DOCUMENTED, ids=[f"{path.stem}-{' '.join(words)[:60]}" for path, words in DOCUMENTED]
)
def test_commands_are_understood(path, words, any_path, capsys):
    values = {"${SLURM_MEM_PER_NODE}M": "16000M", "$SLURM_CPUS_PER_TASK": "8", "$subject": "sub-01"}
    words = [values.get(word, word) for word in words]
    first, *rest = words
    if {"--version", "--help"} & set(words) or words == ["help"]:
        return
    if first == SIMULATE:
        from gsbids.simulate.__main__ import build_parser

        build_parser().parse_args(rest)
    else:
        args = COMMANDS[first].parse(rest) if first in COMMANDS else parse_args(words)
        assert isinstance(args, argparse.Namespace)


def test_commands_are_found():
    """The pages for users hold commands, and the reader of pages sees them."""
    assert {"README", "installation", "quickstart", "usage", "masking", "super_resolution", "exchange", "clusters"} <= {
        path.stem for path, _ in DOCUMENTED
    }
    text = "    gsbids in out \\\n        participant\n\n```bash\ngsbids mask a b  # c\n```\n\n```yaml\ngsbids: 1\n```"
    assert commands(text) == [["in", "out", "participant"], ["mask", "a", "b"]]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_scripts_are_there(path):
    scripts = re.findall(
        r"\b((?:benchmarks|training|tests|docs)/[\w/]+\.(?:py|sh))\b", path.read_text(encoding="utf-8")
    )
    assert [script for script in scripts if not (CHECKOUT / script).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_targets_of_make_are_there(path):
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    known = {word for target in targets for word in target.split()}
    text = path.read_text(encoding="utf-8")
    asked = re.findall(r"^    make ([a-z][\w-]*)", text, re.MULTILINE) + re.findall(r"`make ([a-z][\w-]*)", text)
    assert set(asked) <= known


def test_the_list_of_options_is_that_of_the_parsers():
    spec = importlib.util.spec_from_file_location("make_options", DOCS / "make_options.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict("os.environ", {"COLUMNS": "80"}):
        spec.loader.exec_module(module)
        page = module.page()
    assert module.PAGE.read_text(encoding="utf-8") == page, "run: make docs-options"
