"""torchvision's video networks as backbones."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

from einops import rearrange
from torch import Tensor, nn

from vidssl.backbones.blocks import Normalise
from vidssl.interfaces import Backbone, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import cells_of
from vidssl.interfaces.grids import GridSize

Name = Literal[
    "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b", "mvit_v1_b", "mvit_v2_s"
]


class TorchvisionNet(Backbone, HasBlocks):
    """A video network of torchvision, without its classifier: a rival for the papers' own backbones.

    It takes no mask. Residual nets, S3D and Swins take clips of any size (S3D from 8 frames and 32 pixels
    on); MViT takes 16 frames of 224 pixels only. Weights come by ``backbone.init: torchvision:NAME``.

    Args:
        name: as torchvision has it.
    """

    toy: ClassVar = {"name": "mc3_18"}

    takes_mask: ClassVar[bool] = False

    def __init__(self, *, name: Name) -> None:
        import torchvision  # here: importing takes a second

        super().__init__()
        self.net = getattr(torchvision.models.video, name)(weights=None)
        family = _FAMILIES[name.split("_")[0]]
        self._maps = family.maps
        self._blocks = family.blocks
        self._name = name
        for head in family.heads:
            setattr(self.net, head, nn.Identity())
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        self.normalise = Normalise(tuple(preset.mean), tuple(preset.std))
        self.strides = (1, *family.strides[1:]) if name == "mc3_18" else family.strides
        self.embed_dim = family.embed_dim(self.net)
        self.gives_cls = name.startswith("mvit")

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the last map.

        Raises:
            ValueError: if the network does not take this size.
        """
        size = num_frames, height, width
        if self._name.startswith("mvit"):
            if size != (16, 224, 224):
                raise ValueError(f"{self._name} takes 16 frames of 224x224 only, got {size}")
            return 8, 7, 7
        t, h, w = (-(-length // stride) for length, stride in zip(size, self.strides, strict=True))
        if self._name == "s3d":  # its last pooling has no padding: what is left over is lost
            t, h, w = (
                -(-length // (stride // 2)) // 2 for length, stride in zip(size, self.strides, strict=True)
            )
        if min(t, h, w) < 1:
            raise ValueError(
                f"{self._name} has nothing left of a clip of {size}: give it more frames or pixels"
            )
        return t, h, w

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError(f"{self._name} takes no mask")
        self.grid(*x.shape[2:])
        return self._maps(self.net, self.normalise(x))

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return self._blocks(self.net)

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        if isinstance(output, tuple):  # of MViT: tokens and the size that they have
            return cells_of(*output)
        found = cast(Tensor, output)
        return (found if self._name.startswith("swin3d") else channels_last(found)), None

    def block_norm(self) -> nn.Module:
        return cast(nn.Module, getattr(self.net, "norm", nn.Identity()))

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """torchvision's own weights; its classifier is dropped."""
        return prefixed(state, self.net, "torchvision")


def prefixed(state: Mapping[str, Tensor], net: nn.Module, library: str) -> Translated | None:
    """A library's weights for a network that is held as ``net``; None if they share no name."""
    own = net.state_dict()
    found = {f"net.{key}": value for key, value in state.items() if key in own}
    if not found:
        return None
    return Translated(found, library, dropped=tuple(key for key in state if key not in own))


def channels_last(x: Tensor) -> Tensor:
    """[B, D, t, h, w] to [B, t, h, w, D]."""
    return rearrange(x, "b d t h w -> b t h w d")


# what a network of the library has inside is not typed


def _resnet(net: Any, x: Tensor) -> Features:
    x = net.stem(x)
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
    return Features(patches=channels_last(x))


def _s3d(net: Any, x: Tensor) -> Features:
    return Features(patches=channels_last(net.features(x)))


def _swin(net: Any, x: Tensor) -> Features:
    return Features(patches=net.norm(net.features(net.pos_drop(net.patch_embed(x)))))


def _mvit(net: Any, x: Tensor) -> Features:
    x = net.pos_encoding(net.conv_proj(x).flatten(2).transpose(1, 2))
    size = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
    for block in net.blocks:
        x, size = block(x, size)
    x = net.norm(x)
    t, h, w = size
    return Features(patches=rearrange(x[:, 1:], "b (t h w) d -> b t h w d", t=t, h=h, w=w), cls=x[:, 0])


def _residual_blocks(net: Any) -> tuple[nn.Module, ...]:
    return tuple(block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer)


def _swin_blocks(net: Any) -> tuple[nn.Module, ...]:
    stages = (stage for stage in net.features if isinstance(stage, nn.Sequential))
    return tuple(block for stage in stages for block in stage)


class _Family:
    """How networks of one kind are run, their blocks, and what of them is a classifier."""

    def __init__(
        self,
        maps: Callable[[Any, Tensor], Features],
        strides: GridSize,
        heads: tuple[str, ...],
        embed_dim: Callable[[Any], int],
        blocks: Callable[[Any], tuple[nn.Module, ...]],
    ) -> None:
        self.maps = maps
        self.strides = strides
        self.heads = heads
        self.embed_dim = embed_dim
        self.blocks = blocks


_RESNET = _Family(_resnet, (8, 16, 16), ("avgpool", "fc"), lambda net: 512, _residual_blocks)
_FAMILIES = {
    "r3d": _RESNET,
    "mc3": _RESNET,
    "r2plus1d": _RESNET,
    "s3d": _Family(
        _s3d, (8, 32, 32), ("avgpool", "classifier"), lambda net: 1024, lambda net: (*net.features,)
    ),
    "swin3d": _Family(
        _swin, (2, 32, 32), ("avgpool", "head"), lambda net: net.norm.normalized_shape[0], _swin_blocks
    ),
    "mvit": _Family(
        _mvit, (2, 32, 32), ("head",), lambda net: net.norm.normalized_shape[0], lambda net: (*net.blocks,)
    ),
}
