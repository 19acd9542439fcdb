"""Weights on disk: the shipped networks by name, files of this repository, and checkpoints in the published layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from filterattr.engine.foreign import read_checkpoint
from filterattr.engine.states import plain_state
from filterattr.engine.storage import read_tensors, write_tensors
from filterattr.errors import FilterAttrError, StateMismatchError, StorageError
from sr_zoo.models import SRCNNStyle, SRResNet, TwoBranch

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "srresnet": SRResNet,
    "srcnn_style": SRCNNStyle,
    "two_branch": TwoBranch,
}
WEIGHTS = Path(__file__).parent / "weights"


class WeightsError(FilterAttrError, ValueError):
    """Weights are unknown, unreadable, or of another network; the message says which."""


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name; its first weights come from PyTorch's global generator.

    Args:
        architecture: ``"srresnet"``, ``"srcnn_style"`` or ``"two_branch"``.
        arguments: Keyword arguments of its constructor.

    Returns:
        The network, in training mode.

    Raises:
        WeightsError: The name is unknown, or an argument is unknown or has no such value.

    Example:
        >>> build("srcnn_style", {"upscale": 2}).upscale
        2
    """
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"the architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
    try:
        return ARCHITECTURES[architecture](**arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise WeightsError(f"{architecture} cannot be built from {dict(arguments)}: {reason}.") from error


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

    Raises:
        StorageError: The provenance is not JSON, or the disk refuses.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tiny.safetensors"
        >>> arguments = {"num_feat": 4, "num_block": 1}
        >>> save_network(path, "srresnet", arguments, build("srresnet", arguments).state_dict(), {"seed": 0})
        >>> load_network(path).upscale
        2
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

    Raises:
        WeightsError: The name is unknown, or the file does not say how to build its network.
        StorageError: The file is damaged or of another format.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tiny.safetensors"
        >>> save_network(path, "srcnn_style", {"upscale": 2}, SRCNNStyle().state_dict(), {"seed": 0})
        >>> describe_network(path)["arguments"]
        {'upscale': 2}
    """
    return _read(path)[1]


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
    tensors, description = _read(path)
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

    Entries ``params_ema``, ``params`` or ``state_dict`` are looked into (the average first), and the prefix
    ``module.`` of data-parallel training is taken off. Nothing but tensors is unpickled, whatever the environment says.

    Args:
        network: The network; its weights are replaced, all of them or none.
        path: A ``.pth`` file.

    Raises:
        WeightsError: The file cannot be read safely, or names and shapes do not fit; all of them are listed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "net_g_latest.pth"
        >>> trained = SRResNet(num_feat=4, num_block=1)
        >>> torch.save({"params": trained.state_dict()}, path)
        >>> network = SRResNet(num_feat=4, num_block=1)
        >>> load_checkpoint(network, path)
        >>> torch.equal(network.conv_last.weight, trained.conv_last.weight)
        True
    """
    try:
        state = plain_state(read_checkpoint(path), f"'{path}'")
    except (StateMismatchError, StorageError) as error:
        raise WeightsError(str(error)) from error
    _load_state(network, state, path)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and description of a file of `save_network`."""
    tensors, description = read_tensors(find_weights(path), "network")
    if not isinstance(description.get("architecture"), str) or not isinstance(description.get("arguments"), dict):
        raise WeightsError(f"'{path}' must say which 'architecture' it holds and its 'arguments'; got {description}.")
    return tensors, description


def _load_state(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load all weights or, if any does not fit, none; PyTorch itself would load those that do."""
    own = network.state_dict()
    shapes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state}
    findings = {
        "it lacks": [name for name in own if name not in state],
        "the network has no": [name for name in state if name not in own],
        "shapes differ:": [
            f"{name} {found} instead of {held}" for name, (found, held) in shapes.items() if found != held
        ],
    }
    listed = "; ".join(f"{finding} {', '.join(names)}" for finding, names in findings.items() if names)
    if listed:
        raise WeightsError(f"'{path}' does not fit {type(network).__name__}: {listed}. Build it with other arguments.")
    network.load_state_dict(dict(state))


def find_weights(path: str | Path) -> Path:
    """Find shipped weights by name, or take the path as it is.

    Args:
        path: A file, or a name from `shipped_weights`.

    Returns:
        The file.

    Raises:
        WeightsError: There is no such file and no such name.
    """
    shipped = WEIGHTS / f"{path}.safetensors"
    if shipped.exists():
        return shipped
    if not Path(path).exists():
        raise WeightsError(
            f"weights must be a file or one of {', '.join(shipped_weights()) or '(none shipped)'}; got '{path}'."
        )
    return Path(path)
