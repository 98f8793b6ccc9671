import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.edid.timings import reduced_blanking

# From `edid-decode --cvt w=,h=,fps=,rb=2`: width, height, refresh, pixel clock in kHz, vertical front porch.
KNOWN = [
    (1280, 800, 75, 84558, 15),
    (1280, 800, 60, 67156, 9),
    (1024, 768, 75, 65908, 14),
    (1024, 768, 60, 52329, 8),
    (1920, 1080, 75, 167850, 25),
    (1920, 1080, 60, 133320, 17),
    (800, 600, 60, 32630, 4),
    (1366, 768, 75, 86326, 14),
    (3840, 2160, 75, 657972, 64),
    (3840, 2160, 60, 522614, 48),
    (5120, 2880, 60, 924144, 68),
    (333, 222, 75, 7341, 1),
    (16384, 16384, 75, 20954556, 572),
    (64, 64, 75, 853, 1),
]


@pytest.mark.parametrize(("width", "height", "refresh", "clock_khz", "v_front"), KNOWN)
def test_timings_are_those_of_vesa_cvt_with_reduced_blanking_2(
    width: int, height: int, refresh: int, clock_khz: int, v_front: int
) -> None:
    timing = reduced_blanking(width, height, refresh)
    assert timing.pixel_clock == clock_khz * 1000
    assert (timing.h_front, timing.h_sync, timing.h_blank) == (8, 32, 80)
    assert (timing.v_front, timing.v_sync, timing.v_back) == (v_front, 8, 6)


@given(st.integers(64, 16384), st.integers(64, 16384), st.sampled_from([60, 75]))
def test_any_mode_leaves_460_microseconds_of_vertical_blanking_and_keeps_its_refresh_rate(
    width: int, height: int, refresh: int
) -> None:
    timing = reduced_blanking(width, height, refresh)
    line = (width + 80) / timing.pixel_clock
    assert timing.v_blank * line >= 460e-6
    assert timing.v_front >= 1
    # The clock is a whole number of kHz, so the rate is short of what was asked for by less than one step.
    assert refresh - 0.15 < timing.refresh <= refresh
