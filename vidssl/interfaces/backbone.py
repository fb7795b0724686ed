"""Networks from clips to features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch.export's own registration takes a second to import

from vidssl.errors import UsageError
from vidssl.interfaces.grids import GridSize, divide_exactly
from vidssl.interfaces.pretrained import Recorded, load_pretrained, save_pretrained

InputKind = Literal["pixels", "tokens"]
MapLayout = Literal["NCTHW", "NTHWC"]
Made = TypeVar("Made", bound="Backbone")


@dataclass(frozen=True)
class Features:
    """A backbone's output for a batch.

    Attributes:
        patches: [B, t, h, w, D], the last stage.
        cls: [B, D], or None for a backbone without a class token.
        stages: one [B, t, h, w, D_i] a stage, finest first; empty for a backbone of one scale.
        summary: [B, D], one vector of the whole clip where a backbone makes its own of the patches.
        levels: one [B, t, h, w, D] for each depth that features are taken at, shallowest first, the last one
            ``patches``; empty where there is one depth.
    """

    patches: Tensor
    cls: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    summary: Tensor | None = None
    levels: tuple[Tensor, ...] = ()

    def pooled(self) -> Tensor:
        """One vector a clip, [B, D]: the backbone's own, or the class token, or the mean over patches."""
        if self.summary is not None:
            return self.summary
        return self.patches.mean(dim=(1, 2, 3)) if self.cls is None else self.cls

    def pooled_stages(self) -> Tensor:
        """The means of all stages side by side, [B, sum of D_i]; ``pooled()`` where there are no stages."""
        if not self.stages:
            return self.pooled()
        return torch.cat([stage.mean(dim=(1, 2, 3)) for stage in self.stages], dim=1)


def _flatten(features: Features) -> tuple[list[object], None]:
    found = (getattr(features, each.name) for each in fields(Features))
    return [list(part) if isinstance(part, tuple) else part for part in found], None


def _unflatten(parts: Iterable[object], context: None) -> Features:
    given = (tuple(part) if isinstance(part, list) else part for part in parts)
    return Features(*given)  # type: ignore[arg-type]


# so that torch.export and torch.func take networks that return them
pytree.register_pytree_node(Features, _flatten, _unflatten, serialized_type_name="vidssl.Features")


@dataclass(frozen=True)
class VisibleFeatures:
    """Features of the visible cells alone of a batch.

    Attributes:
        patches: [B, n, D], the last stage, a row a visible cell.
        places: int64 [B, n], each cell's number on the flattened grid, t, then h, then w.
        grid: of the whole clips, (t, h, w).
        cls: [B, D], or None for a backbone without a class token.
        levels: as of ``Features``, each [B, n, D].
    """

    patches: Tensor
    places: Tensor
    grid: GridSize
    cls: Tensor | None = None
    levels: tuple[Tensor, ...] = ()

    def pooled(self) -> Tensor:
        """One vector a clip, [B, D]: the class token, or the mean over the visible cells."""
        return self.patches.mean(dim=1) if self.cls is None else self.cls


_BRIGHTEST = 16.0  # far above what augmentations make of 1; any but a black clip in [0, 255] exceeds it


_SEEN_ON_GPU: WeakSet[nn.Module] = WeakSet()


