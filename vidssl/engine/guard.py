"""A step that is not finite is taken by no process, leaves no trace, and is kept to be repeated elsewhere.

What is kept is one safetensors file. It holds the weights and buffers as they were, the views of the batch,
which samples these were and where they stood in their epoch, the random states before the step, and the
resolved recipe.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vidssl.config import schema, strict_yaml
from vidssl.engine.checkpoint import below, broken_weights, listed, read_tensors, save_tensors
from vidssl.engine.facts import Facts, record
from vidssl.engine.gather import max_over_processes, num_processes, rank
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Batch, DataSource, Objective, Progress, UnreadableSample

FORMAT = "vidssl capture 1"


@dataclass(frozen=True)
class Attempt:
    """A step that was tried.

    Attributes:
        batch: as the loader gave it, uint8.
        random: the random states before the batch was augmented.
        loss: of this process.
        grad_norm: before clipping.
        state: the objective's weights and buffers as before the step.
        scale: that the loss was multiplied by for float16; None where it was not.
    """

    progress: Progress
    batch: Batch
    random: Mapping[str, Tensor]
    loss: float
    grad_norm: float
    state: Mapping[str, Tensor]
    scale: float | None = None


@dataclass(frozen=True)
class SamplePlace:
    """Which sample a row of the batch was, and where it stood: place ``place`` of epoch ``epoch``."""

    key: str
    epoch: int
    place: int


@dataclass(frozen=True)
class Conditions:
    """Under what the step was tried.

    Attributes:
        recipe: text of the resolved recipe; empty where a run was started without one.
        precision: of the forward pass, "fp32", "bf16" or "fp16".
        device: "cpu" or "cuda".
        parts: that the batch went through the network in.
        rank: of the process that the batch was of.
        world: number of processes.
    """

    recipe: str
    precision: str
    device: str
    parts: int = 1
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Capture:
    """The content of a capture file; ``samples`` names the rows of each stream."""

    path: Path
    attempt: Attempt
    conditions: Conditions
    samples: Mapping[str, tuple[SamplePlace, ...]]


class OrderedStream(Protocol):
    """A stream of training samples, for their order."""

    @property
    def source(self) -> DataSource: ...

    def __len__(self) -> int: ...

    def positions(self, step: int) -> Sequence[int]:
        """Positions of a step's rows in an order that goes through the source again and again."""


