"""Mask-then-predict: VIMPAC's first task, on backbones that read ids and on those that read pixels."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.collapse import predicted_perplexity
from vidssl.engine.gather import OwnRows, num_processes, sum_over_processes
from vidssl.grids import GridSize, common_grid, expand_mask
from vidssl.interfaces import Backbone, Features, FilledIn, LossOutput, Masker, Tokenizer
from vidssl.objectives.frozen import FrozenTokenizer
from vidssl.objectives.heads import Predictions, likeliest
from vidssl.objectives.losses import accuracy, copy_nearest, most_frequent_accuracy
from vidssl.objectives.token_prediction import LinearHeads, StagesHead

Replace = Literal["mask", "bert"]

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden cells; BERT, and VIMPAC, App. G.3


@dataclass(frozen=True)
class MaskedClips:
    """What a backbone made of clips of which part was hidden.

    Attributes:
        features: of the clips with that part hidden.
        ids: int64 [B, t, h, w], of the whole clips.
        hidden: bool [B, t, h, w], the ids to predict.
    """

    features: Features
    ids: Tensor
    hidden: Tensor


class TiedHead(nn.Module):
    """Predicts ids with the embedding that they are read with, and a bias of its own (VIMPAC, Eq. 16, 17).

    The backbone's special ids are classes as well, as published; nothing is ever one of them.
    """

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        rows, dim = embedding.shape
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)  # as in BERT; published code
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches: Tensor, hidden: Tensor, embedding: Tensor) -> Predictions:
        """Logits over the rows of ``embedding`` for the hidden cells of [B, t, h, w, D]."""
        vectors = self.norm(F.gelu(self.linear(patches[hidden])))
        return Predictions(F.linear(vectors, embedding, self.bias), hidden.flatten().nonzero()[:, 0])


def corrupt(
    ids: Tensor, groups: Tensor, vocab_size: int, generator: torch.Generator, slots: int = 1
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: of the hidden groups 80 % are masked, 10 % get random ids, 10 % stay as they are.

    Args:
        ids: int64 [B, t, h, w].
        groups: int64 [all rows, t, h, w], those of all processes; cells of a row with one number share their
            fate; -1 where nothing is hidden.
        vocab_size: random ids are below it; so are those that they may take the place of.
        slots: see ``gather.OwnRows``.

    Returns:
        The ids with the random ones put in, and bool [B, t, h, w], where to mask.
    """
    device, rows = generator.device, OwnRows(len(ids), slots)
    fates = torch.rand((rows.all, int(groups.max()) + 1), generator=generator, device=device)
    noise = torch.randint(vocab_size, (rows.all, *ids.shape[1:]), generator=generator, device=device)
    fates, noise, groups = (rows.of(drawn).to(ids.device) for drawn in (fates, noise, groups))
    fate = fates.gather(1, groups.clamp(min=0).flatten(1)).view_as(groups)
    fate = torch.where(groups < 0, 1.0, fate)
    changed = (fate >= MASKED) & (fate < MASKED + RANDOM) & (ids < vocab_size)
    return torch.where(changed, noise, ids), fate < MASKED


