"""Random programs that are split equal eager mode; one of them with stages compiled by inductor."""

from .quick import assert_worth_it, try_all


def test_programs_that_are_split_are_as_in_eager_mode():
    outcome = try_all(range(1, 200, 2), ("export", "symbolic_trace"))
    assert_worth_it(outcome, "export", runs=0.6, cut=0.4)
    assert_worth_it(outcome, "symbolic_trace", runs=0.5, cut=0.4)


def test_a_random_program_is_right_with_stages_compiled_by_inductor():
    assert try_all((150,), ("inductor",)).runs["inductor"] == 1
