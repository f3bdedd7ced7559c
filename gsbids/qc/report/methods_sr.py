# SPDX-License-Identifier: Apache-2.0
"""Methods text of super-resolution, which can be copied into a paper."""

from dataclasses import dataclass, field

from gsbids.qc.report.methods import software_sentence, version_of


@dataclass(frozen=True)
class SrMethodsFacts:
    """Facts of a super-resolution for :func:`sr_methods_paragraphs`.

    Attributes
    ----------
    versions : dict of str to str
        Version of each package by its import name.
    suffix : str
        BIDS suffix of the volume, for example ``T1w``.
    denoised, bias_corrected : bool
    resolution : tuple of float
        Voxel size of the super-resolved volume in mm.
    settings : dict
        Settings of ``SrResult``; empty where nothing was fitted.
    n_fields, n_gaussians : int
        Number of members of the ensemble, and of Gaussians in all of them.
    n_volumes : int
        Number of volumes of the run that the text describes.
    planned : {"", "full", "fast"}
        Quality of a whole run, where the text describes it without its results; else empty.
    seed : int, optional
        Random seed where ``settings`` does not have it.
    device : str
        Device where ``settings`` does not have it.
    """

    versions: dict = field(default_factory=dict)
    suffix: str = ""
    denoised: bool = False
    bias_corrected: bool = False
    resolution: tuple[float, ...] = ()
    settings: dict = field(default_factory=dict)
    n_fields: int = 0
    n_gaussians: int = 0
    n_volumes: int = 1
    planned: str = ""
    seed: int | None = None
    device: str = "cpu"


_PROFILES = {
    "box": "the mean over the voxel",
    "gaussian": "a Gaussian slice profile",
    "trilinear": "linear interpolation at its centre",
    "kspace": "a cut of k-space at its Nyquist frequency",
}


def sr_methods_paragraphs(facts: SrMethodsFacts) -> tuple[str, ...]:
    """Write the methods section of a super-resolved volume or of a run, as paragraphs with ``[@key]`` citations."""
    return (
        _preprocessing(facts),
        _planned(facts) if facts.planned else _super_resolution(facts),
        software_sentence(
            facts.versions, facts.settings.get("device", facts.device), facts.settings.get("seed", facts.seed)
        ),
    )


def _preprocessing(facts: SrMethodsFacts) -> str:
    """Write the paragraph on the input, denoising and bias correction."""
    one = facts.n_volumes == 1
    count = f"One {facts.suffix} volume" if one else f"{facts.n_volumes} {facts.suffix} volumes"
    sentences = [
        f"{count} of a BIDS data set [@bids] {'was' if one else 'were'} processed with "
        f"gsbids{version_of(facts.versions, 'gsbids')}, a BIDS App [@bidsapps] built on "
        f"Nipype{version_of(facts.versions, 'nipype')} [@nipype] and "
        f"PyBIDS{version_of(facts.versions, 'bids')} [@pybids]."
    ]
    steps = []
    if facts.denoised:
        steps.append("denoised by adaptive non-local means [@denoise]")
    if facts.bias_corrected:
        steps.append("corrected for intensity inhomogeneity with N4 [@n4]")
    if steps:
        sentences.append(
            f"{'It was' if one else 'They were'} {' and '.join(steps)} (ANTs [@ants], "
            f"antspyx{version_of(facts.versions, 'ants')})."
        )
    return " ".join(sentences)


def _planned(facts: SrMethodsFacts) -> str:
    """Write the paragraph on super-resolution that holds for all volumes of a run, whatever their fits choose."""
    one = facts.n_volumes == 1
    size = " x ".join(f"{side:g}" for side in facts.resolution)
    first = (
        f"{'It was' if one else 'They were'} super-resolved{f' to voxels of {size} mm' if size else ''}, "
        f"{'' if one else 'each '}from its own voxels alone."
    )
    if facts.planned == "fast":
        return (
            f"{first} The volume is the one of least energy at high frequencies that is true to the data (Sobolev "
            "solution)."
        )
    return (
        f"{first} The image was modelled by normalised fields of anisotropic Gaussians [@srgaussians], each with "
        "an amplitude and a log-weight, fitted with Adam [@adam] to its squared residuals. Voxels that were hidden "
        "from a trial on a part of the image chose width, rates and iterations, and the blend of the Gaussians "
        "with the Sobolev solution and a cubic B-spline, which was projected on the data."
    )


def _super_resolution(facts: SrMethodsFacts) -> str:
    """Write the paragraph on the super-resolution of one volume, with what its fit chose."""
    if not facts.settings:
        return "It was to be super-resolved from its own voxels alone."
    factor = " x ".join(f"{f:.3g}" for f in facts.settings["factor"])
    size = " x ".join(f"{side:g}" for side in facts.resolution)
    names = facts.settings["profile"]
    names = dict.fromkeys([names] if isinstance(names, str) else names)
    words = " and ".join(_PROFILES[name] for name in names)
    sentences = [
        f"It was super-resolved {factor} times along its axes, to voxels of {size} mm, from its own voxels "
        f"alone; a voxel of the image was taken to be {words} of the fine volume."
    ]
    choice = facts.settings.get("choice")
    air = (
        ["Air showed the noise of a magnitude image; the mean of that noise was taken out of the volume [@rice]."]
        if facts.settings.get("magnitude_noise")
        else []
    )
    if not choice:
        return " ".join(
            [
                *sentences,
                "The volume is the one of least energy at high frequencies that is true to the "
                "data (Sobolev solution).",
                *air,
            ]
        )
    if facts.n_fields:
        many = f"{facts.n_fields} normalised fields" if facts.n_fields > 1 else "one normalised field"
        count = f"{facts.n_gaussians:,}".replace(",", " ")
        sentences.append(
            f"The image was modelled by {many} of anisotropic Gaussians [@srgaussians] ({count} in all), each with an "
            "amplitude and a log-weight, fitted with Adam [@adam] to the squared residuals of the image."
        )
    deep = choice.get("deep")
    blend = _shares(choice["blend"]) + (f"; far from the background {_shares(deep['blend'])}" if deep else "")
    smoothed = choice["smoothing"] or (deep and deep["smoothing"])
    sentences.append(
        "Voxels that were hidden from a trial on a part of the image chose width, rates and iterations, and the blend: "
        f"{blend}. The blend was projected on the data"
        + (", smoothed by non-local means, and projected again." if smoothed else ".")
    )
    if choice.get("edge"):
        sentences.append(
            "As the image ended at the edge of a mask, that edge was sharpened: boosted trees, trained "
            "on shifted copies of the volume with an edge of tissue or nothing, told what stood on its "
            "ramp, and the volume was projected on the data once more."
        )
    return " ".join([*sentences, *air])


def _shares(blend: dict[str, float]) -> str:
    """Format the shares of the parts of a blend in percent."""
    return ", ".join(f"{100 * share:.0f} % {_EXPERTS[name]}" for name, share in blend.items() if share)


_EXPERTS = {"gaussians": "Gaussians", "sobolev": "the Sobolev solution", "bspline": "a cubic B-spline"}
