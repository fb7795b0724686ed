"""Every public part in a line or two, on random clips: ``python docs/examples/every_part.py`` takes seconds.

It prints each part and the shapes of what it makes. Sources of videos are in ``every_source.py`` beside it;
what is done with a run is in docs/using_a_run.md.
"""

import tempfile

import torch

from vidssl import api as v


def show(part: object, made: object) -> None:
    shape = [*made.shape] if isinstance(made, torch.Tensor) else made
    print(f"  {type(part).__name__:20} {shape}")


torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
clip = torch.rand(2, 3, 4, 32, 32)  # [B, 3, T, H, W], RGB in [0, 1]

print("Backbones: a vector of each clip, [B, D]")
vit = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
swin = v.VideoSwin(embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 2), window=(2, 3, 3))
timesformer = v.TimeSformer(embed_dim=16, depth=1, num_heads=2, patch_size=8, num_frames=4, size=32)
backbones: list[v.Backbone] = [vit, swin, timesformer, v.Pixels(num_frames=4, size=4)]
for backbone in (*backbones, v.TorchvisionNet(name="mc3_18")):
    show(backbone, backbone(clip).pooled())
for backbone in (v.TimmNet(name="test_vit"), v.PyTorchVideoNet(name="x3d_xs")):
    show(backbone, backbone(torch.rand(1, 3, 4, 160, 160)).pooled())

print("of its patches, [B, t, h, w, D]; of visible ones alone, [B, n, D]; what the class token attends to")
features: v.Features = vit(clip)
show(features, features.patches)
assert isinstance(vit, v.EncodesVisible)
seen: v.VisibleFeatures = vit.forward_visible(clip, torch.tensor([[0, 5], [3, 7]]))
show(seen, seen.patches)
assert isinstance(timesformer, v.ClassAttention)
show(timesformer, timesformer.class_attention(clip))

print("Tokenizers: ids of cells, [B, t, h, w], that give clips again; and a backbone that reads ids")
vqvae = v.VQVAE(vocab_size=16, code_dim=4, width=8, stride=8, num_res_blocks=1).eval()
fsq = v.FSQ(levels=(4, 4), width=8, stride=8, num_res_blocks=1).eval()
dalle = v.DALLE(vocab_size=16, width=8, num_blocks=1, decoder_width=8).eval()
motion = v.StructureTensor(vocab_size=16, stride=8, temporal_stride=2).eval()
tokenizers: list[v.Tokenizer] = [vqvae, fsq, dalle, motion]
for tokenizer in tokenizers:
    ids = tokenizer.encode(clip)
    show(tokenizer, ids)
    assert tokenizer.decode(ids).shape == clip.shape
reads_ids = v.Factorized(vocab_size=16, num_frames=4, height=4, width=4, embed_dim=16, depth=1, num_heads=2)
show(reads_ids, reads_ids(vqvae.encode(clip)).pooled())

print("Maskers: True where hidden, [B, t, h, w]; or which cells are seen, [B, n], and predicted, [B, m]")
tube = v.Tube(min_block=4)
maskers: list[v.Masker] = [tube, v.Blockwise(min_block=4), v.RandomFrame(min_block=4), v.Random3D()]
maskers += [v.FrameDiff(min_block=4), v.Block3D(num_blocks=2), v.RandomTube(ratio=0.5), v.RunningCell()]
for masker in maskers:
    show(masker, masker(2, (2, 4, 4), draw))
blocks = v.MultiBlock(num_blocks=(3, 2), areas=(0.15, 0.3))
for split in blocks.splits(2, (2, 4, 4), draw):
    show(blocks, f"{[*split.seen.shape]} and {[*split.predicted.shape]}")

print("Objectives: the loss of a batch; `needs_views` says which clips they read")
head = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8}
bevt = v.BEVTVideo(swin, vqvae, tube)
objectives: list[v.Objective] = [
    v.BEVT(swin, vqvae, tube),
    v.BEVTImage(swin, vqvae, tube),
    bevt,
    v.VIMPAC(reads_ids, vqvae, v.Block3D(num_blocks=2), **head),
    v.VIMPACPredict(vit, vqvae, v.Block3D(num_blocks=2)),
    v.VIMPACContrast(vit, **head),
    v.VideoMAE(vit, v.RandomTube(ratio=0.5), decoder_dim=16, decoder_depth=1, decoder_heads=2),
    v.VJEPA(vit, blocks, predictor_dim=12, predictor_depth=1, predictor_heads=2),
    v.SVT(timesformer, out_dim=16, head_hidden=16, bottleneck=8, freeze_last_layer_epochs=0),
    v.LeJEPA(vit, num_directions=16, **head),
    v.Classification(vit, num_classes=3, label="class"),
    v.TokenizerTraining(v.VQVAE(vocab_size=16, code_dim=4, width=8, stride=8, num_res_blocks=1)),
]
progress = v.Progress(step=0, total_steps=10)
for objective in objectives:
    wanted = objective.needs_views.items()
    views = {name: (clip[:, :, :1] if name == "image" else clip,) * slots for name, slots in wanted}
    batch = v.Batch(views, {"video": torch.arange(2)}, {"video": {"class": torch.tensor([0, 2])}})
    output: v.LossOutput = objective(batch, progress, draw)
    objective.after_step(progress, draw)  # behind each optimizer.step(): averages, codebooks
    show(objective, f"{output.loss:5.2f} of {dict(wanted)}")
