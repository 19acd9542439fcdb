"""Results survive JSON, and damaged JSON is refused with the place of the damage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import numpy as np
import pytest

from filterattr import SettingError, StorageError
from filterattr.analysis import Bootstrap, Estimate, Record, Row, area_under, bounded, interval
from filterattr.display import counted


@dataclass(frozen=True)
class Everything(Record):
    name: str
    kind: Literal["a", "b"]
    number: float
    count: int
    flag: bool
    maybe: int | None
    series: tuple[float, ...]
    by_name: Mapping[str, tuple[Estimate, ...]]

    def rows(self) -> list[Row]:
        return [{"name": self.name, "number": number} for number in self.series]


@pytest.fixture
def record() -> Everything:
    return Everything("x", "a", 0.1 + 0.2, 3, True, None, (math.inf, -math.inf, 1.0), {"f": (Estimate(0.5, 0.1, 0.9),)})


def test_json_gives_an_equal_result_back(record, tmp_path) -> None:
    assert Everything.from_json(record.to_json()) == record
    record.save(tmp_path / "result.json")
    assert Everything.load(tmp_path / "result.json") == record


def test_json_is_strict_and_unknown_numbers_are_null(record) -> None:
    estimate = Everything.from_json(record.to_json().replace("0.9", "null")).by_name["f"][0]
    assert math.isnan(estimate.high)
    text = Everything.from_json(record.to_json().replace("0.9", "null")).to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["by_name"]["f"][0]["high"] is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"number": 0.3', '"number": "0.3', "must be JSON"),
        ('"record": "Everything"', '"record": "Curve"', "must hold a Everything; it holds 'Curve'"),
        ('"count": 3', '"count": 3.5', "Everything.count must be int; it is float"),
        ('"flag": true', '"flag": 1', "Everything.flag must be bool"),
        ('"maybe": null', '"maybe": "x"', "Everything.maybe must be int"),
        ('"series": ["inf"', '"series": ["huge"', r"series\[0\] must be a number"),
        ('"name": "x", ', "", "must hold the fields"),
        ('"low": 0.1', '"low": true', r"by_name\['f'\]\[0\].low must be a number"),
    ],
)
def test_damaged_json_is_refused_by_place(record, old: str, new: str, words: str) -> None:
    text = record.to_json()
    assert old in text
    with pytest.raises(StorageError, match=words):
        Everything.from_json(text.replace(old, new, 1))


def test_a_flipped_digit_of_a_file_is_refused(record, tmp_path) -> None:
    path = tmp_path / "result.json"
    record.save(path)
    text = path.read_text()
    assert json.loads(text)["number"] == record.number
    for place in (place for place, letter in enumerate(text) if letter in "0123456789abcdef"):
        for bit in (1, 2, 4, 8):
            flipped = chr(ord(text[place]) ^ bit)
            path.write_text(text[:place] + flipped + text[place + 1 :])
            try:
                found = Everything.load(path)
            except StorageError as error:
                assert str(path) in str(error)  # noqa: PT017 - one of two outcomes
            else:
                assert found == record  # a letter of a number's exponent, say, or of an escape


def test_files_without_a_digest_and_with_other_spaces_are_read(record, tmp_path) -> None:
    path = tmp_path / "result.json"
    path.write_text(record.to_json() + "\n")  # as the first version wrote it
    assert Everything.load(path) == record
    record.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True))
    assert Everything.load(path) == record
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "count": content["count"] + 1}))
    with pytest.raises(StorageError, match=r"result\.json': the Everything is damaged: its content does not match"):
        Everything.load(path)


def test_missing_files_are_refused(record, tmp_path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Everything.load(tmp_path / "nowhere.json")
    with pytest.raises(StorageError, match="could not be written"):
        record.save(tmp_path)


def test_results_cannot_be_changed_and_become_tables(record) -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign"):
        record.count = 4
    assert record.to_frame()["number"].tolist() == [math.inf, -math.inf, 1.0]


def test_bootstrap_of_a_mean_spreads_by_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=50)
    drawn = Bootstrap({"a": 50}, draws=4000).means("a", values)
    assert drawn.std() == pytest.approx(values.std() / math.sqrt(50), rel=0.05)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)


def test_functions_of_one_size_share_their_draws_unless_told_otherwise() -> None:
    values = np.arange(6.0)
    paired = Bootstrap({"a": 6, "b": 6, "c": 5}, draws=50)
    assert (paired.means("a", values) == paired.means("b", values)).all()
    free = Bootstrap({"a": 6, "b": 6}, draws=50, paired=False)
    assert (free.means("a", values) != free.means("b", values)).any()


def test_one_sample_has_no_interval() -> None:
    bootstrap = Bootstrap({"a": 1})
    estimate = bootstrap.estimate(2.0, bootstrap.means("a", [2.0]))
    assert estimate.value == 2.0
    assert math.isnan(estimate.low)
    assert not estimate.is_positive
    assert not estimate.is_negative


def test_intervals_hold_their_share_of_the_draws() -> None:
    drawn = np.random.default_rng(0).normal(size=2000)
    estimate = interval(0.0, drawn, 0.8)
    assert ((drawn >= estimate.low) & (drawn <= estimate.high)).mean() == pytest.approx(0.8, abs=0.002)


def test_a_bootstrap_without_draws_is_refused() -> None:
    with pytest.raises(SettingError, match="at least 2 draws"):
        Bootstrap({"a": 3}, draws=1)


def test_areas_are_means_of_bounded_shares() -> None:
    assert area_under([0.0, 1.0], [0.5, 0.5], "linear") == pytest.approx(0.5)
    assert area_under([0.0, 0.5, 1.0], [0.0, 9.0, -2.0], "linear") == pytest.approx(0.5)
    # on the logarithmic scale 1 % to 10 % counts as much as 10 % to 100 %
    assert area_under([0.0, 0.01, 0.1, 1.0], [7.0, 0.0, 1.0, 1.0], "log") == pytest.approx(0.75)
    assert math.isnan(area_under([0.5], [1.0]))
    assert math.isnan(bounded(math.nan))


def test_progress_is_a_bar_a_function_or_nothing(capsys) -> None:
    for progress in (True, False, None):
        with counted(progress, 3, "draw", done=1) as step:
            step()
            step()
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "draw" in shown
    seen: list[tuple[int, int | None]] = []
    with counted(lambda done, total: seen.append((done, total)), 3, "draw", done=1) as step:
        step()
    assert seen == [(2, 3)]


def test_files_of_another_result_are_refused_by_path(record, tmp_path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"record": "Curve"}')
    with pytest.raises(StorageError, match=r"result\.json': the JSON must hold a Everything"):
        Everything.load(path)
    path.write_text(record.to_json().replace('"kind": "a"', '"kind": "c"'))
    with pytest.raises(StorageError, match="kind must be one of 'a', 'b'; it is 'c'"):
        Everything.load(path)
