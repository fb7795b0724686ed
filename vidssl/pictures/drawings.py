"""From clips and what networks make of them to strips of labelled frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from vidssl.errors import counted
from vidssl.interfaces import FilledIn, FilledPixels, Tokenizer
from vidssl.objectives.parts.masked_prediction import copy_nearest
from vidssl.pictures import pages
from vidssl.pictures.clips import Clips
from vidssl.tokenizers import frame_networks, measure

HIDDEN = (240, 222, 130)  # what stands where a frame is hidden: light yellow, as in VIMPAC's Fig. 1


@dataclass(frozen=True)
class Drawing:
    """Contents of a picture.

    Attributes:
        strips: a video each, or where there are single images up to eight of them.
        moves: whether the frames of a strip follow each other in time.
        details: strips for the sheet alone, not for the animation.
        legend: below the sheet.
    """

    title: str
    strips: tuple[pages.Strip, ...]
    moves: bool
    details: tuple[pages.Strip, ...] = ()
    legend: Image.Image | None = field(default=None, repr=False)


def attention_drawing(clips: Clips, weights: Tensor, title: str) -> Drawing:
    """Heat where the class token looks, mean over heads; for the first clip also head by head.

    Every map is coloured from its least to its largest weight in the whole clip, and the caption gives
    these in multiples of the mean weight, so that an even attention is not mistaken for a sharp one.

    Args:
        weights: [B, heads, t, h, w].
    """
    frames = [pages.as_frames(clip) for clip in clips.pixels]
    heat = weights.mean(dim=1)
    labelled = {
        "frames": frames,
        "attention": [pages.heat_over(own, _stretched(map_)) for own, map_ in zip(frames, heat, strict=True)],
    }
    notes = [f"{_range(map_)} times the mean" for map_ in heat]
    heads = tuple(
        pages.FrameRow(f"head {number}, {_range(map_)}", pages.heat_over(frames[0], _stretched(map_)))
        for number, map_ in enumerate(weights[0], start=1)
    )
    caption = f"{clips.keys[0]}: each head, with its range"
    return Drawing(
        f"{title}attention of the class token in the last block",
        strips_of(clips.keys, labelled, notes, notes),
        clips.move,
        details=(pages.Strip(caption, _numbers(frames[0]), heads),),
        legend=pages.colour_bar("least weight of the clip", "largest"),
    )


def _stretched(map_: Tensor) -> Tensor:
    """A map with its least value at 0 and its largest at 1; an even one is 0."""
    low, high = map_.min(), map_.max()
    return (map_ - low) / (high - low) if high > low else torch.zeros_like(map_)


def _range(map_: Tensor) -> str:
    relative = map_ / map_.mean()
    return f"{float(relative.min()):.2f} to {float(relative.max()):.2f}"


def tokenizer_drawing(clips: Clips, made: Tensor, title: str) -> Drawing:
    """Clips above what a tokenizer made of them, [B, 3, T, H, W]."""
    made = frame_networks.of_length(made, clips.pixels.shape[2])
    errors = (made - clips.pixels).square().flatten(1).mean(dim=1)
    notes = [f"{float(measure.psnr(error)):.1f} dB" for error in errors]
    labelled = {"frames": _frames(clips.pixels), "tokenizer": _frames(made)}
    strips = strips_of(clips.keys, labelled, notes, notes)
    return Drawing(f"{title}what the tokenizer keeps", strips, clips.move)


def prediction_drawing(clips: Clips, filled: FilledIn, tokenizer: Tokenizer, title: str) -> Drawing:
    """Frames, their tokenizer's version, what was hidden, the prediction, and the nearest visible ids.

    As in VIMPAC's Fig. 4 and 5: what is not hidden is drawn from its true ids in the last two rows.

    Raises:
        ValueError: if the tokenizer cannot draw.
    """
    nearest = copy_nearest(filled.ids, filled.hidden)
    kept, predicted, copied = (
        frame_networks.of_length(tokenizer.decode(ids).cpu(), clips.pixels.shape[2])
        for ids in (filled.ids, filled.predicted, nearest)
    )
    hidden = filled.hidden.cpu()
    labelled = {
        "frames": _frames(clips.pixels),
        "tokenizer": _frames(kept),
        "hidden": [_covered(own, mask) for own, mask in zip(_frames(clips.pixels), hidden, strict=True)],
        "prediction": _frames(predicted),
        "nearest id": _frames(copied),
    }
    right = _fractions_right(filled.predicted, filled)
    by_copying = _fractions_right(nearest, filled)
    notes = [
        f"{float(mask.float().mean()):.0%} of the ids hidden, of these {own} predicted right, "
        f"{other} by copying the nearest visible id"
        for mask, own, other in zip(hidden, right, by_copying, strict=True)
    ]
    brief = [f"{own} right" for own in right]
    strips = strips_of(clips.keys, labelled, notes, brief)
    return Drawing(f"{title}prediction of what is hidden", strips, clips.move)


def filled_drawing(clips: Clips, filled: FilledPixels, title: str) -> Drawing:
    """Frames, what was hidden, what was filled in, and hidden cells in their true mean colours."""
    hidden = filled.hidden.cpu()
    both = filled.pixels.cpu(), filled.baseline.cpu()
    labelled = {
        "frames": _frames(clips.pixels),
        "hidden": [_covered(own, mask) for own, mask in zip(_frames(clips.pixels), hidden, strict=True)],
        "prediction": _frames(both[0]),
        "mean colours": _frames(both[1]),
    }
    shares = hidden.flatten(1).float().mean(dim=1)
    # visible pixels are exact: of the hidden ones alone
    errors = ((made - clips.pixels).square().flatten(1).mean(dim=1) / shares for made in both)
    ours, theirs = (measure.psnr(error).tolist() for error in errors)
    notes = [
        f"{share:.0%} hidden, filled in at {own:.1f} dB, mean colours {other:.1f} dB"
        for share, own, other in zip(shares.tolist(), ours, theirs, strict=True)
    ]
    strips = strips_of(clips.keys, labelled, notes, [f"{own:.1f} dB" for own in ours])
    return Drawing(f"{title}prediction of what is hidden", strips, clips.move)


def masks_drawing(clips: Clips, masks: Tensor, title: str) -> Drawing:
    """Clips under masks that were drawn for them.

    Args:
        masks: bool [D, B, t, h, w] of D draws, True where hidden.
    """
    frames = _frames(clips.pixels)
    labelled = {"frames": frames} | {
        f"draw {number}": [_covered(own, mask) for own, mask in zip(frames, draw, strict=True)]
        for number, draw in enumerate(masks, 1)
    }
    shares = masks.float().flatten(2).mean(2)
    notes = [f"{', '.join(f'{share:.0%}' for share in column)} hidden" for column in shares.T.tolist()]
    strips = strips_of(clips.keys, labelled, notes, notes)
    grid = " x ".join(map(str, masks.shape[2:]))
    return Drawing(f"{title}hidden cells in yellow, on a grid of {grid}", strips, clips.move)


def tokens_drawing(clips: Clips, ids: Tensor, made: Tensor, vocab_size: int, title: str) -> Drawing:
    """Clips above what their ids are decoded to, and the ids, coloured from the commonest to the rarest.

    Args:
        ids: int64 [B, t, h, w].
        made: [B, 3, T, H, W].
    """
    time, height, width = clips.pixels.shape[2:]
    counts = torch.bincount(ids.flatten(), minlength=vocab_size)
    rank = counts.argsort(descending=True, stable=True).argsort().float() / max(
        1, int((counts > 0).sum()) - 1
    )
    coloured = [
        pages.heat_colours(rank[pages.spread(own, (time, height, width))].clamp(max=1)) for own in ids
    ]
    labelled = {
        "frames": _frames(clips.pixels),
        "tokenizer": _frames(frame_networks.of_length(made, time)),
        "ids": coloured,
    }
    notes = []
    for own in ids:
        shares = torch.bincount(own.flatten()).float() / own.numel()
        used = shares[shares > 0]
        notes.append(
            f"{len(used)} of {vocab_size} ids, perplexity {float((-used * used.log()).sum().exp()):.1f}"
        )
    strips = strips_of(clips.keys, labelled, notes, notes)
    return Drawing(
        f"{title}ids of the tokenizer", strips, clips.move, legend=pages.colour_bar("commonest id", "rarest")
    )


def views_drawing(views: Sequence[tuple[str, str, Tensor, Tensor]], title: str) -> Drawing:
    """The views that a step is given, as they were cut and as they were augmented.

    Args:
        views: key of the video, name of the view, the clip as cut and as augmented, each [3, T, H, W].
    """
    strips = []
    for key, name, cut, augmented in views:
        frames = pages.as_frames(cut)
        size = f"{counted(len(frames), 'frame')} of {frames.shape[1]} x {frames.shape[2]} pixels"
        rows = (pages.FrameRow("as cut", frames), pages.FrameRow("augmented", pages.as_frames(augmented)))
        strips.append(pages.Strip(f"{key}: {name}, {size}", _numbers(frames), rows))
    return Drawing(f"{title}views of a step", tuple(strips), moves=False)


def _fractions_right(ids: Tensor, filled: FilledIn) -> list[str]:
    """For each clip how many of its hidden ids are right, in percent."""
    correct = ((ids == filled.ids) & filled.hidden).flatten(1).sum(dim=1)
    return [f"{float(fraction):.0%}" for fraction in correct / filled.hidden.flatten(1).sum(dim=1)]


def _covered(frames: Tensor, hidden: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] with yellow in the place of hidden cells, bool [t, h, w]."""
    time, height, width = frames.shape[:3]
    cover = torch.tensor(HIDDEN, dtype=torch.uint8)
    return torch.where(pages.spread(hidden, (time, height, width)).unsqueeze(-1), cover, frames)


