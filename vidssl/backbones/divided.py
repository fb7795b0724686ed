"""Attention divided between time and space, around one class token a clip (TimeSformer; SVT, Sec. 3.1)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vidssl.layers.transformer import Attention, DropPath, Mlp

# Tokens of a clip, [B, 1 + h*w*t, D]: the class token, then the patches, row by row, time fastest. So the
# frames of one place lie side by side, and attention along time needs no copy.


def to_frames(tokens: Tensor, num_frames: int) -> Tensor:
    """Tokens of clips [B, 1 + P*T, D] as those of single frames, [B*T, 1 + P, D], the class token in each."""
    cls, patches = tokens[:, :1], tokens[:, 1:]
    patches = rearrange(patches, "b (p t) d -> b t p d", t=num_frames)
    frames = torch.cat((cls.unsqueeze(1).expand(-1, num_frames, -1, -1), patches), dim=2)
    return frames.flatten(0, 1)


def from_frames(frames: Tensor, num_frames: int) -> Tensor:
    """The inverse of ``to_frames``; the class token becomes the mean over those of the frames."""
    frames = frames.unflatten(0, (-1, num_frames))
    patches = rearrange(frames[:, :, 1:], "b t p d -> b (p t) d")
    return torch.cat((frames[:, :, 0].mean(dim=1, keepdim=True), patches), dim=1)


def first_token_attention(attention: Attention, x: Tensor) -> Tensor:
    """What the first of N tokens [B, N, D] attends to: its weights over all others, [B, heads, N - 1].

    The weight that it gives itself is left out, so they sum to less than 1.
    """
    qkv = rearrange(attention.qkv(x), "b n (three m d) -> three b m n d", three=3, m=attention.num_heads)
    query, keys = qkv[0][:, :, :1], qkv[1]
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    return scores.softmax(dim=-1)[:, :, 0, 1:]


class DividedBlock(nn.Module):
    """A transformer block with attention along time, then within each frame, then an MLP.

    Parameters carry the published names. ``temporal_fc`` is to start at zero: such a block does to every
    frame what the block of an image ViT does, and its temporal attention learns from the second step on.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.temporal_norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.temporal_attn = Attention(dim, num_heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, num_frames: int) -> Tensor:
        """[B, 1 + P*T, D] to the same shape."""
        tokens = self.along_time(tokens, num_frames)
        # stochastic depth drops single frames, as published
        within = self.drop_path(self.attn(self.norm1(to_frames(tokens, num_frames))))
        tokens = tokens + from_frames(within, num_frames)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def along_time(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Tokens after attention among the T patches of each place; the class token takes no part."""
        cls, patches = tokens[:, :1], tokens[:, 1:]
        places = patches.unflatten(1, (-1, num_frames)).flatten(0, 1)
        # stochastic depth drops single places, and before the last layer, whose bias stays: as published
        mixed = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(places))))
        return torch.cat((cls, patches + mixed.view_as(patches)), dim=1)

    def class_attention(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Weights of the class token over the P patches of each frame, [B*T, heads, P]."""
        frames = to_frames(self.along_time(tokens, num_frames), num_frames)
        return first_token_attention(self.attn, self.norm1(frames))