def random_states(generator: torch.Generator) -> dict[str, Tensor]:
    """States of an objective's generator, of torch's own and, where a GPU is in use, of the GPU's."""
    states = {"objective": generator.get_state(), "cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states


def check_random_states(states: Mapping[str, Tensor], path: Path) -> None:
    """Refuses what torch's generators would not take.

    Raises:
        UsageError: if a state of a CPU or of the objective is missing, or one is no state.
    """
    size = torch.get_rng_state().numel()
    for name in ("cpu", "objective"):
        state = states.get(name)
        if state is None or state.dtype != torch.uint8 or state.shape != (size,):
            raise UsageError(f"{path}: damaged, its tensor 'random.{name}' is no random state")


def save_capture(
    folder: RunFolder, streams: Mapping[str, OrderedStream], conditions: Conditions, attempt: Attempt
) -> Path:
    """Writes a step to the run's folder and logs where.

    All processes call this together. The first whose loss is not finite writes, rank 0 if there is none.

    Args:
        streams: of this process.

    Raises:
        UsageError: if the file cannot be written.
    """
    path = folder.captures / f"step-{attempt.progress.step + 1:06d}.safetensors"
    if rank() == _writer(attempt):
        try:
            folder.captures.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {folder.captures}: {error.strerror or error}") from error
        save_tensors(path, _tensors(attempt), _metadata(attempt, conditions, _places(attempt, streams)))
    max_over_processes(torch.zeros(()))  # the others stop when it is written
    return path


def _writer(attempt: Attempt) -> int:
    """The first rank whose own loss is not finite; 0 if there is none (the gradient is everyone's)."""
    own = num_processes() if math.isfinite(attempt.loss) else rank()
    first = -int(max_over_processes(torch.tensor(-own)))
    return first if first < num_processes() else 0


def _places(attempt: Attempt, streams: Mapping[str, OrderedStream]) -> dict[str, list[SamplePlace]]:
    found = {}
    for name, indices in attempt.batch.indices.items():
        stream = streams[name]
        positions = stream.positions(attempt.progress.step)
        found[name] = [
            SamplePlace(_key(stream.source, index), *divmod(position, len(stream)))
            for index, position in zip(indices.tolist(), positions, strict=False)
        ]
    return found


def _key(source: DataSource, index: int) -> str:
    try:
        return source.key(index)
    except UnreadableSample as error:
        return error.key


def _tensors(attempt: Attempt) -> dict[str, Tensor]:
    batch = attempt.batch
    tensors = {f"state.{key}": value for key, value in attempt.state.items()}
    tensors |= {f"random.{key}": value for key, value in attempt.random.items()}
    for name, slots in batch.views.items():
        tensors |= {f"views.{name}.{number}": slot for number, slot in enumerate(slots)}
    tensors |= {f"indices.{stream}": indices for stream, indices in batch.indices.items()}
    for stream, given in batch.labels.items():
        tensors |= {f"labels.{stream}.{name}": numbers for name, numbers in given.items()}
    return tensors


def _metadata(
    attempt: Attempt, conditions: Conditions, samples: Mapping[str, list[SamplePlace]]
) -> dict[str, str]:
    facts = {
        "progress": asdict(attempt.progress),
        "loss": repr(attempt.loss),  # JSON has no nan
        "grad_norm": repr(attempt.grad_norm),
        "scale": attempt.scale,
        "conditions": asdict(conditions),
        "samples": {stream: [asdict(place) for place in places] for stream, places in samples.items()},
    }
    return {"format": FORMAT, "facts": json.dumps(facts)}


def read_capture(path: Path) -> Capture:
    """A step as ``save_capture`` kept it. Nothing in the file can execute code.

    Raises:
        UsageError: if the file is missing, cut short, or no capture, or its metadata are damaged.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(
            f"{path}: a safetensors file, but no capture of a training step (its metadata lacks format: "
            f"{FORMAT!r}); they lie in captures/ of a run whose loss was not finite"
        )
    known = ("progress", "loss", "grad_norm", "scale", "conditions", "samples")
    facts = Facts(path, metadata).json("facts").entries(known)
    check_random_states(below(tensors, "random."), path)
    scale = schema.convert(facts["scale"], float | None)
    attempt = Attempt(
        record(facts["progress"], Progress),
        _batch(tensors, path),
        below(tensors, "random."),
        _from_repr(facts["loss"]),
        _from_repr(facts["grad_norm"]),
        below(tensors, "state."),
        scale if isinstance(scale, float) else None,
    )
    samples = {stream: _sample_places(places) for stream, places in facts["samples"].mapping().items()}
    return Capture(path, attempt, record(facts["conditions"], Conditions), samples)


def _from_repr(node: strict_yaml.Node) -> float:
    """A number that was written as text, as it may be NaN."""
    try:
        return float(node.value if isinstance(node.value, str) else "")
    except ValueError:
        raise node.error(f"expected a number in quotes, got {node.shown()}") from None


def _sample_places(node: strict_yaml.Node) -> tuple[SamplePlace, ...]:
    if not isinstance(node.value, tuple):
        raise node.error(f"expected a list, got {node.shown()}")
    return tuple(record(place, SamplePlace) for place in node.value)


def _batch(tensors: Mapping[str, Tensor], path: Path) -> Batch:
    views: dict[str, dict[int, Tensor]] = {}
    for key, slot in below(tensors, "views.").items():
        name, _, number = key.rpartition(".")
        if not number.isdecimal():
            raise UsageError(f"{path}: damaged, 'views.{key}' numbers no slot of a view")
        views.setdefault(name, {})[int(number)] = slot
    labels: dict[str, dict[str, Tensor]] = {}
    for key, numbers in below(tensors, "labels.").items():
        stream, _, name = key.partition(".")
        labels.setdefault(stream, {})[name] = numbers
    return Batch(
        views={name: tuple(slots[number] for number in sorted(slots)) for name, slots in views.items()},
        indices=below(tensors, "indices."),
        labels=labels,
    )


_LEAST_SCALE = 1.0  # a loss that is not even scaled up overflows for another reason


@dataclass
class Skips:
    """How many steps of a run were not taken.

    Attributes:
        total: because the loss or the gradient was not finite.
        in_a_row: of these, the last ones without a step between them.
        scaled_down: because float16 gradients overflowed, whereupon the scale of the loss is lowered.
    """

    total: int = 0
    in_a_row: int = 0
    scaled_down: int = 0

    @property
    def not_taken(self) -> int:
        """Steps that changed nothing, for either reason."""
        return self.total + self.scaled_down

    def metrics(self) -> dict[str, float]:
        """For the log: only what there has been."""
        counts = {"skipped_steps": self.total, "scaled_down_steps": self.scaled_down}
        return {name: float(count) for name, count in counts.items() if count}

    def tensors(self) -> dict[str, Tensor]:
        """State for a resume; ``load`` takes it back."""
        return {"counts": torch.tensor([self.total, self.in_a_row, self.scaled_down])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the state of ``tensors``."""
        if "counts" in tensors:
            self.total, self.in_a_row, self.scaled_down = (int(count) for count in tensors["counts"])


class Buffers:
    """A copy of what an objective's buffers hold.

    A forward pass may change them (statistics of batch norms, of codebooks, of features), and all of that
    belongs to the step. What an objective collects elsewhere it applies in ``after_step`` alone.
    """

    def __init__(self, objective: Objective) -> None:
        self._places = [(module, name) for module in objective.modules() for name in module._buffers]
        self._live: list[Tensor | None] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copies all as they are."""
        live = [module._buffers[name] for module, name in self._places]
        if list(map(id, live)) != list(map(id, self._live)):  # at first, and where one was put anew
            self._live = live
            self._copies = [torch.empty_like(buffer) for buffer in live if buffer is not None]
        if self._copies:
            torch._foreach_copy_(self._copies, self._tensors())

    @torch.no_grad()
    def restore(self) -> None:
        """Puts all back to what ``keep`` found."""
        for (module, name), buffer in zip(self._places, self._live, strict=True):
            module._buffers[name] = buffer
        if self._copies:
            torch._foreach_copy_(self._tensors(), self._copies)

    def _tensors(self) -> list[Tensor]:
        return [buffer for buffer in self._live if buffer is not None]


class Guard:
    """Looks at each step's loss and gradient before the optimizer does.

    ``begin`` goes before the batch is augmented, ``passes`` between the backward pass and the optimizer. If
    that says no, neither optimizer nor ``after_step`` may run; then weights, averages, centre and codebook
    are as they were. Random states are not put back: what follows draws on.

    Args:
        generator: the objective's.
        skips: counts, which a resume restores.
        most_in_a_row: of skipped steps; with the last of them the run stops.
        say: gets a line for each skipped step, after the number of that step, from 1.
        capture: keeps a step for ``vidssl replay`` and logs where; all processes call it together.
        agree: whether a flag is up in any process.
        state: the objective's weights and buffers; all processes call it together.
    """

    def __init__(
        self,
        objective: Objective,
        generator: torch.Generator,
        skips: Skips,
        *,
        most_in_a_row: int,
        say: Callable[[int, str], None],
        capture: Callable[[Attempt], Path],
        agree: Callable[[bool], bool] = bool,
        state: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._objective = objective
        self._generator = generator
        self._skips = skips
        self._most = most_in_a_row
        self._say = say
        self._capture = capture
        self._agree = agree
        self._state = state or objective.state_dict
        self._buffers = Buffers(objective)
        self._begun: tuple[Progress, Batch, dict[str, Tensor]] | None = None

    def begin(self, progress: Progress, batch: Batch) -> None:
        """Remembers what is before the step.

        Args:
            batch: as the loader gives it, uint8.
        """
        self._buffers.keep()
        self._begun = (progress, batch, random_states(self._generator))

    def passes(self, loss: Tensor, grad_norm: Tensor, scale: float | None = None) -> bool:
        """Whether the step may be taken, the same in all processes.

        Args:
            loss: before any scaling.
            grad_norm: before clipping, after unscaling.
            scale: that the loss was multiplied by for float16; None where it was not. An infinite
                gradient under a finite loss then asks for a lower scale; it is counted by itself.

        Raises:
            UsageError: at the last skipped step in a row that may be, and at the first one if weights are NaN
                or inf, since no later step can be taken; a capture of it is left.
        """
        # the one place where a step waits for its device
        number = torch.stack((loss, grad_norm.to(loss))).isfinite().tolist()
        overflow = scale is not None and scale > _LEAST_SCALE
        bad = self._agree(not number[0] or not (number[1] or overflow))
        if not bad and not (scale is not None and self._agree(not number[1])):
            self._skips.in_a_row = 0
            return True
        self._buffers.restore()
        if not bad:
            self._skips.scaled_down += 1
            return False
        self._skip(float(loss), float(grad_norm), scale)
        return False

    def _skip(self, loss: float, grad_norm: float, scale: float | None) -> None:
        assert self._begun is not None, "begin comes before passes"
        progress, batch, random = self._begun
        self._skips.total += 1
        self._skips.in_a_row += 1
        found = f"step {progress.step + 1}: the loss is {loss:.4g}, the gradient norm {grad_norm:.4g}"
        if math.isfinite(loss) and math.isfinite(grad_norm):
            found = f"step {progress.step + 1}: another process's loss or gradient is not finite"
        row, total = self._skips.in_a_row, self._skips.total
        weights = broken_weights(self._objective)
        hopeless = self._agree(bool(weights))
        if row < self._most and not hopeless:
            self._say(progress.step + 1, f"{found}. The step is not taken ({row} in a row, {total} in all).")
            return
        path = self._capture(Attempt(progress, batch, random, loss, grad_norm, self._state(), scale))
        why = f"so it has been for {counted(row, 'step')} in a row (run.max_skipped_steps)"
        if hopeless:
            which = listed(weights) if weights else "tensors of another process"
            why = f"in the weights {which} hold NaN or inf, so that no later step can be taken"
        before = progress.step + 1 - row
        raise UsageError(
            f"{found}, and {why}: the run stops. "
            f"'vidssl replay {path}' shows where it begins. Lower optim.lr, lengthen the warm-up or set "
            "run.precision=fp32. "
            + (
                f"The weights since step {before} gave no finite loss: of the checkpoints use one before that"
                if before
                else "Not one step gave a finite loss"
            )
        )