def _frames(clips: Tensor) -> list[Tensor]:
    return [pages.as_frames(clip) for clip in clips]


def strips_of(
    keys: Sequence[str], labelled: Mapping[str, Sequence[Tensor]], notes: Sequence[str], brief: Sequence[str]
) -> tuple[pages.Strip, ...]:
    """A strip for each clip; single images stand side by side, up to eight in a strip.

    Args:
        labelled: label of a row -> its frames of every clip, each uint8 [T, H, W, 3].
        notes: on each clip.
        brief: the same in few words, to stand above an image.
    """
    first = next(iter(labelled.values()))
    if len(first[0]) > 1:
        return tuple(
            pages.Strip(
                f"{key}: {note}",
                _numbers(first[i]),
                tuple(pages.FrameRow(label, frames[i]) for label, frames in labelled.items()),
            )
            for i, (key, note) in enumerate(zip(keys, notes, strict=True))
        )
    groups = [
        range(len(keys))[start : start + pages.MAX_COLUMNS]
        for start in range(0, len(keys), pages.MAX_COLUMNS)
    ]
    return tuple(
        pages.Strip(
            f"{keys[group[0]]} to {keys[group[-1]]}" if len(group) > 1 else keys[group[0]],
            tuple(brief[i] for i in group),
            tuple(
                pages.FrameRow(label, torch.cat([frames[i] for i in group]))
                for label, frames in labelled.items()
            ),
        )
        for group in groups
    )


def _numbers(frames: Tensor) -> tuple[str, ...]:
    return tuple(f"frame {number}" for number in range(1, len(frames) + 1))
