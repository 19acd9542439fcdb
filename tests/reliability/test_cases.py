"""Every one of the 80 numbered cases has a test: here by its number, or elsewhere by the name that is listed below."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
N_CASES = 80
ELSEWHERE = {
    67: (
        "filterattr/jobs/test_resume.py",
        "test_kills_at_random_moments_change_no_bit_and_lose_at_most_one_sample_each",
    ),
    68: ("filterattr/files/test_safetensors.py", "test_every_single_bit_of_a_small_file_counts"),
    69: ("filterattr/jobs/test_resume.py", "test_are_refused_with_what_differs_and_keep_their_file"),
    70: ("filterattr/files/test_safetensors.py", "test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay"),
    71: ("filterattr/files/test_safetensors.py", "test_a_full_disk_keeps_the_old_file"),
    72: ("filterattr/files/test_safetensors.py", "test_no_code_runs_whatever_the_environment_says"),
    73: ("filterattr/files/test_safetensors.py", "test_what_is_not_plain_is_refused_with_file_and_key"),
    74: ("filterattr/files/test_safetensors.py", "test_a_slice_does_not_drag_its_whole_tensor_along"),
    75: ("filterattr/jobs/test_distributed.py", "test_a_rank_that_dies_makes_the_others_raise"),
    76: ("filterattr/jobs/test_distributed.py", "test_uneven_shares"),
    78: ("filterattr/test_intervention.py", "test_everything_outside_keeps_its_bytes"),
}


@pytest.fixture(scope="module")
def numbered() -> set[int]:
    sources = (path.read_text() for path in TESTS.glob("reliability/test_*.py"))
    return {int(number) for source in sources for number in re.findall(r"def test_case_(\d+)", source)}


def test_no_case_is_missing(numbered):
    assert numbered | set(ELSEWHERE) == set(range(1, N_CASES + 1))


@pytest.mark.parametrize("case", ELSEWHERE)
def test_tests_elsewhere_exist(numbered, case):
    file, name = ELSEWHERE[case]
    assert case not in numbered, "listed and numbered"
    assert f"def {name}(" in (TESTS / file).read_text()
