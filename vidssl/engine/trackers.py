"""Logs of others: what a run measures, written for TensorBoard or Weights & Biases besides its own file."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vidssl.engine.files import write_text
from vidssl.errors import UsageError

Tracker = Literal["tensorboard", "wandb"]
Track = Callable[[Mapping[str, float]], None]
HIDDEN = ("step", "seconds")  # the place on an axis, not a curve


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Refuses a tracker whose package is not installed, before anything is made.

    Raises:
        UsageError: with the line that installs it.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise UsageError(
                f"run.trackers names '{name}', whose package is not installed: pip install 'vidssl[{name}]', "
                "or leave it out (metrics.jsonl is written in any case)"
            )


@contextmanager
def open_trackers(
    trackers: Sequence[Tracker], folder: Path, *, config: str, first_step: int
) -> Iterator[Track]:
    """A function that takes a line of metrics to every tracker; they are flushed and closed in the end.

    Args:
        trackers: none of them twice.
        folder: the run's. TensorBoard's files go to ``tensorboard/`` in it, Weights & Biases' to ``wandb/``.
        config: text of the resolved recipe.
        first_step: steps already done; what TensorBoard was given of later ones is dropped.

    Raises:
        UsageError: if a tracker cannot be started.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    with ExitStack() as stack:
        tracks = [stack.enter_context(makers[tracker](folder, config, first_step)) for tracker in trackers]

        def track(record: Mapping[str, float]) -> None:
            for each in tracks:
                each(record)

        yield track


@contextmanager
def _tensorboard(folder: Path, config: str, first_step: int) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
    except OSError as error:
        raise UsageError(f"run.trackers: tensorboard: {error}") from error
    if not first_step:
        writer.add_text("recipe", "    " + config.replace("\n", "\n    "))

    def track(record: Mapping[str, float]) -> None:
        for key, value in record.items():
            if key not in HIDDEN:
                writer.add_scalar(key, value, int(record["step"]))
        writer.flush()

    try:
        yield track
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, config: str, first_step: int) -> Iterator[Track]:
    import wandb

    kept = folder / "wandb_id"  # so that a run that goes on is one run there too
    known = kept.read_text(encoding="utf-8").strip() if first_step and kept.is_file() else None
    try:
        run = wandb.init(
            project="vidssl" if "WANDB_PROJECT" not in os.environ else None,
            name=folder.name,
            id=known,
            resume="allow",
            dir=str(folder),
            config={"recipe": config},
        )
    except wandb.errors.Error as error:
        raise UsageError(
            f"run.trackers: wandb: {str(error).splitlines()[0]}. Sign in with 'wandb login', or set "
            "WANDB_MODE=offline to keep its files for 'wandb sync'"
        ) from error
    write_text(kept, run.id + "\n")

    def track(record: Mapping[str, float]) -> None:
        values = {key: value for key, value in record.items() if key not in HIDDEN}
        run.log(values, step=int(record["step"]))

    try:
        yield track
    finally:
        run.finish()
