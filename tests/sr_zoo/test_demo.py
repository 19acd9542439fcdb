"""The demo on networks that were trained for seconds: numbers, table, pictures, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import blend, contrast
from sr_zoo.cli import main
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import DemoResult, draw_pictures, find_and_mask, table
from sr_zoo.models import SRResNet, TwoBranch
from sr_zoo.pretrained import save_network
from sr_zoo.samples import draw_pairs


def photograph(seed: int) -> Tensor:
    """Smooth random shapes of 200x210 pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 12, 12, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(200, 210), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def ends() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = SRResNet(num_feat=4, num_block=1).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return base, target


@pytest.fixture(scope="module")
def result(ends: tuple[nn.Module, nn.Module]) -> DemoResult:
    return find_and_mask(
        *ends, [photograph(1)], [photograph(2)], fraction=0.1, crops=2, draws=4, n_steps=32, progress=False
    )


def test_the_ends_of_the_table_are_target_and_base(result: DemoResult) -> None:
    assert result.rows[0].removed == {"blur": 0.0, "noise": 0.0}
    assert result.rows[-1].removed == pytest.approx({"blur": 1.0, "noise": 1.0})
    assert [row.label for row in result.rows[1:3]] == ["deblurring kernels", "denoising kernels"]
    assert all(set(row.psnr) == {"blur", "noise", "clean"} for row in result.rows)


def test_sets_are_signed_where_target_has_learnt_the_function(result: DemoResult) -> None:
    for name, selection in result.selections.items():
        signed = result.attributions[name].scores("sum")
        if result.attributions[name].loss_target < result.attributions[name].loss_base:
            # a signed score is positive only where the unit lowers the loss
            assert (signed.flat()[selection.flat()] < 0).all(), name
        else:
            scores = {other: attribution.scores() for other, attribution in result.attributions.items()}
            assert selection == contrast(scores, name, scale="strict").top(0.1), name


def test_every_set_says_what_it_puts_back_and_moves(result: DemoResult, ends: tuple[nn.Module, nn.Module]) -> None:
    labels = [one.label for one in result.outputs]
    assert labels == [row.label for row in result.rows[1 : 1 + len(labels)]]
    kinds = [label.split(", ")[-1] for label in labels]
    assert kinds == ["deblurring kernels", "denoising kernels", "strict", "strict", "equation 7", "equation 7"]
    for one in result.outputs:
        other = {"deblurring": "noise", "denoising": "blur"}[one.label.split()[0].strip(",")]
        assert set(one.moved) == {other, "clean"}
    first = result.outputs[0]
    base, target = ends
    inputs = {name: one for name, one in evaluation_inputs(2).items() if name != "both"}
    data = draw_pairs([photograph(2)], inputs, count=2, size=128, scale=2, seed=1, margin=16)
    masked = copy.deepcopy(target)
    masked.load_state_dict(blend(target, base, result.selections["blur"]))
    with torch.no_grad():
        said = {
            role: torch.cat([one(x) for x, _ in data["blur"]])
            for role, one in (("masked", masked), ("base", base), ("target", target))
        }
    away = (said["masked"] - said["base"]).square().sum() / (said["target"] - said["base"]).square().sum()
    assert first.reverted == pytest.approx(1 - float(away), abs=1e-4)


def test_p_values_count_the_draws(result: DemoResult) -> None:
    for name, measured in zip(("blur", "noise"), result.outputs, strict=False):
        for null, values in result.nulls[name].items():
            assert len(values) == 4
            beaten = sum(value >= measured.reverted for value in values)
            assert result.p_values[name][null] == pytest.approx((1 + beaten) / 5)


def test_the_same_seed_gives_the_same_table(ends: tuple[nn.Module, nn.Module], result: DemoResult) -> None:
    again = find_and_mask(
        *ends, [photograph(1)], [photograph(2)], fraction=0.1, crops=2, draws=4, n_steps=32, progress=False
    )
    assert again.rows == result.rows


