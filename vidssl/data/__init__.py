"""Where pixels come from: files, how frames are found in them, which views are taken, and in what order."""

from vidssl.interfaces import Augment, DataSource, ViewSampler
from vidssl.interfaces.table import Table

SOURCES: Table[DataSource] = Table(
    {
        "moving_digits": "vidssl.data.sources.moving_digits:MovingDigits",
        "video_folder": "vidssl.data.sources.video_files:VideoFolder",
        "video_list": "vidssl.data.sources.video_files:VideoList",
        "image_folder": "vidssl.data.sources.video_files:ImageFolder",
        "frame_folders": "vidssl.data.sources.frame_folders:FrameFolders",
        "kinetics": "vidssl.data.sources.official.videos:Kinetics",
        "ucf101": "vidssl.data.sources.official.videos:UCF101",
        "hmdb51": "vidssl.data.sources.official.videos:HMDB51",
        "something_something_v2": "vidssl.data.sources.official.videos:SomethingSomethingV2",
        "diving48": "vidssl.data.sources.official.videos:Diving48",
        "howto100m": "vidssl.data.sources.official.videos:HowTo100M",
        "davis": "vidssl.data.sources.frame_folders:Davis",
        "epic_kitchens_100": "vidssl.data.sources.official.videos:EpicKitchens100",
        "imagenet": "vidssl.data.sources.official.listed:ImageNet",
        "jpeg_shards": "vidssl.data.sources.jpeg_shards:JpegShards",
        "tar_shards": "vidssl.data.sources.tar.source:TarShards",
        "token_store": "vidssl.data.sources.token_store:TokenStore",
    }
)

VIEWS: Table[ViewSampler] = Table(
    {
        "single_clip": "vidssl.data.views.random:SingleClip",
        "multi_scale_clip": "vidssl.data.views.random:MultiScaleClip",
        "single_image": "vidssl.data.views.random:SingleImage",
        "random_resized_clip": "vidssl.data.views.random:RandomResizedClip",
        "random_segments": "vidssl.data.views.random:RandomSegments",
        "global_local": "vidssl.data.views.svt:GlobalLocal",
        "svt_published": "vidssl.data.views.svt:SVTPublished",
        "clip_crops": "vidssl.data.views.svt:ClipCrops",
        "interval_clips": "vidssl.data.views.svt:IntervalClips",
        "slow_fast_train": "vidssl.data.views.svt:SlowFastTrain",
        "clip_pair": "vidssl.data.views.vimpac:ClipPair",
        "corner_clip": "vidssl.data.views.vimpac:CornerClip",
        "stored_clip_pair": "vidssl.data.views.stored:StoredClipPair",
        "stored_clip": "vidssl.data.views.stored:StoredClip",
        "stored_uniform_clips": "vidssl.data.views.stored:StoredUniformClips",
        "uniform_clips": "vidssl.data.views.uniform:UniformClips",
        "segment_middles": "vidssl.data.views.uniform:SegmentMiddles",
        "slow_fast": "vidssl.data.views.uniform:SlowFast",
        "svt_published_test": "vidssl.data.views.uniform:SVTPublishedTest",
    }
)

AUGMENTS: Table[Augment] = Table(
    {
        "per_clip": "vidssl.data.augment.batch:PerClipAugment",
        "colour": "vidssl.data.augment.batch:ColourAugment",
        "finetune": "vidssl.data.augment.rand_augment:FinetuneAugment",
    }
)
