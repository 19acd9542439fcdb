"""Weights on disk: the shipped networks by name, files of this repository, and checkpoints in the published layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.engine.storage import read_tensors, write_tensors
from sr_zoo.models import SRCNNStyle, SRResNet

ARCHITECTURES: dict[str, type[nn.Module]] = {"srresnet": SRResNet, "srcnn_style": SRCNNStyle}
WEIGHTS = Path(__file__).parent / "weights"


class WeightsError(ValueError):
    """Weights are unknown, unreadable, or of another network; the message says which."""


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name; its first weights come from PyTorch's global generator.

    Args:
        architecture: ``"srresnet"`` or ``"srcnn_style"``.
        arguments: Keyword arguments of its constructor.

    Returns:
        The network, in training mode.

    Raises:
        WeightsError: The name is unknown, or an argument is.

    Example:
        >>> build("srcnn_style", {"upscale": 2}).upscale
        2
    """
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"the architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
    try:
        return ARCHITECTURES[architecture](**arguments)
    except TypeError as error:
        raise WeightsError(f"{architecture} cannot be built from {dict(arguments)}: {error}.") from error


def save_network(
    path: str | Path,
    architecture: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> None:
    """Write weights together with what is needed to rebuild the network, as safetensors.

    Args:
        path: Where to write.
        architecture: Name of the architecture.
        arguments: Keyword arguments of its constructor.
        state: Parameter name to tensor.
        provenance: How the weights came about: recipe, data, seed, command.
    """
    description = {
        "architecture": architecture,
        "arguments": dict(arguments),
        "provenance": dict(provenance),
    }
    write_tensors(path, "network", state, description)


def describe_network(path: str | Path) -> dict[str, Any]:
    """Read what a file of `save_network` says about itself.

    Args:
        path: A file, or the name of shipped weights.

    Returns:
        ``{"architecture", "arguments", "provenance"}``.
    """
    return read_tensors(_locate(path), "network")[1]


def load_network(path: str | Path) -> nn.Module:
    """Load a network with its weights, in evaluation mode.

    Args:
        path: A file of `save_network`, or the name of shipped weights (see `shipped_weights`).

    Returns:
        The network on the CPU, ``float32``.

    Raises:
        WeightsError: The name is unknown or the weights do not fit.
        StorageError: The file is damaged or of another format.

    Example:
        >>> load_network("no-such-weights")
        Traceback (most recent call last):
        ...
        sr_zoo.pretrained.WeightsError: weights must be a file or one of ...
    """
    tensors, description = read_tensors(_locate(path), "network")
    network = build(description["architecture"], description["arguments"])
    _load_state(network, tensors, path)
    return network.eval()


def shipped_weights() -> list[str]:
    """List the names of the weights that come with the package.

    Returns:
        Names for `load_network`.

    Example:
        >>> isinstance(shipped_weights(), list)
        True
    """
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_checkpoint(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint in the published layout (BasicSR) into a network.

    Entries ``params_ema`` or ``params`` are looked into (the average first), and the prefix ``module.`` of
    data-parallel training is taken off. Nothing but tensors is unpickled, whatever the environment says.

    Args:
        network: The network; its weights are replaced.
        path: A ``.pth`` file.

    Raises:
        WeightsError: The file cannot be read safely, or names and shapes do not fit; all of them are listed.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly every type there is
        raise WeightsError(f"'{path}' is no checkpoint that can be read safely: {error}") from error
    _load_state(network, published_state(content, path), path)


def published_state(content: object, path: str | Path) -> dict[str, Tensor]:
    """Find the weights in the content of a published checkpoint.

    Args:
        content: What the file held.
        path: The file, for messages.

    Returns:
        Parameter name to tensor.

    Raises:
        WeightsError: There is no dictionary of tensors in it.

    Example:
        >>> list(published_state({"params": {"module.conv.weight": torch.zeros(1)}}, "x.pth"))
        ['conv.weight']
    """
    for key in ("params_ema", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"'{path}' must hold a dictionary of tensors, directly or under 'params_ema' or 'params'.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _load_state(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load strictly, with PyTorch's list of misfits in our words."""
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"'{path}' does not fit {type(network).__name__}: {error}") from error


def _locate(path: str | Path) -> Path:
    """Find shipped weights by name, or take the path as it is."""
    shipped = WEIGHTS / f"{path}.safetensors"
    if shipped.exists():
        return shipped
    if not Path(path).exists():
        raise WeightsError(
            f"weights must be a file or one of {', '.join(shipped_weights()) or '(none shipped)'}; got '{path}'."
        )
    return Path(path)
