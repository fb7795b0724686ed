"""Print what simple observers read of moving digits, as a Markdown table.

    python docs/measure_moving_digits.py                                    # the default world
    python docs/measure_moving_digits.py mode=pan ground=1.0 digit_size=20  # another, by its keys

An observer turns a clip into a few numbers; the package's linear probe then reads each label from them. What
an observer without the order of the frames knows of a motion is a leak: a network may score as much without
having learned of time. The untrained network is that of a recipe, before its first step.
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from vidssl import api as v
from vidssl.build import build
from vidssl.config.recipe import load_recipe
from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable

BATCH = 250
SMALL = 8  # side of a picture whose pixels are probed
LOWEST_FREQUENCIES = 12


class Observer(NamedTuple):
    name: str
    observe: Callable[[Tensor], Tensor]  # clips float32 [N, T, 3, H, W] in [0, 1] -> numbers [N, D]
    shuffle: bool = False  # show it the frames of each clip in an order of their own


def pixels(clips: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(clips.mean(1), SMALL).flatten(1)


def spectrum_and_colours(clips: Tensor) -> Tensor:
    """Of the mean of the frames: log of its absolute FFT, mean and spread of its colours.

    To the digit, which wraps round, the frame is a torus: this spectrum is the same wherever the digit is.
    """
    picture = clips.mean(1)
    spectrum = torch.fft.rfft2(picture.mean(1)).abs()
    reach = min(LOWEST_FREQUENCIES, clips.shape[-1] // 2)
    lowest = torch.cat([spectrum[:, :reach, :reach], spectrum[:, -reach + 1 :, :reach]], dim=1)
    return torch.cat([lowest.add(1.0).log().flatten(1), picture.mean((2, 3)), picture.std((2, 3))], dim=1)


def middle_frame(clips: Tensor) -> Tensor:
    return spectrum_and_colours(clips[:, clips.shape[1] // 2, None])


def change_per_step(clips: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames: how much moves when, not where to."""
    return clips.diff(dim=1).abs().mean(dim=(2, 3, 4))


def signed_differences(clips: Tensor) -> Tensor:
    """Small pictures of what became brighter or darker, step by step."""
    return F.adaptive_avg_pool2d(clips.mean(2).diff(dim=1), SMALL).flatten(1)


def motion_per_step(clips: Tensor) -> Tensor:
    """One Lucas-Kanade estimate of the whole frame a step: right, down, and their length."""
    grey = F.avg_pool2d(clips.mean(2), 3, stride=1)
    grey = F.avg_pool2d(grey, 3, stride=1)  # twice, for gradients that reach as far as a step
    between = (grey[:, 1:] + grey[:, :-1]) / 2.0
    in_time = grey.diff(dim=1)[:, :, 1:-1, 1:-1]
    right = (between[..., 1:-1, 2:] - between[..., 1:-1, :-2]) / 2.0
    down = (between[..., 2:, 1:-1] - between[..., :-2, 1:-1]) / 2.0
    weight = 1.0 / (right * right + down * down + 3e-5)  # else the digit's outline outvotes a photo that pans

    def total(product: Tensor) -> Tensor:
        return (weight * product).sum(dim=(2, 3))

    xx, yy, xy = total(right * right) + 1e-4, total(down * down) + 1e-4, total(right * down)
    xt, yt = total(right * in_time), total(down * in_time)
    x, y = xy * yt - yy * xt, xy * xt - xx * yt
    x, y = x / (xx * yy - xy * xy), y / (xx * yy - xy * xy)
    return torch.cat([x, y, (x * x + y * y).sqrt()], dim=1)


OBSERVERS = (
    Observer("middle frame: colours, absolute FFT", middle_frame),
    Observer("mean of frames: pixels", pixels),
    Observer("mean of frames: colours, absolute FFT", spectrum_and_colours),
    Observer("absolute difference per step", change_per_step),
    Observer("the same, frames shuffled", change_per_step, shuffle=True),
    Observer("signed differences: pixels", signed_differences),
    Observer("Lucas-Kanade per step", motion_per_step),
    Observer("the same, frames shuffled", motion_per_step, shuffle=True),
)


