# SPDX-License-Identifier: Apache-2.0
"""Stacks whose masks are doubtful: found by comparison with the others, and left out where these are enough."""

from dataclasses import dataclass

import numpy as np

# Volume, and length, of a mask over those of the usual one of the subject, within which a mask is believed.
VOLUMES, LENGTHS = (0.5, 2.0), (0.6, 1.6)
LEAST_SOUND = 2  # stacks without doubt for which doubtful ones are left out
MADE = ("network", "otsu")  # modes that guess; what was given is not doubted


@dataclass(frozen=True)
class MaskChoice:
    """Doubts about the masks of N stacks, and which stacks are left out.

    Attributes
    ----------
    doubts : tuple of str
        Reasons why each mask is doubtful, in sentences; empty where it is not.
    left_out : tuple of bool
        Stacks that have no part in the reconstruction.
    """

    doubts: tuple[str, ...]
    left_out: tuple[bool, ...]

    def words(self, number: int) -> str:
        """Describe what is wrong with a stack's mask and what follows, for log and report; empty if nothing is."""
        if not self.doubts[number]:
            return ""
        if self.left_out[number]:
            return f"{self.doubts[number]} The stack is left out of the reconstruction."
        why = "" if len(self.doubts) == 1 else ", as fewer than two other stacks have a mask without doubt"
        return f"{self.doubts[number]} The stack is used all the same{why}: look at its mask."


def mask_length(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the length (mm) of a mask along its longest axis, in any direction.

    It is 4 standard deviations of its voxels.
    """
    index = np.argwhere(mask)
    if len(index) < 2:
        return 0.0
    spread = np.linalg.eigvalsh(affine[:3, :3] @ np.cov(index.T) @ affine[:3, :3].T)[-1]
    return float(4 * np.sqrt(max(spread, 0.0)))


def choose_stacks(volumes: list[float], lengths: list[float], methods: list[str], doubts: list[str]) -> MaskChoice:
    """Mark masks that are unlike the others of the subject as doubtful, and leave doubtful stacks out.

    They are left out where two without doubt remain.

    Parameters
    ----------
    volumes, lengths : list of float
        Volumes and lengths of the masks of N stacks, ml and mm; 0: no mask could be made.
    methods : list of str
        Modes that made them; see :data:`MADE`.
    doubts : list of str
        Earlier doubts, in sentences.

    Returns
    -------
    MaskChoice
        All are left out where no stack has a mask.
    """
    found = [
        " ".join(filter(None, parts))
        for parts in zip(
            doubts,
            _unlike(volumes, methods, doubts, VOLUMES, "holds {:.0f} ml"),
            _unlike(lengths, methods, doubts, LENGTHS, "is {:.0f} mm long"),
            strict=True,
        )
    ]
    empty = [volume == 0 for volume in volumes]
    sound = sum(not doubt and not none for doubt, none in zip(found, empty, strict=True))
    out = [none or (bool(doubt) and sound >= LEAST_SOUND) for doubt, none in zip(found, empty, strict=True)]
    return MaskChoice(tuple(found), tuple(out))


def _unlike(
    values: list[float], methods: list[str], doubts: list[str], limits: tuple[float, float], form: str
) -> list[str]:
    """Write a sentence for every made mask that differs too much from the usual one: the median, or the other of two.

    Masks that are doubtful already do not count for the median, unless too few others are there.
    """
    known = [value for value, doubt in zip(values, doubts, strict=True) if value > 0 and not doubt]
    if len(known) < 2:
        known = [value for value in values if value > 0]
    words = []
    for value, method in zip(values, methods, strict=True):
        one_of_two = len(known) == 2 and value in known
        usual = sum(known) - value if one_of_two else float(np.median(known or [0.0]))
        ratio = value / usual if usual > 0 and value > 0 else 1.0
        odd = method in MADE and not limits[0] <= ratio <= limits[1]
        words.append(
            f"Its mask {form.format(value)}, {ratio:.2g} times that of the "
            f"{'other' if one_of_two else 'usual'} stack of this subject."
            if odd
            else ""
        )
    return words
