"""Every public name in one place, for scripts and notebooks: ``from vidssl import api as v``."""

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.build.build import tokenizer as load_tokenizer
from vidssl.config.recipe import RunSpec
from vidssl.data.augment.batch import ColourAugment, PerClipAugment
from vidssl.data.augment.rand_augment import FinetuneAugment
from vidssl.data.loader import Loader, Stream
from vidssl.data.sources.folders import ImageFolder, VideoFolder, VideoList
from vidssl.data.sources.frame_folders import FrameFolders
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.sources.official.imagenet import ImageNet
from vidssl.data.sources.official.videos import (
    diving48,
    hmdb51,
    howto100m,
    kinetics,
    something_something_v2,
    ucf101,
)
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.views.random import RandomResizedClip, RandomSegments, SingleClip, SingleImage
from vidssl.data.views.svt import GlobalLocal, IntervalClips, SlowFastTrain, SVTPublished
from vidssl.data.views.uniform import SegmentMiddles, SlowFast, SVTPublishedTest, UniformClips
from vidssl.data.views.vimpac import ClipPair, CornerClip
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.optim import SGD, AdamW
from vidssl.engine.schedules import Cosine, LinearDecay, MultiStep, WarmupCosine
from vidssl.evaluators.attentive import Attentive
from vidssl.evaluators.extract import extract
from vidssl.evaluators.knn import KNN, Retrieval
from vidssl.evaluators.linear import Linear
from vidssl.evaluators.linear_sgd import LinearSGD
from vidssl.evaluators.scores import Score, probe
from vidssl.interfaces import (
    Backbone,
    Batch,
    ClassAttention,
    DataSource,
    Evaluator,
    Features,
    FilledIn,
    LossOutput,
    MaskedPrediction,
    Masker,
    Objective,
    Progress,
    Tokenizer,
    ViewSampler,
)
from vidssl.maskers.bevt import Blockwise, FrameDiff, Random3D, RandomFrame, Tube
from vidssl.maskers.block_3d import Block3D
from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo
from vidssl.objectives.classification import Classification
from vidssl.objectives.svt import SVT
from vidssl.objectives.tokenizer import TokenizerTraining
from vidssl.objectives.vimpac import VIMPAC, VIMPACContrast, VIMPACPredict
from vidssl.tokenizers.dalle import DALLE
from vidssl.tokenizers.fsq import FSQ
from vidssl.tokenizers.vqvae import VQVAE
from vidssl.train.loop import TrainResult
from vidssl.train.start import train
from vidssl.weights.load import load_init

__all__ = [
    "BEVT",
    "DALLE",
    "FSQ",
    "KNN",
    "SGD",
    "SVT",
    "VIMPAC",
    "VQVAE",
    "AdamW",
    "Attentive",
    "BEVTImage",
    "BEVTVideo",
    "Backbone",
    "Batch",
    "Block3D",
    "Blockwise",
    "ClassAttention",
    "Classification",
    "ClipPair",
    "ColourAugment",
    "CornerClip",
    "Cosine",
    "DataSource",
    "Evaluator",
    "Factorized",
    "Features",
    "FilledIn",
    "FinetuneAugment",
    "FrameDiff",
    "FrameFolders",
    "GlobalLocal",
    "ImageFolder",
    "ImageNet",
    "IntervalClips",
    "JpegShards",
    "Linear",
    "LinearDecay",
    "LinearSGD",
    "Loader",
    "LossOutput",
    "MaskedPrediction",
    "Masker",
    "MovingDigits",
    "MultiStep",
    "Objective",
    "PerClipAugment",
    "Progress",
    "Random3D",
    "RandomFrame",
    "RandomResizedClip",
    "RandomSegments",
    "Retrieval",
    "RunSpec",
    "SVTPublished",
    "SVTPublishedTest",
    "Score",
    "SegmentMiddles",
    "SingleClip",
    "SingleImage",
    "SlowFast",
    "SlowFastTrain",
    "Stream",
    "TarShards",
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
    "diving48",
    "extract",
    "hmdb51",
    "howto100m",
    "kinetics",
    "load_init",
    "load_tokenizer",
    "probe",
    "read_checkpoint",
    "something_something_v2",
    "train",
    "ucf101",
]
