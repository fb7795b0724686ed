"""Threads by the CPUs that are free, and a machine that others hold up."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from vidssl.cli import train as commands
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.engine import process
from vidssl.engine.process import Cpus
from vidssl.train.run import _on_cpus

V1 = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_"


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
            },
            4.0,
        ),
        (  # as a container of the first version sees it: the group's name is the host's, the mount its own
            {
                "proc/self/cgroup": "5:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
                f"{V1}quota_us": "50000\n",
                f"{V1}period_us": "100000\n",
            },
            0.5,
        ),
        (
            {"proc/self/cgroup": "3:cpu,cpuacct:/\n", f"{V1}quota_us": "-1\n", f"{V1}period_us": "9\n"},
            math.inf,
        ),
        ({}, math.inf),
    ],
)
def test_control_groups_limit_the_cpus(files: dict[str, str], granted: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert process._granted(tmp_path) == granted


def test_a_quota_below_the_affinity_is_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_own_cpus", lambda: range(64))
    for granted, cpus in ((1.5, 2), (0.2, 1), (math.inf, 64)):
        monkeypatch.setattr(process, "_granted", lambda granted=granted: granted)
        assert process.num_cpus() == cpus


@pytest.mark.parametrize(
    ("cpus", "threads"), [(Cpus(2, 2.0), 2), (Cpus(2, 1.7), 1), (Cpus(2, 0.0), 1), (Cpus(8, 3.9), 4)]
)
def test_a_thread_for_each_cpu_that_is_free(cpus: Cpus, threads: int) -> None:
    assert cpus.threads == threads


def test_what_others_keep_busy_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, clock = iter([100.0, 101.5]), iter([10.0, 11.0])
    monkeypatch.setattr(process, "_own_cpus", lambda: range(4))
    monkeypatch.setattr(process, "_granted", lambda: math.inf)
    monkeypatch.setattr(process, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(process.time, "monotonic", lambda: next(clock))
    assert process.look_at_cpus(seconds=0.0) == Cpus(4, 2.5)


def test_a_machine_is_slow_where_the_process_lacks_cpus_and_others_want_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "num_cpus", lambda: 2)
    for load, share, slow in ((5.0, 0.6, True), (5.0, 0.1, False), (1.0, 0.6, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        assert bool(process.slow_machine(share)) is slow
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    assert "60 % of the time (load 5.0 on 2 CPUs)" in process.slow_machine(0.6)


def test_threads_that_a_user_sets_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "look_at_cpus", lambda: Cpus(4, 1.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert commands._free_cpus() is None
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert commands._free_cpus() == Cpus(4, 1.0)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_an_evaluation_sleep_while_they_wait(
    given: str | None, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["eval", "nothing", "--protocol", "knn"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == kept


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_resumes_with_the_threads_that_it_began_with(tmp_path: Path, threads: None) -> None:
    said: list[str] = []
    recipe = load_recipe("bevt", ["run.workers=3", "run.device=cpu"])
    busy = _on_cpus(recipe, Cpus(4, 1.0), None, said.append)
    assert (torch.get_num_threads(), busy.run.workers) == (1, 1)
    assert said == [
        "CPUs: 4, 1.0 of them free: 1 thread (OMP_NUM_THREADS=N for another number), 1 data worker a stream"
    ]
    (tmp_path / "environment.json").write_text(json.dumps({"torch_threads": 2}))
    assert _on_cpus(recipe, Cpus(4, 4.0), tmp_path, said.append).run.workers == 3
    assert torch.get_num_threads() == 2
    _on_cpus(load_recipe("bevt", ["run.deterministic=true"]), Cpus(4, 1.0), None, said.append)
    assert torch.get_num_threads() == 4
