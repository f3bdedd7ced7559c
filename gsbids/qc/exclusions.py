# SPDX-License-Identifier: Apache-2.0
"""Slices and stacks that do not contribute to the volume, with the reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gsbids.recon.svr.result import SvrResult

DIM = 0.6  # of the usual brightness, under which a slice has lost signal
UNLIKE = 0.8  # similarity under which a slice shows something else, or the same elsewhere


@dataclass(frozen=True)
class Exclusion:
    """One slice, several, or a stack that does not contribute.

    Attributes
    ----------
    stack : str
    what : str
        ``slice 7``, ``slices 0-3``, ``whole stack``.
    reason : str
    """

    stack: str
    what: str
    reason: str


def excluded_stacks(result: SvrResult) -> list[Exclusion]:
    """List the stacks that were left out, or of which no slice is left."""
    out, choice = result.settings.get("excluded", []), result.mask_choice
    strange = (
        "It looks like no part of what the other stacks show: another subject, another contrast, or a mask that "
        "is no brain."
    )
    found = [
        Exclusion(name, "whole stack", choice["doubts"][name] if name in choice["left_out"] else strange)
        for name in out
    ]
    for n, name in enumerate(result.stack_names):
        mine = result.stack_index == n
        if name not in out and mine.any() and result.rejected[mine].all():
            found.append(Exclusion(name, "whole stack", f"Each of its {int(mine.sum())} slices was rejected."))
        elif name not in out and not mine.any():
            found.append(Exclusion(name, "whole stack", "It has no slice with brain in its mask."))
    return found


def rejected_slices(result: SvrResult) -> list[Exclusion]:
    """List the rejected slices of the fit, in the order of the stacks, each with the reason."""
    order = np.lexsort((result.slice_index, result.stack_index))
    return [
        Exclusion(
            result.stack_names[result.stack_index[s]],
            f"slice {result.slice_index[s]}",
            f"{rejection_cause(result, s)}; {_numbers(result, s)}, weight {result.weight[s]:.2f}.",
        )
        for s in order
        if result.rejected[s]
    ]


def weight_reason(result: SvrResult, s: int) -> str:
    """Tell why slice ``s`` of the fit has its robust weight (0: ignored, 1: full)."""
    weight = f"weight {result.weight[s]:.2f}"
    if result.rejected[s]:
        return f"rejected ({weight}): {rejection_cause(result, s).lower()}; {_numbers(result, s)}."
    kept = "kept in full" if result.weight[s] > 0.99 else "kept" if result.weight[s] >= 0.5 else "weakened"
    dark = _brightness(result, s)
    why = f", as the slice has {100 * dark:.0f} % of the brightness of its stack" if dark < DIM else ""
    return f"{kept} ({weight}): the weight follows the residual, not the similarity; {_numbers(result, s)}{why}."


def rejection_cause(result: SvrResult, s: int) -> str:
    """Say what is wrong with a slice, by its brightness and its similarity."""
    if (share := _brightness(result, s)) < DIM:
        return f"Signal lost: {100 * share:.0f} % of the brightness of its stack"
    place = "something else than the other slices at its place"
    return f"Shows {place}" if result.ncc[s] < UNLIKE else "Differs from the other slices at its place"


def empty_slices(result: SvrResult) -> list[Exclusion]:
    """List the slices that had no part in the fit, as they hold no information."""
    return [
        Exclusion(name, *empty_words(numbers).split(": ", 1)) for name, numbers in result.mask_choice["empty"].items()
    ]


def empty_words(slices: Sequence[int]) -> str:
    """Describe slices without information.

    Examples
    --------
    >>> empty_words([7])
    'slice 7: One intensity in the whole mask, as of a slice lost by conversion: no part of the fit. Convert it again.'
    """
    return (
        f"slice{'s' if len(slices) > 1 else ''} {ranges(slices)}: One intensity in the whole mask, as of a slice "
        "lost by conversion: no part of the fit. Convert it again."
    )


def without_brain(name: str, fitted: Sequence[int], depth: int) -> Exclusion | None:
    """Return the slices of a stack without brain in their mask, which had no part in the fit; None if there are none.

    Parameters
    ----------
    name : str
    fitted : sequence of int
        Slices that had a part, or that are left out for another reason.
    depth : int
        Number of slices of the stack.
    """
    left = sorted(set(range(depth)) - {int(k) for k in fitted})
    if not left or len(left) == depth:
        return None
    what = f"slice{'s' if len(left) > 1 else ''} {ranges(left)}"
    return Exclusion(name, what, "No brain in the mask (fewer than 4 pixels): not part of the fit.")


def ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers with their runs contracted.

    Examples
    --------
    >>> ranges([0, 1, 2, 5, 9, 10])
    '0-2, 5, 9, 10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _brightness(result: SvrResult, s: int) -> float:
    """Return the gain of a slice over that of the typical one of its stack that is kept."""
    mine = ~result.rejected & (result.stack_index == result.stack_index[s])
    usual = float(np.median(result.gain[mine])) if mine.any() else 1.0
    return float(result.gain[s] / usual) if usual > 0 else 1.0


def _numbers(result: SvrResult, s: int) -> str:
    """Format residual and similarity of a slice, beside the residual of the typical one."""
    kept = result.residual[~result.rejected]
    typical = float(np.median(kept if len(kept) else result.residual))
    times = f", {result.residual[s] / typical:.1f} times that of the typical slice" if typical > 0 else ""
    return f"residual {result.residual[s]:.3f}{times}, similarity {result.ncc[s]:.2f}"
