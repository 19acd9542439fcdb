"""Networks side by side: the numbers are those of the measurements, and what is not alike is said."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from filterattr import SettingError
from sr_zoo.cli import main
from sr_zoo.comparison import compare, comparison_table, measure_estimates
from sr_zoo.degradations import blind_inputs, evaluation_inputs
from sr_zoo.evaluation import measure
from sr_zoo.images import write_image
from sr_zoo.models import TwoBranch
from sr_zoo.pretrained import build, load_network, save_network
from sr_zoo.training import Recipe

ONE = {"num_feat": 4, "num_block": 1, "upscale": 2}
TWO = {**ONE, "hidden": 2, "condition": 3, "predictor_feat": 4, "predicts": ["blur", "noise"]}


@pytest.fixture
def weights(tmp_path):
    """Write weights with a seed and a recipe."""

    def make(name, architecture, arguments, seed=0, degradations=("blur", "noise"), **changes):
        torch.manual_seed(seed)
        network = build(architecture, arguments)
        for parameter in network.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        recipe = vars(Recipe(blind_inputs().config(), seed=seed, **changes))
        provenance = {"stage": "target", "degradations": degradations, "recipe": recipe, "photographs": 3}
        path = tmp_path / f"{name}.safetensors"
        save_network(path, architecture, arguments, network.state_dict(), provenance)
        return path

    return make


class Told(nn.Module):
    """A predictor's last layer that says what it was told, one image after the other."""

    def __init__(self, estimates):
        super().__init__()
        self.estimates = iter(estimates)

    def forward(self, condition):
        return condition.new_tensor([next(self.estimates)])


class TestEstimates:
    def test_shares_and_errors_are_counted_right(self, photographs):
        truths = {"clean": (0.0, 0.0), "blur": (1.0, 0.0), "noise": (0.0, 1.0), "both": (1.0, 1.0)}
        told = [list(truth) for truth in truths.values() for _ in photographs]
        told[0] = [0.6, 0.1]  # of the first clean photograph: blur is wrong, noise is right
        told[4] = [0.4, 0.9]  # of the second blurred one: both are wrong
        network = TwoBranch(**TWO)
        network.estimate = Told(told)
        table = measure_estimates(network, photographs, evaluation_inputs())
        assert_close(table["clean"]["blur"], {"accuracy": 2 / 3, "error": 0.2, "estimate": 0.2})
        assert_close(table["clean"]["noise"], {"accuracy": 1.0, "error": 0.1 / 3, "estimate": 0.1 / 3})
        assert_close(table["clean"]["all right"], {"accuracy": 2 / 3})
        assert_close(table["blur"]["blur"]["accuracy"], 2 / 3)
        assert_close(table["blur"]["noise"]["error"], 0.3)
        for name in ("noise", "both"):
            assert all(entry["accuracy"] == 1 for entry in table[name].values())


class TestCompare:
    def test_numbers_are_those_of_the_measurements(self, photographs, weights):
        files = {
            "one": [weights(f"one{seed}", "srresnet", ONE, seed) for seed in (0, 1)],
            "two": [weights(f"two{seed}", "two_branch", TWO, seed) for seed in (0, 1)],
        }
        result = compare(files, {"tiny": photographs}, seed=3, progress=False)
        assert result["differences"] == []
        assert result["networks"]["two"]["seeds"] == [0, 1]
        for label, paths in files.items():
            for path, row in zip(paths, result["rows"][label], strict=True):
                expected = measure(load_network(path), photographs, evaluation_inputs(), seed=3)
                assert row["tiny"] == expected
        assert list(result["predictions"]) == ["two"]
        expected = measure_estimates(load_network(files["two"][1]), photographs, evaluation_inputs(), seed=3)
        assert result["predictions"]["two"][1]["tiny"] == expected
        json.dumps(result)

    def test_the_table_has_means_spreads_and_differences(self, photographs, weights):
        files = {
            "one": [weights(f"one{seed}", "srresnet", ONE, seed) for seed in (0, 1)],
            "two": [weights("two", "two_branch", TWO)],
        }
        result = compare(files, {"tiny": photographs}, progress=False)
        table = comparison_table(result)
        values = [row["tiny"]["blur"]["psnr_luma"] for row in result["rows"]["one"]]
        mean, spread = torch.tensor(values).double().mean().item(), torch.tensor(values).double().std().item()
        two = result["rows"]["two"][0]["tiny"]["blur"]
        line = next(line for line in table.splitlines() if line.startswith("| tiny | blur | ") and " / " in line)
        assert f"{mean:.2f} ({spread:.2f}) / " in line
        assert f"| {two['psnr_luma']:.2f} / {two['ssim_luma']:.4f} | {two['psnr_luma'] - mean:+.2f} |" in line
        assert "Trained alike: yes." in table
        assert "recognised by the predictor of two" in table

    def test_what_is_not_alike_is_said(self, photographs, weights):
        files = {"a": [weights("a", "srresnet", ONE)], "b": [weights("b", "srresnet", ONE, iterations=7)]}
        result = compare(files, {"tiny": photographs[:1]}, progress=False)
        assert "Trained alike: no: iterations 20000 and 7." in comparison_table(result)

    def test_three_degradations_are_measured_if_they_were_learned(self, photographs, weights):
        names = ("blur", "noise", "jpeg")
        path = weights("three", "two_branch", {**TWO, "predicts": list(names)}, degradations=names)
        result = compare({"three": [path]}, {"tiny": photographs[:1]}, progress=False)
        assert list(result["rows"]["three"][0]["tiny"]) == ["clean", "blur", "noise", "jpeg", "all"]
        assert "jpeg" in result["predictions"]["three"][0]["tiny"]["all"]

    def test_what_cannot_be_compared_is_refused(self, photographs, weights):
        two, three = weights("x2", "srresnet", ONE), weights("x3", "srresnet", {**ONE, "upscale": 3})
        with pytest.raises(SettingError, match=r"the same scale and degradations.*scales \[2, 3\]"):
            compare({"a": [two], "b": [three]}, {"tiny": photographs}, progress=False)
        with pytest.raises(SettingError, match="at least one network, with at least one file"):
            compare({"a": []}, {"tiny": photographs}, progress=False)


def test_the_command_prints_and_writes(tmp_path, photographs, weights, capsys):
    write_image(tmp_path / "tiny" / "0.png", photographs[0])
    one, two = weights("one", "srresnet", ONE), weights("two", "two_branch", TWO)
    words = ["--network", "one branch", str(one), "--network", "two branches", str(two), "--device", "cpu"]
    out = ["--images", str(tmp_path / "tiny"), "--out", str(tmp_path / "tables" / "branches.md")]
    assert main(["compare", *words, *out]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "tables" / "branches.md").read_text() in printed
    assert (
        json.loads((tmp_path / "tables" / "branches.json").read_text())["networks"]["one branch"]["stage"] == "target"
    )
    assert main(["compare", "--network", "a", str(one), "--network", "a", str(two), *out]) == 2
    assert "a label of its own; got a, a" in capsys.readouterr().err
