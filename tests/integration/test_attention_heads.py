"""Heads of models of transformers, with random weights: each is one of the forward pass.

The rows of one head in the query, key and value projections are changed; only the columns of that head in what the
output projection is given may change, and all of them must.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, Group, UnitError, attention_heads
from filterattr.units.heads import _inputs

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install transformers")

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
PICTURE = {name: value for name, value in TEXT.items() if name != "vocab_size"}
PICTURE |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
FALCON = {name: value for name, value in TEXT.items() if name != "intermediate_size"} | {"alibi": False}
PROJECTIONS = 2, (4,)  # attentions of two layers, units of each

MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "BERT": (lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT)), 2, 4),
    "DeBERTa": (lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**TEXT)), 2, 4),
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**PICTURE)), 2, 4),
    "T5": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0
            )
        ), 3, 4,
    ),
    "GPT-2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=4)
        ), 2, 4,
    ),
    "GPT-NeoX": (lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**TEXT)), 2, 4),
    "BLOOM": (
        lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=4)
        ), 2, 4,
    ),
    "Falcon": (
        lambda: transformers.FalconForCausalLM(
            transformers.FalconConfig(**FALCON, multi_query=False, new_decoder_architecture=False)
        ), 2, 4,
    ),
    "Falcon, grouped queries": (
        lambda: transformers.FalconForCausalLM(
            transformers.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True)
        ), 2, 2,
    ),
    "Llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)), 2, 4),
    "Llama, grouped queries": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2)), 2, 2,
    ),
    "Mistral, wide heads": (
        lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**TEXT, num_key_value_heads=2, head_dim=8)
        ), 2, 2,
    ),
    "Qwen3, norms of heads": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=8)),
        2, 2,
    ),
    "Phi-3": (lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**TEXT, pad_token_id=0)), 2, 4),
}  # fmt: skip


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the small weights of an initialisation would drown changes
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def contexts(model: nn.Module, paths: list[str], inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the modules are given in a pass."""
    given: dict[str, Tensor] = {}

    def keeper(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, arguments: given.__setitem__(path, arguments[0].detach().clone())

    handles = [model.get_submodule(path).register_forward_pre_hook(keeper(path)) for path in paths]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return [given[path] for path in paths]


@pytest.mark.parametrize("name", MODELS)
def test_a_head_is_the_rows_and_columns_that_compute_together(name: str) -> None:
    make, attentions, units = MODELS[name]
    model = build(make)
    groups = attention_heads(model)
    assert len(groups) == attentions
    scored = FilterAttributor(model, unit=groups).scored_parameters()
    assert {one.group for one in scored.values()} == set(groups)
    assert {tuple(one.units_shape) for one in scored.values()} == {(units,)}
    inputs = _inputs(model)
    for path, group in groups.items():
        *inner, outer = (f"{path}.{local}" for local in group.members)
        (before,) = contexts(model, [outer.removesuffix(".weight")], inputs)
        seen = torch.zeros(before.shape[-1], dtype=torch.long)
        for head in range(units):
            chosen = torch.arange(units) == head
            owns = {local: model.get_parameter(local).detach().clone() for local in inner}
            for local, own in owns.items():
                rows = scored[local].unit.expand(chosen, own.shape)
                model.get_parameter(local).data = torch.where(rows, torch.randn_like(own), own)
            (after,) = contexts(model, [outer.removesuffix(".weight")], inputs)
            for local, own in owns.items():
                model.get_parameter(local).data = own
            weight = scored[outer]
            columns = weight.unit.expand(chosen, weight.shape)
            columns = columns.any(1) if name == "GPT-2" else columns.any(0)  # its layers store inputs first
            assert torch.equal((after != before).flatten(0, -2).any(0), columns)
            seen += columns
        assert seen.eq(1).all()


def test_every_weight_of_the_inner_projections_belongs_to_a_head() -> None:
    model = build(MODELS["BERT"][0])
    scored = FilterAttributor(model, unit=attention_heads(model)).scored_parameters()
    prefix = "bert.encoder.layer.0.attention."
    expected = {f"self.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")}
    assert {name.removeprefix(prefix) for name in scored if name.startswith(prefix)} == {
        *expected,
        "output.dense.weight",
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**TEXT, num_key_value_heads=2, pad_token_id=0)),
        lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**TEXT)),  # a norm over all heads
    ],
    ids=["fused grouped queries", "norm over heads"],
)
def test_heads_that_no_pattern_says_are_refused_with_what_can_be_scored(make: Callable[[], nn.Module]) -> None:
    model = build(make)
    with pytest.raises(UnitError, match=r"'model\.layers\.0\.self_attn' with .* does not split into 4 heads") as caught:
        attention_heads(model)
    (cure,) = [line for line in str(caught.value).split("unit=")[1:] if line]
    unit = eval(cure.removesuffix("."), {"Group": Group})
    assert FilterAttributor(model, unit=unit).scored_parameters()["model.layers.0.self_attn.o_proj.weight"]


def test_models_that_are_given_something_else_need_run() -> None:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 16}, vision_config=PICTURE, projection_dim=8
    )
    model = transformers.CLIPModel(config).double().eval()
    with pytest.raises(UnitError, match=r"CLIPModel are confirmed by a pass, and it cannot be run by itself"):
        attention_heads(model)
    picture = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    tokens = torch.arange(6)[None]
    found = attention_heads(model, lambda net: net(input_ids=tokens, pixel_values=picture))
    assert len(found) == 4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
def test_adapted_projections_have_the_rows_of_the_adapter_too() -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    model = transformers.BertModel(transformers.BertConfig(**TEXT))
    config = peft.LoraConfig(r=16, target_modules=["query", "value"])  # a rank as large as the layer
    adapter = peft.get_peft_model(model, config).eval()
    tokens = torch.arange(3, 9)[None]
    ((_, group), *_) = attention_heads(adapter, lambda net: net(input_ids=tokens)).items()
    assert set(group.members) == {
        *(f"self.{part}.base_layer.{kind}" for part in ("query", "value") for kind in ("weight", "bias")),
        *(f"self.{part}.lora_B.default.weight" for part in ("query", "value")),
        "self.key.weight", "self.key.bias", "output.dense.weight",
    }  # fmt: skip
