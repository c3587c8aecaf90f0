"""Which tests run: ``--clusters``, ``--exclude``, ``--all``, and a summary of it.

A test that needs a real part carries that part's marker, by hand or because it uses its
fixture. All parts are used by default. What a machine cannot have is left out by name, and
the summary has it; a part that is needed and missing is a failure, never a skip.

What takes long and is a variant of something that always runs (every kill point, every version,
the biggest results) is marked ``test_all`` and runs with ``--all`` only; the summary names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

FIXTURES = {
    "registry": "registry",
    "docker": "docker_host",
    "apptainer": "apptainer_path",
    "machines": "machine_root",
    "slurm": "slurm",
    "ssh": "ssh_hosts",
    "kubernetes": "kubernetes",
    "s3": "s3",
}
"""The clusters by name, with the fixture that starts each."""

_PROPERTY = "cluster"
_LATER = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clusters", "the real parts that tests run on")
    group.addoption(
        "--clusters",
        default="",
        metavar="NAMES",
        help=f"run only tests that need no real part or one of these: {', '.join(FIXTURES)}",
    )
    group.addoption(
        "--exclude",
        default="",
        metavar="NAMES",
        help="leave out the tests on these real parts, and say so in the summary",
    )

    group.addoption(
        "--all", action="store_true", help="also run what is marked test_all: `make test-all`"
    )


def excluded(config: pytest.Config) -> frozenset[str]:
    """The clusters that this run leaves out; :class:`pytest.UsageError` for an unknown name."""
    chosen = _names(config, "clusters") or frozenset(FIXTURES)
    return (frozenset(FIXTURES) - chosen) | _names(config, "exclude")


def _names(config: pytest.Config, option: str) -> frozenset[str]:
    names = frozenset(str(config.getoption(option)).replace(",", " ").split())
    if unknown := names - FIXTURES.keys():
        raise pytest.UsageError(
            f"--{option}: no cluster is named {', '.join(sorted(unknown))};"
            f" there are {', '.join(FIXTURES)}"
        )
    return names


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LATER] = []
    # A misspelt name fails now, not after a collection that quietly leaves nothing out.
    excluded(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = excluded(config)
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        used = _clusters_of(item)
        item.user_properties.extend((_PROPERTY, name) for name in sorted(used))
        later = item.get_closest_marker("test_all") and not config.getoption("all")
        if later and not used & left_out:
            config.stash[_LATER].append(item.nodeid)
        (dropped if later or used & left_out else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def _clusters_of(item: pytest.Item) -> set[str]:
    used: set[str] = set()
    for name, fixture in FIXTURES.items():
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(name)
        if item.get_closest_marker(name):
            used.add(name)
    return used


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Under xdist only the workers know what was collected, and the controller writes the summary.
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["later"] = session.config.stash[_LATER]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash[_LATER] = output.get("later", node.config.stash[_LATER])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = (
        f"{reason}\nA test that is skipped looks like one that passes."
        " What a machine cannot have is left out by name: --exclude NAME."
    )
    vars(report).pop("wasxfail", None)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    ran: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            ran.update(value for key, value in report.user_properties if key == _PROPERTY)
    left_out = sorted(excluded(config))
    later = _later(config)
    if not ran and not left_out and not later:
        return
    terminalreporter.section("real parts")
    for name in FIXTURES:
        if ran[name]:
            terminalreporter.line(f"{name}: {ran[name]} tests ran on the real thing")
    for name in left_out:
        terminalreporter.line(f"EXCLUDED by name: {name}: not tested", yellow=True, bold=True)
    for name, count in sorted(later.items()):
        terminalreporter.line(f"only in `make test-all`: {name}: {count}", yellow=True)


def _later(config: pytest.Config) -> Counter[str]:
    """How many tests ``--all`` would add, by test function."""
    return Counter(name.partition("[")[0] for name in config.stash[_LATER])
