"""The toy model of tests/golden/svt with the release's weights, and a plain restatement of TimeSformer."""

from math import sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vidssl.backbones.timesformer import TimeSformer

FOLDER = Path(__file__).parent / "golden" / "svt"


def load(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def published(tokens: Tensor) -> Tensor:
    """Features [B, t, h, w, D] in the release's order of tokens: rows, columns, time fastest."""
    return tokens.permute(0, 2, 3, 1, 4).flatten(1, 3)


def off(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| of tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max())


def toy(
    *, attention: str = "divided", rule: str = "nearest", num_frames: int = 8, size: int = 32
) -> TimeSformer:
    """Reads values as they are: the reference inputs are normalised already."""
    return TimeSformer(
        embed_dim=48,
        depth=2,
        num_heads=3,
        patch_size=8,
        num_frames=num_frames,
        size=size,
        attention=attention,
        position_resize=rule,
        drop_path=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ).eval()


def load_published(net: TimeSformer, state: dict[str, Tensor]) -> TimeSformer:
    found = net.translate(state)
    assert found is not None
    left = net.load_state_dict(dict(found.state), strict=False)
    assert left.missing_keys == ["mask_token"]
    assert left.unexpected_keys == []
    return net


def golden_net(rule: str = "nearest") -> TimeSformer:
    return load_published(toy(rule=rule), load("weights"))


def noisy(net: TimeSformer, seed: int = 0) -> TimeSformer:
    """The same network with every parameter moved, so that no zero hides what stands behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


# A plain restatement: one clip, one token after the other, no batched call.


class Plain:
    """What one clip [3, T, H, W] becomes; all attention as loops over frames, places and heads."""

    def __init__(self, net: TimeSformer, attention: str, heads: int, patch: int) -> None:
        self.state = {key: x.detach() for key, x in net.state_dict().items()}
        self.attention, self.heads, self.patch = attention, heads, patch
        self.depth = len(net.blocks)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Of one sequence [N, D]: the attention's output, and its weights [heads, N, N]."""
        q, k, v = self.linear(x, f"{name}.qkv").chunk(3, dim=-1)
        outputs, weights = [], []
        for one_q, one_k, one_v in zip(*(y.chunk(self.heads, dim=-1) for y in (q, k, v)), strict=True):
            weight = (one_q @ one_k.T / sqrt(one_q.shape[-1])).softmax(dim=-1)
            outputs.append(weight @ one_v)
            weights.append(weight)
        return self.linear(torch.cat(outputs, dim=-1), f"{name}.proj"), torch.stack(weights)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        hidden = self.linear(x, f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / sqrt(2)))
        return self.linear(hidden, f"{name}.mlp.fc2")

    def embed(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Class token [D] and patches [T, h, w, D], positions of the nearest entries added."""
        frames, rows, columns = clip.shape[1], clip.shape[2] // self.patch, clip.shape[3] // self.patch
        weight, bias = self.state["patch_embed.proj.weight"], self.state["patch_embed.proj.bias"]
        patches = F.conv2d(clip.transpose(0, 1), weight, bias, stride=self.patch).permute(0, 2, 3, 1)
        patches = patches.clone()
        places = self.state["pos_embed"][0]
        side = round(sqrt(len(places) - 1))
        for row in range(rows):
            for column in range(columns):
                patches[:, row, column] += places[1 + (row * side // rows) * side + column * side // columns]
        if "time_embed" in self.state:
            times = self.state["time_embed"][0]
            for t in range(frames):
                patches[t] += times[t * len(times) // frames]
        return self.state["cls_token"][0, 0] + places[0], patches

    def block(self, cls: Tensor, patches: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """A divided block; the third are the class token's weights, [heads, T, h, w]."""
        patches = patches.clone()
        frames, rows, columns, _ = patches.shape
        for row in range(rows):
            for column in range(columns):
                normed = self.norm(patches[:, row, column], f"{name}.temporal_norm1")
                mixed, _ = self.attend(normed, f"{name}.temporal_attn")
                patches[:, row, column] += self.linear(mixed, f"{name}.temporal_fc")
        steps, weights = [], []
        for t in range(frames):
            sequence = torch.cat((cls[None], patches[t].flatten(0, 1)))
            out, weight = self.attend(self.norm(sequence, f"{name}.norm1"), f"{name}.attn")
            steps.append(out[0])
            patches[t] += out[1:].view(rows, columns, -1)
            weights.append(weight[:, 0, 1:].view(-1, rows, columns))
        cls = cls + torch.stack(steps).mean(0)
        cls = cls + self.mlp(self.norm(cls, f"{name}.norm2"), name)
        patches += self.mlp(self.norm(patches, f"{name}.norm2"), name)
        return cls, patches, torch.stack(weights, dim=1)

    def whole_block(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """A block with attention over all of a sequence, and the first token's weights, [heads, N - 1]."""
        out, weights = self.attend(self.norm(x, f"{name}.norm1"), f"{name}.attn")
        x = x + out
        return x + self.mlp(self.norm(x, f"{name}.norm2"), name), weights[:, 0, 1:]

    def __call__(self, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class feature [D], patches [T, h, w, D], the last block's class attention [heads, T, h, w]."""
        cls, patches = self.embed(clip)
        shape = patches.shape
        if self.attention == "divided":
            for i in range(self.depth):
                cls, patches, weights = self.block(cls, patches, f"blocks.{i}")
        elif self.attention == "joint":
            x = torch.cat((cls[None], patches.flatten(0, 2)))
            for i in range(self.depth):
                x, weights = self.whole_block(x, f"blocks.{i}")
            cls, patches, weights = x[0], x[1:].view(shape), weights.view(-1, *shape[:3])
        else:
            frames = [torch.cat((cls[None], frame.flatten(0, 1))) for frame in patches]
            for i in range(self.depth):
                both = [self.whole_block(frame, f"blocks.{i}") for frame in frames]
                frames = [x for x, _ in both]
                weights = torch.stack([w.view(-1, *shape[1:3]) for _, w in both], dim=1)
            cls = torch.stack([x[0] for x in frames]).mean(0)
            patches = torch.stack([x[1:] for x in frames]).view(shape)
        return self.norm(cls, "norm"), self.norm(patches, "norm"), weights
