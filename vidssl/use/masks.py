"""Patch tokens of frozen networks measured on masks: scores with intervals, a file of them and a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from vidssl.build import build
from vidssl.compare.tables import Grid, markdown
from vidssl.config.protocol import MaskProtocol, load_mask_protocol
from vidssl.config.recipe import Recipe
from vidssl.data.sources.origins import videos_of
from vidssl.engine import distributed, process, speed
from vidssl.engine.logging import print_line, progress_bar, shown_messages, terminal
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import asked_network, eval_words
from vidssl.evaluate.networks import recipe_named
from vidssl.evaluate.report import percent, report
from vidssl.evaluate.subject import Subject, check_seen
from vidssl.evaluators import masks
from vidssl.evaluators.extract import Encoded, table_of
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.masks import Array
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import Estimate, fraction, pooled
from vidssl.interfaces import NOT_JUDGED, Backbone, DataSource, KnowsMasks, Tokenizer, UnreadableSample
from vidssl.pictures import drawings, pages

_OBJECT_MEASURES: Mapping[str, Callable[[Array], float]] = {
    "J&F": lambda sums: float((sums[0] + sums[1]) / (2 * sums[2])) if sums[2] else 0.0,
    "J": lambda sums: float(sums[0] / sums[2]) if sums[2] else 0.0,
    "F": lambda sums: float(sums[1] / sums[2]) if sums[2] else 0.0,
}
# ours, far apart in hue and brightness
_COLOURS = [(230, 60, 50), (60, 120, 230), (60, 190, 80), (245, 200, 40), (170, 70, 200), (50, 200, 210)]
_COLOURS += [(245, 130, 40), (240, 110, 170), (150, 220, 50), (120, 80, 40), (140, 140, 245), (250, 250, 250)]


@dataclass(frozen=True)
class MaskScores:
    """What a network's patch tokens are worth on masks.

    Attributes:
        title: protocol and network.
        scores: network, "trained" first -> measure -> its value and interval over videos, fractions.
        files: of scores, and the picture.
    """

    title: str
    scores: Mapping[str, Mapping[str, Estimate]]
    files: tuple[Path, ...]

    def table(self) -> list[dict[str, object]]:
        """A row for each network and measure, with its 95 % interval."""
        return [
            {"network": network, "measure": name, "value": each.mean, "low": each.low, "high": each.high}
            for network, found in self.scores.items()
            for name, each in found.items()
        ]

    def __repr__(self) -> str:
        names = next(iter(self.scores.values()))
        rows = [(name, *(_shown(found[name]) for found in self.scores.values())) for name in names]
        return markdown(Grid(f"{self.title}, %", ("measure", *self.scores), tuple(rows)))


def _shown(found: Estimate) -> str:
    return f"{percent(found.mean)} ({percent(found.low)} to {percent(found.high)})"


def evaluate_masks(
    target: str | None,
    protocol: str,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    *,
    trust: bool = False,
) -> MaskScores:
    """Score the patch tokens of a network on masks, print a table, keep scores and a picture.

    Args:
        target: a run, a checkpoint, or a network that is no run's; None for the newest run.
        protocol: file or name in ``evaluation``, such as "video_segmentation" or "segmentation".
        overrides: ``key=value`` for it, and those of ``vidssl eval`` for networks and how to run.
        console: where things are printed; None for the terminal.
        trust: as for ``vidssl eval``.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or terminal()
    words = eval_words(overrides)
    data = None if words.data is None else recipe_named(words.data, trust=trust)
    asked = asked_network(target, words, trust, data)
    settled = sized(load_mask_protocol(protocol, words.rest), data or asked.recipe)
    build.check_mask_protocol(settled)
    if words.data is not None:
        print_line(
            console, f"data={words.data} gives frames and size; videos with masks: data.train, data.test"
        )
    with (
        distributed.processes(asked.run.device, timeout_minutes=asked.run.timeout_minutes),
        shown_messages(console),
    ):
        subject = asked.make(partial(print_line, console))
        found = _Measured(subject, settled, console).scores()
        print_line(console, f"Picture: {found.files[-1]}")
    return found


