"""Commands started one after another, on this machine or as jobs of a cluster.

A command that is stopped (exit code 130) can be given again and resumes, so that nothing has to be kept here.
"""

from __future__ import annotations

import os
import queue
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from vidssl.config.strict_yaml import parse, plain
from vidssl.engine.process import num_cpus
from vidssl.errors import UsageError

Commands = Sequence[Sequence[str]]
Runner = Callable[[Commands, Path, str], int]  # commands, file for what they print, name -> exit code


def run_commands(commands: Commands, log: Path, environment: Mapping[str, str]) -> int:
    """Runs commands one after another up to the first that fails, and gives its exit code, or 0.

    Args:
        log: what they print is added to it.
    """
    with log.open("a", encoding="utf-8") as file:
        for command in commands:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}, check=False
            ).returncode
            if code:
                return code
    return 0


def on_this_machine(jobs: int, processes: int) -> Runner:
    """Starts commands here: each job has its share of CPU threads, and of the GPUs where there are enough.

    Args:
        jobs: at once.
        processes: of each.
    """
    devices: queue.SimpleQueue[str] = queue.SimpleQueue()
    shared = torch.cuda.device_count() // (jobs * processes)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if shared else []
    names = visible if len(visible) > 1 else [str(n) for n in range(torch.cuda.device_count())]
    for job in range(jobs):
        devices.put(",".join(names[job * processes : (job + 1) * processes]) if shared else "")

    def run(commands: Commands, log: Path, name: str) -> int:
        mine = devices.get()
        threads = str(max(1, num_cpus() // (jobs * processes)))
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        try:
            return run_commands(commands, log, environment | ({"CUDA_VISIBLE_DEVICES": mine} if mine else {}))
        finally:
            devices.put(mine)

    return run


class ClusterJob:
    """Commands as submitit sends them to a cluster; when a machine is taken back they are sent again."""

    def __init__(self, commands: Commands, log: Path) -> None:
        self.commands, self.log = commands, log

    def __call__(self) -> int:
        return run_commands(self.commands, self.log, {})

    def checkpoint(self) -> object:
        """What submitit is to send when the job is taken back: the same commands, which resume."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def through_submitit(cluster: str, parameters: Sequence[str], folder: Path) -> Runner:
    """Starts commands as jobs of submitit and waits for each.

    Args:
        cluster: "slurm" or "local".
        parameters: ``timeout_min=600``, as submitit names them.
        folder: for submitit's own files.

    Raises:
        UsageError: if the package is missing, or refuses a parameter.
    """
    if find_spec("submitit") is None:
        raise UsageError("--submit: needs the package submitit: pip install 'vidssl[slurm]'")
    import submitit

    given = {}
    for word in parameters:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--job {word}: write KEY=VALUE, such as timeout_min=600")
        given[key] = plain(parse(value, lambda line: "--job", key))
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**given)
    except (NameError, RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"--submit {cluster}: submitit: {error}") from error

    def run(commands: Commands, log: Path, name: str) -> int:
        executor.update_parameters(name=name)
        job = executor.submit(ClusterJob(commands, log.resolve()))
        try:
            return int(job.result())
        except submitit.core.utils.UncompletedJobError as error:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{str(error).splitlines()[0]}\n")
            return 1

    return run