def check_clip(x: Tensor, reader: nn.Module) -> None:
    """Refuse what is no clip in [0, 1].

    Values are looked at on a CPU; on a GPU, where that would wait for it, at a reader's first clips alone;
    where the pass is traced or compiled not at all.

    Raises:
        UsageError: if it is not floating point [B, 3, T, H, W], or lies in [0, 255].
    """
    owner = type(reader).__name__
    if not isinstance(x, Tensor) or x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point():
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(
            f"{owner} takes clips, float32 [B, 3, T, H, W] in [0, 1], got {given}. Images are clips of one "
            "frame, x.unsqueeze(2); bytes of a loader are divided by 255, batch.to(device)"
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type == "meta" or not x.numel():
        return
    if x.device.type != "cpu":
        if reader in _SEEN_ON_GPU:
            return
        _SEEN_ON_GPU.add(reader)
    high = float(x.detach().max())
    if high > _BRIGHTEST:
        raise UsageError(f"{owner} takes clips in [0, 1], got values up to {high:.4g}: divide pixels by 255")


@dataclass(frozen=True)
class Translated:
    """Weights of another project under a backbone's own keys.

    Attributes:
        state: own key -> tensor of the own shape.
        layout: whose layout it was, e.g. "SVT, published".
        reshaped: own keys whose tensors were resized, inflated, copied or zeroed.
        dropped: keys of the source that the backbone has no use for (heads, decoders, tokenizers).
    """

    state: Mapping[str, Tensor]
    layout: str
    reshaped: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class Backbone(Recorded, nn.Module, ABC):
    """A network from clips (or token ids) to features. It never learns which paper it serves.

    Beside ``forward`` there is what users of timm and of the hub expect: ``num_features``,
    ``forward_features``, ``forward_intermediates``, ``save_pretrained`` and ``from_pretrained``.

    A constructor sets ``embed_dim`` (D of ``Features.pooled()``), ``strides`` (frames, rows and columns
    of pixels that one cell of ``grid`` spans; of ids where it reads those) and, if it has stages,
    ``stage_dims`` and ``stage_strides``, finest first. ``gives_cls`` is whether ``Features.cls`` is there,
    ``num_levels`` at how many depths ``Features.levels`` are taken.
    One that reads ids also sets ``vocab_size``, how many different ones a tokenizer may give it.
    ``started_from``: the weights that ``load_init`` has given it, None for random ones.
    ``toy``: constructor arguments of a small one, for the tests that every backbone passes.
    """

    input_kind: ClassVar[InputKind] = "pixels"
    takes_mask: ClassVar[bool] = True
    toy: ClassVar[Mapping[str, object]] = {}
    embed_dim: int
    strides: GridSize
    vocab_size: int | None = None
    started_from: str | None = None
    gives_cls: bool = False
    num_levels: int = 1
    stage_dims: tuple[int, ...] = ()
    stage_strides: tuple[GridSize, ...] = ()

    @property
    def num_features(self) -> int:
        """Width D of ``Features.pooled()``, as timm calls it."""
        return self.embed_dim

    def forward_features(self, x: Tensor) -> Tensor:
        """The last layer's tokens [B, N, D], not pooled, as timm gives them: a class token, if any, first.

        Args:
            x: as for ``forward``.
        """
        made = self(x)
        patches = made.patches.flatten(1, 3)
        return patches if made.cls is None else torch.cat((made.cls[:, None], patches), dim=1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: MapLayout = "NCTHW",
        intermediates_only: bool = False,
    ) -> object:
        """What blocks give, and the last layer's tokens: timm's ``forward_intermediates`` for clips.

        Args:
            x: as for ``forward``.
            indices: numbers of blocks, negative ones from the end; a number n for the last n; None for all.
            return_prefix_tokens: each map comes with the tokens before its patches, ``(map, [B, P, D])``.
            norm: the last norm is applied to each map, as to the last layer's.
            output_fmt: of the maps: [B, D, t, h, w], or with the channels last.
            intermediates_only: leave out the last layer's tokens.

        Returns:
            ``forward_features(x)`` and a list of maps; the list alone if ``intermediates_only``.

        Raises:
            UsageError: if the network does not know its blocks, or has none of that number.
        """
        blocks = self.blocks_in_order() if isinstance(self, HasBlocks) else ()
        if not isinstance(self, HasBlocks) or not blocks:
            raise UsageError(f"{type(self).__name__} does not know its blocks: take forward, its last layer")
        wanted = block_numbers(indices, len(blocks))
        found: dict[int, object] = {}
        with ExitStack() as hooks:
            for number in wanted:
                keep = _keeper(found, number)
                hooks.enter_context(blocks[number].register_forward_hook(keep))
            last = self.forward_features(x)
        frames = x.shape[2:] if self.input_kind == "pixels" else x.shape[1:]
        maps = []
        for number in wanted:
            cells, prefix = self.block_cells(found[number], self.grid(*frames))
            if norm:
                apply = self.block_norm()
                cells, prefix = apply(cells), None if prefix is None else apply(prefix)
            cells = cells.movedim(-1, 1) if output_fmt == "NCTHW" else cells
            maps.append((cells, prefix) if return_prefix_tokens else cells)
        return maps if intermediates_only else (last, maps)

    def save_pretrained(self, folder: str) -> None:
        """Write ``model.safetensors`` and ``config.json``, from which ``from_pretrained`` makes it again.

        Args:
            folder: is made if it is not there.
        """
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls: type[Made], folder: str) -> Made:
        """The network that a folder holds, in eval mode; ``vidssl.api.load`` finds its class by itself.

        Nothing in the folder is executed.

        Args:
            folder: that ``save_pretrained`` or ``vidssl push`` wrote, or ``hf:NAME`` of one on the hub.

        Raises:
            UsageError: if it holds no network of this class, or its weights are of another size.
        """
        return load_pretrained(folder, lambda name: cls if name == cls.__name__ else None)

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the input of this size; masks are drawn on them.

        An image (one frame) is one cell deep whatever the temporal stride.

        Raises:
            ValueError: if the backbone does not take this size.
        """
        temporal = 1 if num_frames == 1 else self.strides[0]
        return divide_exactly((num_frames, height, width), (temporal, *self.strides[1:]), type(self).__name__)

    def final_norm(self) -> nn.Module | None:
        """The norm that makes ``Features.patches`` of the last stage, None where there is none of its own.

        BEVT's decoder ends in the encoder's own norm, which is thereby trained.
        """
        return None

    def token_embedding(self) -> Tensor | None:
        """Vectors [V or more, D] of the ids that are read, a row an id; None where there are none.

        VIMPAC's token head predicts with the same matrix.
        """
        return None

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        """Modules and parameters by layer, the input's embeddings first, for rates that fall with depth.

        Every parameter lies in one of them, the last norm in the last layer. Empty for a network that does
        not know its layers.
        """
        return ()

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights in a published layout, as this network's own; None if it is no layout that it knows.

        What the source lacks stays out of ``Translated.state`` and keeps its fresh values. Nothing of the
        network is changed.
        """
        return None

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """``forward``, and the contract of its input and output.

        Raises:
            UsageError: for clips that are not float in [0, 1], or if no ``Features`` come back.
        """
        if self.input_kind == "pixels":
            check_clip(x, self)
        made = super().__call__(x) if mask is None else super().__call__(x, mask)
        if not isinstance(made, Features):
            raise UsageError(
                f"{type(self).__name__}: forward returned {type(made).__name__}, expected Features"
            )
        return made

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Features of a batch.

        Args:
            x: [B, 3, T, H, W] in [0, 1], or int64 ids [B, t, h, w] where ``input_kind`` is "tokens".
                T = 1 is an image.
            mask: bool [B, *grid], True where the input is hidden.
        """


def _keeper(found: dict[int, object], number: int) -> Callable[[nn.Module, object, object], None]:
    """A hook that keeps what a block returns."""

    def keep(block: nn.Module, given: object, output: object) -> None:
        found[number] = output

    return keep


class ResizesWindows(ABC):
    """A backbone whose attention is in windows, and that takes weights of other windows.

    Attributes:
        window: its own, in cells.
    """

    window: GridSize

    @abstractmethod
    def translate_windows(self, state: Mapping[str, Tensor], window: GridSize | None) -> Translated | None:
        """``Backbone.translate`` for weights of which the window is known.

        Args:
            window: cells that they were trained with; None where only the weights can tell.

        Raises:
            UsageError: if their tables are not of that window, or of several possible ones.
        """


class ClassAttention(ABC):
    """A backbone that can say what its class token attends to."""

    @abstractmethod
    def class_attention(self, x: Tensor) -> Tensor:
        """How much of each patch the class token takes in the last block, [B, heads, t, h, w].

        Softmax weights; the one of the class token over its own value is left out.

        Args:
            x: as for ``forward``.

        Raises:
            ValueError: if this one was made without a class token.
        """


class HasBlocks(ABC):
    """A backbone of blocks that follow one another, for what is done block by block."""

    @abstractmethod
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """The blocks, each run once in a forward pass; empty for a network whose blocks are not known.

        A block's output depends on its arguments, its parameters and torch's global random generators
        alone, and it changes nothing but statistics of batch norms.
        """

    def block_cells(self, output: object, grid: GridSize) -> tuple[Tensor, Tensor | None]:
        """What a block returned as a map [B, t, h, w, D], and the tokens before its patches [B, P, D].

        By default of blocks that return tokens [B, P + t*h*w, D], cell by cell along t, then h, then w.

        Args:
            grid: (t, h, w) of the input's cells.
        """
        return cells_of(cast(Tensor, output), grid)

    def block_norm(self) -> nn.Module:
        """The norm behind the last block; by default none."""
        return nn.Identity()


def cells_of(tokens: Tensor, grid: GridSize) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, P + t*h*w, D] as a map [B, t, h, w, D] and what stands before it, [B, P, D]."""
    prefix = tokens.shape[1] - grid[0] * grid[1] * grid[2]
    return tokens[:, prefix:].unflatten(1, grid), tokens[:, :prefix] if prefix else None


