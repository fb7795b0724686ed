"""Toy recipes of all objectives, their world (a tokenizer), and what their runs left, for several tests."""

import hashlib
import json
import re
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save

from docs.compatibility.table import needed_views
from vidssl.config.schema import parts_of
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.distributed import end_group
from vidssl.engine.parallel import can_shard_on_cpus
from vidssl.engine.runfolder import RunFolder
from vidssl.objectives import OBJECTIVES
from vidssl.tokenizers.vqvae import VQVAE

CLIP = "{type: single_clip, num_frames: 4, frame_stride: 1, size: 16}"
PAIR = "{type: clip_pair, num_frames: 4, fps: null, size: 16}"
GLOBALS = (
    "{type: global_local, num_frames: [4, 2], size: 16, local_frames: [2, 2], local_size: 8, "
    "local_extent: 0.5}"
)
IMAGE = "{type: single_image, size: 16}"
SOURCE = "{type: moving_digits, split: train, size: 16, digit_size: 12, num_frames: 4, num_videos: 10}"
VIT = "{type: vit, embed_dim: 12, depth: 2, num_heads: 2, patch_size: [2, 8, 8], drop_path: 0.3}"
IDS = (
    "{type: factorized, vocab_size: 8, embed_dim: 8, depth: 2, num_heads: 2, num_frames: 4, height: 2, "
    "width: 2}"
)
TUBE = "{type: tube, min_block: 1}"
BLOCKS = "{type: block_3d, num_blocks: 2}"
HEAD = "head_layers: 2, head_hidden_dim: 8, head_dim: 4"

# objective -> its sections; data streams by name
TOYS: dict[str, dict[str, str]] = {
    "bevt": {"backbone": VIT, "tokenizer": "toy", "masker": TUBE, "video": CLIP, "image": IMAGE},
    "bevt_image": {"backbone": VIT, "tokenizer": "toy", "masker": TUBE, "image": IMAGE},
    "bevt_video": {"backbone": VIT, "tokenizer": "toy", "masker": TUBE, "video": CLIP},
    "classification": {
        "objective": "num_classes: 10, label: digit, dropout: 0.5, mixup: 0.8, ema_momentum: 0.1",
        "backbone": VIT,
        "video": CLIP,
    },
    "lejepa": {
        "objective": f"{HEAD}, num_directions: 8, average_momentum: 0.5, average_every_steps: 2",
        "backbone": VIT[:-1]
        + ", positions: rotary, class_token: true, attention: block_causal, init_std: 0.5}",
        "masker": "{type: random_cells, ratio: 0.5}",
        "video": "{type: clip_crops, num_frames: 4, frame_stride: 1, size: 16, local_frames: [4, 2], "
        "local_size: 16}",
    },
    "svt": {
        "objective": "out_dim: 12, head_hidden: 8, bottleneck: 4, teacher_momentum: 0.9",
        "backbone": "{type: timesformer, embed_dim: 12, depth: 2, num_heads: 2, patch_size: 8, size: 16, "
        "num_frames: 4, drop_path: 0.3}",
        "video": GLOBALS,
    },
    "tokenizer": {
        "tokenizer": "{type: vqvae, vocab_size: 8, code_dim: 4, width: 4, stride: 8}",
        "image": IMAGE,
    },
    "videomae": {
        "objective": "decoder_dim: 8, decoder_depth: 1, decoder_heads: 2",
        "backbone": VIT,
        "masker": "{type: random_tube, ratio: 0.5}",
        "decoder_masker": "{type: running_cell}",
        "video": CLIP,
    },
    "vjepa": {  # as V-JEPA 2.1
        "objective": "predictor_dim: 12, predictor_depth: 1, predictor_heads: 2, teacher_momentum: 0.5, "
        "predictor_modality: true, context_weight: 0.5, context_full_step: 2",
        "backbone": VIT[:-1] + ", positions: rotary, position_span: 4, modality: true, levels: [0, 1]}",
        "masker": "{type: multi_block, num_blocks: [1, 1], areas: [0.3, 0.5]}",
        "video": CLIP,
    },
    "vimpac": {
        "objective": HEAD,
        "backbone": IDS,
        "tokenizer": "toy",
        "masker": BLOCKS,
        "video": PAIR,
    },
    "vimpac_contrast": {"objective": HEAD, "backbone": VIT, "video": PAIR},
    "vimpac_predict": {"backbone": IDS, "tokenizer": "toy", "masker": BLOCKS, "video": CLIP},
}


