import contextlib
import threading

import pytest

from kstream.errors import KstreamError, ScanError
from kstream.stream import Each, Pipeline, StageError
from kstream.stream.runners import ThreadCrew, ThreadRunner, run_inline
from kstream.stream.telemetry import Durations


class Pairs:
    """Gives a string for every two integers; what is left at the end is given alone."""

    takes = (int,)
    gives = (str,)

    def __init__(self) -> None:
        self._held: list[int] = []

    def push(self, item: int) -> list[str]:
        self._held.append(item)
        if len(self._held) < 2:
            return []
        text, self._held = "+".join(map(str, self._held)), []
        return [text]

    def finish(self) -> list[str]:
        return [str(i) for i in self._held]


class Fails:
    takes = (int,)
    gives = (int,)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def push(self, item: int) -> list[int]:
        if item == 3:
            raise self._error
        return [item]

    def finish(self) -> list[int]:
        return []


def pipeline() -> Pipeline:
    return Pipeline(Each(lambda i: i + 1, int, int), Pairs(), Each(str.upper, str, str), source=[int, float])


def test_items_run_depth_first_and_what_is_left_still_passes_later_stages() -> None:
    assert run_inline(pipeline(), [1, 2, 3]) == ["2+3", "4"]


def test_items_that_a_stage_does_not_take_go_past_it() -> None:
    assert run_inline(pipeline(), [1, 0.5, 2]) == [0.5, "2+3"]


def test_pipeline_refuses_a_stage_that_nothing_can_feed() -> None:
    with pytest.raises(TypeError, match="Pairs takes int, but only str can reach it"):
        Pipeline(Each(str.upper, str, str), Pairs(), source=[str])


def test_inline_and_threads_give_the_same() -> None:
    items = list(range(1000))
    out: list[object] = []
    runner = ThreadRunner(pipeline(), out.append, capacity=3)
    for item in items:
        runner.put(item)
    runner.finish()
    assert out == run_inline(pipeline(), items)


def test_our_own_errors_name_the_step_and_others_are_wrapped() -> None:
    with pytest.raises(ScanError) as ours:
        run_inline(Pipeline(Fails(ScanError("bad spoke")), source=[int]), [3])
    assert "step Fails" in str(ours.value)
    with pytest.raises(StageError, match="step Fails on a int failed: ValueError: boom"):
        run_inline(Pipeline(Fails(ValueError("boom")), source=[int]), [3])


def test_full_queue_slows_the_sender_and_loses_nothing() -> None:
    gate, out = threading.Event(), []

    def slow(item: object) -> None:
        gate.wait(10)
        out.append(item)

    runner = ThreadRunner(Pipeline(Each(lambda i: i, int, int), source=[int]), slow, capacity=2)
    sender = threading.Thread(target=lambda: [runner.put(i) for i in range(50)])
    sender.start()
    sender.join(0.2)
    assert sender.is_alive()
    assert runner.depth <= 2
    gate.set()
    sender.join(10)
    runner.finish()
    assert out == list(range(50))


def test_failed_stage_is_raised_to_the_sender_and_at_the_end() -> None:
    runner = ThreadRunner(Pipeline(Fails(ScanError("bad spoke")), source=[int]), lambda item: None)
    runner.put(3)
    with pytest.raises(KstreamError, match="bad spoke"):
        runner.finish()
    with pytest.raises(KstreamError, match="bad spoke"):
        runner.put(4)


@pytest.mark.parametrize("error", [AttributeError("gone"), AssertionError("odd"), StopIteration()])
def test_defects_of_any_kind_end_in_our_error_and_never_in_a_hang(error: Exception) -> None:
    runner = ThreadRunner(Pipeline(Fails(error), source=[int]), lambda item: None, capacity=2)
    for _ in range(100):
        with contextlib.suppress(KstreamError):
            runner.put(3)
    with pytest.raises(KstreamError, match="Fails"):
        runner.finish()


def test_defects_of_the_sink_are_raised_too() -> None:
    runner = ThreadRunner(pipeline(), lambda item: [][1], capacity=2)
    for i in range(10):
        with contextlib.suppress(KstreamError):
            runner.put(i)
    with pytest.raises(KstreamError, match="handing over results"):
        runner.finish()


def test_what_was_made_before_a_failure_is_not_lost() -> None:
    out: list[object] = []
    runner = ThreadRunner(Pipeline(Fails(ScanError("bad spoke")), source=[int]), out.append)
    for i in (1, 2, 3, 4):
        with contextlib.suppress(ScanError):
            runner.put(i)
    with pytest.raises(ScanError):
        runner.finish()
    assert out == [1, 2]


def test_abandoned_runner_leaves_no_thread() -> None:
    before = threading.active_count()
    runner = ThreadRunner(pipeline(), lambda item: None)
    runner.put(1)
    runner.abandon()
    assert threading.active_count() == before


def test_durations_keep_exact_sums_and_close_quantiles() -> None:
    durations = Durations()
    for microseconds in range(1, 1001):
        durations.add(microseconds * 1000)
    assert durations.n == 1000
    assert durations.total_ns == 500_500_000
    assert durations.quantile_ms(0.5) == pytest.approx(0.5, rel=0.2)
    assert durations.quantile_ms(1.0) == pytest.approx(1.0, rel=0.2)
    assert sum(durations.counts) == 1000
    assert Durations().quantile_ms(0.5) == 0


def test_all_helpers_are_done_when_one_raises() -> None:
    """They work in arrays of the caller, who goes on when `each` returns."""
    crew, all_in, returned, done = ThreadCrew(3), threading.Barrier(3), threading.Event(), []

    def work(number: int) -> None:
        all_in.wait(5)
        if threading.current_thread().name.endswith("_0"):
            raise KstreamError("the first helper fails")
        if threading.current_thread() is not threading.main_thread():
            assert not returned.wait(0.2)
        done.append(number)

    with pytest.raises(KstreamError, match="first helper"):
        crew.each(work, 3)
    returned.set()
    assert len(done) == 2
    crew.close()
