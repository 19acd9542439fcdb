"""The shipped pairs as a contest of repairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from filterattr import swapped
from filterattr.benchmarks import SKILL, ForgettingPair
from sr_zoo import repairs


def test_a_pair_has_three_parts_of_other_photographs(photographs: list[Tensor]) -> None:
    pair = repairs.restoration_pair("srresnet_x2_f32b8", photographs, size=32)
    parts = [pair.scored, pair.search, pair.held_out]
    for part in parts:
        assert {name: sum(len(batch[0]) for batch in some) for name, some in part.items()} == {
            SKILL: 2,  # one crop, with blur and with noise
            "clean inputs": 1,
        }
    references = [part["clean inputs"][0][1] for part in parts]
    assert not any(torch.equal(references[k], references[k - 1]) for k in range(3))


def test_losses_and_distances_are_sums_over_a_crop(photographs: list[Tensor]) -> None:
    pair = repairs.restoration_pair("srresnet_x2_f32b8", photographs, size=32)
    sample = pair.search["clean inputs"][0]
    with torch.no_grad(), swapped(pair.attributor.model, pair.target) as model:
        said, losses = pair.output(model, sample), pair.losses(model, sample)
    assert losses.shape == (1,)
    assert losses[0].item() == pytest.approx((said - sample[1]).square().sum().item(), rel=1e-5)
    two, other = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert pair.apart(two, other).item() == 48.0  # of one crop


def test_the_command_takes_photographs_of_a_folder(
    photographs: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, photograph in enumerate(photographs):
        Image.fromarray(photograph.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    ran: list[Any] = []
    monkeypatch.setattr(repairs, "run_repairs", lambda pairs, out: ran.extend([pairs, out]))
    words = [str(tmp_path), "--size", "32", "--pairs", "srresnet_x2_f32b8", "--out", str(tmp_path / "a.csv")]
    assert repairs.main(words) == 0
    pairs, out = ran
    assert list(pairs) == ["SRResNet, 32 channels"]
    assert out == tmp_path / "a.csv"
    assert isinstance(pairs["SRResNet, 32 channels"](), ForgettingPair)