def _of_its_toy(name: str) -> dict[str, str]:
    """Sections for an objective that is not above, with the keys of its ``toy``."""
    views = {"clip": {1: CLIP, 2: PAIR}, "image": {1: IMAGE}, "global": {2: GLOBALS}}
    streams = {"clip": "video", "global": "video", "image": "image"}
    needed = needed_views(name)
    return {
        "objective": json.dumps(dict(OBJECTIVES[name].toy))[1:-1],
        **{part: section for part, section in {"backbone": VIT, "tokenizer": "toy", "masker": TUBE}.items()
           if parts_of(OBJECTIVES[name]).get(part)},
        **{streams[view]: views[view][count] for view, count in needed.items() if view in streams},
    }  # fmt: skip


TOYS |= {name: _of_its_toy(name) for name in OBJECTIVES if name not in TOYS}
# halves of others of the toys: where each objective is tested alike, these run with the slow ones
PARTS_OF_OTHERS = ("bevt_image", "bevt_video", "vimpac_contrast", "vimpac_predict")
BY_DEFAULT = [pytest.param(name, marks=[pytest.mark.slow] * (name in PARTS_OF_OTHERS)) for name in TOYS]
PARTS = ("backbone", "tokenizer", "masker", "decoder_masker")
OPTIMS = {
    "svt": "{type: adamw, lr: 1e-2, final_weight_decay: 0.4, clip_norm: 3.0, clip: each, decay: tables}",
    "classification": "{type: sgd, lr: 1e-2, nesterov: true, weight_decay: 1e-4}",
}


def recipe_text(name: str) -> str:
    toy = TOYS[name]
    lines = [f"name: {name}", f"objective: {{type: {name}, {toy.get('objective', '')}}}".replace(", }", "}")]
    lines += [f"{part}: {toy[part]}" for part in PARTS if part in toy]
    lines += ["data:"]
    for stream in ("video", "image"):
        if stream in toy:
            sources = f"source: {SOURCE}, test_source: {SOURCE}"
            lines += [f"  {stream}: {{{sources}, views: {toy[stream]}, batch_size: 4}}"]
    lines += ["augment: {type: per_clip}"] if "image" not in toy else []
    lines += [f"optim: {OPTIMS.get(name, '{type: adamw, lr: 1e-2}')}"]
    lines += [f"schedule: {{type: cosine, steps: 6, epoch_of: {'video' if 'video' in toy else 'image'}}}"]
    lines += [
        "run: {workers: 0, device: cpu, log_every_steps: 2, checkpoint_every_steps: 4, test_batches: 1}"
    ]
    return "\n".join(lines) + "\n"


def make_world(folder: Path) -> None:
    """A toy tokenizer and the recipes, for a working folder."""
    (folder / "tokenizers").mkdir()
    torch.manual_seed(0)
    net = VQVAE(vocab_size=8, code_dim=4, width=4, stride=8)
    content = save({key: value.contiguous() for key, value in net.state_dict().items()})
    (folder / "tokenizers" / "toy.safetensors").write_bytes(content)
    (folder / "tokenizers" / "toy.yaml").write_text(
        "type: vqvae\nvocab_size: 8\ncode_dim: 4\nwidth: 4\nstride: 8\nweights: toy.safetensors\n"
        f"sha256: {hashlib.sha256(content).hexdigest()}\nsource: a test\nlicence: MIT\n"
    )
    for name in TOYS:
        (folder / f"{name}.yaml").write_text(recipe_text(name))


def records(folder: RunFolder) -> list[dict[str, float]]:
    """The metrics without what is measured in seconds or bytes."""
    found = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    timed = re.compile(r"seconds|.*_per_second|data_wait_share|off_cpu_share|memory_gib")
    return [{key: value for key, value in record.items() if not timed.fullmatch(key)} for record in found]


def assert_same_end(one: RunFolder, other: RunFolder) -> None:
    """Weights, optimizer, random states and metrics are the same bit for bit."""
    for kind in ("checkpoints", "resume"):
        name = f"{kind}/{one.newest_checkpoint().name}"
        tensors, others = (read_tensors(folder.path / name)[1] for folder in (one, other))
        assert tensors.keys() == others.keys()
        assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []
    assert records(one) == records(other)


def skip_without_shards() -> None:
    """Leaves a test of ``run.parallel=fsdp`` out where torch cannot do that on CPUs."""
    if not _cpus_can_shard():
        pytest.skip(f"torch {torch.__version__} cannot shard on CPUs")


@cache
def _cpus_can_shard() -> bool:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        mp.start_processes(_answer, (Path(folder),), nprocs=2, start_method="fork")
        return (Path(folder) / "0").read_text() == "True"


def _answer(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    (folder / str(number)).write_text(str(can_shard_on_cpus()))
    end_group()
