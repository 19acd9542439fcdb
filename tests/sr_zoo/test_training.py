"""Training: the schedule, the random numbers, the arithmetic, and a run that is killed and goes on."""

import copy
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from filterattr.errors import FilterAttrError, StorageError
from filterattr.files.safetensors import read_tensors
from sr_zoo.cli import main
from sr_zoo.data import PatchSampler
from sr_zoo.degradations import (
    DegradationError,
    Downsample,
    GaussianBlur,
    Pipeline,
    blind_inputs,
    clean_inputs,
    evaluation_inputs,
)
from sr_zoo.evaluation import measure
from sr_zoo.images import ImageError, to_float, write_image
from sr_zoo.models import SRResNet
from sr_zoo.pretrained import describe_network
from sr_zoo.training import (
    Recipe,
    Trainer,
    TrainingError,
    TrainingInterrupted,
    draw_curves,
    fast_precision,
    random_patches,
    read_log,
    stored_precision,
)
from sr_zoo.training import precision as precision_module
from sr_zoo.training import recipe as recipe_module
from sr_zoo.training import trainer as trainer_module

CPU = torch.device("cpu")
draws_real_curves = pytest.mark.usefixtures("real_curves")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch, request):
    """Pictures take longer than these trainings; tests that look at them ask for ``real_curves``."""
    if "real_curves" not in request.fixturenames:
        monkeypatch.setattr(trainer_module, "draw_curves", lambda folder: None)


@pytest.fixture
def real_curves() -> None:
    """Draw the curves, as a user's run does."""


def tiny(seed: int = 0, **changes) -> SRResNet:
    torch.manual_seed(seed)
    return SRResNet(**{"num_feat": 4, "num_block": 1, **changes})


def recipe(**changes) -> Recipe:
    settings = {"iterations": 8, "batch_size": 2, "patch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
    return Recipe(changes.pop("degradation", blind_inputs().config()), **{**settings, **changes})


@pytest.fixture
def trainer(photographs, tmp_path):
    """Make a trainer on three photographs, in a folder of the given name."""

    def make(name="run", network=None, validate_every=3, progress=False, **changes):
        return Trainer(
            network or tiny(),
            photographs,
            photographs[1:2],
            recipe(**changes),
            tmp_path / name,
            validate_every=validate_every,
            progress=progress,
        )

    return make


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def kill_at(run: Trainer, iteration: int) -> None:
    """Train until ``iteration`` steps are done, then die."""
    step = run._step

    def stepping():
        if run.iteration == iteration:
            raise Killed
        return step()

    run._step = stepping
    with pytest.raises(Killed, match=r"^$"):
        run.run()


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def without_times(folder) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != "patches_per_second"} for entry in read_log(folder)]