assert isinstance(bevt, v.MaskedPrediction)
filled = bevt.eval().fill_in(clip, draw)
assert isinstance(filled, v.FilledIn)
show(filled, filled.predicted)

print("Augmentations of a batch, on its device")
views = {"clip": (clip,)}
for augment in (v.PerClipAugment(flip=0.5), v.ColourAugment(blur=0.5, solarise=0.2), v.FinetuneAugment()):
    show(augment, augment(v.Batch(views), draw).views["clip"][0])

print("Views: how often and how large a video is seen: frames, height, width")
rows = [(torch.rand(3, 24, 40, 40), number % 2) for number in range(12)]
source: v.DataSource = v.DatasetSource(rows, classes=("run", "walk"), fps=8)  # any Dataset of (clip, label)
info: v.SampleInfo = source.info(0)
show(info, (info.num_frames, *source.read(0, [0]).shape[2:]))
single = v.SingleClip(num_frames=4, frame_stride=1, size=32)
uniform = v.UniformClips(num_frames=4, frame_stride=1, size=32)
local = {"local_frames": (2, 2), "local_size": 16}
samplers: list[v.ViewSampler] = [
    single,
    v.SingleImage(size=32),
    v.MultiScaleClip(num_frames=4, frame_stride=1, size=32),
    v.RandomResizedClip(num_frames=4, frame_stride=1, size=32),
    v.RandomSegments(num_frames=4, size=32),
    v.ClipPair(num_frames=4, fps=None, size=32),
    v.CornerClip(num_frames=4, fps=None, size=32),
    v.GlobalLocal(num_frames=(4, 2), size=32, **local),
    v.ClipCrops(num_frames=4, frame_stride=1, size=32, **local),
    v.IntervalClips(num_frames=4, frame_stride=1, size=32, **local),
    v.SVTPublished(num_frames=(4, 4), size=32, **local),
    v.SlowFastTrain(num_frames=(2, 4), frame_strides=(4, 2), sizes=(32, 16)),
    uniform,
    v.SegmentMiddles(num_frames=4, num_crops=1, size=32),
    v.SlowFast(num_frames=(2, 4), frame_strides=(4, 2), sizes=(32, 16), num_crops=1),
    v.SVTPublishedTest(num_frames=4, num_crops=1, size=32),
]
for sampler in samplers:
    made = sampler.sample(source, 0, draw)  # name -> slots, uint8 [3, T, H, W]
    show(sampler, ", ".join(f"{name} {[*slot.shape[1:]]}" for name, slots in made.items() for slot in slots))

print("Optimizers, and schedules: factors of the learning rate in steps 0, 5 and 9")
adamw = v.AdamW(lr=1e-3, weight_decay=0.05)
optims: list[v.Optim] = [adamw, v.SGD(lr=0.1)]
for optim in optims:
    show(optim, f"{len(optim.build(vit).param_groups)} groups of parameters")
cosine = v.Cosine(steps=10)
schedules: list[v.Schedule] = [cosine, v.LinearDecay(steps=10), v.WarmupCosine(steps=10, warmup_steps=2)]
for schedule in (*schedules, v.MultiStep(steps=10, drop_steps=(5,))):
    plan = schedule.plan({"video": 5.0})  # steps that an epoch of the stream has
    show(schedule, [round(plan.factor(step), 3) for step in (0, 5, 9)])

print("Training: batches of streams, a folder, checkpoints")
stream = v.Stream(source, single, batch_size=4)
with v.Loader({"video": stream}) as loader:
    show(loader, f"{len(loader)} batches an epoch")
with tempfile.TemporaryDirectory() as folder:
    run = v.RunSpec(out=folder, device="cpu", workers=0)
    result: v.TrainResult = v.train(
        v.VideoMAE(vit, v.RandomTube(ratio=0.5), decoder_dim=16, decoder_depth=1, decoder_heads=2),
        {"video": stream}, optim=adamw, schedule=v.Cosine(steps=3), name="mine", run=run,
    )  # fmt: skip
    show(result, f"{result.steps} steps, weights of {v.read_checkpoint(result.checkpoint).step}")
    fresh = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
    show(v.load_init(fresh, str(result.checkpoint)), "weights of a run, or of others, in a network")

print("Evaluators: what a probe gets right of labels it has not seen")
table = v.extract(vit, source, uniform, device=torch.device("cpu"), patches="float16")
evaluators: list[v.Evaluator] = [v.Linear(), v.LinearSGD(epochs=2), v.KNN(k=3), v.Retrieval(k=(1,))]
for evaluator in (*evaluators, v.Attentive(lr=1e-3, epochs=1, num_heads=2)):
    scores: list[v.Score] = v.probe(evaluator, table, table, overlap="allow")  # of the same videos, here
    show(evaluator, f"{scores[0].top1:.0%}")
known = v.LabelledFeatures(torch.rand(6, 16), torch.tensor([0, 1, 0, 1, 0, 1]), num_classes=2)
show(known, v.KNN(k=3).class_scores(known, torch.rand(4, 16), draw))
