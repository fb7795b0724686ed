"""Optimizers: their keys in a recipe, and the rates, decay and clipping of every step."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from vidssl.config.schema import check_fields
from vidssl.engine import checkpoint, parallel, schedules
from vidssl.interfaces import Backbone, Objective

Decay = Literal["layers", "tables", "biases", "all"]

_WEIGHTS = ("weight", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1")
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Group(TypedDict):
    """Parameters that are updated alike.

    ``names`` are those of ``params`` in the module, ``lr_scale`` multiplies the learning rate, ``decays``
    is whether weight decay applies.
    """

    params: list[nn.Parameter]
    names: list[str]
    lr_scale: float
    decays: bool


def decayed_names(module: nn.Module, rule: Decay = "layers") -> set[str]:
    """Names of the parameters that weight decay applies to.

    Gains and biases of norms and relative position biases decay under ``all`` alone. Of the rest:

    - ``layers``: the weights of linear and convolution layers alone, as BEVT, SVT and VIMPAC
      describe;
    - ``tables``: all but biases, so also position tables, embeddings, class and mask tokens, as the released
      SVT and VIMPAC do (VIMPAC's decays the gains of its heads' norms too, for their names; not followed);
    - ``biases``: biases as well, as BEVT's released pre-training does;
    - ``all``: every parameter, as TimeSformer's training does, which spares batch norms and has none.
    """
    if rule == "layers":
        return _layer_weights(module)
    if rule == "all":
        return {name for name, _ in module.named_parameters()}
    spared = _gains(module) | {name for name, _ in module.named_parameters() if "bias_table" in name}
    if rule == "tables":
        spared |= {name for name, _ in module.named_parameters() if "bias" in name.rpartition(".")[2]}
    return {name for name, _ in module.named_parameters()} - spared


def _layer_weights(module: nn.Module) -> set[str]:
    found: set[str] = set()
    for prefix, layer in module.named_modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            found |= {f"{prefix}.{name}".lstrip(".") for name in _WEIGHTS}
        elif isinstance(layer, nn.MultiheadAttention):
            found |= {f"{prefix}.{name}".lstrip(".") for name in _ATTENTION_WEIGHTS}
    return found & {name for name, _ in module.named_parameters()}


def _gains(module: nn.Module) -> set[str]:
    """Parameters of norms and of layer scale, by what their classes are called: there is no common base."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, layer in module.named_modules()
        if re.search("norm|scale", type(layer).__name__.lower())
        for name, _ in layer.named_parameters(recurse=False)
    }


