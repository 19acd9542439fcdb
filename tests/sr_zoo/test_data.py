"""Folders of photographs in memory, what is held out, and random patches."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from sr_zoo import data
from sr_zoo.data import PatchSampler, hold_out, load_photographs
from sr_zoo.images import ImageError, to_float, write_image


class TestLoading:
    def test_photographs_come_in_the_order_of_their_names(self, tmp_path, photographs):
        for name, photograph in zip("cab", photographs, strict=True):
            write_image(tmp_path / f"{name}.png", photograph)
        found = load_photographs(tmp_path, progress=False)
        for image, expected in zip(found, (photographs[1], photographs[2], photographs[0]), strict=True):
            assert_close(image, expected, rtol=0, atol=0)

    def test_a_damaged_file_is_named(self, tmp_path, photographs):
        write_image(tmp_path / "a.png", photographs[0])
        (tmp_path / "b.png").write_bytes(b"nothing")
        with pytest.raises(ImageError, match=r"got '.*b\.png'"):
            load_photographs(tmp_path, progress=False)

    def test_every_file_that_cannot_be_read_is_named_at_once(self, tmp_path, photographs):
        write_image(tmp_path / "a.png", photographs[0])
        for number in range(25):
            (tmp_path / f"b{number:02d}.png").write_bytes(b"nothing")
        with pytest.raises(ImageError, match=r"^25 of 26 photographs cannot be read: ") as caught:
            load_photographs(tmp_path, progress=False)
        named = [number for number in range(25) if f"b{number:02d}.png" in str(caught.value)]
        assert named == list(range(20))
        assert str(caught.value).endswith(" And 5 more.")

    def test_more_than_the_memory_limit_is_refused(self, tmp_path, photographs, monkeypatch):
        for index, photograph in enumerate(photographs):
            write_image(tmp_path / f"{index}.png", photograph)
        monkeypatch.setattr(data, "MEMORY_LIMIT", photographs[0].nbytes + photographs[1].nbytes)
        with pytest.raises(ImageError, match=r"need more than .* GiB of memory"):
            load_photographs(tmp_path, progress=False)

    def test_the_progress_bar_is_for_terminals_and_can_be_silenced(self, tmp_path, photographs, capfd, monkeypatch):
        write_image(tmp_path / "a.png", photographs[0])
        load_photographs(tmp_path)
        assert capfd.readouterr().err == ""
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        load_photographs(tmp_path, progress=False)
        assert capfd.readouterr().err == ""
        load_photographs(tmp_path)
        assert "reading" in capfd.readouterr().err


class TestHoldOut:
    @pytest.mark.parametrize("count", [2, 3, 49, 50, 51, 99, 100, 400])
    def test_every_photograph_goes_to_one_side(self, count):
        training, validation = hold_out(list(range(count)), every=50)
        assert sorted(training + validation) == list(range(count))
        assert len(validation) == max(count // 50, 1)
        assert training

    def test_the_fiftieth_of_fifty_validates(self):
        assert hold_out(list(range(120)), every=50)[1] == [49, 99]

    def test_of_a_few_the_last_validates(self):
        assert hold_out(list(range(4)), every=50) == ([0, 1, 2], [3])

    def test_a_single_one_does_both(self):
        assert hold_out(["only"]) == (["only"], ["only"])

    @pytest.mark.parametrize(("count", "every"), [(0, 50), (10, 1), (10, 0)])
    def test_what_leaves_nothing_is_refused(self, count, every):
        with pytest.raises(ImageError, match=rf"at least one photograph.*got {count} photographs and every={every}"):
            hold_out(list(range(count)), every=every)


def coordinates(height: int, width: int) -> torch.Tensor:
    """A photograph that says of every pixel where it is: red is the row, green the column."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8).expand(height, width)
    return torch.stack([rows, columns, torch.zeros_like(rows)])


class TestPatchSampler:
    def test_patches_are_cut_from_the_photographs_and_turned(self, photographs, rng):
        size = 16
        patches = PatchSampler(photographs, size).draw(6, rng)
        assert patches.shape == (6, 3, size, size)
        assert patches.dtype == torch.float32
        windows = [
            to_float(image).unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
            for image in photographs
        ]
        for patch in patches:
            turned = [torch.rot90(side, turn, (1, 2)) for side in (patch, patch.flip(2)) for turn in range(4)]
            assert any((window == one).all((1, 2, 3)).any() for window in windows for one in turned)

    def test_all_eight_orientations_are_equally_likely(self, rng):
        photograph = coordinates(4, 4)
        patches = PatchSampler([photograph], 4).draw(4000, rng) * 255
        counts = Counter(tuple(patch[:2, [0, 0], [0, 3]].flatten().tolist()) for patch in patches)
        assert len(counts) == 8
        assert all(abs(count - 500) < 5 * (4000 * 1 / 8 * 7 / 8) ** 0.5 for count in counts.values())

    def test_all_places_are_equally_likely_the_borders_too(self, rng):
        patches = PatchSampler([coordinates(10, 8)], 6).draw(3000, rng) * 255
        counts = Counter((patch[0].min().item(), patch[1].min().item()) for patch in patches)
        assert set(counts) == {(row, column) for row in range(5) for column in range(3)}
        assert all(abs(count - 200) < 5 * (3000 * 1 / 15 * 14 / 15) ** 0.5 for count in counts.values())

    def test_all_photographs_are_equally_likely_whatever_their_size(self, rng):
        shades = [torch.full((3, side, side), value, dtype=torch.uint8) for value, side in enumerate((8, 20, 80))]
        patches = PatchSampler(shades, 8).draw(3000, rng) * 255
        counts = torch.bincount(patches[:, 0, 0, 0].round().long(), minlength=3)
        assert ((counts - 1000).abs() < 5 * (3000 * 1 / 3 * 2 / 3) ** 0.5).all()

    def test_one_seed_means_one_batch_and_the_next_draw_is_another(self, photographs):
        sampler = PatchSampler(photographs, 16)
        first, second = (torch.Generator().manual_seed(4) for _ in range(2))
        assert_close(sampler.draw(3, first), sampler.draw(3, second), rtol=0, atol=0)
        assert not torch.equal(sampler.draw(3, first), sampler.draw(3, torch.Generator().manual_seed(4)))

    def test_photographs_that_are_too_small_are_passed_over(self, rng):
        small, large = (torch.full((3, 20, side), side, dtype=torch.uint8) for side in (15, 16))
        sampler = PatchSampler([small, large], 16)
        assert len(sampler.photographs) == 1
        assert (sampler.draw(20, rng) * 255).round().unique().tolist() == [16]

    def test_when_none_is_large_enough_it_says_so(self, photographs):
        with pytest.raises(ImageError, match=r"must be 97x97 pixels or larger; none of 3 is"):
            PatchSampler(photographs, 97)
