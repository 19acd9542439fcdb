"""Cards: what they say, the table they repeat, and weights in half precision."""

import pytest
import torch
from torch.testing import assert_close

from sr_zoo.card import make_card, measure_weights, write_half
from sr_zoo.cli import main
from sr_zoo.degradations import blind_inputs, evaluation_inputs
from sr_zoo.evaluation import measure
from sr_zoo.images import write_image
from sr_zoo.pretrained import WeightsError, build, describe_network, load_network, save_network
from sr_zoo.training import Recipe

ONE = {"num_feat": 4, "num_block": 1, "upscale": 2}
TWO = {**ONE, "hidden": 2, "condition": 3, "predictor_feat": 4, "predicts": ["blur", "noise", "jpeg"]}


@pytest.fixture
def weights(tmp_path):
    def make(architecture="srresnet", arguments=ONE, **provenance):
        torch.manual_seed(0)
        state = build(architecture, arguments).state_dict()
        described = {
            "stage": "target",
            "recipe": vars(Recipe(blind_inputs().config())),
            "photographs": 3,
            "cosine_to_first_weights": 0.95,
            "command": "python -m sr_zoo train target",
            "torch": "2",
            **provenance,
        }
        save_network(tmp_path / "a.safetensors", architecture, arguments, state, described)
        return tmp_path / "a.safetensors"

    return make


def test_the_table_is_what_the_weights_do(weights, photographs):
    path = weights()
    card = make_card(path, {"tiny": photographs}, data="three pictures", seed=4)
    for name, row in measure_weights(path, {"tiny": photographs}, seed=4)["tiny"].items():
        assert f"| tiny (3) | {name} | {row['psnr']:.2f} | {row['ssim']:.4f} | {row['psnr_luma']:.2f} |" in card
    assert "half precision" not in card
    assert "mean training loss" not in card


def test_weights_of_three_degradations_are_measured_on_all_and_their_predictor_too(weights, photographs):
    path = weights("two_branch", TWO, degradations=["blur", "noise", "jpeg"], first_losses={"100": 0.05, "200": 0.04})
    card = make_card(path, {"tiny": photographs[:1]}, data="three pictures")
    assert "- mean training loss: 0.05000 up to iteration 100, 0.04000 up to iteration 200" in card
    rows = [line.split("|")[2].strip() for line in card.splitlines() if line.startswith("| tiny (1)")]
    assert rows == ["clean", "blur", "noise", "jpeg", "all"] * 2
    assert "What the predictor tells" in card


@pytest.mark.parametrize("kind", ["own, nothing known", "basicsr"])
def test_weights_that_do_not_say_how_they_were_trained_have_a_card_too(weights, photographs, tmp_path, kind):
    path = weights()
    state = load_network(path).state_dict()
    if kind == "basicsr":
        path = tmp_path / "net_g.pth"
        torch.save({"params": state}, path)
    else:
        save_network(path, "srresnet", ONE, state, {})
    card = make_card(path, {"tiny": photographs[:1]}, data="somebody's photographs")
    assert "- trained on: somebody's photographs; the file does not say how" in card
    assert "averaged" not in card
    table = measure(load_network(weights()), photographs[:1], evaluation_inputs())
    assert all(f"| tiny (1) | {name} | {row['psnr']:.2f} |" in card for name, row in table.items())


class TestHalf:
    def test_they_take_half_the_room_and_do_the_same(self, weights, photographs, tmp_path):
        path = weights("srresnet", {**ONE, "num_feat": 16})
        table = write_half(path, tmp_path / "half.safetensors", {"tiny": photographs})
        assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * path.stat().st_size
        network = load_network(tmp_path / "half.safetensors")
        assert next(network.parameters()).dtype == torch.float32
        assert describe_network(tmp_path / "half.safetensors")["provenance"]["precision"] == "half"
        for name, value in load_network(path).state_dict().items():
            assert_close(network.state_dict()[name], value.half().float(), rtol=0, atol=0)
        assert table["tiny"] == measure(network, photographs, evaluation_inputs())

    @pytest.mark.parametrize(
        ("bias", "weight", "message"),
        [
            (1e-9, 1e7, r"numbers up to 65504; weights in 'conv_last\.weight' are larger. Keep"),
            (2e-8, 6e4, r"by more than 0\.01 dB; it changes that of tiny, .* Keep"),  # halves begin at 6e-8
        ],
    )
    @pytest.mark.parametrize("exists", [False, True])
    def test_weights_that_half_precision_harms_leave_everything_as_it_was(
        self, weights, photographs, tmp_path, bias, weight, message, exists
    ):
        path, out = weights(), tmp_path / "half.safetensors"
        state = load_network(path).state_dict()
        state["conv_hr.weight"].zero_()
        state["conv_hr.bias"].fill_(bias)
        state["conv_last.weight"].fill_(weight)
        save_network(path, "srresnet", ONE, state, describe_network(path)["provenance"])
        if exists:
            out.write_bytes(b"an older, good file")
        with pytest.raises(WeightsError, match=message):
            write_half(path, out, {"tiny": photographs[:1]})
        assert out.exists() == exists
        assert not exists or out.read_bytes() == b"an older, good file"

    @pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
    def test_the_weights_themselves_are_no_place_for_them(self, weights, photographs, tmp_path, link):
        path = weights()
        out = {"same": path, "symbolic": tmp_path / "s.safetensors", "hard": tmp_path / "h.safetensors"}[link]
        if link == "symbolic":
            out.symlink_to(path)
        if link == "hard":
            out.hardlink_to(path)
        before = path.read_bytes()
        with pytest.raises(WeightsError, match="holds the weights themselves; name another file"):
            write_half(path, out, {"tiny": photographs[:1]})
        assert path.read_bytes() == before

    def test_the_command_writes_both(self, weights, photographs, tmp_path, capsys):
        write_image(tmp_path / "tiny" / "0.png", photographs[0])
        words = [
            "--images",
            str(tmp_path / "tiny"),
            "--data",
            "one picture",
            "--half",
            str(tmp_path / "half.safetensors"),
        ]
        assert main(["card", str(weights()), *words, "--out", str(tmp_path / "half.md")]) == 0
        card = (tmp_path / "half.md").read_text()
        assert card.startswith("# half\n")
        assert "stored in half precision" in card
        assert card in capsys.readouterr().out
