"""Networks from clips to features."""

from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT

BACKBONES = {"video_swin": VideoSwin, "vit": ViT}
