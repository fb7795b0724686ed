"""Where pixels come from: files, how frames are found in them, which views are taken, and in what order."""

from collections.abc import Callable

from vidssl.data.augment import ColourAugment, PerClipAugment
from vidssl.data.frame_folders import FrameFolders
from vidssl.data.jpeg_shards import JpegShards
from vidssl.data.moving_digits import MovingDigits
from vidssl.data.official.diving48 import diving48
from vidssl.data.official.hmdb51 import hmdb51
from vidssl.data.official.howto100m import howto100m
from vidssl.data.official.imagenet import ImageNet
from vidssl.data.official.kinetics import kinetics
from vidssl.data.official.something_something import something_something_v2
from vidssl.data.official.ucf101 import ucf101
from vidssl.data.rand_augment import FinetuneAugment
from vidssl.data.sources import ImageFolder, VideoFolder, VideoList
from vidssl.data.tar_shards import TarShards
from vidssl.data.token_source import TokenStore
from vidssl.data.views import RandomResizedClip, RandomSegments, SingleClip, SingleImage
from vidssl.data.views_stored import StoredClip, StoredClipPair, StoredUniformClips
from vidssl.data.views_svt import GlobalLocal, IntervalClips, SlowFastTrain, SVTPublished
from vidssl.data.views_uniform import SegmentMiddles, SlowFast, SVTPublishedTest, UniformClips
from vidssl.data.views_vimpac import ClipPair, CornerClip
from vidssl.interfaces import DataSource

SOURCES: dict[str, Callable[..., DataSource]] = {
    "moving_digits": MovingDigits,
    "video_folder": VideoFolder,
    "video_list": VideoList,
    "image_folder": ImageFolder,
    "frame_folders": FrameFolders,
    "kinetics": kinetics,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "something_something_v2": something_something_v2,
    "diving48": diving48,
    "howto100m": howto100m,
    "imagenet": ImageNet,
    "jpeg_shards": JpegShards,
    "tar_shards": TarShards,
    "token_store": TokenStore,
}

VIEWS = {
    "single_clip": SingleClip,
    "single_image": SingleImage,
    "random_resized_clip": RandomResizedClip,
    "random_segments": RandomSegments,
    "global_local": GlobalLocal,
    "svt_published": SVTPublished,
    "interval_clips": IntervalClips,
    "slow_fast_train": SlowFastTrain,
    "clip_pair": ClipPair,
    "corner_clip": CornerClip,
    "stored_clip_pair": StoredClipPair,
    "stored_clip": StoredClip,
    "stored_uniform_clips": StoredUniformClips,
    "uniform_clips": UniformClips,
    "segment_middles": SegmentMiddles,
    "slow_fast": SlowFast,
    "svt_published_test": SVTPublishedTest,
}

AUGMENTS = {
    "per_clip": PerClipAugment,
    "colour": ColourAugment,
    "finetune": FinetuneAugment,
}