class MaskThenPredict(nn.Module):
    """Hides part of a clip's ids and predicts them from the rest (VIMPAC, Sec. 3.1, Eq. 1).

    Over a backbone that reads ids the head is VIMPAC's, tied to its embedding. Over one that reads pixels
    it is BEVT's: a decoder where there are stages, else one linear layer.

    Args:
        replace: what stands in the place of hidden ids, see ``VIMPAC``.
    """

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker, *, replace: Replace) -> None:
        super().__init__()
        if not backbone.takes_mask:
            raise ValueError(f"part of the input is hidden, and {type(backbone).__name__} takes no mask")
        if replace not in ("mask", "bert"):
            raise ValueError(f"replace must be 'mask' or 'bert', got '{replace}'")
        if replace == "bert" and backbone.input_kind == "pixels":
            raise ValueError(
                f"replace 'bert' puts random ids in the place of some, and {type(backbone).__name__} reads "
                "pixels: set replace to 'mask', or take a backbone that reads ids"
            )
        self.backbone = backbone
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.masker = masker
        self.replace = replace
        self.vocab_size = tokenizer.vocab_size
        embedding = backbone.token_embedding()
        if embedding is not None:
            self.head: TiedHead | StagesHead | LinearHeads = TiedHead(embedding)
        elif len(backbone.stage_dims) > 1:
            self.head = StagesHead(backbone, tokenizer, ("video",))
        else:
            self.head = LinearHeads(backbone, tokenizer, ("video",))

    def encode_masked(self, clips: Tensor, generator: torch.Generator, slots: int = 1) -> MaskedClips:
        """Draws a mask for each clip and encodes what it leaves.

        Args:
            clips: [B, 3, T, H, W] in [0, 1], or ids [B, t, h, w] already; those that are none of the
                tokenizer's (padding) are neither hidden nor predicted.
            slots: how many clips of each video follow one another, see ``gather.OwnRows``.
        """
        ids = ids_of(clips, self.tokenizer)
        id_grid: GridSize = tuple(ids.shape[1:])  # type: ignore[assignment]
        predictable, rows = ids < self.vocab_size, OwnRows(len(ids), slots)
        if self.replace == "bert":
            groups = self.masker.groups(rows.all, id_grid, generator)
            seen, mask = corrupt(ids, groups, self.vocab_size, generator, slots)
            hidden = (rows.of(groups).to(ids.device) >= 0) & predictable
            return MaskedClips(self.backbone(seen, mask), ids, hidden)
        reads = reads_of(clips, ids, self.backbone)
        grid = self.backbone.grid(*reads.shape[-3:])
        mask = rows.of(self.masker(rows.all, common_grid(grid, id_grid), generator)).to(ids.device)
        hidden = expand_mask(mask, id_grid) & predictable
        return MaskedClips(self.backbone(reads, expand_mask(mask, grid)), ids, hidden)

    def encode_whole(self, clips: Tensor, ids: Tensor) -> Features:
        """Features of clips with nothing hidden, given their ids too."""
        return self.backbone(reads_of(clips, ids, self.backbone))

    def forward(self, masked: MaskedClips) -> LossOutput:
        """Cross-entropy, mean over the hidden ids of all processes, and what is logged of it.

        In training the metrics hold the variety of the predicted ids as well, in evaluation mode two
        baselines at the same positions, see ``losses``.
        """
        predictions = self._predict(masked)
        targets = masked.ids.flatten()[predictions.positions]
        if not len(targets) and num_processes() == 1:
            raise ValueError("no id is hidden in the whole batch: all clips are padding")
        # processes may have hidden different numbers of ids; the mean of their losses is to be that over all
        count = sum_over_processes(torch.tensor(float(len(targets)), device=targets.device)) / num_processes()
        loss = F.cross_entropy(predictions.logits, targets, reduction="sum") / count
        # of the means below; one of nothing is no number, and counts for nothing
        share = len(targets) / count if num_processes() > 1 else 1.0
        metrics = {
            "loss_mask": loss.detach(),
            "loss_mask_of_chance": loss.detach() / math.log(max(2, self.vocab_size)),
            "accuracy_mask": (accuracy(predictions.logits.detach(), targets) * share).nan_to_num(),
        }
        if self.training:
            metrics["predicted_perplexity_mask"] = predicted_perplexity(predictions.logits)
        else:
            copied = copy_nearest(masked.ids, masked.hidden).flatten()[predictions.positions]
            metrics["most_frequent_mask"] = most_frequent_accuracy(targets)
            metrics["copy_nearest_mask"] = ((copied == targets).float().mean() * share).nan_to_num()
        return LossOutput(loss, metrics)

    @torch.no_grad()
    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        """What is predicted where clips are hidden; arguments as those of ``encode_masked``."""
        masked = self.encode_masked(clips, generator)
        predicted = likeliest(masked.ids, self._predict(masked), self.vocab_size)
        return FilledIn(masked.ids, masked.hidden, predicted)

    def _predict(self, masked: MaskedClips) -> Predictions:
        if not isinstance(self.head, TiedHead):
            return self.head("video", masked.features, masked.hidden, self.backbone.final_norm())
        embedding = self.backbone.token_embedding()
        if embedding is None:
            raise ValueError("the backbone had an embedding when the head was built, and has none now")
        return self.head(masked.features.patches, masked.hidden, embedding)


def ids_of(clips: Tensor, tokenizer: FrozenTokenizer) -> Tensor:
    """Ids int64 [B, t, h, w] of clips [B, 3, T, H, W]; those that are ids already are taken as they are."""
    return clips.long() if clips.dim() == 4 else tokenizer(clips)


def reads_of(clips: Tensor, ids: Tensor, backbone: Backbone) -> Tensor:
    """What the backbone reads of both.

    Raises:
        ValueError: if it reads pixels, and the clips are stored as ids.
    """
    if backbone.input_kind == "tokens":
        return ids
    if clips.dim() == 4:
        raise ValueError(f"{type(backbone).__name__} reads pixels, and the clips are given as ids")
    return clips
