"""Every public name in one place, for scripts and notebooks: ``from vidssl import api as v``."""

from vidssl.backbones import Factorized, TimeSformer, VideoSwin, ViT
from vidssl.build import tokenizer as load_tokenizer
from vidssl.data import (
    ImageFolder,
    MovingDigits,
    PerClipAugment,
    SingleClip,
    SingleImage,
    UniformClips,
    VideoFolder,
    VideoList,
)
from vidssl.data.loader import Loader, Stream
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.optim import SGD, AdamW
from vidssl.engine.schedules import Cosine, LinearDecay, MultiStep, WarmupCosine
from vidssl.evaluate import Score, extract, probe
from vidssl.evaluators import KNN, Linear
from vidssl.interfaces import (
    Backbone,
    Batch,
    DataSource,
    Evaluator,
    Features,
    LossOutput,
    Masker,
    Objective,
    Progress,
    Tokenizer,
    ViewSampler,
)
from vidssl.maskers import Block3D, Blockwise, FrameDiff, Random3D, RandomFrame, Tube
from vidssl.objectives import (
    BEVT,
    VIMPAC,
    BEVTImage,
    BEVTVideo,
    TokenizerTraining,
    VIMPACContrast,
    VIMPACPredict,
)
from vidssl.recipe import RunSpec
from vidssl.tokenizers import VQVAE
from vidssl.train import TrainResult, train
from vidssl.weights.load import load_init

__all__ = [
    "BEVT",
    "KNN",
    "SGD",
    "VIMPAC",
    "VQVAE",
    "AdamW",
    "BEVTImage",
    "BEVTVideo",
    "Backbone",
    "Batch",
    "Block3D",
    "Blockwise",
    "Cosine",
    "DataSource",
    "Evaluator",
    "Factorized",
    "Features",
    "FrameDiff",
    "ImageFolder",
    "Linear",
    "LinearDecay",
    "Loader",
    "LossOutput",
    "Masker",
    "MovingDigits",
    "MultiStep",
    "Objective",
    "PerClipAugment",
    "Progress",
    "Random3D",
    "RandomFrame",
    "RunSpec",
    "Score",
    "SingleClip",
    "SingleImage",
    "Stream",
    "TimeSformer",
    "Tokenizer",
    "TokenizerTraining",
    "TrainResult",
    "Tube",
    "UniformClips",
    "VIMPACContrast",
    "VIMPACPredict",
    "ViT",
    "VideoFolder",
    "VideoList",
    "VideoSwin",
    "ViewSampler",
    "WarmupCosine",
    "extract",
    "load_init",
    "load_tokenizer",
    "probe",
    "read_checkpoint",
    "train",
]
