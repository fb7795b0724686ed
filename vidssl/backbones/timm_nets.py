"""timm's image networks as backbones of video, frame by frame."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from einops import rearrange, reduce
from torch import Tensor, nn

from vidssl.backbones.blocks import Normalise
from vidssl.backbones.torchvision_nets import prefixed
from vidssl.interfaces import Backbone, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import cells_of
from vidssl.interfaces.grids import GridSize


class TimmNet(Backbone, HasBlocks):
    """Any image network of timm, applied to every frame: what there is without motion.

    It takes no mask. Frames go through the network one by one; a class token is averaged over them, and
    so is ``Features.pooled`` without one. Height and width must be multiples of what one cell spans.
    Weights come by ``backbone.init: timm:NAME``. For attention over time see ``timesformer``, which starts
    from the same weights.

    Args:
        name: as ``timm.create_model`` takes it, e.g. "resnet50" or "vit_small_patch16_224.dino".
        size: side of the square frames, for networks that are built for one size (Swin); networks that
            take any size need none.
    """

    toy: ClassVar = {"name": "test_vit"}

    takes_mask: ClassVar[bool] = False

    def __init__(self, *, name: str, size: int | None = None) -> None:
        super().__init__()
        try:
            net = _create(name, size)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot make '{name}': {error}") from error
        self.net = net
        self.embed_dim = net.num_features
        reduction = net.feature_info[-1]["reduction"]
        self.strides = (1, reduction, reduction)
        # only networks of tokens have class tokens, and timm's others lack the name
        self._num_prefix_tokens = getattr(net, "num_prefix_tokens", 0)
        self.gives_cls = self._num_prefix_tokens > 0
        config = net.pretrained_cfg
        self.normalise = Normalise(tuple(config["mean"]), tuple(config["std"]))
        # networks of patches say there whether their positions or windows are made for one size
        embed: Any = getattr(net, "patch_embed", None)
        self._only_size = tuple(embed.img_size) if getattr(embed, "strict_img_size", False) else None
        self._name = name

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the last map.

        Raises:
            ValueError: if the network does not take this size.
        """
        if self._only_size is not None and self._only_size != (height, width):
            raise ValueError(
                f"timm's {self._name} takes frames of {'x'.join(map(str, self._only_size))} only, got "
                f"{height}x{width}: set 'size', or give frames of that size"
            )
        return super().grid(num_frames, height, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError(f"timm's {self._name} takes no mask")
        t, h, w = self.grid(*x.shape[2:])
        frames = rearrange(self.normalise(x), "b c t h w -> (b t) c h w")
        found = self.net.forward_features(frames)
        if found.ndim == 4:  # a map, of convolutions [N, D, h, w] or of windows [N, h, w, D]
            last = found.shape[3] == self.embed_dim and found.shape[1:3] == (h, w)
            pattern = "(b t) h w d -> b t h w d" if last else "(b t) d h w -> b t h w d"
            return Features(patches=rearrange(found, pattern, t=t))
        prefix = self._num_prefix_tokens
        patches = rearrange(found[:, prefix:], "(b t) (h w) d -> b t h w d", t=t, h=h, w=w)
        cls = rearrange(found[:, 0], "(b t) d -> b t d", t=t).mean(1) if prefix else None
        return Features(patches=patches, cls=cls)

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """Those of networks built as ViT, Swin, ConvNeXt or ResNet are; of others none is known."""
        net: Any = self.net
        stages: Any = getattr(net, "stages", None) or getattr(net, "layers", None)
        if isinstance(getattr(net, "blocks", None), nn.Sequential):
            return tuple(net.blocks)
        inner: list[Any] = [getattr(stage, "blocks", None) for stage in stages or ()]
        if inner and all(isinstance(blocks, nn.Sequential) for blocks in inner):
            return tuple(block for blocks in inner for block in blocks)
        if isinstance(getattr(net, "layer4", None), nn.Sequential):
            return tuple(b for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for b in layer)
        return ()

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        """Maps of frames [B*t, D, h, w], or of windows [B*t, h, w, D], or tokens [B*t, P + h*w, D]."""
        found, t = cast(Tensor, output), grid[0]
        if found.ndim == 4:
            windows = getattr(self.net, "output_fmt", "") == "NHWC"
            pattern = "(b t) h w d -> b t h w d" if windows else "(b t) d h w -> b t h w d"
            return rearrange(found, pattern, t=t), None
        cells, prefix = cells_of(found, (1, *grid[1:]))
        cells = rearrange(cells, "(b t) 1 h w d -> b t h w d", t=t)
        return cells, None if prefix is None else reduce(prefix, "(b t) p d -> b p d", "mean", t=t)

    def block_norm(self) -> nn.Module:
        found: Any = getattr(self.net, "norm", None)
        return found if isinstance(found, nn.Module) else nn.Identity()

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """timm's own weights; the classifier is dropped."""
        return prefixed(state, self.net, "timm")


def _create(name: str, size: int | None) -> Any:  # timm's networks share names, not a class
    import timm  # here: importing takes a second
    from timm.models.vision_transformer import VisionTransformer

    if size is not None:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    net = timm.create_model(name, pretrained=False, num_classes=0)
    if isinstance(net, VisionTransformer):
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    return net
