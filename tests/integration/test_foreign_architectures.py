"""Networks that others wrote, with random weights, from end to end: nothing in the library knows any of them.

Each is attributed, complete, with the model untouched; the best units are put back to base by `blend`, and the loss of
the result is finite. The networks of `transformers` are made from small configurations, without a network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, Group, attention_heads, blend, output_channels, recurrent_gates, swapped
from filterattr.units.groups import UnitLike

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def near(base: nn.Module, part: float = 0.3) -> nn.Module:
    """A fine-tuned copy: every floating parameter moves by a part of its spread."""
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            spread = parameter.std(correction=0).clamp_min(0.02)
            parameter.add_(part * spread * torch.randn_like(parameter))
    return target


def check(
    base: nn.Module,
    loss: Callable[..., Tensor],
    data: list[Any],
    unit: UnitLike = "filter",
    rounding: float = 1e-8,
    part: float = 0.3,
    **settings: Any,
) -> dict[str, tuple[int, ...]]:
    """Attribute, prove what must hold, and return the shapes of the scores."""
    base = base.double().eval()
    target = near(base, part)
    model = copy.deepcopy(base)
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    attributor = FilterAttributor(model, unit=unit)
    attribution = attributor.attribute(base, target, loss, data, progress=False, **settings)
    change = attribution.loss_target - attribution.loss_base
    assert abs(attribution.total - change) < rounding * attribution.loss_base
    scored = float(attribution.scores("sum").flat().sum())
    assert scored + attribution.remainder == pytest.approx(attribution.total, rel=1e-9, abs=1e-12)
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        torch.testing.assert_close(value.detach(), before[name][1], rtol=0, atol=0, equal_nan=True)
    masked = blend(target, base, attribution.scores("abs_of_sum").top(0.2))
    with torch.no_grad(), swapped(model, masked):
        assert all(torch.isfinite(loss(model, sample)) for sample in data)
    return {name: tuple(one.shape) for name, one in attribution.scores().items()}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


class TestTorch:
    def test_transformer_with_source_and_target(self) -> None:
        model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dropout=0.0, activation="gelu")
        shapes = check(
            model,
            lambda net, pair: net(*pair).square().mean(),
            [(noise(2, 3, 8), noise(2, 4, 8))],
            attention_heads(model),
        )
        assert shapes == {
            "encoder.layers.0.self_attn": (2,),
            "decoder.layers.0.self_attn": (2,),
            "decoder.layers.0.multihead_attn": (2,),
        }

    def test_transformer_encoder_with_heads_and_neurons(self) -> None:
        layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, activation="gelu", norm_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        neurons = Group({"linear1.*": "h ... -> h", "linear2.weight": "o h -> h"}, label="mlp")
        shapes = check(model, squares, [noise(2, 5, 8)], {**attention_heads(model), "layers.?": neurons})
        assert shapes["layers.1.self_attn"] == (4,)
        assert shapes["layers.1.mlp"] == (12,)

    def test_lstm_with_projection_in_both_directions(self) -> None:
        model = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
        shapes = check(model, lambda net, x: net(x)[0].square().mean(), [noise(5, 2, 3)], recurrent_gates(model))
        assert shapes == {f"{name}": (4, 4) for name in ("l0", "l0_reverse", "l1", "l1_reverse")}

    def test_gru_cells_in_a_loop(self) -> None:
        model = nn.ModuleList([nn.GRUCell(3, 4), nn.Linear(4, 1)])

        def loss(net: nn.Module, x: Tensor) -> Tensor:
            state = x.new_zeros(x.shape[1], 4)
            for step in x:
                state = net[0](step, state)
            return net[1](state).square().mean()

        assert check(model, loss, [noise(4, 2, 3)], {**recurrent_gates(model), "*": "filter"})["0"] == (3, 4)

    def test_attention_with_separate_projections_and_bias_tokens(self) -> None:
        model = nn.MultiheadAttention(8, 2, kdim=5, vdim=3, add_bias_kv=True, batch_first=True)
        batch = (noise(2, 3, 8), noise(2, 4, 5), noise(2, 4, 3))
        shapes = check(model, lambda net, x: net(*x)[0].square().mean(), [batch], attention_heads(model))
        assert shapes == {"model": (2,)}

    def test_bilinear(self) -> None:
        model = nn.Bilinear(3, 4, 5)
        assert check(model, lambda net, x: net(*x).square().mean(), [(noise(2, 3), noise(2, 4))]) == {"weight": (5,)}

    def test_embedding_bag_and_adaptive_softmax(self) -> None:
        model = nn.ModuleList([nn.EmbeddingBag(10, 8, mode="mean"), nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8], 2.0)])
        words = torch.arange(12).reshape(3, 4) % 10

        def loss(net: nn.Module, tokens: Tensor) -> Tensor:
            return net[1](net[0](tokens), torch.tensor([1, 5, 9]))[1]

        assert check(model, loss, [words])["0.weight"] == (10,)

    def test_volumes_through_convolutions_and_their_transpose(self) -> None:
        model = nn.Sequential(nn.Conv3d(1, 4, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.ConvTranspose3d(4, 2, 2, groups=2))
        model = model.double()
        shapes = check(
            model, squares, [noise(1, 1, 4, 4, 4)], output_channels(model, lambda net: net(noise(1, 1, 4, 4, 4)))
        )
        assert shapes == {"0": (4,), "3": (2,)}

    def test_complex_and_spectral_weights(self) -> None:
        model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))
        assert check(model, squares, [noise(3, 4)])["2.weight"] == (2,)


transformers = pytest.importorskip("transformers", reason="pip install transformers")

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
FLOAT32 = 1e-5  # norms or losses that compute in float32 whatever the model is
HEADS = "(heads d) ... -> heads"
OUTPUT = "o (heads d) -> heads"


def tokens(labels: Tensor) -> dict[str, Tensor]:
    ids = torch.arange(1, 13).reshape(2, 6)  # no padding: its row gets no gradient, and so must not move
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


class TestTransformers:
    def test_bert_classifier_by_heads(self) -> None:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
        heads = Group({"self.*": HEADS, "output.dense.weight": OUTPUT}, heads=4)
        shapes = check(model, answer, [tokens(torch.tensor([0, 1]))], {"*.attention": heads})
        assert shapes == {f"bert.encoder.layer.{layer}.attention": (4,) for layer in (0, 1)}

    def test_gpt2_with_tied_embeddings_and_transposed_layers(self) -> None:
        config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=4)
        model = transformers.GPT2LMHeadModel(config)
        heads = Group(
            {"c_attn.weight": "i (qkv heads d) -> heads", "c_attn.bias": "(qkv heads d) -> heads",
             "c_proj.weight": "(heads d) o -> heads"}, heads=4, qkv=3,
        )  # fmt: skip
        neurons = Group({"c_fc.weight": "i h -> h", "c_fc.bias": "h -> h", "c_proj.weight": "h o -> h"})
        batch = tokens(torch.arange(1, 13).reshape(2, 6))
        shapes = check(model, answer, [batch], {"*.attn": heads, "*.mlp": neurons, "*": "filter"}, FLOAT32)
        assert shapes["transformer.h.1.attn"] == (4,)
        assert shapes["transformer.h.1.mlp"] == (64,)

    def test_llama_with_grouped_queries(self) -> None:
        config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, max_position_embeddings=16)
        model = transformers.LlamaForCausalLM(config)
        heads = Group(
            {
                "q_proj.weight": "(kv q d) i -> kv",
                "[kv]_proj.weight": "(kv d) i -> kv",
                "o_proj.weight": "o (kv q d) -> kv",
            },
            kv=2,
            q=2,
        )
        neurons = Group({"gate_proj.weight": "h i -> h", "up_proj.weight": "h i -> h", "down_proj.weight": "o h -> h"})
        batch = tokens(torch.arange(1, 13).reshape(2, 6))
        shapes = check(model, answer, [batch], {"*.self_attn": heads, "*.mlp": neurons}, FLOAT32)
        assert shapes["model.layers.0.self_attn"] == (2,)
        assert shapes["model.layers.1.mlp"] == (24,)

    def test_t5_from_source_to_target(self) -> None:
        config = transformers.T5Config(
            vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        heads = Group({"[qkv].weight": HEADS, "o.weight": OUTPUT}, heads=4)
        batch = tokens(torch.arange(1, 9).reshape(2, 4))
        shapes = check(model, answer, [batch], {"*Attention": heads}, FLOAT32)
        assert len(shapes) == 3

    def test_vision_transformer(self) -> None:
        settings = {name: value for name, value in TEXT.items() if name != "vocab_size"}
        config = transformers.ViTConfig(**settings, image_size=8, patch_size=4, num_channels=1)
        batch = {"pixel_values": noise(2, 1, 8, 8), "labels": torch.tensor([0, 1])}
        model = transformers.ViTForImageClassification(config)
        assert check(model, answer, [batch])["vit.embeddings.patch_embeddings.projection.weight"] == (16,)

    def test_convnext(self) -> None:
        config = transformers.ConvNextConfig(
            num_channels=1, hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], patch_size=2
        )
        model = transformers.ConvNextForImageClassification(config)
        batch = {"pixel_values": noise(1, 1, 16, 16), "labels": torch.tensor([1])}
        assert check(model, answer, [batch], "kernel")["classifier.weight"] == (2, 8)

    def test_residual_network_with_running_statistics(self) -> None:
        config = transformers.ResNetConfig(
            num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", hidden_act="silu"
        )
        model = transformers.ResNetForImageClassification(config)
        batch = {"pixel_values": noise(2, 1, 16, 16), "labels": torch.tensor([0, 1])}
        units = output_channels(model.double(), lambda net: net(batch["pixel_values"]))
        assert len(check(model, answer, [batch], units, 1e-4, part=0.02)) >= 5

    def test_speech_encoder_with_weight_norm(self) -> None:
        settings = {name: value for name, value in TEXT.items() if name != "vocab_size"}
        config = transformers.Wav2Vec2Config(
            **settings, conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(8, 2), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8, mask_time_prob=0.0,
        )  # fmt: skip
        model = transformers.Wav2Vec2ForSequenceClassification(config)
        batch = {"input_values": noise(1, 200), "labels": torch.tensor([1])}
        assert len(check(model, answer, [batch], allow_unused="*masked_spec_embed")) > 10


class TestImages:
    def test_timm_network(self) -> None:
        timm = pytest.importorskip("timm", reason="needs torchvision")
        model = timm.create_model("resnet10t", num_classes=2)
        assert check(model, squares, [noise(1, 3, 32, 32)])

    def test_spandrel_network(self) -> None:
        pytest.importorskip("spandrel", reason="needs torchvision")
        from spandrel.architectures.Compact import Compact

        assert check(Compact(num_feat=8, num_conv=2, upscale=2, act_type="prelu"), squares, [noise(1, 3, 8, 8)])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
class TestAdapters:
    """PEFT's low-rank adapters, as directions of rank and as the merged change."""

    @staticmethod
    def adapted() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
        peft = pytest.importorskip("peft", reason="pip install peft")
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT)).double().eval()
        config = peft.LoraConfig(r=3, target_modules=["query", "value"], lora_dropout=0.0)
        adapter = peft.get_peft_model(model, config).double().eval()
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn_like(parameter))
        target = {name: value.clone() for name, value in adapter.state_dict().items()}
        base = {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in target.items()}
        return adapter, base, target

    def test_rank_directions(self) -> None:
        adapter, base, target = self.adapted()
        rank = Group({"lora_A.*": "rank i -> rank", "lora_B.*": "o rank -> rank"})
        batch = tokens(torch.tensor([0, 1]))
        attribution = FilterAttributor(adapter, unit={"*.query": rank, "*.value": rank}).attribute(
            base, target, answer, [batch], progress=False
        )
        assert {tuple(one.shape) for one in attribution.scores().values()} == {(3,)}
        assert len(attribution.scores()) == 4
        assert attribution.remainder == 0.0  # nothing else moved
        assert attribution.completeness_error < 1e-8
        whole = blend(target, base, attribution.scores().top(1.0))
        with torch.no_grad(), swapped(adapter, whole):
            masked = float(answer(adapter, batch))
        assert masked == pytest.approx(attribution.loss_base, rel=1e-12)

    def test_merged_change(self) -> None:
        adapter, _, _ = self.adapted()
        batch = tokens(torch.tensor([0, 1]))
        with torch.no_grad():
            expected = float(answer(adapter, batch))
        merged = copy.deepcopy(adapter).merge_and_unload()
        plain = copy.deepcopy(adapter).unload()
        attribution = FilterAttributor(plain, unit="layer").attribute(plain, merged, answer, [batch], progress=False)
        assert attribution.loss_target == pytest.approx(expected, rel=1e-9)
        moved = {name for name, value in attribution.scores().items() if float(value) > 0}
        assert moved == {
            f"bert.encoder.layer.{layer}.attention.self.{part}.weight"
            for layer in (0, 1)
            for part in ("query", "value")
        }
