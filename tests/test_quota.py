"""Limits of control groups, of both versions, inside containers and batch jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from setr.processes import quota
from setr.processes.machine import available_bytes

STAT = "anon 500000\nfile 400000\ninactive_file 300000\ntotal_inactive_file 200000"


@pytest.fixture
def put(tmp_path, monkeypatch) -> Callable[..., None]:
    """Writes files of the groups; the first argument is what the process belongs to."""
    monkeypatch.setattr(quota, "CGROUP", tmp_path)
    monkeypatch.setattr(quota, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(quota, "_affinity", lambda: 64)

    def write(member: str, files: dict[str, str]) -> None:
        (tmp_path / "membership").write_text(member)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")

    return write


def test_no_groups_no_limits(put, tmp_path):
    assert quota.cpus() == 64
    assert quota.memory_left() is None
    assert available_bytes() > 1e8
    put("0::/\n", {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"})
    assert quota.cpus() == 64
    assert quota.memory_left() is None


def test_a_container_of_version_2(put):
    put(
        "0::/../../kubepods/pod1\n",
        {
            "cpu.max": "150000 100000",
            "memory.max": "1000000",
            "memory.current": "900000",
            "memory.stat": STAT,
        },
    )
    assert quota.cpus() == 2
    assert quota.memory_left() == available_bytes() == 400_000  # files kept by the system make room
    put("0::/\n", {"memory.current": "1500000", "cpu.max": "20000 100000"})
    assert quota.memory_left() == 0
    assert quota.cpus() == 1


def test_the_least_of_all_groups_around_a_job_counts(put):
    put(
        "0::/slurm/job_7/step_0\n",
        {
            "slurm/job_7/cpu.max": "400000 100000",
            "slurm/cpu.max": "800000 100000",
            "slurm/job_7/step_0/cpu.max": "max 100000",
            "slurm/job_7/memory.max": "2000000",
            "slurm/job_7/memory.current": "0",
            "slurm/job_7/memory.stat": STAT,
        },
    )
    assert quota.cpus() == 4
    assert quota.memory_left() == 2_000_000


def test_version_1_keeps_a_tree_for_each_kind(put):
    put(
        "9:name=systemd:/a\n4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        {
            "cpu/job/cpu.cfs_quota_us": "300000",
            "cpu/job/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/job/memory.limit_in_bytes": "1000000",
            "memory/memory.stat": STAT,
            "memory/job/memory.usage_in_bytes": "900000",
            "memory/job/memory.stat": STAT,
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "900000",
        },
    )
    assert quota.cpus() == 3
    assert quota.memory_left() == 300_000


@pytest.mark.parametrize(
    ("limit", "given", "threads"),
    [("200000", None, "2"), ("4000000", None, None), ("200000", "5", "5"), ("max", None, None)],
)
def test_threads_are_those_of_the_quota(put, monkeypatch, limit, given, threads):
    """Above half of the CPUs torch may count fewer by itself, since two may be one core's."""
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    put("0::/\n", {"cpu.max": f"{limit} 100000"})
    quota.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_this_process_may_use_a_cpu():
    assert 1 <= quota.cpus() <= (os.cpu_count() or 1)
    assert all(isinstance(group, Path) for group in quota._groups("cpu"))


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", None])
def test_threads_wait_awake_for_a_moment_unless_the_environment_says_how_long(monkeypatch, name):
    given = {name: "5"} if name else {}
    environment = dict(given)
    monkeypatch.setattr(quota.os, "environ", environment)
    quota.limit_spinning()
    assert environment == (given or {"GOMP_SPINCOUNT": "10000"})
