"""The two text formats, read back by Prometheus' own Python client, and the choice between them."""

from __future__ import annotations

import pytest

from server.durations import BOUNDS, Durations
from server.metrics.exposition import OPENMETRICS, PROMETHEUS, choose, openmetrics_text, prometheus_text
from server.metrics.families import Family, counter, gauge, histogram, labelled
from tests.server.metrics.scraping import parse

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""The Accept header of version 2.42."""
PROMETHEUS_3 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""The Accept header of version 3 where native histograms are scraped."""
HOSTILE = 'a "quoted" \\ back\nslash'


def one(text: str, openmetrics: bool) -> list[tuple[str, str, str, dict[str, str], float]]:
    return [
        (family.type, family.documentation, sample.name, dict(sample.labels), float(sample.value))
        for family in parse(text, openmetrics=openmetrics)
        for sample in family.samples
    ]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_parser_reads_back_what_was_written(openmetrics: bool) -> None:
    families = [
        counter("requests", f"Help: {HOSTILE}").add(3, {"what": HOSTILE}).add(0.5, {"what": ""}),
        gauge("size_bytes", "Size.", 1 << 60),
        gauge("limit_bytes", "Limit.", float("inf")),
        gauge("level", "Level.", -2.5e-7),
    ]
    text = (openmetrics_text if openmetrics else prometheus_text)(families)
    assert one(text, openmetrics) == [
        ("counter", f"Help: {HOSTILE}", "requests_total", {"what": HOSTILE}, 3.0),
        ("counter", f"Help: {HOSTILE}", "requests_total", {"what": ""}, 0.5),
        ("gauge", "Size.", "size_bytes", {}, float(1 << 60)),
        ("gauge", "Limit.", "limit_bytes", {}, float("inf")),
        ("gauge", "Level.", "level", {}, -2.5e-7),
    ]


def test_openmetrics_says_the_unit_and_where_it_ends() -> None:
    text = openmetrics_text([gauge("size_bytes", "Size.", 1), gauge("level", "Level.", 1)])
    assert {family.name: family.unit for family in parse(text, openmetrics=True)} == {
        "size_bytes": "bytes",
        "level": "",
    }
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_buckets_of_a_histogram_count_all_that_is_not_longer(openmetrics: bool) -> None:
    durations = Durations()
    for nanoseconds in (0, 10_000, 10_001, 1_000_000_000, 1_000_000_001):
        durations.observe(nanoseconds)
    family = labelled([histogram("wait_seconds", "Wait.", durations)], {"who": "me"})
    text = (openmetrics_text if openmetrics else prometheus_text)(family)
    buckets = {
        labels["le"]: value
        for kind, _, name, labels, value in one(text, openmetrics)
        if name == "wait_seconds_bucket" and kind == "histogram" and labels["who"] == "me"
    }
    assert [float(bound) for bound in buckets] == [*BOUNDS, float("inf")]
    assert (buckets["1e-05"], buckets["2.5e-05"], buckets["1.0"], buckets["+Inf"]) == (2, 3, 4, 5)
    values = {name: value for _, _, name, _, value in one(text, openmetrics)}
    assert values["wait_seconds_count"] == 5
    assert values["wait_seconds_sum"] == pytest.approx(2.000020002)


def test_a_family_without_samples_is_left_out() -> None:
    assert prometheus_text([counter("nothing", "Nothing.")]) == ""


def test_labels_of_all_come_before_a_samples_own() -> None:
    (family,) = labelled([gauge("level", "Level.", 1, {"b": "2"})], {"a": "1"})
    assert prometheus_text([family]).endswith('level{a="1",b="2"} 1\n')
    assert isinstance(family, Family)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html, */*;q=0.8", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.2", False),
        ("Application/OpenMetrics-Text ; version=1.0.0 ; Q=0.5 , text/plain ; q=0.4", True),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text;q=much", False),
        ("application/openmetrics-text;q=nan", False),
        (";;;,,q=,", False),
    ],
)
def test_the_format_is_the_one_that_the_client_prefers(accept: str, openmetrics: bool) -> None:
    assert choose(accept) is (OPENMETRICS if openmetrics else PROMETHEUS)


def test_the_content_types_are_those_of_the_specifications() -> None:
    assert PROMETHEUS.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert OPENMETRICS.content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
