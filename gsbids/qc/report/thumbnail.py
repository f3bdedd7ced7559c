# SPDX-License-Identifier: Apache-2.0
"""Small picture of a volume in the head of its report, where the group report finds it."""

import base64
import io
import re
from pathlib import Path

LONGEST = 96  # pixels
NAME = "gsbids-thumbnail"
HEAD = 1 << 16  # bytes of a report, within which the picture stands

_FOUND = re.compile(rf'<meta name="{NAME}" content="(data:image/png;base64,[A-Za-z0-9+/=]+)">')


def thumbnail(png: bytes) -> str:
    """Shrink a picture to at most ``LONGEST`` pixels along its longer side and return it as a data URI.

    Parameters
    ----------
    png : bytes
        8-bit grey PNG.
    """
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((LONGEST, LONGEST))
        image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def read_thumbnail(report: Path) -> str:
    """Read the picture, as a data URI, in the head of a report; empty where there is none, as in older reports."""
    try:
        with open(report, "rb") as file:
            found = _FOUND.search(file.read(HEAD).decode("ascii", errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""
