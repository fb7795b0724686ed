"""PyTorchVideo's networks as backbones."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidssl.backbones.blocks import Normalise
from vidssl.backbones.torchvision_nets import channels_last, prefixed
from vidssl.errors import counted
from vidssl.interfaces import Backbone, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import cells_of
from vidssl.interfaces.grids import GridSize
from vidssl.weights.external import pytorchvideo_hub

Name = Literal[
    "slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l",
    "slowfast_r50", "slowfast_r101", "mvit_base_16x4", "mvit_base_32x3",
]  # fmt: skip

_SLOWFAST_RATE = 4  # frames of the fast pathway for one of the slow
# width of the last map, and frames, rows and columns of pixels that one of its cells spans
_SHAPES: dict[str, tuple[int, GridSize]] = {
    "slow_r50": (2048, (1, 32, 32)),
    "c2d_r50": (2048, (2, 32, 32)),
    "i3d_r50": (2048, (2, 32, 32)),
    "csn_r101": (2048, (8, 32, 32)),
    "r2plus1d_r50": (2048, (4, 32, 32)),
    "x3d_xs": (192, (1, 32, 32)),
    "x3d_s": (192, (1, 32, 32)),
    "x3d_m": (192, (1, 32, 32)),
    "x3d_l": (192, (1, 32, 32)),
    "slowfast_r50": (2304, (_SLOWFAST_RATE, 32, 32)),
    "slowfast_r101": (2304, (_SLOWFAST_RATE, 32, 32)),
    "mvit_base_16x4": (768, (2, 32, 32)),
    "mvit_base_32x3": (768, (2, 32, 32)),
}
_ONLY_SIZE = {"mvit_base_16x4": (16, 224, 224), "mvit_base_32x3": (32, 224, 224)}


class PyTorchVideoNet(Backbone, HasBlocks):
    """A network of PyTorchVideo, without its classifier: a rival for the papers' own backbones.

    It takes no mask. MViT takes the clips of its name only; of the others SlowFast, C2D and I3D need a
    whole number of cells in time. Weights come by ``backbone.init: pytorchvideo:NAME``.

    Args:
        name: as PyTorchVideo's model hub has it.
    """

    toy: ClassVar = {"name": "x3d_xs"}

    takes_mask: ClassVar[bool] = False

    def __init__(self, *, name: Name) -> None:
        super().__init__()
        self.net = _create(name)
        if name.startswith("mvit"):
            self.net.head = None
        else:
            self.net.blocks = self.net.blocks[: -2 if name.startswith("slowfast") else -1]
        self.normalise = Normalise((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
        self.embed_dim, self.strides = _SHAPES[name]
        self.gives_cls = name.startswith("mvit")
        self._name = name

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the last map.

        Raises:
            ValueError: if the network does not take this size.
        """
        size, only = (num_frames, height, width), _ONLY_SIZE.get(self._name)
        if only is not None:
            if size != only:
                raise ValueError(
                    f"{self._name} takes {counted(only[0], 'frame')} of {only[1]}x{only[2]} only, got {size}"
                )
            return only[0] // 2, 7, 7
        pooled_in_time = self._name.startswith(("slowfast", "c2d", "i3d"))
        if pooled_in_time and num_frames % self.strides[0]:
            raise ValueError(
                f"{self._name} takes a multiple of {counted(self.strides[0], 'frame')}, got a clip of {size}"
            )
        t, h, w = (-(-length // stride) for length, stride in zip(size, self.strides, strict=True))
        return t, h, w

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            raise ValueError(f"{self._name} takes no mask")
        self.grid(*x.shape[2:])
        x = self.normalise(x)
        if self._name.startswith("mvit"):
            return self._mvit(x)
        if self._name.startswith("slowfast"):
            return self._slowfast(x)
        for block in self.net.blocks:
            x = block(x)
        return Features(patches=channels_last(x))

    def _slowfast(self, x: Tensor) -> Features:
        """Both pathways side by side, the fast one averaged over the frames that a slow one stands for."""
        paths = [x[:, :, ::_SLOWFAST_RATE], x]  # a list of its own: the network writes into the one it gets
        for block in self.net.blocks:
            paths = block(paths)
        slow, fast = paths
        fast = reduce(fast, "b d (t rate) h w -> b d t h w", "mean", rate=_SLOWFAST_RATE)
        return Features(patches=channels_last(torch.cat((slow, fast), dim=1)))

    def _mvit(self, x: Tensor) -> Features:
        x = self.net.cls_positional_encoding(self.net.patch_embed(x))
        size = self.net.cls_positional_encoding.patch_embed_shape
        for block in self.net.blocks:
            x, size = block(x, size)
        x = self.net.norm_embed(x)
        t, h, w = size
        return Features(patches=rearrange(x[:, 1:], "b (t h w) d -> b t h w d", t=t, h=h, w=w), cls=x[:, 0])

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """MViT's; the stages of the others, with batch norms or two pathways, are not told apart."""
        return tuple(self.net.blocks) if self._name.startswith("mvit") else ()

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        return cells_of(*cast(tuple[Tensor, GridSize], output))

    def block_norm(self) -> nn.Module:
        return cast(nn.Module, self.net.norm_embed)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """PyTorchVideo's own weights; the classifier is dropped."""
        return prefixed(state, self.net, "PyTorchVideo")


def _create(name: str) -> Any:  # what a network of the library has inside is not typed
    create = getattr(pytorchvideo_hub(), name)
    if not name.startswith("mvit"):
        return create(pretrained=False)
    wanted = torch.empty(0).device  # get_default_device() does not know of a context in torch 2.6
    with torch.device("cpu"):  # MViT's constructor computes with tensors, which the meta device cannot
        net = create(pretrained=False)
    return net.to(wanted)
