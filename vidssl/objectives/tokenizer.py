"""Training a discrete tokenizer by reconstruction, in pixels and in features of another network."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.speed import full_precision
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    Band,
    Batch,
    LossOutput,
    Objective,
    Progress,
    Tokenizer,
    TrainableTokenizer,
    Watched,
    Yardstick,
)
from vidssl.weights.external import Stated, check_stated, read_external, stated_by_library
from vidssl.weights.load import load_state

RANDOM = "random"  # the one word that asks for a network nobody trained
_NUM_LAYERS = 4  # where no layers are named


class PerceptualDistance(nn.Module):
    """The distance of two clips, frame by frame, in the features of a frozen image network of timm.

    PeCo (Dong et al. 2021, "PeCo: Perceptual Codebook for BERT Pre-training of Vision Transformers") adds it
    to the loss of its tokenizer, with the features of a self-supervised ViT: ids then stand for what things
    look like. BEVT's tables mark results with that tokenizer by a dagger. Each cell's vector of each layer is
    scaled to length one before the squared difference, as in LPIPS (Zhang et al. 2018, Eq. 1, without its
    learned weights), so that layers count alike.

    The network is no parameter, no state and in no checkpoint. On the meta device nothing is loaded.

    Args:
        network: a name of timm's.
        init: "random", or what ``backbone.init`` takes: ``timm:NAME`` or a file.
        layers: which of the network's features are compared, from 0; None for four of them, evenly spaced,
            the last included: of twelve blocks the 3rd, 6th, 9th and 12th.

    Raises:
        ValueError: if timm has no such network, or it gives no features at such layers.
        UsageError: if its weights cannot be had, or are of another network.
    """

    def __init__(self, network: str, init: str, layers: tuple[int, ...] | None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what "random" means: the same network in every process and resumed run
            net = _create(network)
        count = len(net.feature_info)
        self.layers = evenly(count) if layers is None else layers
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= count:
            raise ValueError(
                f"perceptual_layers must lie between 0 and {count - 1} ({network}), got {layers}"
            )
        config = net.pretrained_cfg
        # networks of windows are built for one size; the others take pictures as they are
        self.size = tuple(config["input_size"][1:]) if _fixed(net) else None
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        if init != RANDOM and next(net.parameters()).device.type != "meta":
            stated = _load(net, network, init)
            self.mean, self.std = stated.mean or self.mean, stated.std or self.std
        # within a tuple PyTorch does not see it: no checkpoint, optimizer or train() reaches it
        self._held = (net.eval().requires_grad_(False),)

    def forward(self, made: Tensor, given: Tensor) -> Tensor:
        """The mean over cells of the squared distance, summed over layers; a scalar.

        Args:
            made: [B, 3, T, H, W], with gradient.
            given: the same clips as they are.
        """
        with torch.no_grad():
            wanted = self._features(given)
        distances = [
            (own - other).square().sum(dim=1).mean()
            for own, other in zip(self._features(made), wanted, strict=True)
        ]
        return torch.stack(distances).sum()

    def _features(self, clip: Tensor) -> list[Tensor]:
        """Of each layer [B * T, D, h, w], every cell's vector of length one."""
        frames = rearrange(clip, "b c t h w -> (b t) c h w")
        if self.size is not None and frames.shape[2:] != self.size:
            frames = F.interpolate(
                frames, size=self.size, mode="bilinear", antialias=True, align_corners=False
            )
        mean, std = (frames.new_tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        found = self._held[0].forward_intermediates(
            (frames - mean) / std,
            indices=list(self.layers),
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return [F.normalize(full_precision(feature), dim=1) for feature in found]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceptualDistance":
        super()._apply(fn, recurse)
        self._held[0]._apply(fn, recurse)
        return self


def evenly(count: int) -> tuple[int, ...]:
    """At most four of ``count`` layers, evenly spaced, the last one among them."""
    most = min(_NUM_LAYERS, count)
    return tuple(round(count * place / most) - 1 for place in range(1, most + 1))


def perceptual_distance(
    network: str | None, *, weight: float | None, init: str | None, layers: tuple[int, ...] | None
) -> PerceptualDistance | None:
    """The distance of a recipe's ``perceptual_`` keys; None where they name no network.

    Raises:
        ValueError: if one stands without the network, or the network without a weight; and as
            ``PerceptualDistance`` does.
    """
    if network is None:
        for name, value in {"weight": weight, "init": init, "layers": layers}.items():
            if value is not None:
                raise ValueError(
                    f"perceptual_{name} is of no use without 'perceptual', the name of a network of timm"
                )
        return None
    if weight is None or weight <= 0:
        raise ValueError(f"'perceptual' needs perceptual_weight, a number above 0, got {weight}")
    return PerceptualDistance(network, init or f"timm:{network}", layers)


def _create(name: str) -> Any:  # timm's networks share names, not a class
    import timm  # here: importing takes a second

    try:
        net = timm.create_model(name, pretrained=False, num_classes=0)
        if isinstance(net, timm.models.vision_transformer.VisionTransformer):
            net = timm.create_model(
                name, pretrained=False, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True
            )
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make '{name}': {error}") from error
    if not callable(getattr(net, "forward_intermediates", None)):
        raise ValueError(f"timm's '{name}' does not give the features between its layers: take another")
    return net


def _load(net: nn.Module, network: str, init: str) -> Stated:
    """Load the weights, and hand over what their library states of them."""
    try:
        stated = stated_by_library(init) or Stated()
        check_stated(net, stated, init, given=None)
        report = load_state(net, read_external(init).state, init)
    except UsageError as error:
        raise UsageError(f"{error} (here: perceptual_init)") from error
    if report.new:
        raise UsageError(
            f"{init}: lacks {counted(len(report.new), 'tensor')} of {network}, e.g. {report.new[0]}: "
            "a loss is not made of random weights unless perceptual_init: random asks for them"
        )
    return stated


def _fixed(net: Any) -> bool:
    """Whether a network takes pictures of one size alone."""
    from timm.models.vision_transformer import VisionTransformer

    dynamic = isinstance(net, VisionTransformer)
    return bool(net.pretrained_cfg.get("fixed_input_size")) and not dynamic


class TokenizerTraining(Objective, Watched):
    """Trains a tokenizer to rebuild images or clips from their ids (van den Oord et al. 2017, Eq. 3).

    The loss is the reconstruction error plus the tokenizer's own regulariser, and where a network is named
    the distance in its features too, as in PeCo (Dong et al. 2021). The codebook learns outside the gradient,
    after each step.

    Metrics, each from the batch at hand but for the two about codes, which look back ``usage_window`` steps:

    - ``reconstruction``: the error under ``loss``, pixels in [0, 1].
    - ``regulariser``: the tokenizer's own term, before its weight.
    - ``perceptual``: the distance in features, before its weight; only where a network is named.
    - ``psnr``: in dB; always of the squared error.
    - ``perplexity``: how many equally frequent codes would be as varied as those chosen.
    - ``used_codes``: share of the vocabulary that was chosen at all.

    Args:
        commitment_weight: beta in Eq. 3, where it is 0.25.
        loss: error of a pixel, squared ("l2", as in the paper) or absolute ("l1").
        usage_window: steps over which the use of codes is counted (ours).
        view: what is rebuilt: "image" (T = 1; of a video, a random frame) or "clip".
        perceptual: an image network of timm, such as "vit_base_patch16_224.dino", whose features are compared
            too; see ``vidssl.objectives.tokenizer``. None for pixels alone.
        perceptual_weight: of that distance; required with ``perceptual``.
        perceptual_init: where the network's weights come from: ``timm:NAME`` or a file as in
            ``backbone.init``, or "random", which no one gets unasked. None for those that timm has by the
            network's name.
        perceptual_layers: which features are compared, from 0; None for four, evenly spaced.

    Raises:
        ValueError: if an argument is out of its range, or a key of the perceptual loss stands alone.
        UsageError: if the network's weights cannot be had.
    """

    splits_batch = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        commitment_weight: float = 0.25,
        loss: Literal["l1", "l2"] = "l2",
        usage_window: int = 100,
        view: Literal["image", "clip"] = "image",
        perceptual: str | None = None,
        perceptual_weight: float | None = None,
        perceptual_init: str | None = None,
        perceptual_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tokenizer, TrainableTokenizer):
            raise ValueError(f"{type(tokenizer).__name__} cannot be trained here: it comes with its weights")
        if commitment_weight < 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        if usage_window < 1:
            raise ValueError(f"usage_window must be at least 1 step, got {usage_window}")
        if loss not in ("l1", "l2"):
            raise ValueError(f"loss must be 'l1' or 'l2', got {loss!r}")
        if view not in ("image", "clip"):
            raise ValueError(f"view must be 'image' or 'clip', got {view!r}")
        self.tokenizer = tokenizer
        self.commitment_weight = commitment_weight
        self.loss = loss
        self.view = view
        self.needs_views: Mapping[str, int] = {view: 1}
        self.perceptual_weight = 0.0 if perceptual_weight is None else perceptual_weight
        self.distance = perceptual_distance(
            perceptual, weight=perceptual_weight, init=perceptual_init, layers=perceptual_layers
        )
        self.recent_counts: (
            Tensor  # a ring of histograms, one a step; saved, so that a resumed run logs the same
        )
        self.register_buffer(
            "recent_counts", torch.zeros(usage_window, tokenizer.vocab_size, dtype=torch.int64)
        )
        self._seen = self.recent_counts[0]  # of the step at hand, which may be several passes
        self._seen_at = -1

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        (clip,) = batch.views[self.view]
        result = self.tokenizer.reconstruct(clip)
        squared = F.mse_loss(result.pixels, clip)
        reconstruction = squared if self.loss == "l2" else F.l1_loss(result.pixels, clip)
        counts = self._count(result.ids, progress.step)
        shares = counts.double() / counts.sum()
        loss = reconstruction + self.commitment_weight * result.regulariser
        metrics = {
            "reconstruction": reconstruction.detach(),
            "regulariser": result.regulariser.detach(),
            "psnr": -10 * squared.detach().log10(),
            "perplexity": torch.special.entr(shares).sum().exp().float(),
            "used_codes": (counts > 0).float().mean(),
        }
        if self.distance is not None:
            distance = self.distance(result.pixels, clip)
            loss = loss + self.perceptual_weight * distance
            metrics["perceptual"] = distance.detach()
        return LossOutput(loss, metrics)

    def _count(self, ids: Tensor, step: int) -> Tensor:
        """How often each code was chosen, [V]: over the window under training, else in these ids alone."""
        flat = ids.flatten()  # not bincount, which waits for a GPU
        counts = flat.new_zeros(self.tokenizer.vocab_size).index_add_(0, flat, torch.ones_like(flat))
        if not self.training:
            return counts
        if step != self._seen_at:  # what an abandoned step left
            self._seen = torch.zeros_like(counts)
        self._seen, self._seen_at = self._seen + counts, step
        oldest = self.recent_counts[step % len(self.recent_counts)]
        return self.recent_counts.sum(dim=0) - oldest + self._seen

    def encoder(self) -> TrainableTokenizer:
        return self.tokenizer

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """The codebook follows the encoder, and this step's histogram takes the place of the oldest."""
        self.tokenizer.update_codebook(generator)
        self.recent_counts[progress.step % len(self.recent_counts)] = self._seen
        self._seen_at = -1

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(metric="psnr", label="reconstruction", says="frames are rebuilt at {}", unit="dB"),
            Yardstick(metric="used_codes", label="codes in use", says="{} of the codes are used", unit="%"),
        )

    def bands(self) -> tuple[Band, ...]:
        """Of the use of codes (ours)."""
        cure = "Try more or larger batches, a smaller codebook or, with vqvae, a higher revive_below"
        return (
            Band(
                metric="used_codes",
                says="nineteen of twenty codes have not been chosen at all: most of the codebook is idle",
                cure=cure,
                lowest=0.05,
            ),
            Band(
                metric="perplexity",
                says="ever fewer codes have been chosen: the codebook is collapsing",
                cure=cure,
                share_of_best=0.25,
                zero=1.0,
            ),
        )
