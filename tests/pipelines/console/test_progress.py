"""Pace, time left and the bar of long work."""

import io
import time

import pytest

from decomp.pipelines.console import progress as module
from decomp.pipelines.console.progress import Progress, Work, format_seconds, make_bar, pace_words, rough_time


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_a_person_would(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (3, "less than a minute"), (50, "about 1 min"), (200, "about 3 min"), (569, "about 9 min"),
        (571, "about 10 min"), (1400, "about 25 min"), (3400, "about 55 min"), (3500, "about 1 h"),
        (9000, "about 2.5 h"),
    ],
)  # fmt: skip
def test_an_estimate_has_no_false_precision(seconds, text):
    assert rough_time(seconds) == text


@pytest.mark.parametrize(
    "rate, text",
    [
        (1234.6, "1,235 layers/s"),
        (1.0, "1 layers/s"),
        (0.79, "1.3 s/layer"),
        (0.05, "20 s/layer"),
        (None, "? layers/s"),
    ],  # fmt: skip
)
def test_slow_units_are_told_by_seconds_and_fast_ones_by_number(rate, text):
    assert pace_words(rate, "layers") == text


def test_the_share_counts_work_where_units_differ():
    even, uneven = Progress("a", 4, "layers"), Progress("a", 3, "layers", [1, 0, 9])
    assert even.share == uneven.share == 0
    even.update(3)
    uneven.update()
    assert (even.share, uneven.share) == (0.75, 0.1)
    uneven.update()
    assert uneven.share == 0.1
    uneven.update()
    assert uneven.share == 1
    assert Progress("a", None).share == Progress("a", 0).share == 0
    uneven.update()  # more than announced
    assert uneven.share == 1


def test_the_state_in_words_has_the_units_and_the_time(clock):
    step = Progress("error curves", 24, "layers")
    step.update(3)
    clock.now += 90
    assert step.words() == "error curves: 3 of 24 layers, 1 min 30 s so far"
    step.begin("features.24")
    clock.now += 40
    assert step.words() == "error curves: 3 of 24 layers, 2 min 10 s so far, features.24 for 40 s"
    assert step.words("curves") == "error curves: 3 of 24 layers, 2 min 10 s so far, features.24 for 40 s (curves)"
    step.update()
    assert step.words("curves") == "error curves: 4 of 24 layers, 2 min 10 s so far"


def test_a_unit_in_work_counts_by_its_time_at_the_pace_so_far_and_never_as_done(clock):
    step = Progress("fit", 3, "layers", [1, 4, 5])
    step.begin("first")
    clock.now += 10
    assert step.share == 0  # nothing is known of the pace
    step.update()
    step.begin("second")
    clock.now += 20  # at a tenth of the work in ten seconds
    assert step.share == pytest.approx(0.1 + 0.2)
    clock.now += 100
    assert step.share == pytest.approx(0.1 + 0.9 * 0.4)
    step.update()
    assert step.share == pytest.approx(0.5)
    several = Progress("curves", 4, "layers")
    clock.now += 10
    several.update()
    several.begin("b, c", 2)
    clock.now += 10
    assert several.share == pytest.approx(0.5)
    assert Progress("reading", None, "images").words() == "reading: 0 images, 0.0 s so far"


def test_the_time_left_is_that_of_all_steps_at_the_pace_so_far(clock):
    work = Work({"first": 1, "second": 3})
    assert work.seconds_left() is None
    first = Progress("first", 10)
    work.begin(first)
    clock.now += 10
    assert work.seconds_left() is None  # nothing is done
    first.update(5)  # half of a quarter took 10 s
    assert work.seconds_left() == pytest.approx(70)
    clock.now += 10
    first.update(5)
    work.end(first)
    assert work.seconds_left() == pytest.approx(60)
    second = Progress("second", 3)
    work.begin(second)
    clock.now += 20
    second.update()  # half of all took 40 s
    assert work.seconds_left() == pytest.approx(40)
    second.update(2)
    work.end(second)
    assert work.seconds_left() == 0


def test_steps_that_were_done_before_do_not_count(clock):
    work = Work({"survey": 100, "layers": 1, "check": 1})
    clock.now += 1000
    layers = Progress("layers", 2)
    work.begin(layers)
    clock.now += 5
    layers.update()  # a quarter of what is to be done took 5 s
    assert work.seconds_left() == pytest.approx(15)


def test_no_time_is_told_before_there_is_a_base_for_it(clock):
    work, step = Work({"a": 1}), Progress("a", 1000)
    work.begin(step)
    step.update(100)
    clock.now += module.LEAST_SECONDS - 0.1
    assert work.seconds_left() is None
    clock.now += 0.2
    assert work.seconds_left() == pytest.approx(9 * 2.1)
    other = Progress("unannounced", 5)
    work.begin(other)
    other.update(5)
    work.end(other)
    assert work.seconds_left() == pytest.approx(9 * 2.1)


def test_a_bar_shows_the_time_left_of_the_whole_command_and_the_pace():
    stream = io.StringIO()
    step, work = Progress("layers", 4, "layers"), Work({"layers": 1, "check": 1})
    step.start = time.monotonic() - 600
    work.begin(step)
    step.draw(make_bar(step, work, stream))
    step.update()
    step._bar.refresh()
    shown = stream.getvalue().split("\r")[-1]
    assert "layers:  25 %|" in shown and "1/4" in shown and "about 1 h left" in shown
    assert "layer" in shown.split("left, ")[1]
    step.close()


def test_a_bar_names_the_unit_in_work():
    stream, step = io.StringIO(), Progress("fit", 3, "layers")
    step.draw(make_bar(step, None, stream))
    step.begin("features.24")
    step.refresh()
    assert stream.getvalue().split("\r")[-1].startswith("fit (features.24):   0 %|")
    step.update()
    step.refresh()
    assert stream.getvalue().split("\r")[-1].startswith("fit:  33 %|")


def test_a_notebook_is_recognised_by_its_kernel(monkeypatch):
    class Shell:
        config = {"IPKernelApp": {}}

    class IPython:
        @staticmethod
        def get_ipython():
            return Shell()

    monkeypatch.setattr(module.sys, "modules", {})
    assert not module.in_notebook()
    monkeypatch.setattr(module.sys, "modules", {"IPython": IPython})
    assert module.in_notebook()
    Shell.config = {"TerminalIPythonApp": {}}
    assert not module.in_notebook()
