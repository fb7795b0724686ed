"""Which parameters decay, and at which share of the learning rate each of them learns."""

import re
from collections.abc import Sequence
from typing import Literal, TypedDict

from torch import nn
from torch.nn.modules.conv import _ConvNd

from vidssl.engine.checkpoint import prefix_of
from vidssl.interfaces import Backbone, Objective

Decay = Literal["layers", "tables", "biases", "all"]

_WEIGHTS = ("weight", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1")
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Group(TypedDict):
    """Parameters that are updated alike.

    ``names`` are those of ``params`` in the module, ``lr_scale`` multiplies the learning rate, ``decays``
    says whether weight decay applies.
    """

    params: list[nn.Parameter]
    names: list[str]
    lr_scale: float
    decays: bool


def decayed_names(module: nn.Module, rule: Decay = "layers") -> set[str]:
    """Names of the parameters that weight decay applies to.

    Gains and biases of norms and relative position biases decay under ``all`` alone. Of the rest:

    - ``layers``: the weights of linear and convolution layers alone, which is what BEVT, SVT and VIMPAC
      say they do;
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
    """The share of the learning rate of each trained parameter of the encoder."""
    if not isinstance(module, Objective):
        raise ValueError("layer_decay and encoder_lr_scale ask for an objective, which has an encoder")
    encoder = module.trained_encoder()
    prefix = prefix_of(encoder, module)
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
