"""How well a frozen tokenizer keeps the videos that are trained on, told before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vidssl.data.loader import Stream
from vidssl.data.samples import InOrder
from vidssl.data.views.stored import StoredViews
from vidssl.engine.logging import Say
from vidssl.interfaces import Objective, Tokenizer, as_clip
from vidssl.objectives.parts.masked_prediction import FrozenTokenizer
from vidssl.tokenizers.frame_networks import of_length
from vidssl.tokenizers.measure import psnr

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
        made = of_length(tokenizer.decode(tokenizer.encode(clips)), clips.shape[2])
    except ValueError:  # no decoder, or ids that span more frames
        return None
    return float(psnr((made - clips).square().mean()))
