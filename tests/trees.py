# SPDX-License-Identifier: Apache-2.0
"""Folders compared bit by bit."""

import hashlib
import re
from pathlib import Path

_USAGE = re.compile(rb"<!-- usage\b.*?<!-- end of usage -->\n|<li><a href=\"#usage\">.*?</li>\n", re.DOTALL)


def checksums(folder: Path, skip=("log",)) -> dict[str, str]:
    """Hash of every file below a folder, but for those in folders called ``skip``.

    Reports are compared without the time and the memory that the steps took: these are never the same twice.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(_lasting(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(skip)
    }


def _lasting(path: Path) -> bytes:
    contents = path.read_bytes()
    return _USAGE.sub(b"", contents) if path.suffix == ".html" else contents
