"""Switches of the section ``run`` that change a step's speed and memory, and not what it computes.

``prepare`` puts them into effect on an objective, once, before anything (DDP, FSDP) wraps it. Parameters,
their names and their values stay as they are.

Device, precision and the memory at hand are worked out here too.
"""

import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vidssl.config.recipe import RunSpec
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, HasBlocks, TrainableTokenizer

R = TypeVar("R")

_log = logging.getLogger(__name__)

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
    for block in blocks if run.activation_checkpointing else ():
        if run.activation_checkpointing is True:
            _compute_again(block)
        for layer in _lean(block) if run.activation_checkpointing == "elementwise" else ():
            layer.lean = True
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
            if wanted == "elementwise" and not any(map(_lean, _blocks(network))):
                return key, f"no layer of this {type(network).__name__} knows 'elementwise': take true"
    if run.activation_checkpointing is True:
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


class Lean(nn.Module):
    """A layer that keeps less for the gradient where ``lean`` is set (``run.activation_checkpointing``)."""

    lean = False

    def kept_inputs(self, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        """What ``function`` makes of ``inputs``; of a lean layer they are all that is kept for the gradient.

        What else it keeps is computed again in the backward pass, up to its last operation and without that.
        Where this is a matrix product, only what goes before it, element by element, is computed twice. Bits
        stay the same. Blocks that are compiled decide for themselves what they keep.
        """
        if not self.lean or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _lean(block: nn.Module) -> list[Lean]:
    return [layer for layer in block.modules() if isinstance(layer, Lean)]


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
        # in place: names of parameters stay. Shapes are few and stay; the same paths are dropped
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


Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: Device) -> torch.device:
    """The device of a recipe's ``run.device``: ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: if CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, and torch sees no CUDA device; use run.device=cpu or auto")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


_DRAWS = {  # and what a truncated normal is made of
    Tensor.normal_, nn.init.normal_, nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.xavier_normal_,
    Tensor.uniform_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_,
    Tensor.erfinv_, Tensor.clamp_,
}  # fmt: skip


class _NoDraws(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if func in _DRAWS and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        if func is torch.randn and not kwargs:  # neither another device nor a generator
            func = torch.empty
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """``torch.device("meta")``, on which networks have shapes and no memory, without random draws.

    There is nothing to draw, and PyTorch would go through Python for it, and for normal draws import its
    compiler, which takes a second or two.
    """
    with torch.device("meta"), _NoDraws():
        yield


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Type of the forward pass of training, None for full precision; "auto" as ``use_bfloat16``."""
    if use_bfloat16(precision, device):
        return torch.bfloat16
    if precision != "fp16":
        return None
    _note_emulation("fp16", device.type)
    return torch.float16


def use_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast: when asked to, or under ``auto`` on a GPU that has units
    for it.

    What is only measured (features, test metrics) runs so too, but never under float16, where it is the scale
    of the loss that keeps small numbers.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision != "bf16":
        return False
    _note_emulation("bf16", device.type)
    return True


@cache  # once in a process
def _note_emulation(precision: Literal["bf16", "fp16"], device: str) -> None:
    """Says so where products on this CPU go through a reference kernel, number by number."""
    if device == "cpu" and torch.backends.mkldnn.is_available():
        known = torch.ops.mkldnn
        fast = known._is_mkldnn_bf16_supported if precision == "bf16" else known._is_mkldnn_fp16_supported
        if not fast():
            _log.warning(
                f"run.precision {precision}: this CPU has no instructions for it; auto is many times as fast"
            )


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use so far: of the GPU by tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def loss_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler:
    """PyTorch's scaler, at work under float16 alone; under any other type its methods do what they are named.

    Args:
        dtype: of the forward pass, None for full precision.
    """
    return GradScaler(device.type, enabled=dtype == torch.float16)


def scale_of(scaler: GradScaler) -> float | None:
    """Factor of the loss; None where it is not scaled."""
    return scaler.get_scale() if scaler.is_enabled() else None


def lower(scaler: GradScaler) -> None:
    """Halves the scale after a step that was not taken; all processes come to the same one."""
    if scaler.is_enabled():
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())


def scale_metrics(scaler: GradScaler) -> dict[str, float]:
    """For the log: ``loss_scale``, where there is one."""
    scale = scale_of(scaler)
    return {} if scale is None else {"loss_scale": scale}


def scaler_tensors(scaler: GradScaler) -> dict[str, Tensor]:
    """State for a resume: the scale, and the steps since it last changed; ``load_scaler`` takes it back."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {
        "scale": torch.tensor(state["scale"], dtype=torch.float64),
        "steps": torch.tensor(state["_growth_tracker"]),
    }


def load_scaler(scaler: GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state of ``scaler_tensors``; there is none of a run that was not in float16."""
    if scaler.is_enabled() and tensors:
        state = {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["steps"])}
        scaler.load_state_dict({**scaler.state_dict(), **state})