def shuffled(clips: Tensor) -> Tensor:
    order = torch.rand(clips.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(1)
    return clips[torch.arange(len(clips))[:, None], order]


def observed(observer: Observer, source: v.MovingDigits, clips: Tensor) -> FeatureTable:
    """What an observer makes of the videos of a source, whose frames are uint8 [N, T, 3, H, W]."""
    seen = shuffled(clips) if observer.shuffle else clips
    vectors = torch.cat([observer.observe(part.float() / 255.0) for part in seen.split(BATCH)])
    known = [source.labels(index) for index in range(len(source))]
    labels = {name: torch.tensor([one[name] for one in known]) for name in source.label_classes}
    keys = tuple(str(n) for n in range(len(known)))
    return FeatureTable(vectors[:, None], labels, source.label_classes, keys, len(known), ())


def with_order_labels(table: FeatureTable) -> FeatureTable:
    """The table with two labels of two classes that nothing but the order of the frames can tell.

    ``heading`` is which of two opposite directions; ``trend`` is accelerating or decelerating, of clips
    that do either.
    """
    half = len(table.classes["direction"]) // 2
    added = {
        "heading": table.labels["direction"] // half,
        "trend": table.labels["profile"] - 1,  # constant becomes -1: no label
    }
    classes = {**table.classes, **dict.fromkeys(added, ("0", "1"))}
    return replace(table, labels={**table.labels, **added}, classes=classes)


def print_row(name: str, cells: Sequence[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def print_scores(name: str, scores: Sequence[v.Score]) -> None:
    """Accuracy of each label; bold where its 95 % interval lies above the largest class."""
    cells = []
    for score in scores:
        top1 = f"{100 * score.top1:.1f}"
        cells.append(f"**{top1}**" if score.low > score.chance else top1)
    print_row(name, cells)


def scores_of(tables: Sequence[FeatureTable]) -> list[v.Score]:
    return v.probe(v.Linear(), *map(with_order_labels, tables))


def frames_of(source: v.MovingDigits) -> Tensor:
    return torch.stack([source.read(n, range(source.info(n).num_frames)) for n in range(len(source))])


def first(table: FeatureTable, number: int) -> FeatureTable:
    labels = {name: numbers[:number] for name, numbers in table.labels.items()}
    return replace(table, vectors=table.vectors[:number], labels=labels, keys=table.keys[:number])


def measure(sources: Sequence[v.MovingDigits], recipe_name: str, few: int) -> None:
    """Print the table, line by line as it is found."""
    read = [frames_of(source) for source in sources]
    for observer in OBSERVERS:
        scores = scores_of([observed(observer, *pair) for pair in zip(sources, read, strict=True)])
        if observer is OBSERVERS[0]:
            print_row("accuracy in %", [score.label for score in scores])
            print_row("---", ["---"] * len(scores))
            print_row("largest class", [f"{100 * score.chance:.1f}" for score in scores])
        print_scores(observer.name, scores)
    recipe = load_recipe(recipe_name)
    torch.manual_seed(recipe.seed)
    network = build.backbone(recipe, with_init=False)
    views = v.UniformClips(num_frames=read[0].shape[1], frame_stride=1, size=read[0].shape[-1])
    train, test = (v.extract(network, source, views) for source in sources)
    print_scores(f"untrained network of `{recipe_name}`", scores_of([train, test]))
    print_scores(f"the same, {few} training videos", scores_of([first(train, few), test]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("keys", nargs="*", metavar="key=value", help="keys of MovingDigits, e.g. mode=pan")
    parser.add_argument("--train", type=int, default=2000, help="videos the probes learn from, at most 4000")
    parser.add_argument("--few", type=int, default=400, help="videos for a second probe of the network")
    parser.add_argument("--test", type=int, default=1000, help="videos they are scored on, at most 1000")
    parser.add_argument("--recipe", default="bevt", help="whose untrained network is measured")
    options = parser.parse_args()
    keys = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in options.keys)}
    known = set(inspect.signature(v.MovingDigits).parameters) - {"split", "num_videos", "limit"}
    if not keys.keys() <= known:
        parser.error(f"no such key: {', '.join(keys.keys() - known)}. There are: {', '.join(sorted(known))}")
    keys = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    try:
        train = v.MovingDigits(split="train", limit=options.train, **keys)
        test = v.MovingDigits(split="test", limit=options.test, **keys)
        measure([train, test], options.recipe, options.few)
    except (UsageError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
