"""The pages on Hugging Face models and LoRA: the first snippet is short and prints the heads, and all others run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, Group, swapped

transformers = pytest.importorskip("transformers", reason="pip install transformers")
pytest.importorskip("pandas")

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
TEXT = "".join((HOWTO / page).read_text(encoding="utf-8") for page in ("huggingface.md", "lora.md"))
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SIZES = {"vocab_size": 40, "num_hidden_layers": 1, "intermediate_size": 24}
IDS = torch.arange(1, 13).reshape(2, 6)
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.tensor([0, 1])}]


def snippet(of: str) -> str:
    (found,) = [code for code in SNIPPETS if of in code]
    return found


def bert(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES, hidden_size=16, num_attention_heads=4)
    return transformers.BertForSequenceClassification(config).eval()


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """End points that were drawn at random lie far apart; what the library says about that is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)
    return names


def test_from_import_to_list_of_heads_in_twelve_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = SNIPPETS[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.logging.disable_progress_bar()
    bert(0).save_pretrained("before")
    bert(1).save_pretrained("after")
    names = run(code, {"batches": BATCHES})
    assert "bert.encoder.layer.0.attention" in capsys.readouterr().out
    assert len(names["attribution"].scores().to_frame()) == 4


@pytest.mark.parametrize(
    ("of", "model"),
    [
        (
            "c_attn",
            lambda: transformers.GPT2Model(transformers.GPT2Config(vocab_size=9, n_embd=24, n_layer=1, n_head=12)),
        ),
        (
            "gate_proj",
            lambda: transformers.LlamaModel(
                transformers.LlamaConfig(**SIZES, hidden_size=64, num_attention_heads=32, num_key_value_heads=8)
            ),
        ),
    ],
)
def test_heads_of_other_families_fit(of: str, model: Any) -> None:
    names = run(snippet(of), {"Group": Group})
    assert FilterAttributor(model(), unit=names["unit"])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
def test_rank_directions_of_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    names = run(snippet("lora_B"), adapted(peft, target_modules=["query"]))
    scores = names["attribution"].scores()
    assert [tuple(each.shape) for each in scores.values()] == [(3,)]
    run(snippet("needless"), {**names, "scores": scores})
    (low,) = (~scores.top(0.5)).values()
    expected = {name: value.clone() for name, value in names["target"].items()}
    for name, value in expected.items():
        if "lora_" in name:
            places = low if "lora_A" in name else (slice(None), low)
            value[places] = names["base"][name][places]
    with swapped(names["adapter"], expected):
        assert float(capsys.readouterr().out) == loss(names["adapter"], BATCHES[0]).item()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
@pytest.mark.parametrize(
    "trained",
    [
        {"target_modules": ["query", "value", "dense"]},
        {"target_modules": ["query"], "modules_to_save": ["classifier"]},
        {"target_modules": ["query"], "task_type": "SEQ_CLS"},
        {"target_modules": ["query", "word_embeddings"], "modules_to_save": ["classifier", "pooler"]},
    ],
    ids=["factors", "a head", "a head that peft finds", "embeddings and two modules"],
)
def test_base_of_a_trained_adapter_is_the_model_before(trained: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    before = loss(bert(), BATCHES[0]).item()
    names = adapted(peft, **trained)
    after = loss(names["adapter"], BATCHES[0]).item()
    assert after < 0.9 * before
    attribution = run(snippet("lora_B"), names)["attribution"]
    assert attribution.loss_base == pytest.approx(before, rel=1e-5)
    assert attribution.loss_target == pytest.approx(after, rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")
def test_what_the_recipe_does_not_know_is_found() -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    names = adapted(peft, target_modules=["query", "dense"], use_dora=True)
    with pytest.raises(AssertionError, match="not close"):
        run(snippet("lora_B"), names)


def adapted(peft: Any, **trained: Any) -> dict[str, Any]:
    """An adapter that was trained on the batches, and the other names of the snippet."""
    adapter = peft.get_peft_model(bert(), peft.LoraConfig(r=3, **trained))
    optimizer = torch.optim.SGD([one for one in adapter.parameters() if one.requires_grad], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        loss(adapter, BATCHES[0]).backward()
        optimizer.step()
    names = {"adapter": adapter.eval(), "loss": loss, "batches": BATCHES, "torch": torch, "Group": Group}
    return {**names, "FilterAttributor": FilterAttributor, "swapped": swapped}


def test_checkpoints_of_other_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"model.w": torch.ones(1)}}, "last.ckpt")
    torch.save({"params": {"w": torch.zeros(1)}, "params_ema": {"w": torch.ones(1)}}, "net_g.pth")
    save_file({"transformer.w": torch.ones(1)}, "model.safetensors")
    names = run(snippet("load_state"), {})
    assert list(names["base"]) == list(names["target"]) == ["w"]


def test_recorded_training() -> None:
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attributor = FilterAttributor(model, unit="layer")
    run(
        snippet("PathRecorder"),
        {"model": model, "optimizer": optimizer, "attributor": attributor, "loss": loss, "batches": BATCHES},
    )
