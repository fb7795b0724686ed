"""Test videos that were learned from: by the probe, by finetuning, or before that in pretraining."""

from collections.abc import Sequence
from dataclasses import dataclass

from vidssl.config.protocol import OverlapRule
from vidssl.config.recipe import recipe_from_text
from vidssl.data.sources.origins import Video, read_videos, shared_videos
from vidssl.engine.checkpoint import Checkpoint
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError, agreed, counted
from vidssl.objectives import OBJECTIVES
from vidssl.weights.load import own_checkpoint

_READS_LABELS = "classification"


@dataclass(frozen=True)
class Pretraining:
    """The videos that a network was trained on before it is scored, as far as they are known.

    Attributes:
        videos: the training videos, those of the runs that its weights started from too.
        labelled: those of them whose labels were learned from.
        how: ", without labels" where that is certain, else empty.
        unknown: what of it is not known, and why; empty where all is.
    """

    videos: tuple[Video, ...] = ()
    labelled: tuple[Video, ...] = ()
    how: str = ""
    unknown: str = ""


def pretraining_of(checkpoint: Checkpoint) -> Pretraining:
    """The videos that a checkpoint was trained on, from the list of videos that each run keeps."""
    lists = RunFolder(checkpoint.path.parent.parent).video_lists()
    if not lists or not checkpoint.recipe:
        return Pretraining(unknown=f"there is no list of what {checkpoint.path} was trained on")
    recipe = recipe_from_text(checkpoint.recipe, str(checkpoint.path))
    objective = recipe.objective.type
    videos = tuple(
        video
        for path in lists
        for name, listed in read_videos(path).items()
        if name.endswith(".source")
        for video in listed
    )
    labelled = videos if objective == _READS_LABELS else ()
    how = ", without labels" if objective in OBJECTIVES and not labelled else ""
    if recipe.start.init is None:
        return Pretraining(videos, labelled, how)
    before = _of_init(recipe.start.init)
    return Pretraining(
        (*before.videos, *videos),
        (*before.labelled, *labelled),
        how if before.how or not before.videos else "",
        before.unknown,
    )


def _of_init(init: str) -> Pretraining:
    try:
        first = own_checkpoint(init)
    except UsageError:
        first = None
    return (
        Pretraining(unknown=f"what {init} was trained on is not known")
        if first is None
        else pretraining_of(first)
    )


def check_seen(
    train: Sequence[Video], test: Sequence[Video], pretraining: Pretraining, rule: OverlapRule
) -> list[str]:
    """Notes below a table on test videos that were learned from before.

    Raises:
        UsageError: if there are any that were learned from with their labels, unless ``rule`` allows them.
    """
    notes = []
    for learned, where in ((train, "in train too"), (pretraining.labelled, "trained on with their labels")):
        found = shared_videos(learned, test)
        if found.keys and rule == "error":
            raise UsageError(found.refusal(where))
        if found.keys:
            notes.append(f"overlap: allow: {found.count()} are {where}, so scores are too high")
        if found.cut_apart:
            notes.append(
                f"{counted(found.cut_apart, 'test video', of=found.total, verb='are')} other "
                f"segments of files {where}"
            )
        if found.unknown:
            notes.append(_not_known(found.unknown, found.total, where, "their files cannot be compared"))
    seen, where = shared_videos(pretraining.videos, test), "seen in pretraining"
    if seen.keys:
        were = agreed(len(seen.keys), "were")
        notes.append(f"{len(seen.keys)} of {seen.total} test videos {were} {where}{pretraining.how}")
    elif pretraining.videos and not seen.unknown:
        notes.append(f"None of {seen.total} test videos was {where}")
    if pretraining.unknown:
        notes.append(_not_known(seen.total - len(seen.keys), seen.total, where, pretraining.unknown))
    elif seen.unknown:
        notes.append(_not_known(seen.unknown, seen.total, where, "their files cannot be compared"))
    return notes


def _not_known(count: int, total: int, where: str, why: str) -> str:
    return f"Whether {counted(count, 'test video', of=total, verb='are')} {where} is not known: {why}"