def block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Numbers of blocks from 0 on, as ``forward_intermediates`` reads them.

    Raises:
        UsageError: if there is no such block.
    """
    if indices is None:
        return list(range(depth))
    given = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    wrong = [number for number in given if not -depth <= number < depth]
    if wrong or not given:
        raise UsageError(f"there is no block {wrong[0] if wrong else indices}: they are 0 to {depth - 1}")
    return [number % depth for number in given]


class EncodesVisible(ABC):
    """A backbone that can leave hidden cells out, so that the cost of a pass falls with their number.

    Attributes:
        encodes_visible: whether this one can; set by a constructor of which a key decides it.
        visible_needs: that key and its value, as messages show them; empty where every one can.
    """

    encodes_visible: bool = True
    visible_needs: ClassVar[str] = ""

    @abstractmethod
    def forward_visible(self, x: Tensor, keep: Tensor) -> VisibleFeatures:
        """Features of the cells ``keep``, computed as if the others did not exist.

        With all cells kept, in any order, each has the features that ``forward`` gives it.

        Args:
            x: as for ``forward``.
            keep: int64 [B, n], numbers of the visible cells on the flattened grid, no cell twice.

        Raises:
            ValueError: if ``keep`` is not [B, n], or this one was made such that it cannot.
        """


def check_keep(x: Tensor, keep: Tensor, net: EncodesVisible) -> None:
    """Refuse what ``forward_visible`` cannot take.

    Raises:
        ValueError: if ``keep`` is not int64 [B, n], n above 0, or the network cannot leave cells out.
    """
    name = type(net).__name__
    if not net.encodes_visible:
        raise ValueError(f"{name} can leave hidden cells out with {net.visible_needs} only")
    if keep.dtype != torch.int64 or keep.dim() != 2 or len(keep) != len(x) or not keep.shape[1]:
        raise ValueError(
            f"{name}: keep must be int64 [{len(x)}, n], the numbers of n visible cells of each clip, got "
            f"{keep.dtype} {[*keep.shape]}"
        )
