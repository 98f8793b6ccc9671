"""What ``vgpud status`` says of latencies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.models import MODELS
from devices.registry import create_device
from server.durations import BOUNDS, Durations, WorkTimings
from server.engine import Engine
from tests.server.test_command_line import run, serving

NOTHING = {"count": 0, "mean_us": None, "median_at_most_us": None, "p99_at_most_us": None}


@given(st.lists(st.integers(0, 2_000_000_000), min_size=1, max_size=300))
def test_the_bounds_hold_for_as_many_as_they_say(nanoseconds: list[int]) -> None:
    """NumPy's inverted_cdf is the smallest value that so many are not above."""
    durations = Durations()
    for value in nanoseconds:
        durations.observe(value)
    summary = durations.summary()
    assert summary["count"] == len(nanoseconds)
    assert summary["mean_us"] == pytest.approx(np.mean(nanoseconds) / 1000, abs=0.06)
    for name, percent in (("median_at_most_us", 50), ("p99_at_most_us", 99)):
        seconds = np.percentile(nanoseconds, percent, method="inverted_cdf") / 1e9
        assert summary[name] == next((round(bound * 1e6) for bound in BOUNDS if seconds <= bound), None)


def test_what_was_never_timed_has_no_latency() -> None:
    assert Durations().summary() == NOTHING


def test_a_status_has_the_latencies_that_are_timed() -> None:
    engine = Engine(create_device(MODELS, "virtio-gpu"))
    assert engine.status()["latencies"] is None
    engine.timings = WorkTimings()
    engine.timings.runs.observe(30_000)
    assert engine.status()["latencies"] == {
        "deferred_work": {"count": 1, "mean_us": 30.0, "median_at_most_us": 50, "p99_at_most_us": 50},
        "dma_messages": NOTHING,
    }


def test_a_server_that_can_be_asked_times_its_work(tmp_path: Path) -> None:
    device, control = tmp_path / "device", tmp_path / "control"
    with serving("--socket-path", str(device), "--control", str(control)):
        status = json.loads(run("status", "--control", str(control), "--json").stdout)
        assert status["latencies"] == {"deferred_work": NOTHING, "dma_messages": NOTHING}
        assert "    median at most us: none" in run("status", "--control", str(control)).stdout.splitlines()
