"""Switches of the section ``run`` that change a step's speed and memory, and not what it computes.

``prepare`` puts them into effect on an objective, once, before anything (DDP, FSDP) wraps it. Parameters,
their names and their values stay as they are.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vidssl.config.recipe import RunSpec
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, HasBlocks, TrainableTokenizer

R = TypeVar("R")

# compiled forms of one piece of code that dynamo keeps before it gives up and runs it uncompiled: all blocks
# of a network are one piece, a form each for every width, shape, mode and precision
_COMPILED_FORMS = 128


def prepare(objective: nn.Module, run: RunSpec) -> None:
    """Puts ``channels_last``, ``activation_checkpointing`` and ``compile`` into effect, in place.

    Args:
        objective: on its device.

    Raises:
        UsageError: for a switch that the networks do not allow or the machine cannot do.
    """
    refused = refusal(objective, run)
    if refused is not None:
        raise UsageError(f"run.{refused[0]}: {refused[1]}")
    if run.channels_last:
        for convolution in _gaining(objective):
            _put_channels_last(convolution)
    blocks = [block for network in _networks(objective) for block in _blocks(network)]
    if run.activation_checkpointing:
        for block in blocks:
            _compute_again(block)
    if run.compile:
        _compile(blocks)


def refusal(objective: nn.Module, run: RunSpec) -> tuple[str, str] | None:
    """The first switch that the objective's networks do not allow, and why; None if there is none."""
    networks = _networks(objective)
    for key, wanted in (("compile", run.compile), ("activation_checkpointing", run.activation_checkpointing)):
        if not wanted:
            continue
        if not networks:
            return key, "goes block by block, and this objective trains no backbone: leave it out"
        for network in networks:
            if not _blocks(network):
                return key, f"the blocks of this {type(network).__name__} are not known: leave it out"
    if run.activation_checkpointing:
        for network in networks:
            if any(isinstance(part, _BatchNorm) for block in _blocks(network) for part in block.modules()):
                return "activation_checkpointing", (
                    f"the blocks of this {type(network).__name__} hold batch norms, whose running statistics "
                    "would count every batch twice: leave it out"
                )
    if run.channels_last and not _gaining(objective):
        return "channels_last", (
            "there is no convolution that overlaps in what is trained, so nothing to gain: leave it out"
        )
    return None


def _networks(objective: nn.Module) -> list[Backbone]:
    """Every backbone of an objective: that which is trained, and averages of it."""
    return [module for module in objective.modules() if isinstance(module, Backbone)]


def _blocks(network: Backbone) -> tuple[nn.Module, ...]:
    return network.blocks_in_order() if isinstance(network, HasBlocks) else ()


# channels last


def _gaining(objective: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    """Convolutions of backbones and tokenizers under training, but for those that cut into patches.

    Frozen tokenizers are left alone: ids do not depend on how fast they are made.
    """
    parts = [part for part in objective.modules() if isinstance(part, Backbone | TrainableTokenizer)]
    return [
        module
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size != module.stride
    ]


def _put_channels_last(convolution: nn.Conv2d | nn.Conv3d) -> None:
    """Lays out the weights so that what the convolution gives has its channels last in memory."""
    layout = torch.channels_last if isinstance(convolution, nn.Conv2d) else torch.channels_last_3d
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)


# activations computed again


def _compute_again(block: nn.Module) -> None:
    """Lets a block keep its inputs alone; the rest is computed again for the gradient, draws included."""
    # a partial, which ``copy.deepcopy`` binds to the copy; a closure would keep this block's weights
    block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., R], *args: object) -> R:
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True)


# compiling


def _compile(blocks: Sequence[nn.Module]) -> None:
    _check_compiler(next(blocks[0].parameters()).device)
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, _COMPILED_FORMS)
    for block in blocks:
        # in place: names of parameters stay. Shapes are few and stay; draws are those of the uncompiled block
        block.compile(dynamic=False, options={"fallback_random": True})


def _check_compiler(device: torch.device) -> None:
    """
    Raises:
        UsageError: if torch.compile has nothing to compile with on this machine.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise UsageError(
                "run.compile: needs the package triton for a GPU; install it, or set it to false"
            )
        return
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise UsageError(
            f"run.compile: needs a C++ compiler for the CPU, and there is no '{wanted}': install it, name "
            "another in the environment variable CXX, or set it to false"
        )


# same numbers from the same seed


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within it, PyTorch takes only algorithms that give the same numbers in every run; restored after it.

    On a CPU that is so anyway. ``on=False`` changes nothing.

    Raises:
        UsageError: in place of PyTorch's error, where an operation has no such algorithm.
    """
    if not on:
        yield
        return
    # read when cuBLAS makes its first handle
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(
            f"run.deterministic: {str(error).split('.')[0]}. Set run.deterministic=false, or run on a CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
