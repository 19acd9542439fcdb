"""The commands on small photographs: what they write, what they say, and how they refuse."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from filterattr import FilterAttribution
from sr_zoo.cli import main
from sr_zoo.degradations import (
    JPEG,
    GaussianBlur,
    GaussianNoise,
    PoissonNoise,
    blind_inputs,
    evaluation_inputs,
    from_config,
)
from sr_zoo.images import read_image, to_float, to_uint8, write_image
from sr_zoo.models import SRResNet, TwoBranch
from sr_zoo.pretrained import describe_network, save_network, trained_on

SIZES = {"num_feat": 4, "num_block": 1, "upscale": 2}


@pytest.fixture
def folder(tmp_path, photographs):
    for index, photograph in enumerate(photographs):
        write_image(tmp_path / "photos" / f"{index}.png", photograph)
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    """Two networks that differ."""
    paths = []
    for seed, name in enumerate(("base", "target")):
        torch.manual_seed(seed)
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save_network(paths[-1], "srresnet", SIZES, SRResNet(**SIZES).state_dict(), {})
    return paths


class TestDegrade:
    def test_the_sheet_is_written(self, folder, capsys):
        write_image(folder / "a.png", torch.randint(0, 256, (3, 120, 140), dtype=torch.uint8))
        assert main(["degrade", str(folder / "a.png"), "--out", str(folder / "sheets" / "sheet.png")]) == 0
        assert "wrote " in capsys.readouterr().out
        with Image.open(folder / "sheets" / "sheet.png") as sheet:
            assert min(sheet.size) > 1000

    def test_a_photograph_that_is_too_small_is_refused(self, folder, capsys):
        assert main(["degrade", str(folder / "photos" / "0.png"), "--out", str(folder / "sheet.png")]) == 2
        assert "at least 96x96 pixels of a photograph; got 144 of 72x96" in capsys.readouterr().err
        assert not (folder / "sheet.png").exists()

    def test_one_image_is_what_a_network_would_be_given(self, folder, capsys):
        path = folder / "photos" / "0.png"
        words = ["degrade", str(path), "--degradation", "blur:2", "noise:0.1", "--seed", "3"]
        assert main([*words, "--scale", "2"]) == 0
        degraded = read_image(folder / "photos" / "0_degraded.png")
        both = evaluation_inputs(2, degradations={"blur": GaussianBlur(2.0), "noise": GaussianNoise(0.1)})["both"]
        expected = both(to_float(read_image(path)[None]), torch.Generator().manual_seed(3))[0]
        assert degraded.shape == (3, 36, 48)
        torch.testing.assert_close(degraded, to_uint8(expected.clamp(0, 1)))
        assert main([*words, "--out", str(folder / "whole.png")]) == 0
        assert read_image(folder / "whole.png").shape == read_image(path).shape
        assert main([*words, "--scale", "2"]) == 2
        assert "already exists" in capsys.readouterr().err


class TestRestore:
    def test_an_image_is_written_beside_it_and_twice_as_large(self, folder, weights, capsys):
        path = folder / "photos" / "0.png"
        before = path.read_bytes()
        assert main(["restore", str(path), "--weights", weights[1], "--tile", "32"]) == 0
        output = capsys.readouterr()
        assert "0_restored.png (192x144)" in output.out
        assert "tile" not in output.err  # a bar is for terminals
        assert read_image(folder / "photos" / "0_restored.png").shape == (3, 144, 192)
        assert path.read_bytes() == before

    def test_every_image_of_a_folder_is_what_it_is_alone(self, folder, weights, capsys):
        words = ["--weights", weights[1], "--device", "cpu"]
        assert main(["restore", str(folder / "photos"), *words]) == 0
        names = sorted(path.name for path in (folder / "photos").iterdir())
        assert sorted(path.name for path in (folder / "photos_restored").iterdir()) == names
        assert capsys.readouterr().out.count("wrote ") == len(names) > 1
        assert main(["restore", str(folder / "photos" / "1.png"), *words, "--out", str(folder / "one.png")]) == 0
        torch.testing.assert_close(read_image(folder / "one.png"), read_image(folder / "photos_restored" / "1.png"))
        assert main(["restore", str(folder / "photos"), *words]) == 2
        assert "already holds results" in capsys.readouterr().err

    def test_images_of_one_stem_do_not_meet_in_the_folder_of_results(self, folder, weights):
        (folder / "two").mkdir()
        for name in ("a.png", "a.bmp"):
            write_image(folder / "two" / name, torch.zeros(3, 16, 16, dtype=torch.uint8))
        assert main(["restore", str(folder / "two"), "--weights", weights[1], "--out", str(folder / "out")]) == 0
        assert {path.name for path in (folder / "out").iterdir()} == {"a.bmp.png", "a.png.png"}

    def test_all_images_that_cannot_be_read_are_named_before_the_work(self, folder, weights, capsys):
        for name in ("bad.png", "worse.jpg"):
            (folder / "photos" / name).write_text("no image")
        assert main(["restore", str(folder / "photos"), "--weights", weights[1]]) == 2
        said = capsys.readouterr().err
        assert "2 of " in said
        assert "bad.png" in said
        assert "worse.jpg" in said
        assert not (folder / "photos_restored").exists()

    def test_tiles_leave_no_trace_in_the_file(self, folder, weights):
        for tile in ("16", "256"):
            command = ["restore", str(folder / "photos" / "2.png"), "--weights", weights[1], "--tile", tile]
            assert main([*command, "--out", str(folder / f"{tile}.png")]) == 0
        difference = read_image(folder / "16.png").int() - read_image(folder / "256.png").int()
        assert difference.abs().max() <= 1

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "must be a readable file; got"),
            (lambda path: path.write_bytes(b"no image"), "must be a readable file; got"),
            (lambda path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path), "must hold 8 bits per channel"),
        ],
        ids=["missing", "no image", "16 bit"],
    )
    def test_what_cannot_be_restored_is_refused_in_one_line(self, folder, weights, capsys, make, message):
        make(folder / "a.png")
        assert main(["restore", str(folder / "a.png"), "--weights", weights[1]]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error

    def test_unknown_weights_and_devices_are_refused(self, folder, weights, capsys):
        path = str(folder / "photos" / "0.png")
        assert main(["restore", path, "--weights", "nothing"]) == 2
        assert "weights must be a file or one of" in capsys.readouterr().err
        assert main(["restore", path, "--weights", weights[0], "--device", "abacus"]) == 2
        assert "--device must be one that PyTorch has here; got 'abacus'" in capsys.readouterr().err


class TestAttribute:
    def command(self, folder, weights, *more):
        words = ["--images", str(folder / "photos"), "--out", str(folder / "out"), "--crops", "2", "--size", "32"]
        return main(["attribute", *weights, *words, "--steps", "4", "--device", "cpu", *more])

    def test_file_picture_and_table(self, folder, weights, capsys):
        assert self.command(folder, weights, "--degradation", "noise", "--fraction", "0.1") == 0
        printed = capsys.readouterr().out
        assert "noise inputs: loss" in printed
        assert "share of scores" in printed
        assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith(("wrote", "  python")))
        assert f"  python -m sr_zoo demo --base {weights[0]} --target {weights[1]} --search {folder}/photos" in printed
        attribution = FilterAttribution.load(folder / "out" / "attribution.safetensors")
        assert attribution.n_samples == 2
        units = sum(weight.shape[0] * weight.shape[1] for weight in SRResNet(**SIZES).parameters() if weight.ndim == 4)
        assert f"{round(0.1 * units)} of {units} kernels selected" in printed
        assert (folder / "out" / "attribution.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in (folder / "out").iterdir()} == {"attribution.png", "attribution.safetensors"}

    def test_what_speaks_against_the_numbers_is_said_once_in_words(self, folder, weights, capsys):
        def table(*ends):
            assert self.command(folder, ends, "--degradation", "noise", "--steps", "1", "--overwrite") == 0
            printed, told = capsys.readouterr()
            assert "reasons to doubt" not in told
            assert "should sum to" not in told
            losses = re.search(r"loss (\S+) of base, (\S+) of target", printed).groups()
            return printed, [float(loss) for loss in losses]

        (first, losses), (second, _) = table(*weights), table(*reversed(weights))
        worse, better = (first, second) if losses[1] > losses[0] else (second, first)
        assert "The ends point in different directions" in first
        assert "if the ends are swapped, exchange base and target" in " ".join(worse.split())
        assert worse.count("Target is not better than base") == 1
        assert "swapped" not in better
        assert all(len(line) <= 80 for line in first.splitlines() if not line.startswith(("wrote", "  python")))

    def test_a_two_branch_pair_can_be_attributed(self, folder, capsys):
        arguments = {"num_feat": 4, "num_block": 1, "hidden": 2, "condition": 3, "predictor_feat": 4, "upscale": 2}
        paths = []
        for seed in range(2):
            torch.manual_seed(seed)
            network = TwoBranch(**arguments)
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            paths.append(str(folder / f"{seed}.safetensors"))
            save_network(paths[-1], "two_branch", arguments, network.state_dict(), {})
        assert self.command(folder, paths, "--steps", "16") == 0
        assert "predictor.convolutions" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("spelled", "name"),
        [
            (["clean"], "clean"),
            (["jpeg:10"], "jpeg"),
            (["noise", "blur:3"], "blur+noise"),
            (['mist={"type": "GaussianBlur", "sigma": 4.0}'], "mist"),
        ],
    )
    # random networks hardly differ in what they do: the ends of the loss are rounding
    @pytest.mark.filterwarnings("ignore:the attributions should sum")
    def test_degradations_are_those_that_are_spelled(self, folder, weights, capsys, spelled, name):
        assert self.command(folder, weights, "--degradation", *spelled) == 0
        assert f"{name} inputs: loss" in capsys.readouterr().out

    @pytest.mark.filterwarnings("ignore:the attributions should sum")
    def test_degradations_that_cannot_be_had_are_refused(self, folder, weights, capsys):
        assert self.command(folder, weights, "--degradation", "rain") == 2
        assert "a degradation is spelled blur, noise, jpeg" in capsys.readouterr().err
        assert not (folder / "out").exists()
        shrunk = 'half={"type": "Downsample", "scale": 2}'
        assert self.command(folder, weights, "--degradation", shrunk) == 0
        assert "half inputs" in capsys.readouterr().out
        assert self.command(folder, weights, "--degradation", shrunk, "blur", "--overwrite") == 2
        assert "none may shrink the image" in capsys.readouterr().err

    def test_networks_that_differ_and_fractions_that_are_none_are_refused(self, folder, weights, capsys):
        other = str(folder / "other.safetensors")
        save_network(other, "srresnet", {**SIZES, "num_feat": 5}, SRResNet(**{**SIZES, "num_feat": 5}).state_dict(), {})
        assert self.command(folder, [weights[0], other]) == 2
        assert "conv_first" in capsys.readouterr().err
        assert self.command(folder, weights, "--fraction", "1") == 2
        assert "--fraction must be a number between 0 and 1, both excluded; got '1'" in capsys.readouterr().err


def test_a_training_keeps_what_was_spelled(folder, weights):
    description = folder / "grain.json"
    description.write_text('{"type": "PoissonNoise", "scale": 2.0}')
    words = ["train", "target", "--from", weights[0], "--images", str(folder / "photos"), "--iterations", "2"]
    words += ["--batch-size", "2", "--patch-size", "16", "--device", "cpu", "--out", str(folder / "run")]
    spelled = ["--degradations", "jpeg:10", str(description), "--one-at-a-time"]
    assert main([*words, *spelled]) == 0
    description.unlink()
    provenance = describe_network(folder / "run" / "target.safetensors")["provenance"]
    assert trained_on(provenance) == {"jpeg": JPEG(10), "grain": PoissonNoise(2.0)}
    learnt = from_config(provenance["recipe"]["degradation"])
    assert learnt == blind_inputs(2, degradations=trained_on(provenance), one_at_a_time=True)


def test_the_patch_suits_the_factor_if_it_is_not_given(folder, capsys):
    for seed in range(2):
        write_image(folder / "large" / f"{seed}.png", torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8))
    words = ["train", "base", "--images", str(folder / "large"), "--device", "cpu", "--features", "4", "--blocks", "1"]
    words += ["--batch-size", "1", "--out", str(folder / "run"), "--dry-run"]
    for upscale, patch in ((2, 64), (3, 63), (4, 64)):
        assert main([*words, "--upscale", str(upscale)]) == 0
        assert f"1 of {patch}x{patch}" in capsys.readouterr().out
    assert not (folder / "run").exists()


def test_a_network_that_estimates_strengths_knows_those_of_the_protocol_only(folder, capsys):
    words = ["train", "target", "--from", "scratch", "--network", "two_branch", "--images", str(folder / "photos")]
    spelled = ["--degradations", "blur", "heavy=noise:0.2"]
    sizes = ["--features", "32", "--blocks", "8"]
    assert main([*words, *spelled, *sizes, "--out", str(folder / "run")]) == 2
    wanted = "two_branch estimates how strong blur, noise, jpeg are, and nothing else; got heavy"
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((), "the following arguments are required: COMMAND (python -m sr_zoo --help explains it)"),
        (("rain",), "invalid choice: 'rain' (choose from"),
        (("restore",), "the following arguments are required: image (python -m sr_zoo restore --help explains it)"),
        (("degrade", "a.png", "--sise", "96"), "unknown arguments: --sise 96; did you mean --size?"),
        (("attribute", "a", "b"), "the following arguments are required: --images"),
        (("train", "bas", "--images", "a", "--out", "b"), "invalid choice: 'bas'"),
    ],
)
def test_words_that_are_no_command_are_refused_in_one_line(command, message, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_interrupt_is_said_in_one_line(monkeypatch, capsys, folder):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sr_zoo.cli.degrade.draw_contact_sheet", interrupted)
    assert main(["degrade", str(folder / "photos" / "0.png")]) == 130
    assert capsys.readouterr().err == "python -m sr_zoo: interrupted\n"
