"""Training in several processes, the forecast of its cost, and the log for TensorBoard."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from filterattr.files.safetensors import read_tensors
from sr_zoo.cli import main
from sr_zoo.degradations import blind_inputs
from sr_zoo.images import write_image
from sr_zoo.models import SRResNet, TwoBranch
from sr_zoo.training import Batch, Processes, Recipe, Trainer, TrainingError, TrainingInterrupted, read_log
from sr_zoo.training import trainer as trainer_module


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(trainer_module, "draw_curves", lambda folder: None)


def tiny(two_branch: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    if two_branch:
        return TwoBranch(num_feat=4, num_block=1, hidden=2, condition=3, predictor_feat=4)
    return SRResNet(num_feat=4, num_block=1)


def make(photographs, folder, network=None, **changes):
    settings = {"iterations": 6, "batch_size": 4, "patch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
    plan = Recipe(blind_inputs().config(), **settings)
    return Trainer(
        network or tiny(), photographs, photographs[:1], plan, folder, validate_every=3, progress=False, **changes
    )


class TestShares:
    def test_the_shares_make_up_the_batch(self, rng):
        batch = Batch(torch.rand(6, 3, 4, 4, generator=rng), torch.rand(6, 3, 8, 8), {"blur": torch.rand(6)})
        parts = [Processes(rank, 3).share(batch) for rank in range(3)]
        assert_close(torch.cat([part.degraded for part in parts]), batch.degraded, rtol=0, atol=0)
        assert_close(torch.cat([part.reference for part in parts]), batch.reference, rtol=0, atol=0)
        assert_close(torch.cat([part.strengths["blur"] for part in parts]), batch.strengths["blur"], rtol=0, atol=0)

    @pytest.mark.parametrize("two_branch", [False, True])
    def test_the_mean_gradient_of_the_shares_is_the_gradient_of_the_batch(self, photographs, tmp_path, two_branch):
        run = make(photographs, tmp_path, tiny(two_branch))
        batch = trainer_module.random_patches(run.sampler, run.recipe, 2, 0, torch.device("cpu"))

        def gradients(part):
            run.network.zero_grad()
            run.objective(*part)[0].backward()
            return [parameter.grad.clone() for parameter in run.network.parameters()]

        shares = [gradients(Processes(rank, 2).share(batch)) for rank in range(2)]
        for first, second, whole in zip(*shares, gradients(batch), strict=True):
            assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-7)

    def test_a_batch_that_cannot_be_shared_is_refused(self, photographs, tmp_path):
        with pytest.raises(TrainingError, match="a multiple of the number of processes; got 4 and 3"):
            make(photographs, tmp_path, processes=Processes(1, 3))

    def test_only_the_first_process_writes(self, photographs, tmp_path, monkeypatch):
        monkeypatch.setattr(Processes, "average", lambda self, parameters, losses: losses)
        make(photographs, tmp_path / "second", processes=Processes(1, 2)).run()
        assert list((tmp_path / "second").iterdir()) == []
        make(photographs, tmp_path / "first", processes=Processes(0, 2)).run()
        assert {path.name for path in (tmp_path / "first").iterdir()} == {"checkpoint.safetensors", "log.jsonl"}


class TestInterrupt:
    """Ctrl-C comes to some process in some iteration: all of them stop after the same one, and the first one saves."""

    def interrupted(self, photographs, folder, monkeypatch, rank, hears_at, noted_at):
        """Train as one of two processes; it hears of Ctrl-C before some step, or the other one says that it did."""
        run = make(photographs, folder, processes=Processes(rank, 2))
        waited = []
        monkeypatch.setattr(Processes, "wait", lambda self: waited.append(folder.exists() and sorted(folder.iterdir())))

        def average(_self, _parameters, losses):
            others = 0.5 * (run.iteration == noted_at)
            return {**losses, "interrupted": losses["interrupted"] / 2 + others}

        monkeypatch.setattr(Processes, "average", average)
        step = run._step

        def stepping():
            if run.iteration == hears_at:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)  # the terminal's, and the one that torchrun hands on
            return step()

        run._step = stepping
        with pytest.raises(TrainingInterrupted, match=r"was saved after \d of 6 iterations; the same call"):
            run.run()
        assert len(waited) == 1
        return run, waited[0]

    @pytest.mark.parametrize(("hears_at", "noted_at"), [(0, None), (None, 0), (0, 0)])
    def test_the_first_process_saves_what_it_would_save_if_it_were_told_to_stop_there(
        self, photographs, tmp_path, monkeypatch, hears_at, noted_at, capsys
    ):
        run, there = self.interrupted(photographs, tmp_path / "run", monkeypatch, 0, hears_at, noted_at)
        assert run.iteration == 2  # one step after all have heard of it
        assert [path.name for path in there] == ["checkpoint.safetensors", "log.jsonl"]
        assert read_tensors(run._checkpoint, "training")[1]["iteration"] == 2
        assert capsys.readouterr().err.count("then saving") == (hears_at is not None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        told = make(photographs, tmp_path / "told", processes=Processes(0, 2))
        told.run(stop_after=2)
        saved, expected = (read_tensors(one._checkpoint, "training")[0] for one in (run, told))
        assert all(torch.equal(saved[name], value) for name, value in expected.items())

    @pytest.mark.parametrize(("hears_at", "noted_at"), [(2, None), (None, 2)])
    def test_the_others_wait_for_it_and_write_nothing(
        self, photographs, tmp_path, monkeypatch, hears_at, noted_at, capsys
    ):
        run, there = self.interrupted(photographs, tmp_path / "run", monkeypatch, 1, hears_at, noted_at)
        assert run.iteration == 4
        assert there == []
        assert capsys.readouterr().err == ""


def photographed(folder, photographs):
    for index, photograph in enumerate(photographs * 2):
        write_image(folder / f"{index}.png", photograph)
    return folder


@pytest.mark.slow
def test_ctrl_c_under_torchrun_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path, photographs):
    photos = photographed(tmp_path / "photographs", photographs)
    words = "-m sr_zoo train base --from scratch --features 4 --blocks 1 --iterations 20000 --batch-size 2"
    words += f" --patch-size 16 --precision fp32 --device cpu --images {photos} --out {tmp_path / 'run'}"
    launch = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
    log, checkpoint = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "checkpoint.safetensors"
    process = subprocess.Popen(
        f"{launch} {words}".split(),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    waits_until = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < waits_until:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    (reached,) = re.findall(
        r"checkpoint\.safetensors' was saved after (\d+) of 20000 iterations; the same command", said
    )
    assert read_tensors(checkpoint, "training")[1]["iteration"] == int(reached) >= 100
    assert read_log(tmp_path / "run")[-1]["iteration"] == int(reached)
    more = f"{launch} {words} --stop-after {int(reached) + 10}".split()
    done = subprocess.run(more, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert f"stopped after {int(reached) + 10} of 20000 iterations" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("network", ["srresnet", "two_branch"])
def test_two_processes_end_with_the_weights_of_one(tmp_path, photographs, network):
    photos = photographed(tmp_path / "photographs", photographs)
    sizes = "--features 4 --blocks 1" if network == "srresnet" else "--features 32 --blocks 8"
    words = f"-m sr_zoo train target --from scratch --network {network} {sizes} --iterations 12 --batch-size 4"
    words += f" --patch-size 16 --precision fp32 --validate-every 6 --device cpu --images {photos}"
    quiet = {
        "cwd": Path(__file__).parents[2],
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2"
    for name, before in (("one", ""), ("two", launch)):
        command = f"{before} {words} --out {tmp_path / name}".split()
        done = subprocess.run([sys.executable, *command], check=True, **quiet)
        assert done.stdout.count("wrote ") == 1
    one, two = (read_tensors(tmp_path / name / "target.safetensors", "network")[0] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert_close(two[name], value, rtol=0, atol=2e-5)
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    assert [entry["iteration"] for entry in logs[1]] == [6, 12]
    assert_close([entry["loss"] for entry in logs[1]], [entry["loss"] for entry in logs[0]], rtol=1e-4, atol=0)
    # a run of two processes goes on in one
    done = subprocess.run([sys.executable, *f"{words} --out {tmp_path / 'two'}".split()], check=True, **quiet)
    assert_close(read_tensors(tmp_path / "two" / "target.safetensors", "network")[0], two, rtol=0, atol=0)


class TestDryRun:
    def test_it_prints_the_cost_and_writes_nothing(self, tmp_path, photographs, capsys):
        for index, photograph in enumerate(photographs):
            write_image(tmp_path / "photographs" / f"{index}.png", photograph)
        words = (
            "train base --features 4 --blocks 1 --iterations 1000 --validate-every 300 --batch-size 2 --patch-size 16"
        )
        paths = ["--images", str(tmp_path / "photographs"), "--out", str(tmp_path / "run"), "--device", "cpu"]
        assert main([*words.split(), *paths, "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert not (tmp_path / "run").exists()
        parameters = sum(parameter.numel() for parameter in tiny().parameters())
        assert f"SRResNet x2: {parameters:,} parameters" in printed
        assert "2 to train on, 1 to validate on" in printed
        assert re.search(r"iteration    0\.\d+ s, \d+ patches a second \(2 of 16x16, bf16, cpu, 1 process\)", printed)
        assert "4 times" in printed
        assert re.search(r"in total     \d+:\d\d:\d\d for 1,000 iterations", printed)
        assert f"{20 * parameters / 1e6:.1f} MB for the checkpoint" in printed

    def test_the_checkpoint_is_as_large_as_it_says(self, photographs, tmp_path):
        run = make(photographs, tmp_path, SRResNet(num_feat=16, num_block=2))
        run.run()
        forecast = 20 * sum(parameter.numel() for parameter in run.network.parameters())
        assert run._checkpoint.stat().st_size == pytest.approx(forecast, rel=0.1)


class TestTensorBoard:
    def test_it_reads_every_number_of_the_log(self, photographs, tmp_path):
        reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        make(photographs, tmp_path, tiny(two_branch=True), tensorboard=True).run()
        events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        log = read_log(tmp_path)
        assert {"loss", "prediction", "rate", "cosine", "psnr/clean", "psnr/both"} <= set(events.Tags()["scalars"])
        for name, numbers in (("loss", [e["loss"] for e in log]), ("psnr/blur", [e["psnr"]["blur"] for e in log])):
            found = events.Scalars(name)
            assert [event.step for event in found] == [3, 6]
            assert_close([event.value for event in found], numbers, rtol=1e-6, atol=0)

    def test_without_the_package_the_way_to_get_it_is_said(self, photographs, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(TrainingError, match="pip install tensorboard"):
            make(photographs, tmp_path, tensorboard=True).run()
