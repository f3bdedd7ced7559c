# SPDX-License-Identifier: Apache-2.0
"""Summary of a crash file of nipype in one line."""

import re


def crash_summary(text: str) -> tuple[str, str]:
    r"""Return the name of the node and the error, with its message, from the text of a crash file.

    Examples
    --------
    >>> crash_summary("Node: a.b\nTraceback:\n\tValueError: the fit\n\twent wrong\n\nMore.")
    ('b', 'ValueError: the fit went wrong')
    """
    if not text.strip():
        return "?", "its crash file is empty; the disk may be full"
    node = re.search(r"^Node: (\S+)", text, re.MULTILINE)
    # The innermost error stands last; its message ends with a blank line.
    errors = re.findall(r"^\s*([\w.]*(?:Error|Exception|Interrupt|Exit)\b.*(?:\n.*\S.*)*)", text, re.M)
    message = " ".join(errors[-1].split()) if errors else "no traceback"
    return node[1].rpartition(".")[2] if node else "?", message.removeprefix("gsbids.errors.InputError: ")
