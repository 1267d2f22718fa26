"""In CI, a test that skips for a reason which nobody listed is a failure."""

from __future__ import annotations

import os

import pytest

# What may be skipped, by the beginning of the reason. Anything else that skips where CI is set is a
# failure: a test that silently never runs proves nothing.
MAY_SKIP = {
    "needs ../shared": "data beside the checkout, with licences that keep it out of the repository",
    "needs redis-server": "TLS, ACL and AOF need Debian's Redis; the README names the packages",
    "needs mosquitto": "an MQTT broker; the README names the package",
    "needs chromium": "Debian's browser; the README names the package",
    "needs openssl": "certificates for TLS servers; the README names the package",
    "needs promtool": "tries the alert rules; Debian's prometheus, see `make setup-system`",
    "needs systemd-analyze": "looks at the systemd unit; not in every container",
    "needs the extra objects": "s3fs, and moto to test it with",
    "needs the extra ray": "spreads scans over machines",
    "needs the extra heic": "reads HEIC",
    "needs the extra crosscheck": "brings OpenCV; only for development of the tracker",
    "needs a network namespace": "not every container may make one",
    "needs a namespace of its own": "likewise, for process 1 and read-only file systems",
    "needs root": "to give files to another user",
}


class SkipWatch:
    """Notes every skip with a reason that `MAY_SKIP` does not list."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longrepr,)
        reason = str(reason).removeprefix("Skipped: ")
        if not reason.startswith(tuple(MAY_SKIP)):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and os.environ.get("CI") and not hasattr(session.config, "workerinput"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skipped for a reason that tests/conftest.py does not list")
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipWatch(), "skip-watch")
