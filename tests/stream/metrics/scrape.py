"""Reading `/metrics` and `/readyz` of a program that runs."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.warm_start import WarmProcess

LIMIT_S = 120.0  # what takes so long hangs
SERVED = re.compile(r"metrics at (http://\S+)/metrics")


class Scrape:
    """What `/metrics` said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Sum all samples that have these labels."""
        found = [
            s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()
        ]
        return sum(found)

    def has(self, name: str, **labels: str) -> bool:
        return any(s.name == name and labels.items() <= s.labels.items() for s in self.samples)


class Served:
    """The HTTP side of a program that runs with `--metrics 127.0.0.1:0`."""

    def __init__(self, process: WarmProcess) -> None:
        self.process = process
        self.log: list[str] = []
        (self.address,) = self.until(SERVED)

    def until(self, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """Read the log on until a line has it."""
        for line in self.process.stderr:
            self.log.append(line)
            if found := pattern.search(line):
                return found.groups()
        raise AssertionError(f"ended without {pattern.pattern}:\n{''.join(self.log)}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=LIMIT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def scrape(self, wanted: Callable[[Scrape], Any] = lambda _: True) -> Scrape:
        """Scrape again and again until it says what is wanted."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            scrape = Scrape(self.get("/metrics")[1])
            if wanted(scrape):
                return scrape
            assert time.monotonic() < deadline, scrape.text
            time.sleep(0.05)
