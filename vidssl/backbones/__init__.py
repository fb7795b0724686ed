"""Networks from clips to features."""

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT

BACKBONES = {"factorized": Factorized, "timesformer": TimeSformer, "video_swin": VideoSwin, "vit": ViT}