def test_the_table_fits_a_terminal_and_names_every_row(result: DemoResult) -> None:
    text = table(result)
    assert max(map(len, text.splitlines())) <= 80
    for row in result.rows:
        assert row.label in text


def test_pictures_and_numbers_are_written(
    ends: tuple[nn.Module, nn.Module], result: DemoResult, tmp_path: Path
) -> None:
    files = draw_pictures(*ends, result, photograph(2), tmp_path)
    assert [file.name for file in files] == ["restorations.png", "layers.png", "path.png", "table.json"]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[:3])
    content = json.loads(files[3].read_text())
    assert len(content["rows"]) == len(result.rows)
    assert sum(content["kernels_per_layer"]["blur"].values()) == result.selections["blur"].count


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
@pytest.mark.parametrize("kind", ["a factor of 3", "two branches"])
def test_networks_of_other_factors_and_with_parts_that_no_image_needs(kind: str) -> None:
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        sizes = {"num_feat": 4, "num_block": 1}
        network: nn.Module = SRResNet(**sizes, upscale=3)
        if kind == "two branches":
            network = TwoBranch(**sizes, hidden=2, condition=3, predictor_feat=4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        networks.append(network.eval())
    found = find_and_mask(
        *networks, [photograph(1)], [photograph(2)], fraction=0.1, crops=1, draws=2, n_steps=1, progress=False
    )
    assert found.rows[-1].removed == pytest.approx({"blur": 1.0, "noise": 1.0})


class TestCommandLine:
    def test_folders_of_search_and_test_belong_together(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--search", "photos"]) == 2
        assert "--search and --test belong together" in capsys.readouterr().err

    def test_unknown_weights_are_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--base", "nowhere", "--out", str(tmp_path / "out")]) == 2
        assert "weights must be a file or one of" in capsys.readouterr().err

    def test_target_needs_the_weights_of_base(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "target", "--images", str(tmp_path), "--out", str(tmp_path)]) == 2
        assert "give its weights with --from" in capsys.readouterr().err

    def test_a_missing_folder_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "photos"
        assert main(["train", "base", "--images", str(folder), "--out", str(tmp_path / "run")]) == 2
        assert str(folder) in capsys.readouterr().err

    def test_every_command_explains_itself(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ([], ["demo"], ["train"], ["card"]):
            with pytest.raises(SystemExit, match="0"):
                main([*command, "--help"])
            assert "usage: python -m sr_zoo" in capsys.readouterr().out

    def test_numbers_that_make_no_sense_are_gathered_before_any_work(self, capsys: pytest.CaptureFixture[str]) -> None:
        wrong = ["--fraction", "2", "--crops", "0", "--draws", "1", "--steps", "0"]
        assert main(["demo", *wrong]) == 2
        printed = capsys.readouterr().err
        for part in (
            "--fraction must",
            "got '2'",
            "--crops must",
            "from 1 to",
            "--draws must",
            "from 2 to",
            "--steps must",
        ):
            assert part in printed
        assert "attributing" not in printed

    def test_card_measures_weights(
        self, ends: tuple[nn.Module, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from sr_zoo.degradations import clean_inputs
        from sr_zoo.images import write_image
        from sr_zoo.training import Recipe

        provenance = {
            "stage": "base",
            "recipe": vars(Recipe(clean_inputs().config())),
            "photographs": 1,
            "cosine_to_first_weights": 0.5,
            "command": "python -m sr_zoo train base",
            "torch": torch.__version__,
        }
        path = tmp_path / "tiny.safetensors"
        save_network(path, "srresnet", {"num_feat": 4, "num_block": 1}, ends[0].state_dict(), provenance)
        write_image(tmp_path / "set1" / "a.png", photograph(3))
        folder, out = str(tmp_path / "set1"), tmp_path / "card.md"
        assert main(["card", str(path), "--images", folder, "--data", "one picture, CC0", "--out", str(out)]) == 0
        card = out.read_text()
        assert card in capsys.readouterr().out
        for part in ("one picture, CC0", "| set1 (1) | clean |", "| set1 (1) | both |", "seed 0", "20000 iterations"):
            assert part in card
