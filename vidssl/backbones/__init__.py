"""Networks from clips to features."""

from vidssl.interfaces import Backbone
from vidssl.interfaces.table import Table

BACKBONES: Table[Backbone] = Table(
    {
        "factorized": "vidssl.backbones.factorized:Factorized",
        "pytorchvideo": "vidssl.backbones.pytorchvideo_nets:PyTorchVideoNet",
        "timesformer": "vidssl.backbones.timesformer:TimeSformer",
        "timm": "vidssl.backbones.timm_nets:TimmNet",
        "torchvision": "vidssl.backbones.torchvision_nets:TorchvisionNet",
        "video_swin": "vidssl.backbones.video_swin:VideoSwin",
        "vit": "vidssl.backbones.vit:ViT",
    }
)


def __getattr__(name: str) -> object:
    return BACKBONES.constructor(name, __name__)
