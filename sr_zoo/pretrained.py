"""Weights: shipped networks by name, files of this package, and checkpoints of other projects."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from filterattr import StateMismatchError, StorageError, load_state
from filterattr.files import read_tensors, write_tensors
from sr_zoo.building import ARCHITECTURES, WeightsError, build, build_with, check_weights
from sr_zoo.degradations import Degradation, degradations_from
from sr_zoo.foreign import check_names, open_with_spandrel
from sr_zoo.models.blocks import brief
from sr_zoo.recognition import recognise

__all__ = [
    "ARCHITECTURES",
    "WEIGHTS",
    "OpenedWeights",
    "WeightsError",
    "build",
    "describe_network",
    "find_weights",
    "load_checkpoint",
    "load_network",
    "open_checkpoint",
    "open_network",
    "open_weights",
    "save_network",
    "shipped_weights",
    "trained_on",
]

WEIGHTS = Path(__file__).parent / "weights"


class OpenedWeights(NamedTuple):
    """A network with its weights, and a description of both.

    Attributes:
        network: The network on the CPU, ``float32``, in evaluation mode.
        architecture: Name for `build`. For a network of spandrel, it is a name that `build` does not know.
        arguments: Keyword arguments of its constructor.
        provenance: How the weights came about; empty for those of other projects.
    """

    network: nn.Module
    architecture: str
    arguments: dict[str, Any]
    provenance: dict[str, Any]


def save_network(
    path: str | Path,
    architecture: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> None:
    """Write weights together with what is needed to rebuild the network, as safetensors.

    Args:
        path: The file to write.
        architecture: Name of the architecture.
        arguments: Keyword arguments of its constructor.
        state: Parameter name to tensor.
        provenance: How the weights came about: recipe, data, seed, command.

    Raises:
        StorageError: The provenance is not JSON, or the file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from sr_zoo.building import build
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
    """Read the description in a file of `save_network`.

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
    """The degradations that weights were trained to remove.

    Args:
        provenance: The provenance that `describe_network` returns. Without degradations in it, they are blur and
            noise.

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
    """Load a network with its weights, in evaluation mode; `open_network` also opens files of other projects.

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
        sr_zoo.building.WeightsError: weights must be a file or one of ...
    """
    return _open_own(path).network


def shipped_weights() -> list[str]:
    """List the names of the weights that come with the package.

    Returns:
        Names for `load_network`.

    Example:
        >>> isinstance(shipped_weights(), list)
        True
    """
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_checkpoint(network: nn.Module, path: str | Path, *, key: str | None = None) -> None:
    """Load a checkpoint in the published layout (BasicSR) into a network.

    The entries ``params_ema``, ``params`` and ``state_dict`` are unwrapped, the average first, and the prefix
    ``module.`` of data-parallel training is removed. Only tensors are unpickled.

    Args:
        network: The network; its weights are replaced, all of them or none.
        path: A ``.pth`` file.
        key: As in `open_weights`.

    Raises:
        WeightsError: The file cannot be read safely, names and shapes do not fit, or weights are not finite. The
            message lists all of them.

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
    state = _foreign_state(path, key)
    recognised = recognise(state)
    if recognised is not None and recognised[2].keys() == network.state_dict().keys():
        state = recognised[2]
    check_weights(network, state, path)
    network.load_state_dict(state)


def open_weights(path: str | Path, *, key: str | None = None) -> OpenedWeights:
    """Open weights of any kind, with their description.

    Args:
        path: The name of shipped weights, a file of `save_network`, or a checkpoint of another project.
        key: Which network of a checkpoint that holds several: the name of an entry (``"net_g"``, with dots for nested
            ones), or the beginning of the names of its weights (``"generator"``). Files of `save_network` need none.

    Returns:
        The network and its description.

    Raises:
        WeightsError: The name or the network is unknown, or weights are not finite.
        StorageError: A file of `save_network` is damaged.

    Example:
        >>> opened = open_weights("srresnet_x2_f32b8_base")
        >>> opened.architecture, opened.arguments["num_feat"]
        ('srresnet', 32)
    """
    file = find_weights(path)
    if not _is_own(file):
        return _open_foreign(file, key)
    return _open_own(file)  # which holds one network alone: there is nothing to choose


def open_network(path: str | Path, *, key: str | None = None) -> nn.Module:
    """Open weights of any kind, in evaluation mode.

    Args:
        path: The name of shipped weights, a file of `save_network`, or a checkpoint of another project.
        key: As in `open_weights`.

    Returns:
        The network on the CPU; ``upscale`` is its factor.

    Raises:
        WeightsError: The name or the network is unknown, or weights are not finite.
        StorageError: A file of `save_network` is damaged.

    Example:
        >>> open_network("no-such-weights")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: weights must be a file or one of ...
    """
    return open_weights(path, key=key).network


def open_checkpoint(path: str | Path, *, key: str | None = None) -> nn.Module:
    """Build the network of a checkpoint of another project from its names and shapes, and load it, in evaluation mode.

    These networks in the layout of BasicSR are recognised, alone or inside a larger module: SRResNet, the SRCNN-style
    network, and RRDBNet; also the first MSRResNet and ESRGAN, with their old names. Other networks open through
    spandrel, which knows about forty architectures, if it is installed. Only tensors are unpickled, and the network is
    built only if names and shapes fit.

    Args:
        path: A file of `torch.save` or a safetensors file.
        key: As in `open_weights`.

    Returns:
        The network on the CPU; ``upscale`` is its factor.

    Raises:
        WeightsError: The file cannot be read safely, no known network fits, or weights are not finite.

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
    return _open_foreign(path, key).network


