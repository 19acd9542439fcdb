"""Weights on disk: the shipped networks by name, files of this repository, and checkpoints in the published layout."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from filterattr import load_state
from filterattr.engine.storage import read_tensors, write_tensors
from filterattr.errors import FilterAttrError, StateMismatchError, StorageError
from sr_zoo.degradations import Degradation, degradations_from
from sr_zoo.models import DASR, RRDBNet, SRCNNStyle, SRResNet, TwoBranch
from sr_zoo.recognition import recognise

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "srresnet": SRResNet,
    "srcnn_style": SRCNNStyle,
    "two_branch": TwoBranch,
    "dasr": DASR,
    "rrdbnet": RRDBNet,
}
WEIGHTS = Path(__file__).parent / "weights"


class WeightsError(FilterAttrError, ValueError):
    """Weights are unknown, unreadable, or of another network; the message says which."""


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name; its first weights come from PyTorch's global generator.

    Args:
        architecture: ``"srresnet"``, ``"srcnn_style"``, ``"two_branch"``, ``"dasr"`` or ``"rrdbnet"``.
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
        >>> from pathlib import Path
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
        >>> from pathlib import Path
        >>> from sr_zoo.models import SRCNNStyle
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tiny.safetensors"
        >>> save_network(path, "srcnn_style", {"upscale": 2}, SRCNNStyle().state_dict(), {"seed": 0})
        >>> describe_network(path)["arguments"]
        {'upscale': 2}
    """
    return _read(path)[1]


def trained_on(provenance: Mapping[str, Any]) -> dict[str, Degradation]:
    """The degradations that weights were trained to undo.

    Args:
        provenance: What `describe_network` says of it; the first weights do not say, and undo blur and noise.

    Returns:
        Name to degradation.

    Raises:
        DegradationError: The description is not that of a degradation.

    Example:
        >>> trained_on({"degradations": ["jpeg:10"]})
        {'jpeg': JPEG(quality=10, subsampling='4:2:0')}
    """
    return degradations_from(provenance.get("degradations", ("blur", "noise")))


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
        >>> from pathlib import Path
        >>> from sr_zoo.models import SRResNet
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
    _load_state(network, _foreign_state(path), path)


def open_network(path: str | Path) -> nn.Module:
    """Open weights of any kind, in evaluation mode.

    Args:
        path: The name of shipped weights, a file of `save_network`, or a checkpoint of somebody else.

    Returns:
        The network on the CPU; ``upscale`` tells its factor.

    Raises:
        WeightsError: The name is unknown, or the weights are of no network that is known.
        StorageError: A file of `save_network` is damaged.

    Example:
        >>> open_network("no-such-weights")
        Traceback (most recent call last):
        ...
        sr_zoo.pretrained.WeightsError: weights must be a file or one of ...
    """
    found = find_weights(path)
    return load_network(found) if found.suffix == ".safetensors" and _is_own(found) else open_checkpoint(found)


def open_checkpoint(path: str | Path) -> nn.Module:
    """Build the network of somebody else's checkpoint from its names and shapes, and load it, in evaluation mode.

    Networks of `sr_zoo.models` in the layout of BasicSR are known: SRResNet, the SRCNN-style network, and RRDBNet (also
    by the names of the first ESRGAN). All others are left to spandrel, which knows some forty architectures, if it is
    installed. Nothing but tensors is unpickled.

    Args:
        path: A file of `torch.save` or a safetensors file.

    Returns:
        The network on the CPU; ``upscale`` tells its factor.

    Raises:
        WeightsError: The file cannot be read safely, or no network is known that fits.

    Example:
        >>> from pathlib import Path
        >>> from sr_zoo.models import SRResNet
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "net_g_latest.pth"
        >>> torch.save({"params": SRResNet(num_feat=4, num_block=2, upscale=3).state_dict()}, path)
        >>> open_checkpoint(path).upscale
        3
    """
    state = _foreign_state(path)
    recognised = recognise(state)
    if recognised is None:
        return _open_with_spandrel(state, path)
    architecture, arguments, state = recognised
    network = build(architecture, arguments)
    _load_state(network, state, path)
    return network.eval()


def _open_with_spandrel(state: dict[str, Tensor], path: str | Path) -> nn.Module:
    """Ask the collection that knows nearly all published architectures."""
    try:
        import spandrel  # noqa: PLC0415 - optional
    except (ImportError, RuntimeError) as error:  # its torchvision raises a RuntimeError beside another torch
        raise WeightsError(
            f"'{path}' holds none of {', '.join(ARCHITECTURES)}, and the collection that knows other architectures "
            f"cannot be imported ({error}): pip install spandrel."
        ) from error
    try:
        described = spandrel.ModelLoader().load_from_state_dict(state)
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError) as error:  # or it does not fit
        raise WeightsError(f"'{path}' holds no network that this package or spandrel knows.") from error
    network: nn.Module = described.model.eval()
    setattr(network, "upscale", int(described.scale))  # noqa: B010 - no parameter, whatever mypy takes it for
    return network


def _foreign_state(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; the average first."""
    try:
        return load_state(path)
    except (StateMismatchError, StorageError) as error:
        raise WeightsError(str(error)) from error


def _is_own(path: Path) -> bool:
    """Whether a safetensors file says of itself that it is one of `save_network`; a damaged one does, too."""
    with path.open("rb") as stream:
        return b'"format":"filterattr-' in stream.read(1 << 16)


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

    Example:
        >>> find_weights("srresnet_x2_f32b8_base").name
        'srresnet_x2_f32b8_base.safetensors'
    """
    shipped = WEIGHTS / f"{path}.safetensors"
    if shipped.exists():
        return shipped
    if not Path(path).exists() or Path(path).is_dir():
        kind = ", which is a folder" if Path(path).is_dir() else _near(Path(path))
        raise WeightsError(
            f"weights must be a file or one of {', '.join(shipped_weights()) or '(none shipped)'}; got '{path}'{kind}."
        )
    return Path(path)


def _near(path: Path) -> str:
    """Names that look like a file that is not there: shipped ones, and what lies in its folder."""
    siblings = [str(one) for one in path.parent.glob("*") if one.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), [*shipped_weights(), *siblings], n=2, cutoff=0.8)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