def parameter_groups(
    module: nn.Module,
    *,
    decay: Decay = "layers",
    layer_decay: float | None = None,
    encoder_lr_scale: float = 1.0,
) -> list[Group]:
    """All parameters that require a gradient, grouped; those that decay come first.

    Args:
        module: the objective; any module where the encoder is not treated apart.
        decay: see ``decayed_names``.
        layer_decay: the encoder's layer l of L learns at this to the power L - l, counted from 0 at the
            input; what stands behind the encoder at 1 (BEiT; BEVT's finetuning: 0.9). Relative position
            biases belong to their block; the release gives them the full rate, by an accident of names.
        encoder_lr_scale: multiplies the encoder's rates (BEVT on Something-Something: 0.1).

    Raises:
        ValueError: if the encoder is to be treated apart and ``module`` is no objective, its backbone does
            not name its layers, or nothing of the encoder is trained.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    scales = dict.fromkeys(trained, 1.0)
    if layer_decay is not None or encoder_lr_scale != 1.0:
        scales |= _encoder_scales(module, list(trained), layer_decay, encoder_lr_scale)
    decayed = decayed_names(module, decay)
    groups: dict[tuple[bool, float], Group] = {}
    for name, parameter in trained.items():
        decays, scale = name in decayed, scales[name]
        empty = Group(params=[], names=[], lr_scale=scale, decays=decays)
        group = groups.setdefault((decays, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: not group["decays"])


def _encoder_scales(
    module: nn.Module, trained: Sequence[str], layer_decay: float | None, encoder_lr_scale: float
) -> dict[str, float]:
    """Factor on the learning rate of each trained parameter of the encoder."""
    if not isinstance(module, Objective):
        raise ValueError("layer_decay and encoder_lr_scale ask for an objective, which has an encoder")
    encoder = module.trained_encoder()
    prefix = checkpoint.prefix_of(encoder, module)
    inside = [name for name in trained if name.startswith(prefix)]
    if not inside:
        raise ValueError("layer_decay and encoder_lr_scale act on the encoder, and nothing of it is trained")
    if layer_decay is None:
        return dict.fromkeys(inside, encoder_lr_scale)
    layers = encoder.layer_names() if isinstance(encoder, Backbone) else ()
    if not layers:
        raise ValueError(
            f"layer_decay needs to know the encoder's layers, and {type(encoder).__name__} does not name "
            "them (Backbone.layer_names); leave layer_decay out or set encoder_lr_scale"
        )
    numbers = layer_numbers([name.removeprefix(prefix) for name in inside], layers)
    return {
        name: encoder_lr_scale * layer_decay ** (len(layers) - number)
        for name, number in zip(inside, numbers, strict=True)
    }


def layer_numbers(names: Sequence[str], layers: Sequence[Sequence[str]]) -> list[int]:
    """The layer that each parameter belongs to, 0 at the input.

    Args:
        layers: for each layer the modules and parameters of it, see ``Backbone.layer_names``.

    Raises:
        ValueError: if a parameter belongs to none.
    """
    owners = {owner: number for number, layer in enumerate(layers) for owner in layer}
    numbers = []
    for name in names:
        parts = name.split(".")
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        found = next((owners[head] for head in heads if head in owners), None)
        if found is None:
            raise ValueError(f"the backbone's layer_names name no layer for its parameter '{name}'")
        numbers.append(found)
    return numbers


Clip = Literal["all", "each"]
_HIGHEST_LR = 1e30


@dataclass(frozen=True, kw_only=True)
class Update:
    """The settings that all optimizers share, described in ``Optim``.

    Raises:
        ValueError: if a number is out of its range.
    """

    lr: float
    weight_decay: float
    final_weight_decay: float | None
    clip_norm: float | None
    clip: Clip
    decay: Decay
    layer_decay: float | None
    encoder_lr_scale: float

    def __post_init__(self) -> None:
        if not 0 < self.lr * max(1.0, self.encoder_lr_scale) <= _HIGHEST_LR:
            raise ValueError(
                f"lr must be above 0 and, times encoder_lr_scale, at most {_HIGHEST_LR:g}, which float32 can "
                f"take a step of; got {self.lr}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0 or null, got {self.clip_norm}")
        if min(self.weight_decay, self.final_weight_decay or 0.0) < 0:
            raise ValueError("weight_decay and final_weight_decay cannot be negative")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie above 0 and up to 1, got {self.layer_decay}")
        if self.encoder_lr_scale <= 0:
            raise ValueError(f"encoder_lr_scale must be above 0, got {self.encoder_lr_scale}")

    @classmethod
    def of(cls, settings: "Optim") -> "Update":
        """Those of an optimizer's settings."""
        return cls(**{key.name: getattr(settings, key.name) for key in fields(cls)})

    def groups(self, module: nn.Module) -> list[Group]:
        """The groups of ``module``'s parameters that require a gradient.

        Raises:
            ValueError: as ``parameter_groups``.
        """
        return parameter_groups(
            module, decay=self.decay, layer_decay=self.layer_decay, encoder_lr_scale=self.encoder_lr_scale
        )

    def lr_at(self, plan: schedules.StepPlan, step: int) -> float:
        """The learning rate of a step, of parameters with ``lr_scale`` 1."""
        return self.lr * plan.factor(step)

    def weight_decay_at(self, plan: schedules.StepPlan, step: int) -> float:
        """The weight decay of a step."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return schedules.cosine_between(self.weight_decay, self.final_weight_decay, step, plan.total_steps)

    def set_rates(self, optimizer: Optimizer, plan: schedules.StepPlan, step: int) -> None:
        """Gives every group its learning rate and weight decay of a step."""
        lr, weight_decay = self.lr_at(plan, step), self.weight_decay_at(plan, step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0

    def clip_gradients(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Scales gradients down where ``clip_norm`` asks for it; returns the norm of all before that."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        if self.clip_norm is not None and self.clip == "each":
            return _clip_each([p.grad for p in trained if p.grad is not None], self.clip_norm)
        gradients = [p.grad for p in trained if p.grad is not None]
        sharded = parallel.in_shards(gradients)
        norm = torch.linalg.vector_norm(parallel.norms(gradients)) if sharded else get_total_norm(gradients)
        if self.clip_norm is not None:
            clip_grads_with_norm_(trained, self.clip_norm, norm)
        return norm


def _clip_each(gradients: list[Tensor], limit: float) -> Tensor:
    """Scales every tensor down to ``limit`` by itself; returns the norm of all before that."""
    if not gradients:
        return torch.zeros(())
    each = parallel.norms(gradients)
    # SVT's release, and torch for the whole gradient, add 1e-6 so that nothing is divided by 0
    torch._foreach_mul_(
        parallel.own_shards(gradients), [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in each]
    )
    return torch.linalg.vector_norm(each)


class Optim(ABC):
    """An optimizer's settings: a frozen dataclass with these keys and its own.

    Attributes:
        lr: peak learning rate, as it stands: it is not scaled with the batch size.
        weight_decay: at the first step.
        final_weight_decay: what weight decay moves to over the run along half a cosine; None holds it.
        clip_norm: a gradient longer than this is scaled down to it; None never clips.
        clip: the gradient of ``all`` parameters together is measured, or that of ``each`` alone (SVT).
        decay: which parameters decay: weights of linear and convolution "layers", "tables" and "biases" too,
            or "all".
        layer_decay: factor of the rate from one layer to the one before it; None for the same rate in all.
        encoder_lr_scale: factor of the encoder's rate; other parts, such as a head, keep ``lr``.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        Update.of(self)

    @property
    def update(self) -> Update:
        """The settings that all optimizers share."""
        return Update.of(self)

    @abstractmethod
    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer over the groups ``update.groups(module)``.

        Raises:
            ValueError: as those.
        """


@dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """AdamW; weight decay acts on the weights of linear and convolution layers, or on what ``decay`` names.

    Attributes:
        betas: of the two moments. VIMPAC's pre-training: 0.9 and 0.98.
        eps: is added to the root of the second moment.

    The other keys: ``Optim``; what is refused: ``Update``.
    """

    lr: float
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    clip: Clip = "all"
    decay: Decay = "layers"
    layer_decay: float | None = None
    encoder_lr_scale: float = 1.0

    def build(self, module: nn.Module) -> Optimizer:
        groups = self.update.groups(module)
        made = optim.AdamW(
            [dict(group) for group in groups],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=_in_one_kernel(groups) or None,
        )
        _start(made, self.weight_decay)
        return made


@dataclass(frozen=True, kw_only=True)
class SGD(Optim):
    """Stochastic gradient descent with momentum; weight decay as for ``adamw``, by default none.

    Attributes:
        momentum: of the gradient's running sum; 0 for none.
        nesterov: whether the momentum looks ahead, as in TimeSformer's training, which SVT finetunes by.

    The other keys: ``Optim``; what is refused: ``Update``.
    """

    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    clip_norm: float | None = None
    clip: Clip = "all"
    decay: Decay = "layers"
    layer_decay: float | None = None
    encoder_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie from 0 to below 1, got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        Update.of(self)

    def build(self, module: nn.Module) -> Optimizer:
        groups = self.update.groups(module)
        made = optim.SGD(
            [dict(group) for group in groups],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=_in_one_kernel(groups) or None,
        )
        _start(made, self.weight_decay)
        return made


def _in_one_kernel(groups: list[Group]) -> bool:
    """Whether PyTorch has a kernel that updates them all, in one pass over memory.

    It takes no heed of strides: a parameter that is a part of a larger tensor has gaps, its gradient none.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(
        p.device.type in ("cuda", "cpu") and torch.empty_like(p).stride() == p.stride() for p in parameters
    )


def _start(optimizer: Optimizer, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


OPTIMIZERS = {"adamw": AdamW, "sgd": SGD}
