"""How many requests are under way, against servers that are a formula."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from bigearth_cube.loader.pace import Pace, PacedThreads


def play(pace: Pace, n_rounds: int, seconds: Callable[[int], float], wanted: int = 1000) -> None:
    """Send as many requests at once as are allowed and wanted, round after round."""
    for _ in range(n_rounds):
        n = min(int(pace.limit), wanted)
        assert [pace.enter() for _ in range(n)] == [True] * n
        for _ in range(n):
            pace.leave()
            pace.answered(seconds(n), 50_000)


def server(capacity: int, base_s: float = 0.05) -> Callable[[int], float]:
    """Answers take no longer until ``capacity`` are asked at once, then in proportion."""
    return lambda n: base_s * max(1.0, n / capacity)


def test_a_far_server_with_room_is_asked_as_much_as_is_allowed() -> None:
    pace = Pace(64)
    play(pace, 4, server(1000))
    assert pace.limit == 64
    assert pace.peak == 64


@pytest.mark.parametrize("capacity", [8, 16, 24])
def test_requests_settle_where_more_of_them_bring_nothing(capacity: int) -> None:
    pace = Pace(256)
    play(pace, 60, server(capacity))
    # At capacity the server is busy; at twice that every answer takes twice as long.
    assert capacity <= pace.limit <= 2.5 * capacity


def test_what_is_not_wanted_is_not_grown_for() -> None:
    pace = Pace(64)
    play(pace, 40, server(1000), wanted=5)
    assert pace.limit == 8


def test_refusals_halve_it_once_a_moment_and_it_comes_back_step_by_step() -> None:
    pace = Pace(64)
    play(pace, 4, server(1000))
    for _ in range(10):
        pace.held_back()
    assert pace.limit == 32
    play(pace, 1, server(1000))
    assert pace.limit == 33
    play(pace, 40, server(1000))
    assert pace.limit == 64


def test_slow_answers_leave_a_few_in_flight_and_refusals_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = Pace(64)
    play(pace, 1, lambda n: 0.001)
    play(pace, 60, lambda n: 1.0)
    assert pace.limit == 4
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for _ in range(9):
        now += 1
        pace.held_back()
    assert pace.limit == 1
    play(pace, 60, lambda n: 1.0)  # slow answers after refusals are no reason to ask for more
    assert pace.limit == 1


def test_answers_are_compared_with_those_of_their_size() -> None:
    pace = Pace(64)
    for _ in range(400):
        n = int(pace.limit)
        assert [pace.enter() for _ in range(n + 1)] == [True] * n + [False]
        for _ in range(n):
            pace.leave()
        pace.answered(0.05, 60_000)
        pace.answered(0.5, 4_000_000)
    assert pace.limit == 64


def test_a_ceiling_below_the_floor_holds() -> None:
    pace = Pace(2)
    play(pace, 20, server(1000))
    assert pace.limit == pace.peak == 2


def test_a_thread_goes_on_with_what_is_next_and_leaves_where_there_is_less_room() -> None:
    pace = Pace(4)
    threads, threads_seen, at_once, go_on = PacedThreads(pace), [], [], threading.Event()
    running = 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal running
        with lock:
            threads_seen.append(threading.current_thread())
            running += 1
            at_once.append(running)
        assert go_on.wait(30)
        if number == 3:
            pace.limit = 1.0
        threading.Event().wait(0.002)
        with lock:
            running -= 1

    futures = [threads.submit(work, number) for number in range(40)]
    while len(threads_seen) < 4:
        threading.Event().wait(0.001)
    assert pace.in_flight == 4
    go_on.set()
    for future in futures:
        future.result(30)
    assert len(set(threads_seen)) == 4
    assert max(at_once) == pace.peak == 4
    assert set(at_once[-30:]) == {1}
    threads.close()
    assert pace.in_flight == 0


def test_what_has_not_begun_is_canceled_by_closing_and_nothing_is_left_pending() -> None:
    for _ in range(200):
        threads = PacedThreads(Pace(4))
        futures = [threads.submit(threading.Event().wait, 0.0001) for _ in range(12)]
        threads.close()
        assert all(future.done() for future in futures)
        assert threads.submit(int).cancelled()
        assert threads.pace.in_flight == 0


def test_a_process_that_ends_begins_nothing_more() -> None:
    script = """
import sys, time
from bigearth_cube.loader.pace import Pace, PacedThreads
threads = PacedThreads(Pace(2))
def work():
    time.sleep(0.05)
    print("done", flush=True)
for _ in range(100):
    threads.submit(work)
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("done") <= 4


def test_work_waits_as_a_future_that_can_be_canceled_and_begins_in_turn() -> None:
    threads, begun, go_on = PacedThreads(Pace(1)), [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        go_on.wait(30)
        if number == 2:
            raise ValueError(number)
        return number

    futures = [threads.submit(work, number) for number in range(4)]
    assert futures[1].cancel()
    go_on.set()
    assert [futures[0].result(30), futures[3].result(30)] == [0, 3]
    assert isinstance(futures[2].exception(30), ValueError)
    assert begun == [0, 2, 3]
    assert threads.pace.in_flight == 0
    threads.close()