class TestRecipe:
    def test_everything_that_makes_no_sense_is_named_at_once(self):
        with pytest.raises(
            TrainingError,
            match=r"iterations must lie in \[1, inf\]; got 0; learning_rate must lie in \[0, 1\]; got 2; "
            r"patch_size .*got 8; ema_decay .*got nan; seed .*got -1; precision must be one of fp32, bf16; got 'fp16'",
        ):
            recipe(iterations=0, learning_rate=2, patch_size=8, ema_decay=math.nan, seed=-1, precision="fp16")

    def test_a_degradation_that_is_none_is_refused_before_training(self):
        with pytest.raises(DegradationError, match="got 'Rain'"):
            recipe(degradation={"type": "Rain"})

    def test_the_rate_falls_along_half_a_cosine(self):
        schedule = recipe(iterations=100, learning_rate=1e-3, final_rate=1e-5)
        assert_close(schedule.rate(0), 1e-3)
        assert_close(schedule.rate(25), 1e-5 + (1e-3 - 1e-5) * (1 + math.sqrt(0.5)) / 2)
        assert_close(schedule.rate(50), (1e-3 + 1e-5) / 2)
        assert_close(schedule.rate(99), 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(0.99 * math.pi)) / 2)
        rates = [schedule.rate(iteration) for iteration in range(100)]
        assert rates == sorted(rates, reverse=True)

    def test_the_warm_up_climbs_in_equal_steps_and_the_cosine_follows(self):
        schedule = recipe(iterations=104, warmup=4, learning_rate=1e-3, final_rate=0)
        assert_close([schedule.rate(i) for i in range(5)], [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
        assert_close(schedule.rate(54), 5e-4)

    def test_periods_start_again_at_the_first_rate(self):
        schedule = recipe(iterations=100, period=20, warmup=10, learning_rate=1e-3, final_rate=1e-6)
        for start in (10, 30, 50, 70, 90):
            assert_close(schedule.rate(start), 1e-3)
            assert_close(schedule.rate(start + 5), schedule.rate(15))
        assert schedule.rate(29) < 1e-5

    def test_a_warm_up_longer_than_the_training_only_climbs(self):
        schedule = recipe(iterations=5, warmup=10)
        assert_close([schedule.rate(i) for i in range(5)], [1e-4 * (i + 1) for i in range(5)])

    def test_the_error_is_one_of_the_library(self):
        assert issubclass(TrainingError, FilterAttrError)
        assert issubclass(TrainingError, ValueError)


class TestRandomPatches:
    def test_seed_and_iteration_decide_every_number(self, photographs):
        sampler = PatchSampler(photographs, 48)
        batches = {}
        for seed, iteration in ((0, 0), (0, 1), (1, 0), (1, 1)):
            torch.manual_seed(len(batches))  # the global generator plays no part
            first, again = (random_patches(sampler, recipe(seed=seed), 2, iteration, CPU) for _ in range(2))
            assert_close(first, again, rtol=0, atol=0)
            batches[seed, iteration] = first
        for key, (degraded, reference, _) in batches.items():
            for other, (other_degraded, other_reference, _) in batches.items():
                assert (key == other) == torch.equal(degraded, other_degraded)
                assert (key == other) == torch.equal(reference, other_reference)

    def test_seeds_do_not_meet_within_any_usual_training(self):
        """PyTorch reads 32 bits of a seed, so that the iterations of all runs share one circle of numbers."""
        starts = sorted(recipe_module._iteration_seed(seed, 0) for seed in range(1000))
        gaps = [after - before for before, after in zip(starts, [*starts[1:], starts[0] + 2**32], strict=True)]
        assert min(gaps) > 1_000_000
        assert [recipe_module._iteration_seed(0, iteration) for iteration in (0, 1, 19_999)] == [0, 1, 19_999]
        assert recipe_module._iteration_seed(2**31 - 1, 10**6) < 2**32

    def test_the_random_numbers_are_those_that_shipped_weights_were_trained_with(self, photographs):
        """Every draw with seed 0, literally: changing one would make these weights impossible to compute again."""
        plan = recipe(seed=0, batch_size=3)
        generator = torch.Generator().manual_seed(6)
        wide = []
        for _ in range(3):
            choice, row, column, turn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            image = photographs[int(choice * 3)]
            top, left = int(row * (image.shape[1] - 47)), int(column * (image.shape[2] - 47))
            patch = image[:, top : top + 48, left : left + 48]
            patch = patch.flip(2) if int(turn * 8) >= 4 else patch
            wide.append(torch.rot90(patch, int(turn * 8) % 4, (1, 2)))
        wide = torch.stack(wide).float() / 255
        degraded = wide.clone()
        blurred = torch.rand(3, generator=generator) < 0.5
        if blurred.any():
            degraded[blurred] = GaussianBlur(2.0, 21)(degraded[blurred])
        degraded = functional.interpolate(degraded, scale_factor=0.5, mode="bicubic", antialias=True)
        noisy = torch.rand(3, generator=generator) < 0.5
        if noisy.any():
            degraded[noisy] += 0.1 * torch.randn(int(noisy.sum()), 3, 24, 24, generator=generator)
        degraded = (degraded * 255).round().clamp(0, 255) / 255
        assert blurred.any()
        assert noisy.any()
        found, reference, strengths = random_patches(PatchSampler(photographs, 48), plan, 2, 6, CPU)
        assert_close(reference, wide[..., 16:32, 16:32], rtol=0, atol=0)
        assert_close(found, degraded[..., 8:16, 8:16], rtol=0, atol=0)
        assert_close(strengths["blur"], 2.0 * blurred, rtol=0, atol=0)
        assert_close(strengths["noise"], 0.1 * noisy, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("scale", "margin", "agrees"), [(2, 16, True), (3, 24, True), (4, 32, True), (2, 4, False)]
    )
    def test_with_a_wide_margin_a_patch_is_degraded_as_the_photograph_is(self, scale, margin, agrees, rng):
        """Away from borders; with a margin narrower than blur and downsampling reach, it is not."""
        length = 110
        photograph = torch.randint(0, 256, (3, length, length), generator=rng, dtype=torch.uint8)
        photograph[0] = torch.arange(length)[:, None]
        photograph[1] = torch.arange(length)
        blur = Pipeline((GaussianBlur(2.0), Downsample(scale)))
        patch = 24
        plan = recipe(degradation=blur.config(), patch_size=patch, margin=margin, batch_size=8)
        sampler = PatchSampler([photograph], patch + 2 * margin)
        degraded, reference, _ = random_patches(sampler, plan, scale, 0, CPU)
        errors = []
        for low, high in zip(degraded, reference, strict=True):
            turned, top, left = find_patch(photograph, high)
            # a grid of low-resolution pixels that the patch lies on
            whole = to_float(turned)[None, :, top % scale :, left % scale :]
            whole = whole[..., : whole.shape[2] // scale * scale, : whole.shape[3] // scale * scale]
            top, left, width = top // scale, left // scale, patch // scale
            expected = blur(whole)[0, :, top : top + width, left : left + width]
            errors.append((low - expected).abs().max().item())
        assert (max(errors) < 1e-5) == agrees
        assert agrees or max(errors) > 5e-4


def find_patch(photograph, patch):
    """The orientation of a photograph that a patch was cut from, and where, by the coordinates in red and green."""
    wanted = (patch * 255).round().to(torch.uint8)
    size = patch.shape[-1]
    for side in (photograph, photograph.flip(2)):
        for turn in range(4):
            turned = torch.rot90(side, turn, (1, 2))
            place = (turned[:2] == wanted[:2, :1, :1]).all(0).nonzero()
            top, left = place[0].tolist()
            if torch.equal(turned[:, top : top + size, left : left + size], wanted):
                return turned, top, left
    raise LookupError("the patch is not part of the photograph")


class TestArithmetic:
    def test_training_equals_a_loop_written_out(self, trainer, photographs):
        """L1 loss, Adam (.9, .99), the schedule, and the average that starts at the first step's weights."""
        plan = recipe(iterations=5, warmup=2, ema_decay=0.8)
        network = tiny().to(memory_format=torch.channels_last)
        weights = list(network.parameters())
        first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
        average = None
        sampler = PatchSampler(photographs, 48)
        for step in range(1, 6):
            degraded, reference, _ = random_patches(sampler, plan, 2, step - 1, CPU)
            loss = (network(degraded) - reference).abs().mean()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
                    m.copy_(0.9 * m + 0.1 * gradient)
                    v.copy_(0.99 * v + 0.01 * gradient**2)
                    change = (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
                    weight -= plan.rate(step - 1) * change
                current = [weight.clone() for weight in weights]
                average = (
                    [0.8 * old + 0.2 * new for old, new in zip(average, current, strict=True)] if average else current
                )
        run = trainer(iterations=5, warmup=2, ema_decay=0.8)
        state = run.run()
        for found, expected in zip(run.network.parameters(), current, strict=True):
            assert_close(found.detach(), expected, rtol=0, atol=1e-6)
        for found, expected, start in zip(state.values(), average, tiny().parameters(), strict=True):
            assert_close(found, expected, rtol=0, atol=1e-6)
            assert not torch.equal(found, start)

    def test_the_average_equals_a_literal_loop_over_the_weights_of_every_step(self, trainer):
        run = trainer(iterations=12, ema_decay=0.7)
        step, seen = run._step, []

        def stepping():
            loss = step()
            seen.append([weight.detach().double() for weight in run.network.parameters()])
            return loss

        run._step = stepping
        state = run.run()
        average = seen[0]
        for weights in seen[1:]:
            average = [0.7 * old + 0.3 * new for old, new in zip(average, weights, strict=True)]
        for found, expected in zip(state.values(), average, strict=True):
            assert_close(found.double(), expected, rtol=0, atol=1e-6)

    def test_the_loss_falls(self, trainer):
        network = tiny()
        network.conv_last.bias.data.fill_(0.3)  # far too bright
        run = trainer(network=network, iterations=60, learning_rate=1e-2, validate_every=20)
        run.run()
        losses = [entry["loss"] for entry in read_log(run.folder)]
        assert losses[0] > 1.5 * losses[1]

    def test_the_network_gets_better_than_interpolation(self, trainer, photographs):
        inputs = {"clean": clean_inputs()}
        before = measure(tiny(num_feat=8), photographs, inputs)["clean"]["psnr"]
        run = trainer(
            network=tiny(num_feat=8),
            degradation=clean_inputs().config(),
            iterations=150,
            learning_rate=5e-3,
            batch_size=4,
            ema_decay=0.9,
            validate_every=50,
        )
        run.run()
        assert measure(run.average.module, photographs, inputs)["clean"]["psnr"] > before + 0.3

    def test_bf16_computes_otherwise_but_keeps_weights_in_fp32(self, trainer):
        single, half = (trainer(name, precision=name).run() for name in ("fp32", "bf16"))
        assert all(value.dtype == torch.float32 for value in half.values())
        assert any(not torch.equal(single[name], half[name]) for name in single)
        for name in single:
            assert_close(half[name], single[name], rtol=0, atol=8e-3)  # 8 steps of at most 1e-3 each

    def test_what_comes_back_is_a_copy_of_the_average(self, trainer):
        run = trainer()
        state = run.run()
        assert_same_state(state, run.averaged())
        for name, parameter in run.average.module.named_parameters():
            assert_close(state[name], parameter.detach(), rtol=0, atol=0)
            assert state[name].is_contiguous()
            assert state[name].data_ptr() != parameter.data_ptr()

    def test_the_cosine_is_one_before_and_less_after(self, trainer):
        run = trainer(learning_rate=0.05)
        assert_close(run.cosine(), 1.0)
        run.run()
        start = torch.cat([value.flatten() for value in run.first.values()])
        end = torch.cat([value.detach().flatten() for value in run.average.module.parameters()])
        assert_close(run.cosine(), functional.cosine_similarity(start.double(), end.double(), dim=0).item())
        assert run.cosine() < 0.99

    def test_a_base_network_trained_in_one_process_can_be_fine_tuned(self, trainer):
        base = trainer("base").run()
        network = tiny(seed=9)
        network.load_state_dict(base)
        target = trainer("target", network=network, learning_rate=1e-4)
        target.run()
        assert target.cosine() > 0.99


class TestResuming:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("killed_at", [1, 3, 5, 7])
    def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(self, trainer, precision, killed_at):
        whole = trainer("whole", precision=precision)
        expected = whole.run()
        kill_at(trainer("killed", precision=precision), killed_at)
        resumed = trainer("killed", precision=precision)
        state = resumed.run()
        assert resumed.iteration == 8
        assert_same_state(state, expected)
        assert_same_state(resumed.network.state_dict(), whole.network.state_dict())
        assert without_times(resumed.folder) == without_times(whole.folder)
        assert [entry["iteration"] for entry in read_log(resumed.folder)] == [3, 6, 8]
        tensors = [read_tensors(run._checkpoint, "training")[0] for run in (resumed, whole)]
        assert_same_state(*tensors)

    def test_it_goes_on_from_the_checkpoint_not_from_the_start(self, trainer):
        kill_at(trainer(), 7)
        resumed = trainer()
        step, done = resumed._step, []
        resumed._step = lambda: done.append(resumed.iteration) or step()
        resumed.run()
        assert done == [6, 7]

    def test_being_killed_twice_is_no_worse(self, trainer):
        expected = trainer("whole").run()
        for iteration in (4, 7):
            kill_at(trainer("killed"), iteration)
        assert_same_state(trainer("killed").run(), expected)

    def test_a_finished_run_returns_its_weights_again(self, trainer):
        expected = trainer().run()
        finished = trainer()
        finished._step = None
        assert_same_state(finished.run(), expected)
        assert len(read_log(finished.folder)) == 3

    def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(self, trainer, monkeypatch):
        expected = trainer("whole").run()
        broken = trainer("killed")
        replace = Path.replace

        def interrupted(path, target):
            if broken.iteration == 6:
                raise Killed
            return replace(path, target)

        with monkeypatch.context() as patches:
            patches.setattr(Path, "replace", interrupted)
            with pytest.raises(Killed, match=r"^$"):
                broken.run()
        assert read_tensors(broken._checkpoint, "training")[1]["iteration"] == 3
        resumed = trainer("killed")
        assert_same_state(resumed.run(), expected)
        assert without_times(resumed.folder) == without_times(resumed.folder.with_name("whole"))

    def test_a_run_that_was_told_to_stop_goes_on_as_if_it_had_not(self, trainer):
        whole = trainer("whole")
        expected = whole.run()
        stopped = trainer("stopped")
        stopped.run(stop_after=5)
        assert stopped.iteration == 5
        assert [entry["iteration"] for entry in read_log(stopped.folder)] == [3, 5]
        assert read_tensors(stopped._checkpoint, "training")[1]["iteration"] == 5
        assert_same_state(trainer("stopped").run(), expected)
        assert_same_state(trainer("stopped").run(stop_after=2), expected)

    def test_validations_may_come_at_other_intervals(self, trainer):
        expected = trainer("whole").run()
        kill_at(trainer("killed"), 4)
        assert_same_state(trainer("killed", validate_every=2).run(), expected)

    def test_log_lines_of_a_run_that_never_reached_a_checkpoint_are_forgotten(self, trainer):
        run = trainer()
        run.folder.mkdir()
        (run.folder / "log.jsonl").write_text('{"iteration": 100, "loss": 9.0}\n{"itera')
        run.run()
        assert [entry["iteration"] for entry in read_log(run.folder)] == [3, 6, 8]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"learning_rate": 2e-3}, r"learning_rate was 0\.001 and is 0\.002"),
            ({"seed": 1, "batch_size": 3}, "batch_size was 2 and is 3; seed was 0 and is 1"),
            ({"degradation": clean_inputs().config()}, "degradation was .*Sometimes.* and is "),
            ({"precision": "bf16"}, "precision was fp32 and is bf16"),
            ({"iterations": 9}, "iterations was 8 and is 9"),
            ({"num_feat": 5}, "the network has other parameters"),
            ({"num_block": 2}, "the network has other parameters"),
            ({"first_weights": 1}, r"it started from other weights \('conv_first\.weight' first\)"),
        ],
    )
    def test_the_checkpoint_of_another_run_is_refused_and_left_alone(self, trainer, changes, message):
        changes = dict(changes)
        kill_at(trainer(), 4)
        sizes = {name: changes.pop(name) for name in ("num_feat", "num_block") if name in changes}
        other = trainer(network=tiny(changes.pop("first_weights", 0), **sizes), **changes)
        before = {path.name: path.read_bytes() for path in other.folder.iterdir()}
        with pytest.raises(TrainingError, match=rf"belongs to another run: {message}.*a folder of its own"):
            other.run()
        assert {path.name: path.read_bytes() for path in other.folder.iterdir()} == before

    def test_a_damaged_checkpoint_is_refused(self, trainer):
        run = trainer()
        kill_at(run, 4)
        content = bytearray(run._checkpoint.read_bytes())
        content[-3] ^= 1
        run._checkpoint.write_bytes(content)
        with pytest.raises(StorageError, match="damaged"):
            trainer().run()

    @pytest.mark.slow
    def test_a_process_that_is_really_killed_goes_on(self, tmp_path, photographs):
        folder = tmp_path / "photographs"
        for index, photograph in enumerate(photographs * 2):
            write_image(folder / f"{index}.png", photograph)

        def command(name):
            words = "--features 4 --blocks 1 --iterations 200 --batch-size 2 --patch-size 16 --validate-every 50"
            paths = ["--images", str(folder), "--out", str(tmp_path / name)]
            return [sys.executable, "-m", "sr_zoo", "train", "base", *paths, *words.split()]

        quiet = {
            "cwd": Path(__file__).parents[2],
            "env": {**os.environ, "OMP_NUM_THREADS": "1"},
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        subprocess.run(command("whole"), check=True, **quiet)
        process = subprocess.Popen(command("killed"), **quiet)
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "base.safetensors").exists()
        subprocess.run(command("killed"), check=True, **quiet)
        killed, whole = (
            read_tensors(tmp_path / name / "base.safetensors", "network")[0] for name in ("killed", "whole")
        )
        assert_same_state(killed, whole)
        assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


