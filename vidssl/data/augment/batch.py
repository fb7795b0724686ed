"""Augmentation of batches on the training device, after cropping."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from vidssl.data.augment import colour
from vidssl.data.views.checks import check_chances, check_range
from vidssl.engine.gather import OwnRows
from vidssl.interfaces import Batch
from vidssl.interfaces.pretrained import Shown

# view -> one chance for all of its slots, or one for each; a bare number is meant for every view
Chances = float | Mapping[str, tuple[float, ...]]

SVT_BLUR: Mapping[str, tuple[float, ...]] = {"global": (1.0, 0.1), "local": (0.5,)}
SVT_SOLARISE: Mapping[str, tuple[float, ...]] = {"global": (0.0, 0.2)}
_NUMBERS = 14  # drawn for each clip, used or not: what one clip gets never depends on another's luck


class PerClipAugment(Shown):
    """Flips clips left to right at random; one draw for all frames of a clip, as BEVT's published code does.

    Args:
        flip: probability. 0 where classes have a direction (Something-Something, moving digits).
    """

    def __init__(self, *, flip: float = 0.5) -> None:
        check_chances({"flip": flip})
        self.flip = flip

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with every slot of every view augmented, each clip by a draw of its own.

        Args:
            batch: views [B, 3, T, H, W] on one device.
            generator: on any device.
        """
        views = {
            name: tuple(self._flipped(clip, generator) for clip in slots)
            for name, slots in batch.views.items()
        }
        return replace(batch, views=views)

    def _flipped(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        rows = OwnRows(len(clip))
        drawn = rows.of(torch.rand(rows.all, generator=generator, device=generator.device)) < self.flip
        return torch.where(
            drawn.to(clip.device, non_blocking=True)[:, None, None, None, None], clip.flip(-1), clip
        )


class ColourAugment(Shown):
    """Flip, colour jitter, grey, blur and solarisation, one draw for all frames of a view: SVT, Sec. 3.2.2.

    In this order; the four parts of the jitter in a random one. The paper names the operations only.
    Strengths and chances of flip, jitter and grey are SVT's published code's, which leaves hue alone;
    there blur and solarisation return their input, so their chances are those that it names, DINO's,
    and to follow it they are set to 0. Unlike that code, values are kept in [0, 1], and grey weighs
    red, green and blue in this order.

    Chances are a number for all views, or for each view named one for all of its slots or one for each
    slot; a view that is not named is left alone. BEVT's image stream: ``flip: 0.5``,
    ``jitter: {image: [1.0]}``, ``saturation: 0.4``, ``grey: 0.0``, ``blur: 0.0``, ``solarise: 0.0``.

    Args:
        flip: chance of a mirror image, for all views. 0 where classes have a direction.
        jitter: chance that brightness, contrast, saturation and hue are changed.
        brightness, contrast, saturation: largest change of a factor from 1.
        hue: largest turn of the colour circle, at most 0.5.
        contrast_about: "clip" changes contrast about the mean grey of the whole view, "frame" about that
            of each frame, as SVT's published code does.
        grey: chance that colour is taken away.
        blur: chance of a Gaussian blur.
        blur_sigma: its smallest and largest standard deviation in pixels.
        solarise: chance of solarisation.
        solarise_threshold: values from here on are turned into their negative.
        per_frame: a draw for each frame, flips included: the ablation of Table 7.
    """

    def __init__(
        self,
        *,
        flip: float = 0.5,
        jitter: Chances = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.0,
        contrast_about: colour.ContrastAbout = "clip",
        grey: Chances = 0.2,
        blur: Chances = SVT_BLUR,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarise: Chances = SVT_SOLARISE,
        solarise_threshold: float = 0.5,
        per_frame: bool = False,
    ) -> None:
        check_chances({"flip": flip, "solarise_threshold": solarise_threshold})
        _check_strengths(brightness, contrast, saturation, hue)
        check_range("blur_sigma", blur_sigma)
        self.flip = flip
        self.chances = {"jitter": jitter, "grey": grey, "blur": blur, "solarise": solarise}
        for name, given in self.chances.items():
            _check_given(name, given)
        self.strengths = (brightness, contrast, saturation, hue)
        self.contrast_about = contrast_about
        self.blur_sigma = blur_sigma
        self.solarise_threshold = solarise_threshold
        self.per_frame = per_frame

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with every slot of every view augmented.

        What a clip becomes depends on the generator's state, its view, its slot and its row in the batch,
        not on the other rows or how many there are.

        Args:
            batch: views float32 [B, 3, T, H, W] in [0, 1] on one device.
            generator: on any device.

        Raises:
            ValueError: if chances name a view that the batch lacks, or more slots than it has.
        """
        for key, given in self.chances.items():
            _check_views(key, given, batch.views)
        views = {name: self._view(name, slots, generator) for name, slots in batch.views.items()}
        return replace(batch, views=views)

    def _view(self, name: str, slots: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        draws = [slot.shape[2] if self.per_frame else 1 for slot in slots]
        numbers = numbers_of_rows(generator, len(slots[0]), sum(draws) * _NUMBERS)
        parts = numbers.unflatten(1, (-1, _NUMBERS)).split(draws, dim=1)
        results = []
        for place, (slot, part) in enumerate(zip(slots, parts, strict=True)):
            chances = {key: _chance(given, name, place) for key, given in self.chances.items()}
            clips = rearrange(slot, "b c t h w -> (b t) c 1 h w") if self.per_frame else slot
            changed = self._changed(clips, part.flatten(0, 1), chances)
            if self.per_frame:
                changed = rearrange(changed, "(b t) c 1 h w -> b c t h w", t=slot.shape[2])
            results.append(changed)
        return tuple(results)

    def _changed(self, clips: Tensor, numbers: Tensor, chances: Mapping[str, float]) -> Tensor:
        """Clips [N, 3, T, H, W] changed by numbers [N, 14] in [0, 1)."""
        mirrored = numbers[:, 0] < self.flip
        clips = torch.where(mirrored.to(clips.device).view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
        self._jitter(clips, numbers[:, 1] < chances["jitter"], numbers[:, 2:6], numbers[:, 6:10])
        change_rows(clips, numbers[:, 10] < chances["grey"], colour.grey)
        low, high = self.blur_sigma
        change_rows(
            clips,
            numbers[:, 11] < chances["blur"],
            lambda clip, sigma: colour.blur(clip, sigma, colour.blur_radius(high)),
            low + (high - low) * numbers[:, 12],
        )
        change_rows(
            clips,
            numbers[:, 13] < chances["solarise"],
            lambda clip: colour.solarise(clip, self.solarise_threshold),
        )
        return clips

    def _jitter(self, clips: Tensor, chosen: Tensor, numbers: Tensor, order: Tensor) -> None:
        """In place; ``order`` [N, 4] are numbers whose ranks say which operation comes when."""
        operations = (
            colour.brightness,
            lambda clip, factor: colour.contrast(clip, factor, self.contrast_about),
            colour.saturation,
            colour.hue,
        )
        rank = order.argsort(1)
        for place in range(4):
            for number, (operation, strength) in enumerate(zip(operations, self.strengths, strict=True)):
                if strength == 0:
                    continue
                lowest = -strength if operation is colour.hue else max(0.0, 1 - strength)
                highest = strength if operation is colour.hue else 1 + strength
                factor = lowest + (highest - lowest) * numbers[:, number]
                change_rows(clips, chosen & (rank[:, place] == number), operation, factor)


def numbers_of_rows(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Numbers in [0, 1), float32 [rows, columns] on the CPU; none depends on how many rows there are.

    Of several processes, each gets those of its own rows.

    Args:
        generator: on any device; gives one number, from which all others follow.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    own = OwnRows(rows)
    return own.of(torch.rand(own.all, columns, generator=torch.Generator().manual_seed(seed)))


def change_rows(clips: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Puts in place of the chosen clips what an operation makes of them and their rows of parameters.

    Args:
        chosen: bool [N] on the CPU.
        parameters: each [N, ...] on the CPU.
    """
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return
    picked = [parameter[rows].to(clips.device, non_blocking=True) for parameter in parameters]
    rows = rows.to(clips.device, non_blocking=True)
    clips[rows] = operation(clips[rows], *picked)


def _chance(given: Chances, view: str, place: int) -> float:
    if not isinstance(given, Mapping):
        return given
    chances = given.get(view, (0.0,))
    return chances[0] if len(chances) == 1 else chances[place]


def _check_strengths(brightness: float, contrast: float, saturation: float, hue: float) -> None:
    named = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in named.items():
        if strength < 0:
            raise ValueError(f"{name} must be at least 0, got {strength}")
    if not 0.0 <= hue <= 0.5:
        raise ValueError(f"hue must lie between 0 and 0.5, got {hue}")


def _check_given(name: str, given: Chances) -> None:
    named = given if isinstance(given, Mapping) else {"": (given,)}
    for view, chances in named.items():
        if not chances:
            raise ValueError(f"{name}.{view} must list at least one chance")
        for chance in chances:
            check_chances({f"{name}.{view}".rstrip("."): chance})


def _check_views(name: str, given: Chances, views: Mapping[str, tuple[Tensor, ...]]) -> None:
    if not isinstance(given, Mapping):
        return
    for view, chances in given.items():
        if view not in views:
            raise ValueError(
                f"augment.{name} names the view '{view}', and the batch has {', '.join(views)}: "
                f"write out '{name}' for these"
            )
        if len(chances) not in (1, len(views[view])):
            raise ValueError(
                f"augment.{name}.{view} must list 1 chance or {len(views[view])}, one for each slot, "
                f"got {len(chances)}"
            )
