"""Memory and communication of the papers' recipes on many GPUs, counted on the meta device: no run was made.

    python docs/measure_scale.py

Prints the table of docs/long_runs.md, section "Memory and traffic, counted". Parameters are those of the
objectives as they are built. What the forward pass keeps for the backward pass is counted as PyTorch keeps
it, on two clips of every view, in fp32.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vidssl.build import build
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.engine.speed import on_meta
from vidssl.interfaces import HasBlocks, Objective, Progress
from vidssl.train.trial import frozen_tokenizer, random_batch

RECIPES = ("bevt", "svt", "vimpac_large_128", "videomae_base_k400", "vjepa2_large", "levjepa_base")
GPUS = (8, 64, 512)
GIB = 2**30
BYTES = 4  # of a parameter, a gradient, a moment: all are kept in fp32


@dataclass(frozen=True)
class Counts:
    """Numbers of an objective.

    Attributes:
        trained: parameters that have gradients.
        averaged: parameters that follow others.
        frozen: of a tokenizer.
        largest: parameters of the largest piece that FSDP brings together at once: a block, or all else.
        gathered: parameters that FSDP brings together in a step: a block for each call, once more where that
            has a backward pass; what is in no block for the whole of either.
        kept: bytes for the backward pass, of one sample of every stream.
    """

    trained: int
    averaged: int
    frozen: int
    largest: int
    gathered: int
    kept: float


def count(name: str) -> Counts:
    recipe = load_recipe(
        f"paper/{name}", ["data.video.batch_size=2", "run.accumulate=1", *PAIRS.get(name, ())]
    )
    with on_meta():
        objective = build.untrained(recipe)
    tokenizer = frozen_tokenizer(objective)
    blocks = [
        block
        for part in objective.modules()
        for block in (part.blocks_in_order() if isinstance(part, HasBlocks) else ())
    ]
    sizes = [numbers(block.parameters()) for block in blocks]
    rest, gathered = numbers(objective.parameters()) - sum(sizes), list[int]()

    def note(block: nn.Module, given: object) -> None:
        backward = torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters())
        gathered.append(numbers(block.parameters()) * (2 if backward else 1))

    for block in blocks:
        block.register_forward_pre_hook(note)
    kept = kept_bytes(objective, recipe) / 2
    return Counts(
        trained=numbers(p for p in objective.parameters() if p.requires_grad),
        averaged=numbers(p for p in objective.parameters() if not p.requires_grad),
        frozen=0 if tokenizer is None else numbers(tokenizer.parameters()),
        largest=max(*sizes, rest),
        gathered=sum(gathered) + 2 * rest,
        kept=kept,
    )


# two videos have one negative; two clips of two streams are as many
PAIRS = {
    "vimpac_large_128": ("objective.negatives=1",),
    "bevt": ("data.image.batch_size=2",),
}


def numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


class Zeros(TorchDispatchMode):
    """Every number that is asked for is 0: on the meta device there are none."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asks = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        if asks and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention as GPUs have it, without its matrix of weights; the meta device would take the plain one."""
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def kept_bytes(objective: Objective, recipe: Recipe) -> int:
    """What a forward pass keeps besides parameters, each storage once."""
    batch = random_batch(recipe).to(torch.device("meta"))
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    off = patch("torch.autocast", lambda *given, **keys: nullcontext())  # meta knows no autocast
    plain = patch("torch.nn.functional.scaled_dot_product_attention", fused)
    with off, plain, Zeros(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = objective.train()(batch, Progress(0, 100), torch.Generator().manual_seed(0))
    own = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    total = sum(size for place, (size, _) in kept.items() if place not in own)
    del output
    return total


def main() -> None:
    heads = "trained; averaged; frozen, M | kept a sample, GiB | state, GiB: DDP | FSDP2"
    print(f"| recipe, on {'; '.join(map(str, GPUS))} GPUs | {heads} | traffic a step, GiB: DDP | FSDP2 |")
    print("| --- |" + " ---: |" * 6)
    for name in RECIPES:
        each = count(name)
        millions = "; ".join(f"{number / 1e6:.0f}" for number in (each.trained, each.averaged, each.frozen))
        shares = [(gpus - 1) / gpus for gpus in GPUS]
        # DDP's buckets are a second copy of the gradients
        state = BYTES * (5 * each.trained + each.averaged + each.frozen) / GIB
        sharded = [
            BYTES * ((4 * each.trained + each.averaged) / gpus + each.frozen + 2 * each.largest)
            for gpus in GPUS
        ]
        ddp = [BYTES * 2 * share * each.trained for share in shares]
        fsdp = [BYTES * share * (each.gathered + each.trained) for share in shares]
        cells = ["; ".join(f"{value / GIB:.2f}" for value in values) for values in (sharded, ddp, fsdp)]
        kept = f"{each.kept / GIB:.2f} | {state:.2f}"
        print(f"| `{name}` | {millions} | {kept} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
