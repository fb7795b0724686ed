"""Where pixels come from: files, how frames are found in them, which views are taken, and in what order."""

from vidssl.data.augment import PerClipAugment
from vidssl.data.moving_digits import MovingDigits
from vidssl.data.sources import ImageFolder, VideoFolder, VideoList
from vidssl.data.views import SingleClip, SingleImage, UniformClips

SOURCES = {
    "moving_digits": MovingDigits,
    "video_folder": VideoFolder,
    "video_list": VideoList,
    "image_folder": ImageFolder,
}

VIEWS = {
    "single_clip": SingleClip,
    "single_image": SingleImage,
    "uniform_clips": UniformClips,
}

AUGMENTS = {"per_clip": PerClipAugment}
