"""Builders of units that span several parameters of a model: heads, gates, and channels with their norms.

For other units, write a `Group`: one line per parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from typing import Any

from torch import Tensor, nn

from filterattr.errors import UnitError
from filterattr.model.rehearsal import rehearse
from filterattr.model.state_dict import unwrap_model, without_compiled
from filterattr.names import Names
from filterattr.units.groups import Group
from filterattr.units.heads import heads_of
from filterattr.units.layouts import layout_of
from filterattr.units.unit import Unit

_WITH_CHANNELS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Bilinear,
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def attention_heads(model: nn.Module, run: Callable[[nn.Module], object] | None = None) -> dict[str, Group]:
    """Make a unit of every attention head, with its rows of the q, k and v projections and its columns of the output.

    A head of `torch.nn.MultiheadAttention` holds its rows of ``in_proj_weight`` (or of ``q_proj_weight`` and so on) and
    ``in_proj_bias``, its part of ``bias_k`` and ``bias_v``, and its columns of ``out_proj.weight``. In models of other
    libraries the projections are found by their usual names: separate (BERT, ViT, T5, Llama) or fused (GPT-2, GPT-NeoX,
    BLOOM, Falcon). For grouped queries (Llama, Mistral, Qwen), a unit is a key-value head with all queries that share
    it. A pass of the model with copies of its weights must confirm every head; it does not change the model. The bias
    of the output projection and the norms of queries and keys belong to no head.

    Args:
        model: A model with attention.
        run: A function that runs the model once, such as ``lambda model: model(**batch)``, for attention of other
            libraries. By default a model of transformers gets a few tokens, or a random picture.

    Returns:
        A mapping for ``unit`` of `FilterAttributor`; add ``"*": "filter"`` to score the other parameters, too.

    Raises:
        UnitError: No attention has known names, the pass fails, or it does not confirm the heads. The message names the
            modules, and shows how to write their group.

    Example:
        >>> attention_heads(nn.TransformerEncoderLayer(8, 2))["self_attn"].members["in_proj_*"]
        Unit(pattern='(qkv heads d) ... -> heads', sizes={'qkv': 3, 'heads': 2})
    """
    groups: dict[str, Group] = {}
    for path, module in _modules(model):
        if isinstance(module, nn.MultiheadAttention):
            heads = {"heads": module.num_heads}
            members = {
                "in_proj_*": Unit("(qkv heads d) ... -> heads", {"qkv": 3, **heads}),
                "[qkv]_proj_weight": Unit("(heads d) i -> heads", heads),
                "bias_[kv]": Unit("a b (heads d) -> heads", heads),
                "out_proj.weight": Unit("o (heads d) -> heads", heads),
            }
            unknown = Names(name for name, _ in module.named_parameters()).unknown(members)
            groups[escape(path)] = Group({glob: unit for glob, unit in members.items() if glob not in unknown})
    groups |= heads_of(_modules(model), unwrap_model(model), run)
    if not groups:
        raise UnitError(
            "the model has no torch.nn.MultiheadAttention, and no projections with the usual names (q_proj, query, "
            "c_attn, query_key_value, ...). print(model) shows the names of its own; with them, for each attention: "
            'unit={"<module>": Group({"<query>.*": "(heads d) ... -> heads", "<output>.weight": '
            '"o (heads d) -> heads"}, heads=...)}.'
        )
    return groups


def recurrent_gates(model: nn.Module) -> dict[str, tuple[Group, ...]]:
    """Make a unit of every gate of every hidden neuron: scores of shape ``(gates, hidden)`` per layer and direction.

    The gates are in PyTorch's order: input, forget, cell, output for `torch.nn.LSTM`; reset, update, new for
    `torch.nn.GRU`; one for `torch.nn.RNN`. A unit holds its rows of both weights and both biases. The projection of an
    LSTM with ``proj_size`` belongs to no gate.

    Args:
        model: A model with recurrent layers or cells.

    Returns:
        A mapping for ``unit`` of `FilterAttributor`; add ``"*": "filter"`` to score the other parameters, too.

    Raises:
        UnitError: The model has no recurrent layers or cells.

    Example:
        >>> [group.label for group in recurrent_gates(nn.GRU(3, 5, num_layers=2))[""]]
        ['l0', 'l1']
    """
    groups: dict[str, tuple[Group, ...]] = {}
    for path, module in _modules(model):
        if isinstance(module, nn.RNNBase):
            ends = ("", "_reverse") if module.bidirectional else ("",)
            labels = [f"l{layer}{end}" for layer in range(module.num_layers) for end in ends]
        elif isinstance(module, nn.RNNCellBase):
            labels = [""]
        else:
            continue
        gates = next((count for kind, count in _GATES.items() if isinstance(module, kind)), 1)
        groups[escape(path)] = tuple(
            Group(
                {f"*_[ih]h{'_' if label else ''}{label}": "(gates hidden) ... -> gates hidden"},
                label=label,
                gates=gates,
            )
            for label in labels
        )
    if not groups:
        raise UnitError("the model has no recurrent layer or cell of torch.nn; write a Group for its own.")
    return groups


def output_channels(model: nn.Module, run: Callable[[nn.Module], object] | None = None) -> dict[str, tuple[Group, ...]]:
    """Make a unit of every output channel of every convolution and linear layer: its kernels, its bias, and its norm.

    Args:
        model: The model.
        run: A function that runs the model once, such as ``lambda model: model(images)``. The pass shows which norm
            directly follows which layer. Without it, norms belong to no channel. The pass computes with copies and
            does not change the model or its running statistics.

    Returns:
        A mapping for ``unit`` of `FilterAttributor`.

    Raises:
        UnitError: No layer has channels.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> (group,) = output_channels(model, lambda model: model(torch.ones(1, 1, 8, 8)))[""]
        >>> group.label, list(group.members)
        ('0', ['0.weight', '0.bias', '1.weight', '1.bias'])
    """
    norms = {} if run is None else _norm_of_layer(unwrap_model(model), run)
    paths = {id(module): path for path, module in reversed(_modules(model))}
    groups = []
    for path, module in _modules(model):
        count = _n_channels(module)
        if count is None or paths[id(module)] != path:
            continue
        members: dict[str, str | Unit] = {}
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and (name == "weight" or name.startswith("parametrizations.weight.")):
                unit = Unit(*layout_of(module, "weight", parameter).filter)
                if name == "weight" or unit.units_shape(parameter.shape) == (count,):  # not the sizes of its inputs
                    members[name] = unit
            elif parameter.ndim and parameter.shape[0] == count:
                members[name] = "o ... -> o"
        spelled = {_join(path, name): pattern for name, pattern in members.items()}
        norm = norms.get(id(module))
        if norm is not None:
            local = [name for name, parameter in norm.named_parameters() if tuple(parameter.shape) == (count,)]
            spelled |= {_join(paths[id(norm)], name): "o -> o" for name in local}
        if spelled:
            made = {escape(name): pattern for name, pattern in spelled.items()}
            groups.append(Group(made, label=path))
    if not groups:
        raise UnitError(
            "the model has no convolution or linear layer that says how many outputs it has; write a Group."
        )
    return {"": tuple(groups)}


def _n_channels(module: nn.Module) -> int | None:
    """Number of output channels of a layer; layers of other libraries name it as those of torch do."""
    if not isinstance(module, _WITH_CHANNELS) and getattr(module._parameters.get("weight"), "ndim", 0) < 2:
        return None
    told = (getattr(module, name, None) for name in ("out_features", "out_channels", "nf"))
    return next((count for count in told if isinstance(count, int)), None)


def _norm_of_layer(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[int, nn.Module]:
    """Run a model once, and find the norms whose input is the output of exactly one layer."""
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

    def watch() -> None:
        for module in model.modules():
            if _n_channels(module) is not None:
                module.register_forward_hook(note_output)
            elif isinstance(module, _NORMS):
                module.register_forward_pre_hook(note_input)

    rehearse(model, run, watch)
    return {layer: norm for layer, norm in norms.items() if givers[id(norm)] == {layer}}


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module, without the level of compiled modules, under every name."""
    named = unwrap_model(model).named_modules(remove_duplicate=False)
    return [(without_compiled(path), module) for path, module in named]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
