"""A recipe tried before a run: its step, and how well a frozen tokenizer keeps the videos.

Nothing is kept, and random states are put back.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.data.loader import Stream
from vidssl.data.samples import InOrder
from vidssl.data.views.stored import StoredViews
from vidssl.engine import accumulate, distributed, gather, guard, parallel, resume, schedules, speed
from vidssl.engine.logging import Meter, Say
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, Objective, Progress, Tokenizer, as_clip
from vidssl.objectives.parts.masked_prediction import FrozenTokenizer
from vidssl.tokenizers import frame_networks, measure

R = TypeVar("R")


class Trial:
    """Takes steps as a run of the recipe would, whose objective it moves to the device and trains.

    Attributes:
        device: of the recipe.
        moving: what steps change.
        compiled: whether blocks are.
    """

    def __init__(self, recipe: Recipe, objective: Objective, plan: schedules.StepPlan) -> None:
        run, self.device = recipe.run, speed.pick_device(recipe.run.device)
        self.compiled = run.compile
        objective.to(self.device).train()
        speed.prepare(objective, run)
        self._parallel = parallel.Parallel(
            objective, distributed.World(), run.parallel, self.device
        )  # before the optimizer: shards
        optim, self._dtype = build.optim(recipe), speed.autocast_dtype(run.precision, self.device)
        generator = torch.Generator().manual_seed(recipe.seed)
        scaler = _unscaled(self._dtype, self.device)
        self.moving = resume.Moving(objective, optim.build(objective), generator, Meter(), scaler=scaler)
        self._plan, self._update, self._parts = plan, optim.update, run.accumulate
        self._augment = build.augment(recipe)
        self._guard = guard.Guard(
            objective, generator, self.moving.skips, most_in_a_row=1, say=_no_line, capture=_refuse
        )

    def augment(self, batch: Batch) -> Batch:
        """A batch on the device as the recipe's ``augment`` makes it."""
        if self._augment is None:
            return batch
        with gather.in_parts(self._parts):
            return self._augment(batch, self.moving.generator)

    def descend(self, step: int, batch: Batch) -> Mapping[str, Tensor]:
        """Forward pass, backward pass and update with a batch that is on the device and augmented.

        Raises:
            UsageError: if loss or gradient is not finite.
        """
        moving, scaler = self.moving, self.moving.scaler
        self._update.set_rates(moving.optimizer, self._plan, step)
        progress = Progress(step, self._plan.total_steps, self._plan.steps_per_epoch)
        self._guard.begin(progress, batch)
        moving.optimizer.zero_grad(set_to_none=True)
        micro_batches = accumulate.split_batch(batch, self._parts)
        output = accumulate.forward_backward(
            self._parallel, micro_batches, progress, moving.generator, scaler=scaler, dtype=self._dtype
        )
        scaler.unscale_(moving.optimizer)
        grad_norm = self._update.clip_gradients(moving.objective.parameters())
        if not self._guard.passes(output.loss, grad_norm, speed.scale_of(scaler)):
            speed.lower(scaler)
            return {}
        scaler.step(moving.optimizer)
        scaler.update()
        moving.objective.after_step(progress, moving.generator)
        return output.metrics

    def take(self, step: int, batch: Batch) -> Mapping[str, Tensor]:
        """A whole step with a batch of the loader; its metrics. Raises as ``descend``."""
        return self.descend(step, self.augment(batch.to(self.device)))

    def timed(self, do: Callable[[], R], *, cpu: bool = False) -> tuple[R, float]:
        """The result of ``do``, and the seconds until the device was done with it.

        Args:
            cpu: where the device is the CPU, its seconds, which other processes hardly change.
        """
        clock = time.process_time if cpu and self.device.type == "cpu" else time.perf_counter
        self._wait()
        started = clock()
        done = do()
        self._wait()
        return done, clock() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_batch(recipe: Recipe) -> Batch:
    """Random pixels for all views of a recipe, uint8 as a loader gives them, and class numbers."""
    generator, views, labels = torch.Generator().manual_seed(0), {}, {}
    for name, stream in recipe.data.streams.items():
        for view, slots in build.views(stream.views).shapes.items():
            views[view] = tuple(
                torch.randint(0, 256, (stream.batch_size, 3, *size), generator=generator, dtype=torch.uint8)
                for size in slots
            )
        labels[name] = {"class": torch.arange(stream.batch_size) % 2}
    return Batch(views, labels=labels)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Puts the random states of all devices back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _unscaled(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """A scaler that has settled: the first steps of a run under float16 are spent on finding its scale."""
    scaler = speed.loss_scaler(dtype, device)
    speed.load_scaler(scaler, {"scale": torch.tensor(1.0), "steps": torch.tensor(0)})
    return scaler


def _no_line(step: int, text: str) -> None:
    """A step that is not taken ends the trial: there is nothing to report."""


def _refuse(attempt: guard.Attempt) -> Path:
    raise UsageError(
        f"step {attempt.progress.step + 1}: the loss is {attempt.loss:.4g}, the gradient norm "
        f"{attempt.grad_norm:.4g}: lower optim.lr, or set run.precision=fp32"
    )


POOR = (
    18.0  # dB; the digits' tokenizer keeps digits at 22 and real videos at 13 to 15, one of their own at 25
)
KEEP_PIXELS = ("vqvae", "fsq", "dalle")  # tokenizers that are judged by what they decode
_SAMPLES, _FRAMES = 4, 4


def frozen_tokenizer(objective: Objective) -> Tokenizer | None:
    """The tokenizer that an objective asks and does not train; None if there is none."""
    holders = (module for module in objective.modules() if isinstance(module, FrozenTokenizer))
    return next((holder.tokenizer for holder in holders), None)


def tell_fit(kind: str, objective: Objective, streams: Mapping[str, Stream], say: Say) -> None:
    """Say how well an objective's tokenizer keeps a few training clips, and what helps where that is poor.

    Args:
        kind: ``type`` of the tokenizer; nothing is said of one whose ids are not meant to keep pixels.
    """
    tokenizer = frozen_tokenizer(objective) if kind in KEEP_PIXELS else None
    kept = None if tokenizer is None else fit(tokenizer, next(iter(streams.values())))
    if kept is None:
        return
    found = f"tokenizer: PSNR {kept:.1f} dB on frames of the training videos"
    if kept >= POOR:
        say(found)
        return
    say(f"{found}: it was made for others, and predicting its ids teaches little.")
    say("'vidssl init my.yaml --videos LIST --objective bevt' trains one on your own videos, in minutes.")


@torch.no_grad()
def fit(tokenizer: Tokenizer, stream: Stream) -> float | None:
    """PSNR in dB of encoding and decoding a few frames of the first samples of a stream.

    Returns:
        None where the stream gives no pixels, nothing can be read, or the tokenizer has no decoder.
    """
    if isinstance(stream.views, StoredViews):
        return None
    samples = InOrder(stream.source, stream.views)
    chosen = (place * len(stream.source) // _SAMPLES for place in range(_SAMPLES))
    views = [sample.views for sample in map(samples.__getitem__, dict.fromkeys(chosen)) if sample.views]
    if not views:
        return None
    clips = torch.stack([as_clip(next(iter(each.values()))[0])[:, :_FRAMES] for each in views])
    try:
        made = frame_networks.of_length(tokenizer.decode(tokenizer.encode(clips)), clips.shape[2])
    except ValueError:  # no decoder, or ids that span more frames
        return None
    return float(measure.psnr((made - clips).square().mean()))
