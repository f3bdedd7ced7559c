# SPDX-License-Identifier: Apache-2.0
"""Mask networks of all kinds: their files of weights, and the segmentation of a stack."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsbids.errors import InputError
from gsbids.masking.checkpoint import SUFFIXES, read_state
from gsbids.masking.fetal_bet import FIRST, FetalBetShape, load_fetal_bet, segment_fetal_bet
from gsbids.masking.found import MaskNetwork, NetworkMask
from gsbids.masking.judge import build_judge
from gsbids.masking.monaifbs import load_monaifbs, segment_monaifbs
from gsbids.masking.network import NetworkShape, build_network, segment

if TYPE_CHECKING:
    from torch.nn import Module

JUDGE = "judge."  # prefix of the names of the weights of the classifier


def weights_file(given: str | Path | None = None) -> Path:
    """Return the file of weights to use: the one that is given, else the one of the package."""
    return Path(given) if given else Path(__file__).parent / "weights" / "fetal.safetensors"


def save_network(path: str | Path, known: MaskNetwork) -> None:
    """Write the weights as safetensors.

    Those of the classifier are under :data:`JUDGE`; shape and facts are in the header.
    """
    from safetensors.torch import save_file

    state = dict(known.network.state_dict())
    if known.judge is not None:
        state |= {JUDGE + name: tensor for name, tensor in known.judge.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, str(path), {"shape": json.dumps(asdict(known.shape)), **known.facts})


def load_network(path: str | Path) -> MaskNetwork:
    """Read a network from a file of weights: our own or, by its suffix, a checkpoint of MONAIfbs or Fetal-BET2.

    Returns
    -------
    MaskNetwork
        Network, with a classifier (``judge``) if there is one in the file.

    Raises
    ------
    gsbids.errors.InputError
        There is no such file, it holds something else, or its weights do not fit its shape.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(
            f"{path}: there are no such weights; train them (training/README.md) and give --mask-weights "
            "FILE, or give masks"
        )
    if Path(path).suffix in SUFFIXES:
        return MaskNetwork(*_from_elsewhere(path))
    try:
        with safe_open(str(path), "pt") as file:
            facts = file.metadata() or {}
            told = json.loads(facts.pop("shape"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        shape = NetworkShape(
            tuple(told["channels"]), float(told["pixel"]), int(told.get("slices", 1)), int(told.get("side", 160))
        )
        of_judge = {name: tensors.pop(name) for name in list(tensors) if name.startswith(JUDGE)}
        network = build_network(shape)
        network.load_state_dict(tensors)
        judge = build_judge() if of_judge else None
        if judge:
            judge.load_state_dict({name.removeprefix(JUDGE): tensor for name, tensor in of_judge.items()})
            judge.eval()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of weights") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: no weights of a mask network ({str(error).splitlines()[0]}); give a .safetensors "
            "file that training/train.py or judge.py has written"
        ) from error
    return MaskNetwork(network.eval(), shape, judge, facts)


def _from_elsewhere(path: str | Path) -> "tuple[Module, object]":
    """Load network and shape from a checkpoint of another tool, recognised by the names of its layers."""
    state = read_state(path)
    load = load_fetal_bet if any(name.startswith(FIRST) for name in state) else load_monaifbs
    return load(state, path)


def segment_stack(image: np.ndarray, affine: np.ndarray, known: MaskNetwork) -> NetworkMask:
    """Segment the brain in a stack, whatever the axis of its slices.

    See :func:`segment`, :func:`gsbids.masking.monaifbs.segment_monaifbs`, and
    :func:`gsbids.masking.fetal_bet.segment_fetal_bet`.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices along the axis with the largest voxel side.
    affine : ndarray, (4, 4)
    known : MaskNetwork

    Returns
    -------
    NetworkMask
        On the grid of the image.
    """
    if image.ndim != 3:
        raise InputError(f"the image has {image.ndim} axes; a stack has three")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    across = int(np.argmax(spacing)) if spacing.max() > 1.01 * spacing.min() else 2
    order = [axis for axis in range(3) if axis != across] + [across]
    back = np.argsort(order)
    find = {NetworkShape: segment, FetalBetShape: segment_fetal_bet}.get(type(known.shape), segment_monaifbs)
    found = find(np.transpose(image, order), tuple(spacing[order]), known)
    return NetworkMask(np.transpose(found.mask, back), np.transpose(found.probability, back), found.confidence)
