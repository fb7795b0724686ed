"""Optimizers, with the parameter groups they make."""

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer


def decayed_names(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay applies to: weights of linear and convolution layers.

    Biases, norms, position tables, relative position biases, class and mask tokens are left alone, which
    is what BEVT, SVT and VIMPAC say they do (BEVT's released code decays most biases: see its notes).
    """
    return {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
    }


class AdamW:
    """AdamW; weight decay acts on the weights of linear and convolution layers only."""

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_norm: float | None = None,
    ) -> None:
        """
        Args:
            lr: peak learning rate, as it stands: it is not scaled with the batch size.
            clip_norm: the whole gradient is scaled down to this norm when it is larger; None never clips.

        Raises:
            ValueError: if a number is out of its range.
        """
        if lr <= 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0 or null, got {clip_norm}")
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.clip_norm = clip_norm

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer over ``module``'s parameters that require a gradient."""
        decayed = decayed_names(module)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": self.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        return TorchAdamW([g for g in groups if g["params"]], lr=self.lr, betas=self.betas)


OPTIMIZERS = {"adamw": AdamW}
