"""Search for a measured speed-up, with a clock that follows a formula: the promise, its neighbours, its limits."""

import pytest

from decomp.pipelines.decomposition.speed_ratio import SpeedRatio
from decomp.pipelines.decomposition.target_search import LEAST, MOST, Attempt, Candidate, TargetSearch
from tests.pipelines.digit_runs import Collected


class Machine:
    """A network of one size from 1 to 1000; a plan is its size, the table says one unit of time for each.

    `milliseconds` are those of the whole network at a size; `step` makes proposals coarse, `finest` all plans.
    """

    def __init__(self, asked, milliseconds, step=1, finest=1, smallest=10):
        self.milliseconds, self.step, self.finest, self.smallest = milliseconds, step, finest, smallest
        self.measured, self.reporter = [], Collected()
        self.search = TargetSearch(
            asked,
            1000.0,
            self.candidate(1000),
            lambda: 1000 / smallest,
            self.propose,
            self.between,
            self.measure,
            self.reporter,
        )

    def candidate(self, size):
        return Candidate({"size": size}, float(size), 1.0 / size)

    def propose(self, speedup):
        return self.candidate(max(self.smallest, int(1000 / speedup + 1e-9) // self.step * self.step))

    def between(self, slow, fast):
        places = range(fast.plans["size"] + self.finest, slow.plans["size"], self.finest)
        return [self.candidate(size) for size in reversed(places)]

    def measure(self, candidate):
        self.measured.append(candidate.plans["size"])
        return ratio(self.milliseconds(1000) / self.milliseconds(candidate.plans["size"]))


def ratio(speedup, original_ms=10.0):
    return SpeedRatio(original_ms, original_ms / speedup, speedup, speedup, (speedup, speedup))


def test_the_first_proposal_is_for_the_speedup_that_is_given_or_the_one_asked_for():
    for first, size in ((None, 500), (4.0, 250), (2000.0, 10)):
        machine = Machine(2.0, lambda size: size + 200)
        machine.search.first = first
        assert machine.search.is_near(machine.search.run().speedup) and machine.measured[0] == size


@pytest.mark.parametrize("asked", [1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    "milliseconds",
    [
        lambda size: size,
        lambda size: size + 200,  # time outside the layers that the table does not know
        lambda size: max(size - 150, 1),  # layers that the table finds too dear
        lambda size: size if size > 700 else 0.93 * size,  # a jump
        lambda size: (size**0.5) * 30,
    ],
)
def test_the_measured_speedup_is_the_one_asked_for_on_any_machine(asked, milliseconds):
    machine = Machine(asked, milliseconds)
    best = machine.search.run()
    assert LEAST * asked <= best.speedup <= MOST * asked and machine.search.is_kept(best.speedup)
    assert len(machine.measured) <= 8 and len(set(machine.measured)) == len(machine.measured)


def test_a_table_whose_proposals_leave_the_target_out_is_refined_between_the_closest_two():
    machine = Machine(1.2, lambda size: size, step=500)  # proposes 500, twice as fast, and nothing else
    best = machine.search.run()
    assert LEAST * 1.2 <= best.speedup <= MOST * 1.2 and machine.measured[0] == 500


def test_sizes_that_are_too_coarse_give_both_neighbours_and_the_faster_plan():
    machine = Machine(1.5, lambda size: size, step=500, finest=500)
    best = machine.search.run()
    assert best.speedup == 2.0 and not machine.search.is_kept(best.speedup)
    assert machine.search.neighbours() == (1.0, 2.0)


def test_a_target_out_of_reach_ends_with_the_smallest_sizes_measured():
    machine = Machine(3.0, lambda size: size + 1000)
    best = machine.search.run()
    assert machine.measured[-1] == 10 and best.speedup == pytest.approx(2000 / 1010)
    assert best.speedup < LEAST * 3.0


def test_of_plans_that_are_fast_enough_the_one_of_least_loss_is_taken():
    machine = Machine(2.0, lambda size: size)
    machine.search.attempts = [
        Attempt(machine.candidate(size), [ratio(speedup)]) for size, speedup in ((480, 2.0), (500, 2.1), (900, 2.5))
    ]
    assert machine.search.best() is machine.search.attempts[1]
    machine.search.attempts = [Attempt(machine.candidate(1), [ratio(s)]) for s in (1.5, 3.5, 2.5, 1.8)]
    assert machine.search.best().speedup == 2.5
    machine.search.attempts = [Attempt(machine.candidate(1), [ratio(s)]) for s in (1.5, 1.8, 1.7)]
    assert machine.search.best().speedup == 1.8


def test_an_attempt_measured_twice_counts_the_lower_and_three_times_the_middle_one():
    attempt = Attempt(Machine(2.0, float).candidate(5), [ratio(2.1), ratio(1.9)])
    assert attempt.speedup == 1.9
    attempt.ratios.append(ratio(2.0))
    assert attempt.speedup == 2.0 and attempt.spread == pytest.approx(2.1 / 1.9 - 1)


def test_a_search_measures_as_many_plans_as_it_may():
    """A fifth of what the table promises is saved: proposals stay too slow, then the smallest sizes are measured."""
    for proposals, refinements, measured in ((2, 0, [869, 393, 10]), (1, 0, [869, 10]), (1, 1, [869, 10, 242])):
        machine = Machine(1.15, lambda size: 800 + 0.2 * size)
        machine.search.proposals, machine.search.refinements = proposals, refinements
        machine.search.run()
        assert machine.measured == measured


def test_a_search_goes_on_between_plans_after_a_measurement_was_corrected():
    machine = Machine(2.0, lambda size: size)
    best = machine.search.run()
    best.ratios += [ratio(1.7), ratio(1.7)]  # the first measurement was wrong
    machine.measured.clear()
    machine.milliseconds = lambda size: 1.15 * size if size < 1000 else size
    machine.search._try(machine.candidate(300))
    following = machine.search.refine()
    assert following is not best and machine.search.is_kept(following.speedup)


def test_a_network_whose_spaces_were_narrowed_begins_faster_than_the_original():
    """It takes 700 of the original's 1000 without any layer replaced."""
    machine = Machine(2.0, lambda size: size)
    machine.search.slowest = machine.candidate(700)
    machine.propose = lambda speedup: machine.candidate(300)
    machine.search.propose = machine.propose
    best = machine.search.run()
    assert machine.search.is_kept(best.speedup) and all(size < 700 for size in machine.measured)


def test_a_search_whose_only_plan_turns_out_slow_goes_on_to_faster_ones():
    machine = Machine(2.0, lambda size: size)
    best = machine.search.run()
    best.ratios += [ratio(1.6), ratio(1.6)]
    machine.milliseconds = lambda size: 1.25 * size if size < 1000 else size
    following = machine.search.run()
    assert following is not best and machine.search.is_kept(following.speedup)


def test_plans_that_were_measured_while_the_machine_was_slower_do_not_count():
    """While something else runs on the hardware, plans gain less; it ends after the second measurement."""
    machine = Machine(2.0, lambda size: size)
    measure = machine.search.measure

    def disturbed(candidate):
        found = measure(candidate)
        return found if len(machine.measured) > 2 else ratio(found.speedup**0.7, 14.0)

    machine.search.measure = disturbed
    best = machine.search.run()
    assert machine.search.is_kept(best.speedup) and best.ratio.original_ms == 10.0
    assert 1000 / best.candidate.plans["size"] == pytest.approx(best.speedup)
    assert len(machine.search.comparable) == len(machine.search.attempts) - 2


def test_a_new_measurement_of_an_attempt_replaces_those_of_a_slower_machine():
    attempt = Attempt(Machine(2.0, float).candidate(5), [ratio(1.7, 14.0)])
    attempt.add(ratio(2.1))
    attempt.add(ratio(2.0, 10.5))
    assert [one.speedup for one in attempt.ratios] == pytest.approx([2.1, 2.0])
