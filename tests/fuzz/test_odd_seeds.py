"""Random programs are what they are in eager mode, cut or not: the other half of the quick ones, and inductor's."""

import pytest

from .quick import assert_worth_it, try_all

# Not shown yet to fit into the time of the quick tests.
pytestmark = pytest.mark.slow


def test_programs_of_odd_seeds_are_as_in_eager_mode():
    assert_worth_it(try_all(range(1, 200, 2), ("backend", "symbolic_trace")))


def test_a_random_program_is_right_with_stages_compiled_by_inductor():
    assert try_all((150,), ("inductor",)).runs["inductor"] == 1
