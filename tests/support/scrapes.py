"""Reading /metrics."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, ...], float]

# Made once: it takes longer than a scrape.
_TLS = ssl.create_default_context()
# Every sample has these.
COMMON_LABELS = frozenset({"model_name", "engine"})


def samples(text: str) -> Samples:
    """By name and the values of its own labels, in the order of the labels' names."""
    return {
        (sample.name, *[sample.labels[label] for label in sorted(sample.labels.keys() - COMMON_LABELS)]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str, headers: Mapping[str, str] | None = None) -> Samples:
    """The server's figures."""
    response = httpx.get(f"{url}/metrics", headers=headers, timeout=20, verify=_TLS)
    assert response.status_code == 200, response.text
    return samples(response.text)


def scrape_until(
    url: str, condition: Callable[[Samples], bool], headers: Mapping[str, str] | None = None, timeout_s: float = 30
) -> Samples:
    """Figures that a condition holds for: other gateways report every second, and an answer is held for 0.1 s."""
    deadline = time.monotonic() + timeout_s
    while not condition(found := scrape(url, headers)):
        assert time.monotonic() < deadline, f"the figures did not come: {found}"
        time.sleep(0.05)
    return found
