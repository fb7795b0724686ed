"""How unlike two pictures look to a network that was trained on others: a loss for tokenizers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.precision import full_precision
from vidssl.errors import UsageError, counted
from vidssl.weights.external import read_external
from vidssl.weights.load import load_state
from vidssl.weights.stated import Stated, check_stated, stated_by_library

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
