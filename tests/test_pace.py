"""How many requests are under way, against servers that are a formula."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from bigearth_cube.loader.pace import Pace


def play(pace: Pace, n_rounds: int, seconds: Callable[[int], float], wanted: int = 1000) -> None:
    """Send as many requests at once as are allowed and wanted, round after round."""
    for _ in range(n_rounds):
        n = min(int(pace.limit), wanted)
        with ExitStack() as slots:
            for _ in range(n):
                slots.enter_context(pace.slot())
        for _ in range(n):
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


def test_answers_are_compared_with_those_of_their_size() -> None:
    pace = Pace(64)
    for _ in range(400):
        with ExitStack() as slots:
            for _ in range(int(pace.limit)):
                slots.enter_context(pace.slot())
        pace.answered(0.05, 60_000)
        pace.answered(0.5, 4_000_000)
    assert pace.limit == 64


def test_a_ceiling_below_the_floor_holds() -> None:
    pace = Pace(2)
    play(pace, 20, server(1000))
    assert pace.limit == pace.peak == 2
