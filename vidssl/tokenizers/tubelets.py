"""Images and tokenizers whose ids stand for several frames."""

from torch import Tensor


def of_length(pixels: Tensor, num_frames: int) -> Tensor:
    """What a tokenizer made of a clip, at the clip's own length.

    A tokenizer whose ids stand for several frames sees an image as a still tubelet and gives a tubelet back;
    the mean of its frames is the image.

    Args:
        pixels: [B, 3, T', H, W].
        num_frames: T of the clip.

    Returns:
        [B, 3, T, H, W].
    """
    return pixels.mean(dim=2, keepdim=True) if num_frames == 1 else pixels
