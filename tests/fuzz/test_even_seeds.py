"""Random programs are what they are in eager mode, cut or not: half of the quick ones, and a pipeline."""

import pytest

from .quick import assert_worth_it, try_all

# Not shown yet to fit into the time of the quick tests.
pytestmark = pytest.mark.slow


def test_programs_of_even_seeds_are_as_in_eager_mode():
    assert_worth_it(try_all(range(0, 200, 2), ("backend", "export")))


def test_a_random_program_is_right_as_a_pipeline():
    assert try_all((100,), ("pipeline",)).runs["pipeline"] == 1
