"""Recognise the network of a checkpoint of another project by its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from sr_zoo.building import WeightsError

_Recognised: TypeAlias = tuple[str, dict[str, Any], dict[str, Tensor]]

# earlier releases of ESRGAN and of BasicSR called the same layers by other names
_OLD_RRDB = {
    r"^RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"^trunk_conv\.": "conv_body.",
    r"^upconv(\d)\.": r"conv_up\1.",
    r"^HRconv\.": "conv_hr.",
}
_OLD_SRRESNET = {r"^recon_trunk\.": "body.", r"^HRconv\.": "conv_hr."}
_OLD_SEQUENTIAL = {
    r"^model\.0\.": "conv_first.",
    r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"body.\1.rdb\2.conv\3.",
    r"^model\.1\.sub\.\d+\.(weight|bias)$": r"conv_body.\1",
    r"^model\.3\.": "conv_up1.",
    r"^model\.6\.": "conv_up2.",
    r"^model\.8\.": "conv_hr.",
    r"^model\.10\.": "conv_last.",
}
# a name of one generation, and what its layers are called here
_GENERATIONS = (
    ("RRDB_trunk.0.", _OLD_RRDB),
    ("recon_trunk.0.", _OLD_SRRESNET),
    ("model.1.sub.0.RDB1.", _OLD_SEQUENTIAL),
)
# layers that a network of this package begins with; what stands before them is where a larger module keeps it
_FIRST_LAYERS = ("conv_first.weight", "features.0.weight", "model.0.weight")


def recognise(state: Mapping[str, Tensor]) -> _Recognised | None:
    """Find architecture and arguments from the weights of a network.

    The network may be part of a larger module, such as ``generator.`` beside ``discriminator.``. Among several
    networks, the moving average (``ema`` in its name) is taken.

    Args:
        state: Parameter name to tensor.

    Returns:
        Architecture, arguments of its constructor, and the weights by the names of this package; ``None`` if it is
        none of `sr_zoo.models`.

    Raises:
        WeightsError: There are several networks, and none is the moving average.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> recognise(SRResNet(num_feat=8, num_block=3, upscale=4).state_dict())[1]
        {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 3, 'upscale': 4}
    """
    inside = {prefix: _recognised(_renamed(_without(state, prefix))) for prefix in _prefixes(state)}
    networks = {prefix: network for prefix, network in inside.items() if network is not None}
    averages = [prefix for prefix in networks if "ema" in prefix]
    if "" not in networks and len(networks) > 1 and len(averages) != 1:
        names = " and ".join(repr(prefix.removesuffix(".")) for prefix in networks)
        raise WeightsError(f"the weights are those of several networks, {names}: choose one with key=, or --key.")
    return networks.get("") or networks.get(averages[0] if averages else next(iter(networks), ""))


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a part by their names inside it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _recognised(state: dict[str, Tensor]) -> _Recognised | None:
    for name, arguments_of in (("rrdbnet", _rrdbnet), ("srresnet", _srresnet), ("srcnn_style", _srcnn_style)):
        try:
            arguments = arguments_of(state)
        except (KeyError, IndexError, ZeroDivisionError):  # a layer is missing or of another kind
            continue
        if arguments is not None:
            return name, arguments, state
    return None


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Where a network may be kept: at the top, or deeper."""
    inner = {
        name.removesuffix(first)
        for name in state
        for first in _FIRST_LAYERS
        if name == first or name.endswith(f".{first}")
    }
    return sorted(inner)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for mark, names in _GENERATIONS:
        if any(name.startswith(mark) for name in state):
            return {_replaced(name, names): value for name, value in state.items()}
    return state


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name, changed = re.subn(old, new, name)
        if changed:
            break
    return name


def _blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of blocks, from the highest number in names like ``body.7.conv1.weight``."""
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in state) if match]
    return max(numbers, default=-1) + 1


def _srresnet(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``conv_first``, ``body.N.conv1``, ``upconv1``, perhaps ``upconv2``, ``conv_hr``, ``conv_last``."""
    blocks = _blocks(state, r"body\.(\d{1,4})\.conv1\.weight$")
    first, last, up = (state[f"{name}.weight"] for name in ("conv_first", "conv_last", "upconv1"))
    factor = {4: 2, 9: 3}.get(up.shape[0] // first.shape[0])
    if not blocks or factor is None:
        return None
    return {
        "num_in_ch": first.shape[1],
        "num_out_ch": last.shape[0],
        "num_feat": first.shape[0],
        "num_block": blocks,
        "upscale": 4 if "upconv2.weight" in state else factor,
    }


def _srcnn_style(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``features.N`` alone; how many there are and their width tell the factor."""
    if not all(name.startswith("features.") for name in state):
        return None
    if "features.20.weight" in state:
        return {"upscale": 4}
    return {"upscale": {4: 2, 9: 3}[state["features.12.weight"].shape[0] // state["features.10.weight"].shape[0]]}


def _rrdbnet(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``conv_first``, ``body.N.rdb1.conv1``, ``conv_body``, ``conv_up1``, ``conv_up2``, ``conv_hr``, ``conv_last``."""
    blocks = _blocks(state, r"body\.(\d{1,4})\.rdb1\.conv1\.weight$")
    first, last = state["conv_first.weight"], state["conv_last.weight"]
    if not blocks:
        return None
    # folding 2x2 or 4x4 pixels multiplies the channels; what comes out says how many an image has
    upscale = {1: 4, 4: 2, 16: 1}.get(first.shape[1] // last.shape[0], 4)
    return {
        "num_in_ch": first.shape[1] // {4: 1, 2: 4, 1: 16}[upscale],
        "num_out_ch": last.shape[0],
        "num_feat": first.shape[0],
        "num_block": blocks,
        "num_grow_ch": state["body.0.rdb1.conv1.weight"].shape[0],
        "upscale": upscale,
    }
