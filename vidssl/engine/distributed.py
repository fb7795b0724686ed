"""The processes of a run: how they meet, agree, and report that one is lost.

A launcher (``torchrun``, or ``srun`` with the same variables) starts the same command several times. Here
they find each other. Random numbers and sums over the batch are the business of ``gather``.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vidssl.engine.speed import Device, pick_device
from vidssl.errors import UsageError, printable

T = TypeVar("T")

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets, and srun can be told to
_LOST = "another process of this run has ended"
_POLL_SECONDS = 0.05
_LINGER_SECONDS = 10.0
_SETTLE_SECONDS = 0.2


class LostProcess(UsageError):
    """Another process of the run has ended or answers no more."""


class AlreadyTold(UsageError):
    """An error that another process reports; it has no message of its own."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them; by default it is alone.

    Every method is to be called by all of them, in the same order.

    Attributes:
        rank: the number of this process, from 0; rank 0 writes and prints for all.
        size: how many there are.
        local_rank: the number of this process on its machine, which is that of its GPU.
        store: what they keep in common, None where there is nothing of the kind.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: dist.Store | None = field(default=None, repr=False, compare=False)
    _turns: Iterator[int] = field(default_factory=count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints for all."""
        return self.rank == 0

    def any(self, flag: bool | Tensor) -> bool:
        """Whether it is so in any of them."""
        if self.size == 1:
            return bool(flag)
        found = torch.tensor(int(bool(flag)))
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def barrier(self) -> None:
        """Waits for all."""
        self.any(False)

    def from_first(self, make: Callable[[], str]) -> str:
        """Text made by rank 0; the others wait, however long it takes, unless it ends.

        Raises:
            UsageError: in all of them, as rank 0 raised it.
        """
        if self.size == 1:
            return make()
        made, failed = "", ""
        if self.first:
            try:
                made = make()
            except UsageError as error:
                failed = str(error) or type(error).__name__
        made, failed = self._handed_on(made, failed)
        if failed:
            raise UsageError(failed)
        return made

    def one_first(self, make: Callable[[], T]) -> T:
        """The result of ``make`` in each of them; rank 0 makes it before the others do (files, for all).

        Raises:
            UsageError: in all of them, as rank 0 raised it; or in each its own.
        """
        made: list[T] = []

        def keep() -> str:
            made.append(make())
            return ""

        self.from_first(keep)
        return made[0] if made else make()

    def gather(self, values: Mapping[str, float]) -> list[Mapping[str, float]]:
        """Everybody's numbers, in the order of processes; they need not have the same names."""
        if self.size == 1:
            return [values]
        found: list[Mapping[str, float]] = [{} for _ in range(self.size)]
        dist.all_gather_object(found, dict(values))
        return found

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Everybody's tensors, on the CPU, in the order of processes; they may differ in all respects."""
        own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        if self.size == 1:
            return [own]
        found: list[dict[str, Tensor]] = [{} for _ in range(self.size)]
        dist.all_gather_object(found, own)
        return found

    def speaker(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say`` in rank 0; in the others a print to the error output that names their rank."""
        if self.first:
            return say
        return lambda text: print(f"process {self.rank}: {printable(text)}", file=sys.stderr, flush=True)

    def says(self, message: str) -> bool:
        """Whether this process reports an error: the first to come with it does.

        A lost process is no news where another has reported why. May be called by any, at any time.
        """
        if self.store is None:
            return True
        lost = message.startswith(_LOST)
        digest = hashlib.sha256(message.encode()).hexdigest()
        try:
            if lost and self.store.add("vidssl/errors", 0) > 0:
                return False
            self.store.add("vidssl/errors", 0 if lost else 1)
            return self.store.add(f"vidssl/said/{digest}", 1) == 1
        except RuntimeError:  # the store has gone with the process that kept it
            return True

    def leave(self) -> None:
        """Lets rank 0, which may keep the store, wait some seconds until all know who reports an error."""
        if self.store is None:
            return
        deadline = time.monotonic() + _LINGER_SECONDS
        with suppress(RuntimeError):
            left = self.store.add("vidssl/left", 1)
            while self.first and left < self.size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                left = self.store.add("vidssl/left", 0)

    def _handed_on(self, *texts: str) -> list[str]:
        """The texts of rank 0."""
        if self.store is not None:  # a collective would end with the timeout
            key = f"vidssl/turn/{next(self._turns)}"
            if self.first:
                self.store.set(key, json.dumps(texts))
            while not self.store.check([key]):
                time.sleep(_POLL_SECONDS)
            found = json.loads(self.store.get(key))
            self.barrier()  # before the first goes, and the store with it
            return list(found)
        given: list[object] = list(texts)
        dist.broadcast_object_list(given, src=0)
        return list(map(str, given))


_joined: list[World] = []  # the one that ``processes`` made, while it lasts


def here() -> World:
    """The processes of the process group that there is, without one this process alone."""
    if _joined:
        return _joined[-1]
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))


def launched() -> int:
    """How many processes a launcher says that there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def told_once_a_machine() -> Iterator[None]:
    """Lets local rank 0 of a machine report an error that all of them find before they meet.

    Raises:
        AlreadyTold: in the others, in place of a UsageError.
    """
    try:
        yield
    except UsageError as error:
        if launched() == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0:
            raise
        raise AlreadyTold from error


@contextmanager
def processes(device: Device, *, timeout_minutes: float) -> Iterator[World]:
    """Joins the processes that a launcher has started, for the time of the context; alone without one.

    Communication is nccl's on GPUs, of which each process takes one, and gloo's on CPUs. What one of them
    cannot recover from ends all; it is reported once.

    Args:
        device: that all of them run on.
        timeout_minutes: how long to wait for an answer before a process is taken for lost.

    Raises:
        UsageError: if the launcher's variables are incomplete, a machine lacks GPUs, or a process is lost.
        AlreadyTold: in place of an error that another process reports.
    """
    if launched() == 1 or dist.is_initialized():
        yield here()
        return
    with told_once_a_machine():
        _check_variables()
        on_cuda = take_device(device, int(os.environ.get("LOCAL_RANK", 0))).type == "cuda"
        with told_if_lost(timeout_minutes):
            world = _join("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timedelta(minutes=timeout_minutes))
    _joined.append(world)
    ended_well = False
    try:
        with told_if_lost(timeout_minutes):
            yield world
        ended_well = True
    except UsageError as error:
        if not world.says(str(error)):
            raise AlreadyTold from error
        raise
    finally:
        if not ended_well:
            world.leave()
        if ended_well or not on_cuda:  # nccl would wait there for the others
            end_group()
        _joined.pop()


def end_group() -> None:
    """Destroys the process group, when gloo's threads have let go of what was exchanged last.

    They do so a moment after the exchange, and need Python's lock for it. torch 2.6 and 2.7 hold that lock
    while they destroy a group and wait for these threads: one end in twenty or thirty never came.
    """
    time.sleep(_SETTLE_SECONDS)
    dist.destroy_process_group()


def _join(backend: str, timeout: timedelta) -> World:
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    group = dist.PrefixStore("vidssl", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, int(os.environ.get("LOCAL_RANK", 0)), store)


def _check_variables() -> None:
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {launched()}, and {', '.join(missing)} not set: start several processes with "
            "torchrun"
        )


def take_device(name: Device, local_rank: int) -> torch.device:
    """The device of ``run.device`` for a process of a machine: its own GPU, or the CPU.

    Raises:
        UsageError: if there is no CUDA device for it.
    """
    device = pick_device(name)
    if device.type == "cpu" or (launched() == 1 and not dist.is_initialized()):
        return device
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UsageError(
            f"process {local_rank} of this machine wants a GPU of its own, and there are {count}: start as "
            "many processes as GPUs (torchrun --nproc-per-node), or set run.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def told_if_lost(timeout_minutes: float) -> Iterator[None]:
    """Turns what communication raises, when another process is lost, into an error of one line.

    Raises:
        LostProcess: then.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise LostProcess(
            f"{_LOST}, or given no answer for {timeout_minutes:g} minutes (run.timeout_minutes); look for "
            "its own message. Resume from the newest checkpoint with vidssl train --resume"
        ) from error


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is one of communication between processes: torch has no one type for them."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    )
