"""Units that span several parameters, found in the modules of `torch.nn`: heads, gates, and channels with their norms.

For modules of other libraries say which parameters belong together with a `Group`; it takes one line a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.engine.claim import Claim
from filterattr.engine.randomness import RandomState
from filterattr.engine.restoring import restoring
from filterattr.engine.slots import Slots
from filterattr.engine.states import unwrap_model
from filterattr.engine.units import Group, Unit
from filterattr.errors import UnitError

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_CHANNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear, nn.Bilinear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def attention_heads(model: nn.Module) -> dict[str, Group]:
    """Make a unit of every head of every `torch.nn.MultiheadAttention`, with its rows of the q, k and v projections.

    A head holds its rows of ``in_proj_weight`` (or of ``q_proj_weight`` and so on) and ``in_proj_bias``, its part of
    ``bias_k`` and ``bias_v``, and its columns of ``out_proj.weight``. ``out_proj.bias`` belongs to no head.

    Args:
        model: A model that uses `torch.nn.MultiheadAttention`, itself or inside `torch.nn.Transformer`.

    Returns:
        What `FilterAttributor` takes as ``unit``; add ``"*": "filter"`` to score the rest, too.

    Raises:
        UnitError: There is none; the message shows how to write the group for other libraries.

    Example:
        >>> attention_heads(nn.TransformerEncoderLayer(8, 2))["self_attn"].members["in_proj_*"]
        Unit(pattern='(qkv heads d) ... -> heads', sizes={'qkv': 3, 'heads': 2})
    """
    found: dict[str, Group] = {}
    for path, module in _modules(model):
        if isinstance(module, nn.MultiheadAttention):
            heads = {"heads": module.num_heads}
            members = {
                "in_proj_*": Unit("(qkv heads d) ... -> heads", {"qkv": 3, **heads}),
                "[qkv]_proj_weight": Unit("(heads d) i -> heads", heads),
                "bias_[kv]": Unit("a b (heads d) -> heads", heads),
                "out_proj.weight": Unit("o (heads d) -> heads", heads),
            }
            names = [name for name, _ in module.named_parameters()]
            own = {glob: unit for glob, unit in members.items() if any(fnmatchcase(name, glob) for name in names)}
            found[escape(path)] = Group(own)
    if not found:
        raise UnitError(
            "the model has no torch.nn.MultiheadAttention. Name the projections of its own attention: "
            'unit={"*.attention": Group({"query.*": "(heads d) ... -> heads", "output.weight": '
            '"o (heads d) -> heads"}, heads=12)}.'
        )
    return found


def recurrent_gates(model: nn.Module) -> dict[str, tuple[Group, ...]]:
    """Make a unit of every gate of every hidden neuron: scores of shape ``(gates, hidden)`` per layer and direction.

    The gates are in PyTorch's order: input, forget, cell, output for `torch.nn.LSTM`; reset, update, new for
    `torch.nn.GRU`; one for `torch.nn.RNN`. A unit holds its rows of both weights and both biases. The projection of an
    LSTM with ``proj_size`` belongs to no gate.

    Args:
        model: A model with recurrent layers or cells.

    Returns:
        What `FilterAttributor` takes as ``unit``; add ``"*": "filter"`` to score the rest, too.

    Raises:
        UnitError: There are none.

    Example:
        >>> [group.label for group in recurrent_gates(nn.GRU(3, 5, num_layers=2))[""]]
        ['l0', 'l1']
    """
    found: dict[str, tuple[Group, ...]] = {}
    for path, module in _modules(model):
        if isinstance(module, nn.RNNBase):
            ends = ("", "_reverse") if module.bidirectional else ("",)
            labels = [f"l{layer}{end}" for layer in range(module.num_layers) for end in ends]
        elif isinstance(module, nn.RNNCellBase):
            labels = [""]
        else:
            continue
        gates = next((count for kind, count in _GATES.items() if isinstance(module, kind)), 1)
        found[escape(path)] = tuple(
            Group(
                {f"*_[ih]h{'_' if label else ''}{label}": "(gates hidden) ... -> gates hidden"},
                label=label,
                gates=gates,
            )
            for label in labels
        )
    if not found:
        raise UnitError("the model has no recurrent layer or cell of torch.nn; write a Group for its own.")
    return found


def output_channels(model: nn.Module, run: Callable[[nn.Module], object] | None = None) -> dict[str, tuple[Group, ...]]:
    """Make a unit of every output channel of every convolution and linear layer: its kernels, its bias, and its norm.

    Args:
        model: The model.
        run: Runs the model once, such as ``lambda model: model(images)``. A norm belongs to the layer whose output it
            is given as it is, which only shows in a forward pass; without it, norms belong to no channel. The pass
            computes with copies: running statistics and everything else stay as they are.

    Returns:
        What `FilterAttributor` takes as ``unit``.

    Raises:
        UnitError: No layer has channels.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> (group,) = output_channels(model, lambda model: model(torch.ones(1, 1, 8, 8)))[""]
        >>> group.label, list(group.members)
        ('0', ['0.weight', '0.bias', '1.weight', '1.bias'])
    """
    norms = {} if run is None else _norm_of_layer(unwrap_model(model), run)
    paths = {id(module): path for path, module in reversed(_modules(model))}
    groups = []
    for path, module in _modules(model):
        if not isinstance(module, _WITH_CHANNELS) or paths[id(module)] != path:
            continue
        count = module.out_features if isinstance(module, nn.Linear | nn.Bilinear) else module.out_channels
        members = {}
        for name, parameter in module.named_parameters():
            if name == "weight" and isinstance(module, _TRANSPOSED):
                members[name] = "(g i) o ... -> (g o)"
            elif parameter.ndim and parameter.shape[0] == count:
                members[name] = "o ... -> o"
        spelled = {_join(path, name): pattern for name, pattern in members.items()}
        norm = norms.get(id(module))
        if norm is not None:
            own = [name for name, parameter in norm.named_parameters() if tuple(parameter.shape) == (count,)]
            spelled |= {_join(paths[id(norm)], name): "o -> o" for name in own}
        sizes = {"g": module.groups} if isinstance(module, _TRANSPOSED) and "weight" in members else {}
        if spelled:
            made = {escape(name): pattern for name, pattern in spelled.items()}
            groups.append(Group(made, label=path, **sizes))
    if not groups:
        raise UnitError("the model has no convolution or linear layer of torch.nn; write a Group for its own.")
    return {"": tuple(groups)}


def _norm_of_layer(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[int, nn.Module]:
    """Run a model once and see which norm is given the very output of which layer, and of no other."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensor is kept so that no other gets its address
    givers: dict[int, set[int]] = {}
    norms: dict[int, nn.Module] = {}

    def note_output(layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = layer, output

    def note_input(norm: nn.Module, inputs: Any) -> None:
        layer = made.get(id(inputs[0]), (None,))[0] if inputs else None
        givers.setdefault(id(norm), set()).add(id(layer))
        if layer is not None:
            norms.setdefault(id(layer), norm)

    claim, entered = Claim(model), RandomState()
    taken: list[Slots] = []

    def observe() -> None:
        claim.take()
        taken.append(Slots(model))
        taken[0].put(_copies(taken[0]))
        for module in model.modules():
            if isinstance(module, _WITH_CHANNELS):
                module.register_forward_hook(note_output)
            elif isinstance(module, _NORMS):
                module.register_forward_pre_hook(note_input)
        with torch.no_grad():
            run(model)

    restoring(observe, lambda: _restore(taken), entered.restore, claim.release)
    return {layer: norm for layer, norm in norms.items() if givers[id(norm)] == {layer}}


def _restore(taken: list[Slots]) -> None:
    for slots in taken:
        slots.restore()  # takes the hooks away, too


def _copies(slots: Slots) -> dict[str, Tensor]:
    """What a model computes with instead of its own tensors, so that nothing is written to these."""
    copies: dict[str, Tensor] = {name: own.detach().clone() for name, own in slots.buffers.items()}
    for name, own in slots.parameters.items():
        copies[name] = nn.Parameter(own.detach().clone(), own.requires_grad)
    return copies


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module, without the level of compiled modules, under every name."""
    named = unwrap_model(model).named_modules(remove_duplicate=False)
    return [(".".join(part for part in path.split(".") if part != "_orig_mod"), module) for path, module in named]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
