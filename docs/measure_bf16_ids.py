"""Share of ids that change when a shipped tokenizer's encoder runs in bfloat16, which ``encode`` never does.

python docs/measure_bf16_ids.py
"""

import torch

from vidssl import api as v
from vidssl.interfaces import TrainableTokenizer


@torch.no_grad()
def main() -> None:
    videos = v.MovingDigits(split="test", limit=200)
    clips = torch.stack([videos.read(i, range(8)) for i in range(len(videos))])
    clips = clips.transpose(1, 2).float() / 255
    for name in ("moving_digits", "moving_digits_fsq"):
        tokenizer = v.load_tokenizer(name)
        assert isinstance(tokenizer, TrainableTokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = tokenizer.reconstruct(clips).ids
        changed = (low != tokenizer.encode(clips)).float().mean().item()
        print(f"{name}: {100 * changed:.2f} % of {low.numel()} ids differ in bfloat16")


if __name__ == "__main__":
    main()
