"""Every source of videos or images, on files made here: ``python docs/examples/every_source.py``, in seconds.

It shows how the files of each lie, and prints how many samples there are, the size of the first,
[3, T, H, W], and the names of its classes. A recipe names the same: ``source: {type: kinetics, root: ...}``.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vidssl import api as v
from vidssl.cli.main import main

CLIP, IMAGE, MASK = Path("clip.mp4"), Path("image.jpg"), Path("mask.png")


def make() -> None:
    """A clip of 16 frames, an image, and a mask in which the object 1 is a box."""
    with av.open(str(CLIP), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    Image.new("RGB", (48, 32), (200, 60, 40)).save(IMAGE)
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 10:30] = 1
    Image.fromarray(mask).save(MASK)


def lay(files: dict[str, object]) -> None:
    """Copies of these files, text, or what is written as JSON, each at its path."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, name)
        else:
            Path(name).write_text(content if isinstance(content, str) else json.dumps(content))


def show(source: v.DataSource) -> None:
    clip, labels = source[0]
    named = [source.label_classes[label][number] for label, number in labels.items()]
    print(f"  {type(source).__name__:21} {len(source)} of {[*clip.shape]}  {', '.join(named)}")


def folders_and_lists() -> None:
    print("Folders and lists of one's own")
    lay({"videos/run/one.mp4": CLIP, "videos/walk/two.mp4": CLIP, "images/red/one.jpg": IMAGE})
    lay({"mine.csv": "video,start,end,sport\nrun/one.mp4,0.5,1.5,running\nwalk/two.mp4,0,1,walking\n"})
    lay({f"frames/run/one/{number:05}.jpg": IMAGE for number in range(1, 6)})
    show(v.VideoFolder(root="videos"))
    show(v.VideoList(root="videos", list="mine.csv"))
    show(v.ImageFolder(root="images"))
    show(v.FrameFolders(root="frames", fps=8))
    main(["data", "shard", "videos", "--out", "shards"])
    show(v.TarShards(root="shards"))
    main(["data", "prepare", "videos", "--out", "jpegs", "--jpeg-shards"])
    show(v.JpegShards(root="jpegs"))


def masks() -> None:
    print("Videos with masks")
    lay({f"DAVIS/JPEGImages/480p/bear/{number:05}.jpg": IMAGE for number in range(4)})
    lay({f"DAVIS/Annotations/480p/bear/{number:05}.png": MASK for number in range(4)})
    lay({"DAVIS/ImageSets/2017/val.txt": "bear\n"})
    davis = v.Davis(root="DAVIS")
    show(davis)
    digits = v.MovingDigits(split="test", num_videos=4)  # drawn as they are read
    show(digits)
    for source in (davis, digits):
        assert isinstance(source, v.KnowsMasks)
        found = source.object_masks(0, [0, 3])
        print(f"  {type(source).__name__:21} masks {[*found.shape]} of objects {found.unique().tolist()}")


def official() -> None:
    print("Data sets by their official lists")
    lay({"k400/0347ZoDXyP0_000095_000105.mp4": CLIP})
    lay({"train.csv": "label,youtube_id,time_start,time_end,split\nabseiling,0347ZoDXyP0,95,105,train\n"})
    show(v.kinetics(root="k400", list="train.csv"))

    lay({f"UCF-101/Archery/v_Archery_g0{group}_c01.avi": CLIP for group in (1, 8)})
    lists = {"classInd": "1 Archery", "trainlist01": "Archery/v_Archery_g08_c01.avi 1"}
    lists["testlist01"] = "Archery/v_Archery_g01_c01.avi"
    lay({f"ucfTrainTestlist/{name}.txt": line for name, line in lists.items()})
    show(v.ucf101(root="UCF-101", annotations="ucfTrainTestlist", part="test"))

    waves = [f"{film}_wave_u_cm_np1_fr_med_0.avi" for film in ("Amelie", "Casablanca")]
    lay({f"hmdb51/wave/{name}": CLIP for name in waves})
    lay({"splits/wave_test_split1.txt": f"{waves[0]} 1\n{waves[1]} 2\n"})
    show(v.hmdb51(root="hmdb51", annotations="splits", part="train"))

    lay({"ssv2/78687.webm": CLIP, "labels/labels.json": {"Holding something": "0"}})
    lay({"labels/train.json": [{"id": "78687", "template": "Holding [something]"}]})
    show(v.something_something_v2(root="ssv2", annotations="labels", part="train"))

    lay({"rgb/_8Vy3dlHg2w_00000.mp4": CLIP})
    lay({"diving/Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"]]})
    lay({"diving/Diving48_V2_train.json": [{"vid_name": "_8Vy3dlHg2w_00000", "label": 0}]})
    show(v.diving48(root="rgb", annotations="diving", part="train"))

    lay({"kitchens/P01/videos/P01_01.mp4": CLIP, "epic/EPIC_100_verb_classes.csv": "id,key\n0,take\n"})
    head = "narration_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    for part, number in (("train", 0), ("validation", 1)):
        row = f"P01_01_{number},P01_01,00:00:00.2{number},00:00:01.50,0,2"
        lay({f"epic/EPIC_100_{part}.csv": f"{head}\n{row}\n"})
    lay({"epic/EPIC_100_noun_classes.csv": "id,key\n2,plate\n"})
    show(v.epic_kitchens_100(root="kitchens", annotations="epic", part="train"))

    lay({"howto100m/nVbIUDjzWY4.mp4": CLIP, "HowTo100M_v1.csv": "video_id,rank\nnVbIUDjzWY4,1\n"})
    show(v.howto100m(root="howto100m", list="HowTo100M_v1.csv"))

    lay({"imagenet/train/n01440764/n01440764_10026.JPEG": IMAGE})
    show(v.ImageNet(root="imagenet", part="train"))


def what_is_wrong() -> None:
    print("What is wrong with files, in a line")
    lay({"broken/run/cut.mp4": "no video"})
    try:
        v.VideoFolder(root="broken").read(0, [0])
    except v.UnreadableSample as error:  # of one video; training goes on without it
        print(f"  {error}")
    try:
        v.VideoFolder(root="vidoes")
    except v.UsageError as error:  # whatever a user can mend
        print(f"  {error}")


if __name__ == "__main__":
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make()
        for part in (folders_and_lists, masks, official, what_is_wrong):
            part()
        os.chdir(before)
