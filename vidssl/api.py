"""Every public name in one place, for scripts and notebooks: ``from vidssl import api as v``."""

from vidssl.backbones.factorized import Factorized as Factorized
from vidssl.backbones.pixels import Pixels as Pixels
from vidssl.backbones.pytorchvideo_nets import PyTorchVideoNet as PyTorchVideoNet
from vidssl.backbones.timesformer import TimeSformer as TimeSformer
from vidssl.backbones.timm_nets import TimmNet as TimmNet
from vidssl.backbones.torchvision_nets import TorchvisionNet as TorchvisionNet
from vidssl.backbones.transformers_nets import TransformersNet as TransformersNet
from vidssl.backbones.video_swin import VideoSwin as VideoSwin
from vidssl.backbones.vit import ViT as ViT
from vidssl.build import build as _build
from vidssl.config.recipe import RunSpec as RunSpec
from vidssl.data.augment.batch import ColourAugment as ColourAugment, PerClipAugment as PerClipAugment
from vidssl.data.augment.rand_augment import FinetuneAugment as FinetuneAugment
from vidssl.data.loader import Loader as Loader, Stream as Stream
from vidssl.data.sources.datasets import DatasetSource as DatasetSource
from vidssl.data.sources.frame_folders import Davis as Davis, FrameFolders as FrameFolders
from vidssl.data.sources.jpeg_shards import JpegShards as JpegShards
from vidssl.data.sources.moving_digits import MovingDigits as MovingDigits
from vidssl.data.sources.official.listed import ImageNet as ImageNet
from vidssl.data.sources.official.videos import (
    diving48 as diving48,
    epic_kitchens_100 as epic_kitchens_100,
    hmdb51 as hmdb51,
    howto100m as howto100m,
    kinetics as kinetics,
    something_something_v2 as something_something_v2,
    ucf101 as ucf101,
)
from vidssl.data.sources.tar.source import TarShards as TarShards
from vidssl.data.sources.video_files import (
    ImageFolder as ImageFolder,
    VideoFolder as VideoFolder,
    VideoList as VideoList,
)
from vidssl.data.views.random import (
    MultiScaleClip as MultiScaleClip,
    RandomResizedClip as RandomResizedClip,
    RandomSegments as RandomSegments,
    SingleClip as SingleClip,
    SingleImage as SingleImage,
)
from vidssl.data.views.svt import (
    ClipCrops as ClipCrops,
    GlobalLocal as GlobalLocal,
    IntervalClips as IntervalClips,
    SlowFastTrain as SlowFastTrain,
    SVTPublished as SVTPublished,
)
from vidssl.data.views.uniform import (
    SegmentMiddles as SegmentMiddles,
    SlowFast as SlowFast,
    SVTPublishedTest as SVTPublishedTest,
    UniformClips as UniformClips,
)
from vidssl.data.views.vimpac import ClipPair as ClipPair, CornerClip as CornerClip
from vidssl.engine.checkpoint import read_checkpoint as read_checkpoint
from vidssl.engine.optim import SGD as SGD, AdamW as AdamW, Optim as Optim
from vidssl.engine.schedules import (
    Cosine as Cosine,
    LinearDecay as LinearDecay,
    MultiStep as MultiStep,
    Schedule as Schedule,
    WarmupCosine as WarmupCosine,
)
from vidssl.errors import UsageError as UsageError
from vidssl.evaluators.attentive import Attentive as Attentive
from vidssl.evaluators.extract import extract as extract
from vidssl.evaluators.knn import KNN as KNN, Retrieval as Retrieval
from vidssl.evaluators.linear import Linear as Linear, LinearSGD as LinearSGD
from vidssl.evaluators.scores import Score as Score, probe as probe
from vidssl.interfaces import (
    Backbone as Backbone,
    Batch as Batch,
    ClassAttention as ClassAttention,
    DataSource as DataSource,
    EncodesVisible as EncodesVisible,
    Evaluator as Evaluator,
    Features as Features,
    FilledIn as FilledIn,
    KnowsMasks as KnowsMasks,
    LabelledFeatures as LabelledFeatures,
    LossOutput as LossOutput,
    MaskedPrediction as MaskedPrediction,
    Masker as Masker,
    Objective as Objective,
    Progress as Progress,
    SampleInfo as SampleInfo,
    Tokenizer as Tokenizer,
    UnreadableSample as UnreadableSample,
    ViewSampler as ViewSampler,
    VisibleFeatures as VisibleFeatures,
)
from vidssl.maskers.bevt import (
    Blockwise as Blockwise,
    FrameDiff as FrameDiff,
    Random3D as Random3D,
    RandomFrame as RandomFrame,
    Tube as Tube,
)
from vidssl.maskers.block_3d import Block3D as Block3D
from vidssl.maskers.videomae import RandomTube as RandomTube, RunningCell as RunningCell
from vidssl.maskers.vjepa import MultiBlock as MultiBlock
from vidssl.objectives.bevt import BEVT as BEVT, BEVTImage as BEVTImage, BEVTVideo as BEVTVideo
from vidssl.objectives.classification import Classification as Classification
from vidssl.objectives.lejepa import LeJEPA as LeJEPA
from vidssl.objectives.svt import SVT as SVT
from vidssl.objectives.tokenizer import TokenizerTraining as TokenizerTraining
from vidssl.objectives.videomae import VideoMAE as VideoMAE
from vidssl.objectives.vimpac import (
    VIMPAC as VIMPAC,
    VIMPACContrast as VIMPACContrast,
    VIMPACPredict as VIMPACPredict,
)
from vidssl.objectives.vjepa import VJEPA as VJEPA
from vidssl.tokenizers.dalle import DALLE as DALLE
from vidssl.tokenizers.fsq import FSQ as FSQ
from vidssl.tokenizers.structure_tensor import StructureTensor as StructureTensor
from vidssl.tokenizers.vqvae import VQVAE as VQVAE
from vidssl.train.loop import TrainResult as TrainResult
from vidssl.train.start import train as train
from vidssl.use.hub import load as load, load_objective as load_objective
from vidssl.use.masks import MaskScores as MaskScores, evaluate_masks as evaluate_masks
from vidssl.use.notebook import (
    Pictures as Pictures,
    Run as Run,
    Scores as Scores,
    compare as compare,
    evaluate as evaluate,
    show as show,
    train_recipe as train_recipe,
)
from vidssl.use.predict import Answers as Answers, predict as predict
from vidssl.weights.load import load_init as load_init

load_tokenizer = _build.tokenizer
