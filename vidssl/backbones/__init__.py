"""Networks from clips to features."""

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.pytorchvideo_nets import PyTorchVideoNet
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.timm_nets import TimmNet
from vidssl.backbones.torchvision_nets import TorchvisionNet
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT

BACKBONES = {
    "factorized": Factorized,
    "pytorchvideo": PyTorchVideoNet,
    "timesformer": TimeSformer,
    "timm": TimmNet,
    "torchvision": TorchvisionNet,
    "video_swin": VideoSwin,
    "vit": ViT,
}