def sized(protocol: MaskProtocol, recipe: Recipe | None) -> MaskProtocol:
    """The protocol with the frames and size of the recipe's test views, where it names none itself."""
    if protocol.num_frames is not None and protocol.size is not None:
        return protocol
    if recipe is None or recipe.data.probe is None:
        raise protocol.node.error(
            "which clips does the network take? Neither a recipe of it nor an override says so: add e.g. "
            "num_frames=16 size=224"
        )
    frames, height, width = next(iter(build.views(recipe.data.probe.views).shapes.values()))[0]
    return replace(protocol, num_frames=protocol.num_frames or frames, size=protocol.size or (height, width))


@dataclass(frozen=True)
class _Video:
    """A test video: its key, frames uint8 [T, 3, H, W] and masks uint8 [T, H, W]."""

    key: str
    frames: Tensor
    truth: Tensor


class _Measured:
    """A protocol at work on a subject's networks."""

    def __init__(self, subject: Subject, protocol: MaskProtocol, console: Console) -> None:
        self.subject, self.protocol, self.console = subject, protocol, console
        self.device = distributed.take_device(subject.spec.run.device, 0)
        self.autocast = speed.use_bfloat16(subject.spec.run.precision, self.device)
        parts = ("test",) if protocol.segment is None else ("train", "test")
        self.sources = {part: _with_masks(protocol, part) for part in parts}
        learned = [video for part in parts[:-1] for video in videos_of(self.sources[part])]
        self.notes = check_seen(learned, videos_of(self.sources["test"]), subject.pretraining, "error")
        self.measures = {"mean IoU": masks.mean_iou} if protocol.propagate is None else _OBJECT_MEASURES
        self.tables: dict[str, FeatureTable] = {}  # of each part: its readable videos, without features
        self.tokenizer: Tokenizer | None = None
        if next(iter(subject.networks.values())).input_kind == "tokens":
            assert subject.spec.tokenizer is not None, "what reads ids was refused without one"
            self.tokenizer = build.tokenizer(subject.spec.tokenizer).to(self.device).eval()

    def scores(self) -> MaskScores:
        """Of all networks and of what needs none, with the file and the picture."""
        sums, shown = dict[str, Array](), dict[str, list[Tensor]]()
        pictured = set(pages.evenly_spaced(len(self.sources["test"]), self.protocol.shown))
        for name, predict in self._predictors():
            found = list[Array]()
            for number, video in self._videos("test", name):
                predicted = predict(video)
                found.append(self._sums(predicted.numpy(), video.truth.numpy()))
                if number in pictured:
                    own = shown.setdefault(video.key, [video.frames, video.truth])
                    own.append(predicted)
            sums[name] = np.stack(found)
        added = {
            name: {measure: pooled(parts, of) for measure, of in self.measures.items()}
            for name, parts in sums.items()
        }
        values = {name: {m: fraction(each) for m, each in own.items()} for name, own in added.items()}
        *networks, unseeing = sums
        rows = {name: self._rows(added[name], values[name], values[unseeing]) for name in networks}
        words = ", ".join(f"{measure} {_shown(own)}" for measure, own in values[unseeing].items())
        report(
            self.subject, self.protocol, rows, self.tables, self.console,
            notes=self.notes, details=[f"chance: {unseeing}, {words}", *self._class_lines(sums)],
        )  # fmt: skip
        title, scores = f"{self.protocol.name} of {self.subject.title}", self.subject.scores
        picture = self._drawn(title, list(sums), shown)
        return MaskScores(title, values, (scores / f"{picture.stem}.json", picture))

    def _rows(
        self, added: Mapping[str, Array], found: Mapping[str, Estimate], chance: Mapping[str, Estimate]
    ) -> list[Score]:
        """A network's row for each measure; ``chance`` is what looking at nothing gives."""
        num_train = len(self.tables["train"].keys) if "train" in self.tables else 0
        return [
            Score(
                label=name, measure="masks", top1=own.mean, low=own.low, high=own.high, class_mean=own.mean,
                chance=chance[name].mean, added=tuple(float(f"{value:.6g}") for value in added[name]),
                num_train=num_train, num_test=len(self.tables["test"].keys),
            )
            for name, own in found.items()
        ]  # fmt: skip

    def _predictors(self) -> Iterator[tuple[str, Callable[[_Video], Tensor]]]:
        """Name, and what gives a video's masks uint8 [T, H, W]: the networks, then what looks at nothing."""
        if self.protocol.propagate is not None:
            for name, network in self.subject.networks.items():
                yield name, partial(self._propagated, network.to(self.device).eval())
            yield "first mask held", lambda video: video.truth[:1].expand_as(video.truth)
            return
        commonest = 0
        for name, network in self.subject.networks.items():
            layer, commonest = self._fitted(network.to(self.device).eval(), name)
            yield name, partial(self._segmented, network, layer)
        yield "commonest class", lambda video: torch.full_like(video.truth, commonest)

    def _propagated(self, network: Backbone, video: _Video) -> Tensor:
        assert self.protocol.propagate is not None, "of a protocol that propagates"
        frames = self._resized(network, video.frames)
        size = (frames.shape[2], frames.shape[3])
        features = self._features(network, frames)
        found = masks.propagated(features, video.truth[0], size, self.protocol.propagate)
        size = (video.truth.shape[1], video.truth.shape[2])
        return F.interpolate(found[:, None], size, mode="nearest-exact")[:, 0].cpu()

    def _segmented(self, network: Backbone, layer: masks.FittedLayer, video: _Video) -> Tensor:
        features = self._features(network, self._resized(network, video.frames))
        return layer.classes(features, video.truth.shape[1:]).cpu()

    def _fitted(self, network: Backbone, name: str) -> tuple[masks.FittedLayer, int]:
        """The layer that is learned on the train videos, and their commonest class."""
        how, features, truths = self.protocol.segment, list[Tensor](), list[Tensor]()
        assert how is not None, "of a protocol that learns"
        for _, video in self._videos("train", name):
            some = pages.evenly_spaced(len(video.frames), how.frames)
            frames = self._resized(network, video.frames)
            still = self.protocol.feed == "still"
            found = self._features(network, frames[some]) if still else self._features(network, frames)[some]
            features += list(found.half())
            truths += list(video.truth[some])
        classes, seed = len(self.sources["test"].mask_classes), self.subject.spec.seed
        layer = masks.fit_segmentation(features, truths, how, num_classes=classes, seed=seed)
        pixels = torch.cat([truth.flatten() for truth in truths])
        return layer, int(pixels.bincount(minlength=256)[:classes].argmax())

    def _videos(self, part: str, name: str) -> Iterator[tuple[int, _Video]]:
        """Number and video of all of a part that can be measured; after the last their table is there."""
        source, read, lost = self.sources[part], list[int](), list[str]()
        with progress_bar(self.console, f"{name}, {part} videos", len(source)) as advance:
            for number in range(len(source)):
                try:
                    frames = range(source.info(number).num_frames)
                    of = source.class_masks if self.protocol.segment is not None else source.object_masks
                    if len(frames) < 3:
                        raise UnreadableSample(source.key(number), "has fewer than three frames")
                    truth = of(number, frames)
                    carried = self.protocol.propagate is not None
                    if not (truth[0] % NOT_JUDGED if carried else truth != NOT_JUDGED).any():
                        why = "its first mask shows no object" if carried else "no pixel of it is judged"
                        raise UnreadableSample(source.key(number), why)
                    yield number, _Video(source.key(number), source.read(number, frames), truth)
                    read.append(number)
                except UnreadableSample as error:
                    lost.append(str(error))
                advance()
        if not read:
            raise UsageError(f"{name}, {part} videos: none can be measured: {'; '.join(lost[:3])}")
        none = Encoded({"normal": torch.zeros(len(read), 1, 1)}, torch.tensor(read), tuple(lost))
        self.tables[part] = replace(
            table_of(source, none, torch.device("cpu")),
            labels={name: torch.zeros(len(read), dtype=torch.int64) for name in self.measures},
            classes={name: (name,) for name in self.measures},
            groups=(),
        )

    def _resized(self, network: Backbone, frames: Tensor) -> Tensor:
        """Frames as the network takes them, float32 on the device."""
        length, size = self.protocol.num_frames, self._size(network, frames.shape[2], frames.shape[3])
        assert length is not None, "settled before"
        given = (length, *size)
        try:
            network.grid(*(given if self.tokenizer is None else self.tokenizer.grid(*given)))
        except ValueError as error:
            raise self.protocol.node.error(f"the network does not take clips of {given}: {error}") from error
        pixels = frames.to(self.device).float() / 255
        return F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)

    def _size(self, network: Backbone, height: int, width: int) -> tuple[int, int]:
        """What frames of this size are resized to."""
        wanted = self.protocol.size
        if isinstance(wanted, tuple):
            return wanted
        assert wanted is not None, "settled before"
        strides = (1, 1, 1) if self.tokenizer is None else self.tokenizer.strides
        cells = [own * ids for own, ids in zip(network.strides, strides, strict=True)]
        scale = wanted / min(height, width)
        rows, columns = (
            max(1, round(side * scale / cell)) * cell
            for side, cell in zip((height, width), cells[1:], strict=True)
        )
        return rows, columns

    def _features(self, network: Backbone, frames: Tensor) -> Tensor:
        assert self.protocol.num_frames is not None, "settled before"
        return masks.frame_features(
            network, self.tokenizer, frames, feed=self.protocol.feed, num_frames=self.protocol.num_frames,
            batch_size=self.protocol.batch_size, autocast=self.autocast,
        )  # fmt: skip

    def _sums(self, predicted: Array, truth: Array) -> Array:
        if self.protocol.propagate is not None:
            return masks.object_scores(predicted, truth)
        return masks.class_counts(predicted, truth, len(self.sources["test"].mask_classes))

    def _class_lines(self, sums: Mapping[str, Array]) -> list[str]:
        if self.protocol.propagate is not None:
            return []
        name, parts = next(iter(sums.items()))
        total = parts.sum(0)
        union = total.sum(0) + total.sum(1) - total.diagonal()
        named = zip(self.sources["test"].mask_classes, total.diagonal(), union, strict=True)
        shown = ", ".join(f"{each} {100 * both / of:.1f}" for each, both, of in named if of)
        return [f"IoU of each class, {name} %: {shown}"]

    def _drawn(self, title: str, names: Sequence[str], shown: Mapping[str, Sequence[Tensor]]) -> Path:
        """A picture of some videos: frames, true masks and those of each predictor."""
        rows = {
            label: [_drawn(video[0], None if place == 0 else video[place]) for video in shown.values()]
            for place, label in enumerate(("frames", "true masks", *names))
        }
        notes = [f"{len(video[0])} frames" for video in shown.values()]
        path = self.subject.folder / "pictures" / f"{self.protocol.name}-{self.subject.stem}.png"
        process.make_folder(path.parent)
        pages.save_png(pages.sheet(title, drawings.strips_of(list(shown), rows, notes, notes)), path)
        return path