class TestReports:
    def test_the_log_says_what_happened(self, trainer, photographs):
        run = trainer(iterations=5, validate_every=4)
        run.run()
        entries = read_log(run.folder)
        assert [entry["iteration"] for entry in entries] == [4, 5]
        assert entries[0]["rate"] == run.recipe.rate(3)
        assert entries[1]["cosine"] == run.cosine()
        assert all(entry["patches_per_second"] > 0 and 0 < entry["loss"] < 1 for entry in entries)
        expected = measure(run.average.module, photographs[1:2], evaluation_inputs(2))
        assert entries[1]["psnr"] == {name: row["psnr"] for name, row in expected.items()}

    def test_between_validations_there_is_a_line_every_hundred_iterations(self, trainer):
        run = trainer(iterations=201, batch_size=1, validate_every=150)
        run.run()
        entries = read_log(run.folder)
        assert [(entry["iteration"], "psnr" in entry) for entry in entries] == [
            (100, False),
            (150, True),
            (200, False),
            (201, True),
        ]

    def test_the_mean_loss_is_over_the_iterations_since_the_last_line(self, trainer):
        run = trainer()
        step, losses = run._step, []
        run._step = lambda: losses.append(step()) or losses[-1]
        run.run()
        for entry, (start, end) in zip(read_log(run.folder), ((0, 3), (3, 6), (6, 8)), strict=True):
            assert_close(entry["loss"], torch.stack([loss["loss"] for loss in losses[start:end]]).mean().item())

    @draws_real_curves
    def test_curves_are_drawn_at_every_validation(self, trainer):
        run = trainer(iterations=3)
        kill_at(run, 2)
        assert not (run.folder / "curves.png").exists()
        trainer(iterations=3).run()
        assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    @draws_real_curves
    @pytest.mark.parametrize(
        "lines", ["", '{"iteration": 1, "loss": 0.0}\n', '{"iteration": 1, "loss": 0.1, "psnr": {"clean": Infinity}}\n']
    )
    def test_curves_of_unusual_logs_are_drawn_too(self, tmp_path, lines):
        (tmp_path / "log.jsonl").write_text(lines)
        draw_curves(tmp_path)
        assert (tmp_path / "curves.png").exists()

    def test_a_last_line_that_was_cut_off_is_passed_over(self, tmp_path):
        assert read_log(tmp_path) == []
        (tmp_path / "log.jsonl").write_text('{"iteration": 1, "loss": 0.1}\n{"iteration": 2, "lo')
        assert read_log(tmp_path) == [{"iteration": 1, "loss": 0.1}]

    def test_the_log_is_json_line_by_line(self, trainer):
        run = trainer()
        run.run()
        for line in (run.folder / "log.jsonl").read_text().splitlines():
            json.loads(line)

    def test_the_bar_is_shown_only_on_request(self, trainer, capfd, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        trainer("silent").run()
        assert capfd.readouterr().err == ""
        trainer("shown", progress=True).run()
        shown = capfd.readouterr().err
        assert "shown" in shown
        assert "loss=" in shown


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files are limited on Unix alone")
class TestFullDisk:
    @pytest.fixture
    def full(self):
        """No file can grow beyond so many bytes inside of the block, as on a disk that is full."""

        @contextmanager
        def limited(size):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return limited

    def test_starting_on_a_full_disk_again_and_again_loses_no_line(self, trainer, full):
        """The natural thing to do after a run has died of a full disk."""
        expected = trainer("whole", validate_every=1)
        weights = expected.run()
        kill_at(trainer(validate_every=1), 4)
        log = trainer().folder / "log.jsonl"
        before = log.read_bytes()
        for _ in range(2):
            with full(len(before) + 10), pytest.raises(StorageError, match=r"log\.jsonl' could not be"):
                trainer(validate_every=1).run()
            assert log.read_bytes().startswith(before)
        assert_same_state(trainer(validate_every=1).run(), weights)
        assert without_times(log.parent) == without_times(expected.folder)

    def test_a_log_that_is_as_it_should_be_is_not_written(self, trainer, full):
        run = trainer()
        kill_at(run, 3)
        with full(10):
            trainer_module.cut_log(run.folder, 3)
        assert [entry["iteration"] for entry in read_log(run.folder)] == [3]

    @draws_real_curves
    def test_old_curves_survive(self, trainer, full):
        run = trainer()
        run.run()
        before = (run.folder / "curves.png").read_bytes()
        with full(1000), pytest.raises(StorageError, match=r"curves\.png' could not be written"):
            draw_curves(run.folder)
        assert (run.folder / "curves.png").read_bytes() == before
        assert not list(run.folder.glob(".*.part"))

    def test_the_checkpoint_survives(self, trainer, full):
        run = trainer()
        kill_at(run, 4)
        before = run._checkpoint.read_bytes()
        with full(1000), pytest.raises(StorageError, match=r"checkpoint\.safetensors' could not be written"):
            trainer().run()
        assert run._checkpoint.read_bytes() == before

    @pytest.mark.parametrize("line", ["[1, 2]", '{"loss": 1}', "\x00\x00\x00", "null"])
    def test_lines_that_say_nothing_end_the_log(self, tmp_path, line):
        (tmp_path / "log.jsonl").write_text('{"iteration": 1}\n' + line + '\n{"iteration": 2}\n')
        assert read_log(tmp_path) == [{"iteration": 1}]


class TestInterrupt:
    @pytest.mark.parametrize("moment", ["before the step", "inside of the optimizer", "while validating"])
    @pytest.mark.parametrize("at", [1, 4, 6])
    def test_it_is_saved_and_the_same_call_ends_with_the_same_bits(self, trainer, monkeypatch, capsys, moment, at):
        expected = trainer("whole").run()
        run = trainer()

        def once(function, is_now):
            def calling(*arguments, **named):
                if is_now() and not pressed:
                    pressed.append(True)
                    signal.raise_signal(signal.SIGINT)
                return function(*arguments, **named)

            return calling

        pressed = []
        if moment == "before the step":
            run._step = once(run._step, lambda: run.iteration == at - 1)
        elif moment == "inside of the optimizer":
            run.optimizer.step = once(run.optimizer.step, lambda: run.iteration == at - 1)
        else:
            monkeypatch.setattr(trainer_module, "measure", once(measure, lambda: run.iteration >= at))
        with pytest.raises(KeyboardInterrupt, match=r"was saved after \d of 8 iterations; the same call") as caught:
            run.run()
        assert isinstance(caught.value, TrainingInterrupted)
        assert "Ctrl-C again stops at once" in capsys.readouterr().err
        stored = read_tensors(run._checkpoint, "training")[1]["iteration"]
        assert stored == (at if moment != "while validating" else 3 * math.ceil(at / 3) + 1)
        assert read_log(run.folder)[-1]["iteration"] == stored
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert_same_state(trainer().run(), expected)

    def test_the_command_says_how_to_go_on(self, photographs, tmp_path, monkeypatch, capsys):
        for index, photograph in enumerate(photographs):
            write_image(tmp_path / "photos" / f"{index}.png", photograph)
        words = [
            "train",
            "base",
            "--images",
            str(tmp_path / "photos"),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
        words += ["--iterations", "2", "--batch-size", "1", "--patch-size", "16", "--features", "4", "--blocks", "1"]
        with monkeypatch.context() as patched:
            step = Trainer._step

            def stepping(self):
                signal.raise_signal(signal.SIGINT)
                return step(self)

            patched.setattr(Trainer, "_step", stepping)
            assert main(words) == 130
        wanted = r"checkpoint\.safetensors' was saved after 1 of 2 iterations; the same command goes on from there\n"
        assert re.search(wanted, capsys.readouterr().err)
        assert main(words) == 0
        assert (tmp_path / "run" / "base.safetensors").exists()

    def test_a_second_one_stops_at_once(self, trainer):
        run = trainer()
        step = run._step

        def stepping():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return step()

        run._step = stepping
        with pytest.raises(KeyboardInterrupt) as caught:
            run.run()
        assert type(caught.value) is KeyboardInterrupt
        assert not run._checkpoint.exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_at_the_last_iteration_there_is_nothing_to_go_on_with(self, trainer):
        expected, run = trainer("whole").run(), trainer()
        step = run._step

        def stepping():
            if run.iteration == 7:
                signal.raise_signal(signal.SIGINT)
            return step()

        run._step = stepping
        assert_same_state(run.run(), expected)

    def test_other_threads_and_ignored_signals_are_left_alone(self, trainer):
        states = []
        thread = threading.Thread(target=lambda: states.append(trainer("thread").run()))
        thread.start()
        thread.join()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            run = trainer("ignored")
            step = run._step

            def stepping():
                signal.raise_signal(signal.SIGINT)
                return step()

            run._step = stepping
            states.append(run.run())
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)
        assert_same_state(*states)

    def test_weights_that_diverged_are_not_saved(self, trainer):
        run = trainer(network=Diverging(4), validate_every=100)
        step = run._step

        def stepping():
            if run.iteration == 6:
                signal.raise_signal(signal.SIGINT)
            return step()

        run._step = stepping
        with pytest.raises(TrainingError, match="must stay finite"):
            run.run()
        assert not run._checkpoint.exists()


class TestPrecision:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("processor : 0\nflags : fpu avx2 avx512f avx512_bf16 amx_tile\n", "bf16"),
            ("processor : 0\nflags : fpu avx2 avx512f amx_bf16\n", "bf16"),
            ("processor : 0\nFeatures : fp asimd i8mm bf16\n", "bf16"),
            ("processor : 0\nflags : fpu avx2 avx512f avx512_vnni\n", "fp32"),
            ("processor : 0\nmodel name : bf16\nflags : fpu avx2\n", "fp32"),
            ("", "fp32"),
        ],
    )
    def test_it_is_what_the_processor_has_instructions_for(self, tmp_path, monkeypatch, text, expected):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(precision_module, "_PROCESSOR", tmp_path / "cpuinfo")
        assert fast_precision("cpu") == expected
        assert Recipe(clean_inputs().config()).precision == (
            fast_precision() if torch.cuda.is_available() else expected
        )

    @pytest.mark.parametrize("has", [True, False])
    def test_where_there_is_no_such_list_pytorch_is_asked(self, tmp_path, monkeypatch, has):
        monkeypatch.setattr(precision_module, "_PROCESSOR", tmp_path / "none")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
        assert fast_precision("cpu") == ("bf16" if has else "fp32")

    def test_other_devices_compute_in_single_precision(self):
        assert fast_precision("meta") == "fp32"

    def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(self, photographs, tmp_path, monkeypatch):
        """The same command on a machine with another processor."""
        for index, photograph in enumerate(photographs):
            write_image(tmp_path / "photos" / f"{index}.png", photograph)
        words = [
            "train",
            "base",
            "--images",
            str(tmp_path / "photos"),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
        words += ["--iterations", "2", "--batch-size", "1", "--patch-size", "16", "--features", "4", "--blocks", "1"]
        (tmp_path / "with").write_text("flags : avx512_bf16")
        (tmp_path / "without").write_text("flags : avx2")
        monkeypatch.setattr(precision_module, "_PROCESSOR", tmp_path / "with")
        assert main([*words, "--stop-after", "1"]) == 0
        assert stored_precision(tmp_path / "run") == "bf16"
        monkeypatch.setattr(precision_module, "_PROCESSOR", tmp_path / "without")
        assert main(words) == 0
        recipe = describe_network(tmp_path / "run" / "base.safetensors")["provenance"]["recipe"]
        assert recipe["precision"] == "bf16"
        assert stored_precision(tmp_path / "none") is None


class TestRehearsal:
    def test_it_takes_a_few_steps_and_a_piece_of_a_photograph(self, trainer, monkeypatch):
        run, seen = trainer(), []
        monkeypatch.setattr(trainer_module, "measure", lambda _, images, __: seen.append(images[0].shape))
        step, validation = run.rehearse()
        assert run.iteration == 7
        assert step > 0
        assert validation >= 0
        assert seen == [(3, 64, 64)]

    def test_on_a_slow_machine_one_step_is_enough(self, trainer):
        run = trainer()
        step = run._step

        def slowly():
            time.sleep(0.2)
            return step()

        run._step = slowly
        seconds, _ = run.rehearse(seconds=0.1)
        assert run.iteration == 1
        assert 0.2 < seconds < 5

    def test_large_photographs_are_not_validated_as_a_whole(self, tmp_path, monkeypatch):
        large = torch.zeros(3, 300, 400, dtype=torch.uint8)
        run, seen = Trainer(tiny(), [large], [large, large], recipe(), tmp_path / "run", progress=False), []

        def measured(_, images, __):
            seen.append(images[0].shape)
            time.sleep(0.05)

        monkeypatch.setattr(trainer_module, "measure", measured)
        _, validation = run.rehearse()
        assert seen == [(3, 256, 256)]
        assert 0.05 * 240_000 / 65_536 <= validation < 5


class Diverging(SRResNet):
    """Its output is not a number any more after a few calls with gradients."""

    def __init__(self, healthy_calls: int) -> None:
        super().__init__(num_feat=4, num_block=1)
        self.calls_left = healthy_calls

    def forward(self, degraded):
        if torch.is_grad_enabled():
            self.calls_left -= 1
        return super().forward(degraded) * (1.0 if self.calls_left >= 0 else math.nan)


class TestDivergence:
    def test_a_loss_that_is_not_a_number_stops_the_run_and_spares_the_checkpoint(self, trainer):
        torch.manual_seed(0)
        network = Diverging(healthy_calls=4)
        run = trainer(network=network)
        with pytest.raises(
            TrainingError, match=r"must stay finite; got a mean loss of nan.*at iteration 6\. Lower the"
        ):
            run.run()
        tensors, description = read_tensors(run._checkpoint, "training")
        assert description["iteration"] == 3
        assert all(value.isfinite().all() for value in tensors.values())
        assert [entry["iteration"] for entry in read_log(run.folder)] == [3]

    def test_after_mending_the_cause_it_goes_on_as_if_nothing_had_been(self, trainer):
        expected = trainer("whole").run()
        torch.manual_seed(0)
        with pytest.raises(TrainingError, match="must stay finite"):
            trainer("run", network=Diverging(healthy_calls=4)).run()
        assert_same_state(trainer("run").run(), expected)

    def test_weights_that_are_not_finite_are_not_saved_even_if_the_last_loss_was(self, trainer):
        run = trainer()
        step = run._step

        def stepping():
            loss = step()
            if run.iteration == 6:
                run.average.module.conv_hr.bias.data[0] = math.inf
            return loss

        run._step = stepping
        with pytest.raises(TrainingError, match=r"a cosine of nan to the first weights at iteration 6"):
            run.run()
        assert read_tensors(run._checkpoint, "training")[1]["iteration"] == 3


class TestBadInput:
    @pytest.mark.parametrize(("upscale", "sizes"), [(3, {"patch_size": 16}), (4, {"margin": 18})])
    def test_patch_and_margin_must_suit_the_scale(self, trainer, upscale, sizes):
        with pytest.raises(TrainingError, match=rf"patch_size and margin must be multiples of the scale {upscale}"):
            trainer(network=tiny(upscale=upscale), **sizes)

    def test_an_interval_below_one_is_refused(self, trainer):
        with pytest.raises(TrainingError, match="validate_every must be at least 1 iteration; got 0"):
            trainer(validate_every=0)

    def test_photographs_smaller_than_a_patch_with_its_margin_are_refused(self, trainer):
        with pytest.raises(ImageError, match="must be 112x112 pixels or larger"):
            trainer(patch_size=80)

    @pytest.mark.parametrize("validation", [[], [torch.zeros(3, 12, 80, dtype=torch.uint8)]])
    def test_what_cannot_be_validated_on_is_refused_before_training(self, photographs, tmp_path, validation):
        with pytest.raises(ImageError, match="to measure"):
            Trainer(tiny(), photographs, validation, recipe(), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("upscale", [3, 4])
def test_other_factors_train_too(photographs, tmp_path, upscale):
    plan = recipe(degradation=clean_inputs(upscale).config(), iterations=2, patch_size=24, margin=12)
    network = tiny(upscale=upscale)
    start = copy.deepcopy(network.state_dict())
    state = Trainer(network, photographs, photographs, plan, tmp_path, progress=False).run()
    assert any(not torch.equal(state[name], start[name]) for name in start)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_on_the_same_patches_and_can_be_resumed(photographs, tmp_path, precision):
    plan = recipe(precision=precision)

    def make(name, device):
        return Trainer(
            tiny(), photographs, photographs[:1], plan, tmp_path / name, validate_every=3, device=device, progress=False
        )

    expected = make("cpu", "cpu").run()
    kill_at(make("gpu", "cuda"), 4)
    found = make("gpu", "cuda").run()
    for name, value in found.items():
        assert value.device.type == "cpu"
        assert_close(value, expected[name], rtol=0, atol=4e-3)
