"""Tests here run on the cluster of tests/slurm_cluster.py that BENCH_TEST_CLUSTER names, and on no other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm_cluster import FOREIGN, VARIABLE, Cluster, ClusterError, true_within

NONE = ("no test cluster: `make test-slurm` starts one (needs Debian's munge slurm-wlm slurmdbd slurm-wlm-mysql-plugin "
        "mariadb-server)")


def found_cluster() -> Cluster | None:
    """The one that we were told to use, where it answers."""
    if not os.environ.get(VARIABLE):
        return None
    try:
        found = Cluster.attach(os.environ[VARIABLE])
    except ClusterError:
        return None
    return found if found.ready() else None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    found = found_cluster()
    if found is None:
        pytest.skip(NONE)
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(FOREIGN.match, list(os.environ)):
            patch.delenv(name)
        for name in ("SLURM_CONF", "PATH"):             # jobs go to this cluster, whatever the shell says
            patch.setenv(name, found.environment()[name])
        yield found


@pytest.fixture(autouse=True)
def leaves_no_jobs(cluster: Cluster) -> Iterator[None]:
    """Each test finds all daemons up and all nodes idle."""
    yield
    if not all(map(cluster.pid, cluster.daemons)):
        cluster.start()
    cluster.cancel_all()
    if not true_within(30, cluster.idle):
        pytest.fail(f"the cluster did not come to rest: {cluster.node_states()}\n{cluster.ask('squeue').stdout}")


def must_not_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("BENCH_REQUIRE_SLURM") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"BENCH_REQUIRE_SLURM=1 allows no skipping here, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    must_not_skip(report)
    if report.failed and VARIABLE in os.environ and "cluster" in getattr(item, "funcargs", {}):
        for name in ("slurmctld", *(n for n in item.funcargs["cluster"].daemons if n.startswith("slurmd-"))):
            report.sections.append((f"the end of {name}'s log", item.funcargs["cluster"].last_words(name, 30)))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    must_not_skip(report)
    return report