class _Masked(DataSource, KnowsMasks):
    """A source of videos with masks: what ``_with_masks`` found to be one."""


def _with_masks(protocol: MaskProtocol, part: str) -> _Masked:
    """The source of a part, opened.

    Raises:
        UsageError: if it has no masks, or knows objects where classes are asked for.
    """
    spec = protocol.data.train if part == "train" else protocol.data.test
    assert spec is not None, "looked at when the protocol was read"
    source = build.source(spec)
    if not isinstance(source, KnowsMasks) or (protocol.segment is not None and not source.mask_classes):
        what = "masks" if not isinstance(source, KnowsMasks) else "names of the classes of pixels ('classes')"
        raise spec.node.error(f"has no {what}; moving_digits does, and davis for folders of videos and masks")
    return cast(_Masked, source)


def _drawn(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Frames uint8 [T, 3, H, W] as [T, H, W, 3], with the colours of a mask [T, H, W] over them."""
    frames = frames.permute(0, 2, 3, 1).contiguous()
    if mask is None:
        return frames
    table = torch.zeros(256, 3)
    table[1:255] = torch.tensor([_COLOURS[number % len(_COLOURS)] for number in range(254)]).float()
    coloured = (0.35 * frames.float() + 0.65 * table[mask.long()]).round().to(torch.uint8)
    return torch.where(((mask > 0) & (mask < 255))[..., None], coloured, frames)
