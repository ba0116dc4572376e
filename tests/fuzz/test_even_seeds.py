"""Random programs compiled by the backend equal eager mode; one of them as a pipeline."""

import pytest

from .quick import assert_worth_it, try_all


def test_programs_compiled_by_the_backend_are_as_in_eager_mode():
    assert_worth_it(try_all(range(0, 200, 2), ("backend",)), "backend", runs=0.85, cut=0.5)


@pytest.mark.slow
def test_a_random_program_is_right_as_a_pipeline():
    assert try_all((100,), ("pipeline",)).runs["pipeline"] == 1
