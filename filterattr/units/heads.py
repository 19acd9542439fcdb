"""Heads of attention with projections of its own, as libraries of transformers write it.

Names and settings of the model say what the heads may be; a pass of the model decides. A head is confirmed if its
columns in the output projection depend on the rows of this head in the other projections, on as many as a head has, and
on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.errors import UnitError, gathered, name_some
from filterattr.model.rehearsal import rehearse
from filterattr.units.groups import Group
from filterattr.units.layouts import layout_of
from filterattr.units.unit import Unit

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv")
_OUTPUTS = ("o_proj", "out_proj", "o", "out_lin", "dense", "c_proj", "to_out.0", "wo", "Wo", "out", "proj")
_COUNTS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "kv_n_heads")


@dataclass
class _Attention:
    """An attention whose projections were found by name, and what a pass showed of it.

    Attributes:
        path: Name of the module that holds all projections.
        holder: That module.
        inner: Names of the query, key and value projections in there; one if they are fused.
        outer: Name of the output projection in there.
        speakers: What may tell the number of heads.
        outputs: What the inner projections put out.
        context: What the output projection was given.
    """

    path: str
    holder: nn.Module
    inner: tuple[str, ...]
    outer: str
    speakers: tuple[object, ...]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    context: Tensor | None = None

    def watch(self) -> None:
        """Keep what the first call computes."""
        for name in self.inner:
            self.holder.get_submodule(name).register_forward_hook(self._keeper(name))
        self.holder.get_submodule(self.outer).register_forward_pre_hook(self._keep_context)

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.outputs.setdefault(name, output)

        return keep

    def _keep_context(self, _module: nn.Module, inputs: Any) -> None:
        if self.context is None and inputs and isinstance(inputs[0], Tensor):
            self.context = inputs[0]

    @property
    def is_seen(self) -> bool:
        """Whether the pass came along here."""
        return self.context is not None and len(self.outputs) == len(self.inner)


@dataclass(frozen=True)
class _Split:
    """One way in which the rows of the inner projections may belong to heads.

    Attributes:
        heads: Number of query heads.
        rows: Axes of the rows of each inner projection; ``heads`` counts the units.
        columns: Axes of the columns of the output projection.
        sizes: Lengths of the axes.
    """

    heads: int
    rows: tuple[str, ...]
    columns: str
    sizes: Mapping[str, int]

    def masks(self, lengths: list[int]) -> list[Tensor]:
        """Unit of every row of each projection, in a tensor of one row per unit."""
        return [
            torch.stack(
                [
                    unit.expand(torch.arange(self.sizes["heads"], device="cpu") == head, (length,))
                    for head in self._units()
                ]
            )
            for unit, length in zip((_unit(f"{rows} -> heads", self.sizes) for rows in self.rows), lengths, strict=True)
        ]

    def _units(self) -> range:
        return range(self.sizes["heads"])


def heads_of(
    modules: list[tuple[str, nn.Module]], model: nn.Module, run: Callable[[nn.Module], object] | None
) -> dict[str, Group]:
    """Find the heads of every attention whose projections have one of the usual names.

    Args:
        modules: Names and modules of the model.
        model: The model, not wrapped.
        run: Runs it once; by default it is run on a few tokens or a random picture, as its configuration says.

    Returns:
        Escaped name of each attention to its group; none if no names are known.

    Raises:
        UnitError: The model cannot be run, or an attention computes in another way; each is named.
    """
    attentions = list(_attentions(modules, model))
    if not attentions:
        return {}
    groups: dict[str, Group] = {}
    findings: list[str] = []
    refused: list[_Attention] = []

    def look(model: nn.Module) -> None:
        _run(model, run)
        for attention in attentions:
            split = _confirmed(attention) if attention.is_seen else None
            if split is None:
                findings.append(_refusal(attention))
                refused.append(attention)
            else:
                groups[escape(attention.path)] = _group(attention, split)

    def watch() -> None:
        for attention in attentions:
            attention.watch()

    rehearse(model, look, watch, gradients=True)
    if findings:
        raise UnitError(
            f"a pass of the model must confirm its heads: {gathered(findings, limit=3)}. Pass a run= that goes through "
            f"them, or score the columns of their output projections, or write a Group with more: {_cure(refused[0])}."
        )
    return groups


def _attentions(modules: list[tuple[str, nn.Module]], model: nn.Module) -> Iterator[_Attention]:
    """Yield the attentions, by the names of their projections."""
    by_path = dict(modules)
    seen: set[int] = set()
    for path, module in modules:
        children = dict(module.named_children())
        known: tuple[tuple[str, ...], ...] = (*_SEPARATE, *((name,) for name in _FUSED))
        inner = next((names for names in known if all(name in children for name in names)), None)
        if inner is None or id(module) in seen:
            continue
        seen.add(id(module))
        parent, _, local = path.rpartition(".")
        outer = next((name for name in _OUTPUTS if _child(module, name) is not None), None)
        speakers = (module, getattr(module, "config", None), getattr(model, "config", None))
        if outer is not None:
            yield _Attention(path, module, inner, outer, speakers)
        elif path and _child(by_path[parent], "output.dense") is not None:  # BERT and its kin
            inner = tuple(f"{local}.{name}" for name in inner)
            yield _Attention(parent, by_path[parent], inner, "output.dense", speakers)


def _child(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _run(model: nn.Module, run: Callable[[nn.Module], object] | None) -> None:
    """Run the model, on what its configuration asks for if the user does not run it."""
    if run is not None:
        run(model)
        return
    try:
        model(**_inputs(model))
    except Exception as error:
        raise UnitError(
            f"the heads of {type(model).__name__} are confirmed by a pass, and it cannot be run by itself ({error}): "
            "pass run=lambda model: model(**batch)."
        ) from error


def _inputs(model: nn.Module) -> dict[str, Tensor]:
    """Inputs as a model of transformers takes them."""
    config = getattr(model, "config", None)
    wanted = getattr(model, "main_input_name", None)
    device = next(model.parameters()).device
    if config is None or wanted not in ("input_ids", "pixel_values"):
        raise ValueError("it does not say what it is given" if config is None else f"it is given {wanted}")
    if wanted == "pixel_values":
        size = config.image_size if isinstance(config.image_size, list | tuple) else 2 * [config.image_size]
        generator = torch.Generator().manual_seed(0)
        kind = next(model.parameters()).dtype
        return {
            "pixel_values": torch.rand(1, config.num_channels, *size, generator=generator, device="cpu").to(
                device, kind
            )
        }
    tokens = (torch.arange(3, 11, device=device) % config.vocab_size)[None]
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})


def _splits(attention: _Attention, lengths: list[int], width: int) -> Iterator[_Split]:
    """Yield the ways in which the projections may be split, as names and settings tell."""
    for heads in _told(attention.speakers, _COUNTS):
        for units in dict.fromkeys((*_told(attention.speakers, _KEY_VALUE_COUNTS), heads, 1)):
            if width % heads or heads % units:
                continue
            shared = width // heads * units  # rows of all keys
            is_plain = units == heads
            sizes = {"heads": units} if is_plain else {"heads": units, "q": heads // units}
            queries = "(heads d)" if is_plain else "(heads q d)"
            if lengths == [width, shared, shared]:
                yield _Split(heads, (queries, "(heads d)", "(heads d)"), queries, sizes)
            elif lengths == [3 * width] and is_plain:
                yield _Split(heads, ("(qkv heads d)",), queries, {**sizes, "qkv": 3})
                yield _Split(heads, ("(heads qkv d)",), queries, {**sizes, "qkv": 3})
            elif lengths == [width + 2 * shared]:
                yield _Split(heads, ("(heads x)",), queries, sizes)


def _told(speakers: tuple[object, ...], names: tuple[str, ...]) -> list[int]:
    """Numbers that modules and settings have under some names."""
    told = [getattr(speaker, name, None) for speaker in speakers for name in names]
    return [number for number in dict.fromkeys(told) if isinstance(number, int) and number > 0]


def _confirmed(attention: _Attention) -> _Split | None:
    """Find the split that the pass confirms."""
    context = attention.context
    outputs = [attention.outputs[name] for name in attention.inner]
    if context is None or not context.requires_grad or any(output.ndim < 2 for output in outputs):
        return None
    lengths = [output.shape[-1] for output in outputs]
    width = context.shape[-1]
    reached: dict[int, list[Tensor]] = {}

    def rows_of(column: int) -> list[Tensor]:
        if column not in reached:
            reached[column] = _rows_that_reach(context, column, outputs)
        return reached[column]

    for split in _splits(attention, lengths, width):
        if _holds(split, split.masks(lengths), width, rows_of):
            return split
    return None


def _rows_that_reach(context: Tensor, column: int, outputs: list[Tensor]) -> list[Tensor]:
    """Which rows of the projections a column of the output projection depends on."""
    values = context[..., column].double()
    weights = torch.linspace(1, 2, values.numel(), dtype=torch.float64, device=values.device).reshape(values.shape)
    gradients = torch.autograd.grad((values * weights).sum(), outputs, retain_graph=True, allow_unused=True)
    sizes = [
        torch.zeros(output.shape[-1], device="cpu")
        if gradient is None
        else gradient.abs().flatten(0, -2).amax(0).float().cpu()
        for gradient, output in zip(gradients, outputs, strict=True)
    ]
    return [size > 1e-7 * size.max() for size in sizes]


def _holds(split: _Split, masks: list[Tensor], width: int, rows_of: Callable[[int], list[Tensor]]) -> bool:
    """Whether the first and last column of every head depend on the rows of its unit, and on as many as they must."""
    depth = width // split.heads
    per_unit = split.heads // split.sizes["heads"]
    for head in range(split.heads):
        for column in (head * depth, head * depth + depth - 1):
            rows = rows_of(column)
            inside = all(bool((mask[head // per_unit] | ~row).all()) for mask, row in zip(masks, rows, strict=True))
            # all rows of its query and its key, and one of its values, or all of them
            if not inside or not 2 * depth < sum(int(row.sum()) for row in rows) <= 3 * depth:
                return False
    return True


def _group(attention: _Attention, split: _Split) -> Group:
    """The members of a head: its rows of the inner projections, its columns of the output projection."""
    members: dict[str, str | Unit] = {}
    for name, rows in zip(attention.inner, split.rows, strict=True):
        length = attention.outputs[name].shape[-1]
        for local, axis, ndim in _along(attention.holder, name, length, outputs=True):
            members[local] = _unit(_pattern(rows, axis, ndim), split.sizes)
    width = attention.context.shape[-1] if attention.context is not None else 0
    for local, axis, ndim in _along(attention.holder, attention.outer, width, outputs=False):
        if ndim > 1:  # the bias of the output projection belongs to no head
            members[local] = _unit(_pattern(split.columns, axis, ndim), split.sizes)
    return Group(members)


def _along(holder: nn.Module, name: str, length: int, *, outputs: bool) -> Iterator[tuple[str, int, int]]:
    """Yield the parameters of a projection that have its outputs or inputs along an axis: name, axis, dimensions."""
    projection = holder.get_submodule(name)
    other_factor = "lora_A" if outputs else "lora_B"  # has the rank there
    for local, parameter in projection.named_parameters():
        owner = projection.get_submodule(local.rpartition(".")[0])
        if other_factor in local or not parameter.ndim:
            continue
        axis = 0
        if parameter.ndim > 1:
            inputs_first = layout_of(owner, local.rpartition(".")[2], parameter).filter[0].startswith("i ")
            axis = int(inputs_first == outputs)
        if parameter.shape[axis] == length:
            yield f"{name}.{local}", axis, parameter.ndim


def _pattern(axes: str, axis: int, ndim: int) -> str:
    """Spell the pattern of a parameter that has heads along an axis."""
    left = f"{axes} ..." if axis == 0 else f"o {axes}" + " ..." * (ndim > 2)
    return f"{left} -> heads"


def _unit(pattern: str, sizes: Mapping[str, int]) -> Unit:
    return Unit(pattern, {axis: size for axis, size in sizes.items() if f"{axis} " in pattern.replace("(", " ")})


def _refusal(attention: _Attention) -> str:
    """Say what was looked at, and what can be scored anyway."""
    if not attention.is_seen:
        return f"no pass came through '{attention.path}'"
    rows = [attention.outputs[name].shape[-1] for name in attention.inner]
    heads = _told(attention.speakers, _COUNTS)
    return (
        f"'{attention.path}' with {rows} rows in {name_some(attention.inner)} does not split into "
        f"{' or '.join(map(str, heads)) or 'a number of'} heads by any pattern that is known"
    )


def _cure(attention: _Attention) -> str:
    """A group that can always be written: the columns of the output projection."""
    heads = next(iter(_told(attention.speakers, _COUNTS)), "...")
    output = attention.holder.get_submodule(attention.outer)
    inputs_first = layout_of(output, "weight", output.get_parameter("weight")).filter[0].startswith("i ")
    pattern = "(heads d) o -> heads" if inputs_first else "o (heads d) -> heads"
    return f"unit={{{attention.path!r}: Group({{'{attention.outer}.weight': {pattern!r}}}, heads={heads})}}"
