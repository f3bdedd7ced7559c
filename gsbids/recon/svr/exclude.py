# SPDX-License-Identifier: Apache-2.0
"""Exclusion of outlying stacks, which are dissimilar to all others."""

from dataclasses import replace
from typing import Any

import numpy as np

from gsbids.recon.registration.register import StackRegistration
from gsbids.recon.svr.result import SvrResult

# Similarity (see :func:`gsbids.recon.svr.misplaced.stack_similarity`) under which a stack does not belong, and how much
# less than that of the others it must be, and what these must reach: where motion, noise or a field that is still a
# blur spoil all stacks, none is to blame.
STRANGE, APART, AGREED = 0.85, 0.08, 0.9
# Agreement of stacks under which one is at odds with the others, how much less than theirs it must be, and what these
# must reach without it.
AT_ODDS, LESS, AT_ONE = 0.65, 0.15, 0.75


def outlying_stacks(similarity: np.ndarray) -> np.ndarray:
    """Return which stacks are outliers by similarity, (N,), bool: at most one at a time, and none of two.

    Parameters
    ----------
    similarity : ndarray, (N,)
        Similarity of acquired and simulated slices, by stack; NaN where there is none.
    """
    found = np.zeros(len(similarity), bool)
    known = np.isfinite(similarity)
    if known.sum() > 2:
        worst = int(np.nanargmin(similarity))
        others = np.median(np.delete(similarity, worst)[np.delete(known, worst)])
        found[worst] = similarity[worst] < min(STRANGE, others - APART) and others > AGREED
    return found


def apart_from_all(agreement: np.ndarray, rest: float) -> np.ndarray:
    """Return which stacks disagree with the others while these agree with one another, (N,), bool.

    At most one, and none of two. A stack of another subject, deformed slice by slice until it fits the others here and
    there, is similar to the field.

    Parameters
    ----------
    agreement : ndarray, (N,)
        See :func:`gsbids.recon.svr.misplaced.stack_agreement`.
    rest : float
        Least agreement of the others, with the worst stack left out; NaN where there are not enough.
    """
    found = np.zeros(len(agreement), bool)
    if rest > AT_ONE:
        worst = int(np.nanargmin(agreement))
        found[worst] = agreement[worst] < min(AT_ODDS, rest - LESS)
    return found


def with_excluded(result: SvrResult, names: tuple[str, ...], starts: np.ndarray, out: np.ndarray) -> SvrResult:
    """Convert a result of some stacks to one of all: those left out have no slices in it.

    Parameters
    ----------
    result : SvrResult
        Result of the stacks that are not ``out``.
    names : tuple of str
        Names of all N stacks.
    starts : ndarray, (N, 4, 4)
        Transforms scanner -> common space that those left out keep.
    out : ndarray, (N,), bool
    """
    kept = np.flatnonzero(~out)
    affine = starts.copy()
    affine[kept] = result.stack_affine
    bias = result.bias
    if bias:
        log_factor = np.zeros((len(out), bias.log_factor.shape[1]))
        log_factor[kept] = bias.log_factor
        bias = replace(bias, log_factor=log_factor)
    own = dict(zip(kept.tolist(), result.masks, strict=True)) if result.masks else {}
    excluded = [
        name for name, gone in zip(names, out, strict=True) if gone or name in result.settings.get("excluded", [])
    ]
    return replace(
        result,
        stack_names=names,
        stack_index=kept[result.stack_index],
        stack_affine=affine,
        bias=bias,
        masks=tuple(own.get(k) for k in range(len(out))) if own else (),
        settings=result.settings | {"excluded": excluded},
    )


def registered_without(found: StackRegistration, out: np.ndarray, words: str) -> StackRegistration:
    """Convert the registration of some stacks to one of all: those left out stay at their scanner position.

    Parameters
    ----------
    found : StackRegistration
        Registration of the stacks that are not ``out``.
    out : ndarray, (N,), bool
    words : str
        Reason for those.
    """
    kept = np.flatnonzero(~out)

    def spread(values: np.ndarray, rest: Any) -> np.ndarray:
        every = np.array([rest] * len(out))
        every[kept] = values
        return every

    reasons = dict(zip(kept.tolist(), found.reason, strict=True))
    return StackRegistration(
        int(kept[found.template]),
        spread(found.transforms, np.eye(4)),
        spread(found.similarity_before, 0.0),
        spread(found.similarity_after, 0.0),
        spread(found.accepted, False),
        tuple(reasons.get(k, words) for k in range(len(out))),
    )