def _open_foreign(path: str | Path, key: str | None) -> OpenedWeights:
    """Tell a network by its weights, or ask the collection that knows more."""
    state = _foreign_state(path, key)
    recognised = recognise(state)
    if recognised is None:
        network = open_with_spandrel(state, path)
        return OpenedWeights(network, type(network).__name__, {}, {})
    architecture, arguments, weights = recognised
    return OpenedWeights(build_with(architecture, arguments, weights, path), architecture, arguments, {})


def _open_own(path: str | Path) -> OpenedWeights:
    tensors, description = _read(path)
    architecture, arguments = description["architecture"], description["arguments"]
    network = build_with(architecture, arguments, tensors, path)
    return OpenedWeights(network, architecture, arguments, description["provenance"])


def _foreign_state(path: str | Path, key: str | None) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; the average first."""
    try:
        state = _under(path, key)
    except StateMismatchError as error:
        advice = " Here, name the entry with --key, or key= in code." if key is None else ""
        raise WeightsError(f"{error}{advice}") from error
    except StorageError as error:
        raise WeightsError(str(error)) from error
    check_names(state, path)
    return state


def _under(path: str | Path, key: str | None) -> dict[str, Tensor]:
    """Read the entry of that name or, if there is none, the weights whose names begin with it."""
    try:
        return load_state(path, key=key)
    except StateMismatchError:
        if key is None:
            raise
        try:
            return load_state(path, prefix=f"{key}.")
        except StateMismatchError:
            pass
        raise


def takes_key(path: str | Path) -> bool:
    """Whether a file may hold more than one network, so that `open_weights` takes a key.

    Args:
        path: The name of shipped weights, a file of `save_network`, or a checkpoint of another project.

    Returns:
        Whether the file belongs to another project.

    Raises:
        WeightsError: The name is unknown.

    Example:
        >>> takes_key("srresnet_x2_f32b8_base")
        False
    """
    return not _is_own(find_weights(path))


def _is_own(path: Path) -> bool:
    """Whether a safetensors file says of itself that it is one of ours, whatever its name; a damaged one does, too."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    return head[8:9] == b"{" and b'"format":"filterattr-' in head


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and description of a file of `save_network`."""
    tensors, description = read_tensors(find_weights(path), "network")
    kinds = {"architecture": str, "arguments": dict, "provenance": dict}
    if any(not isinstance(description.get(name), kind) for name, kind in kinds.items()):
        raise WeightsError(
            f"'{path}' must say which 'architecture' it holds and its 'arguments', and have a 'provenance'; got "
            f"{brief(description)}."
        )
    return tensors, description


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
