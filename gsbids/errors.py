# SPDX-License-Identifier: Apache-2.0
"""Errors that are shown to people: one line, what was found where, what to do."""


class GsbidsError(Exception):
    """A problem with one readable line and an exit code.

    Parameters
    ----------
    message : str
        One line that names the file or option, says what was found, and what to do about it.
    """

    exit_code = 1


class InputError(GsbidsError):
    """The user's data or options cannot be used (exit code 2)."""

    exit_code = 2


class WorkflowError(GsbidsError):
    """The workflow could not be built (exit code 70, as ``EX_SOFTWARE``)."""

    exit_code = 70


class DeviceError(GsbidsError):
    """The compute device that was asked for cannot be used (exit code 126)."""

    exit_code = 126
