# SPDX-License-Identifier: Apache-2.0
"""Methods text of a reconstruction, which can be copied into a paper, with numbered references.

Paragraphs cite with ``[@key]`` or ``[@key; @key]``; the keys are those of ``templates/references.toml``.
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Reference:
    """Entry of the list of references: its text, and its DOI or arXiv address (without ``https://``)."""

    text: str
    address: str = ""

    @property
    def url(self) -> str:
        """Address with ``https://``; empty without one."""
        return f"https://{self.address}" if self.address else ""


@cache
def references() -> dict[str, Reference]:
    """Read all references that a methods text may cite, by key."""
    with open(Path(__file__).parent / "templates" / "references.toml", "rb") as file:
        return {key: Reference(**entry) for key, entry in tomllib.load(file).items()}


@dataclass(frozen=True)
class MethodsFacts:
    """Facts of a reconstruction for :func:`methods_paragraphs`; steps that were not done are None or False.

    Attributes
    ----------
    versions : dict of str to str
        Version of each package by its import name (``gsbids``, ``nipype``, ``bids``, ``ants``, ...).
    n_stacks : int
        Number of stacks that entered the reconstruction.
    masking : str
        Source of the brain masks: ``derivatives``, ``network``, ``nonzero``, ``otsu`` or ``none``; several joined
        by ``+``.
    n_left_out : int
        Number of these stacks that were left out for a doubtful mask.
    denoised, bias_corrected, registered, motion_corrected : bool
    method : {"default", "paper"}
        Algorithm that fitted the field.
    n_gaussians : int, optional
        Number of Gaussians of the field.
    resolution : tuple of float, optional
        Spacing of the output grid in mm.
    seed : int, optional
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:1 (name of the GPU)``.
    posed : bool
        Whether slices came with their poses.
    template : str
        Name of the template that the brain was aligned to; empty without one.
    plain : bool
        Whether the stacks were plain files, not those of a BIDS data set.
    """

    versions: dict = field(default_factory=dict)
    n_stacks: int = 0
    masking: str = ""
    denoised: bool = False
    bias_corrected: bool = False
    registered: bool = False
    motion_corrected: bool = True
    method: str = "default"
    n_gaussians: int | None = None
    resolution: tuple[float, ...] | None = None
    seed: int | None = None
    device: str | None = None
    posed: bool = False
    template: str = ""
    plain: bool = False
    n_left_out: int = 0


_MASKS = {
    "derivatives": "were taken from an existing derivative data set and resampled to the stacks",
    "network": "were found slice by slice by a convolutional network (MONAI [@monai]), keeping the largest component",
    "nonzero": "were the voxels above zero, as the stacks came without skull",
    "otsu": "were found by Otsu's threshold [@otsu], keeping the largest component and filling its holes",
    "none": "were not used: the whole field of view was reconstructed",
}


def methods_paragraphs(facts: MethodsFacts) -> tuple[str, ...]:
    """Write the methods section of one reconstruction, as paragraphs with ``[@key]`` citations.

    Parameters
    ----------
    facts : MethodsFacts

    Returns
    -------
    tuple of str
        Paragraphs on preprocessing, reconstruction and software.
    """
    return (_preprocessing(facts), _reconstruction(facts), software_sentence(facts.versions, facts.device, facts.seed))


def version_of(versions: dict, package: str) -> str:
    """Return the version of a package with a space before it; empty where it is not known."""
    version = versions.get(package)
    return f" {version}" if version else ""


def _preprocessing(facts: MethodsFacts) -> str:
    """Write the paragraph on masks, denoising, bias correction and co-registration."""
    count = f"{facts.n_stacks} stacks" if facts.n_stacks > 1 else "The stacks"
    gsbids, nipype, pybids = (
        f"{name}{version_of(facts.versions, package)}"
        for name, package in (("gsbids", "gsbids"), ("Nipype", "nipype"), ("PyBIDS", "bids"))
    )
    sentences = [
        f"{count} of thick slices were organised as a BIDS data set [@bids] and processed with {gsbids}, a BIDS App "
        f"[@bidsapps] built on {nipype} [@nipype] and {pybids} [@pybids]."
    ]
    known = _MASKS
    if facts.plain:
        sentences = [f"{count} of thick slices were processed with {gsbids}, built on {nipype} [@nipype]."]
        known = _MASKS | {"derivatives": "were given with the stacks and resampled to them"}
    masks = [known[name] for name in facts.masking.split("+") if name in known]
    if masks:
        sentences.append(f"Brain masks {', or '.join(masks)}.")
    if facts.n_left_out:
        one = facts.n_left_out == 1
        sentences.append(
            f"{'One stack' if one else f'{facts.n_left_out} stacks'} with {'a ' if one else ''}doubtful "
            f"mask{'' if one else 's'} {'was' if one else 'were'} left out."
        )
    steps = []
    if facts.denoised:
        steps.append("denoised by adaptive non-local means [@denoise], as far as their measured noise called for")
    if facts.bias_corrected:
        steps.append("corrected for intensity inhomogeneity with N4 [@n4] inside the mask")
    if steps:
        sentences.append(
            f"Stacks were {', and '.join(steps)} (ANTs [@ants], antspyx{version_of(facts.versions, 'ants')})."
        )
    if facts.posed:
        sentences.append("Slices started from the poses that were given with them.")
    if facts.registered:
        sentences.append(
            "Whole stacks were co-registered rigidly from a cover of all rotations, maximising the normalised "
            "cross-correlation inside their masks; a registration was kept only where it raised the similarity."
        )
    return " ".join(sentences)


def _reconstruction(facts: MethodsFacts) -> str:
    """Write the paragraph on the field of Gaussians, its fit and the output grid."""
    number = f" of {facts.n_gaussians:,} Gaussians".replace(",", " ") if facts.n_gaussians else " of Gaussians"
    sentences = [
        f"The brain was represented as a normalised field{number} of free position, size, orientation and "
        "intensity [@gsvr]. Every slice was simulated from it through a Gaussian point spread function with "
        "a full width at half maximum of 1.2 times the pixel size in the plane and of the slice thickness "
        "through it, by adding the covariances, with an intensity factor and a robust weight for every slice "
        "[@svr]."
    ]
    sentences.append(_fit(facts))
    if not facts.motion_corrected:
        sentences.append("Slices were not corrected for motion beyond the registration of the stacks.")
    if facts.template:
        sentences.append(
            f"The reconstructed brain was aligned rigidly to the template {facts.template}, from a cover of all "
            "rotations, maximising the normalised cross-correlation of the two brains brought to one size."
        )
    if facts.resolution:
        spacing = " x ".join(f"{value:g}" for value in facts.resolution) + " mm"
        if len(set(facts.resolution)) == 1:
            spacing = f"{facts.resolution[0]:g} mm isotropic"
        sentences.append(f"The field was sampled once on a grid of {spacing} voxels.")
    return " ".join(sentences)


def _fit(facts: MethodsFacts) -> str:
    """Write the sentence on the fit."""
    if facts.method == "paper":
        poses = " together with one rigid pose per slice" if facts.motion_corrected else ""
        return (
            f"The Gaussians were fitted{poses} with Adam [@adam] as published in [@gsvr], every pixel being "
            "rendered from its 64 nearest Gaussians, minimising the mean absolute difference of acquired and "
            "simulated pixels within the masks; slices that stand out lose weight (Welsch)."
        )
    poses = " and, in turns, one rigid pose per slice by Levenberg-Marquardt steps [@lm]"
    return (
        f"The Gaussians were fitted with Adam [@adam]{poses if facts.motion_corrected else ''}, minimising the "
        "Charbonnier loss of acquired and simulated pixels within the masks and a rim of 3.5 mm around them; "
        "slices and pixels that stand out lose weight (Welsch)."
    )


def software_sentence(versions: dict, device: str | None, seed: int | None) -> str:
    """Write the sentence on the numerical packages with their versions, the device and the random seed."""
    names = (
        ("PyTorch", "torch", "pytorch"),
        ("Numba", "numba", "numba"),
        ("NumPy", "numpy", "numpy"),
        ("SciPy", "scipy", "scipy"),
        ("NiBabel", "nibabel", "nibabel"),
    )
    parts = [f"{name}{version_of(versions, package)} [@{key}]" for name, package, key in names]
    sentence = f"Computations used {', '.join(parts[:-1])} and {parts[-1]}"
    if device:
        name = re.search(r"\((.+)\)$", device)
        sentence += f" on the {'GPU' if device.startswith('cuda') else 'CPU'}{f' ({name[1]})' if name else ''}"
    if seed is not None:
        sentence += f"; the random seed was {seed}"
    return sentence + "."


_CITATION = re.compile(r"\[(@[\w.-]+(?:\s*;\s*@[\w.-]+)*)\]")


def number_citations(paragraphs: tuple[str, ...]) -> tuple[list[list[str | list[int]]], list[Reference]]:
    """Split paragraphs at their citations and number the references in the order they appear.

    Parameters
    ----------
    paragraphs : tuple of str

    Returns
    -------
    pieces : list of list
        For every paragraph its pieces: plain text (str), or the numbers of a citation (list of int).
    references : list of Reference
        In the order of their numbers, from 1. A key that is not known stays in the text as it is.

    Examples
    --------
    >>> pieces, references = number_citations(("Corrected with N4 [@n4].",))
    >>> pieces
    [['Corrected with N4 ', [1], '.']]
    """
    known = references()
    order: list[str] = []
    numbered = []
    for paragraph in paragraphs:
        pieces: list[str | list[int]] = []
        for i, part in enumerate(_CITATION.split(paragraph)):
            keys = re.findall(r"@([\w.-]+)", part) if i % 2 else []
            if keys and all(key in known for key in keys):
                order.extend(key for key in dict.fromkeys(keys) if key not in order)
                pieces.append([order.index(key) + 1 for key in keys])
            elif part:
                pieces.append(f"[{part}]" if i % 2 else part)
        numbered.append(pieces)
    return numbered, [known[key] for key in order]
