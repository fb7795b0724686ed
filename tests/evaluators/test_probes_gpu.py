"""Probes on a GPU give what they give on the CPU; features are extracted there under bfloat16."""

import faiss
import pytest
import torch

from vidssl import api as v
from vidssl.errors import UsageError
from vidssl.evaluators import EVALUATORS
from vidssl.evaluators.knn import MOST_ON_GPU, nearest
from vidssl.evaluators.scores import probe
from vidssl.interfaces import LabelledFeatures

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def blobs(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    labels = torch.randint(4, (num,), generator=generator)
    centres = torch.randn(4, 12, generator=seeded(1)) * 10
    return centres[labels] + torch.randn(num, 12, generator=generator), labels


@pytest.mark.parametrize("name", sorted(EVALUATORS))
def test_probes_work_where_the_features_are(name):
    vectors, labels = blobs(200, 2)
    test, truth = blobs(100, 3)
    train = LabelledFeatures(vectors.to(CUDA), labels.to(CUDA), 4)
    scores = EVALUATORS[name]().class_scores(train, test.to(CUDA), seeded(0))
    assert scores.device.type == "cuda"
    assert torch.equal(scores.argmax(1).cpu(), truth)


@pytest.mark.parametrize("backend", ["auto", "torch", "faiss"])
def test_neighbours_on_a_gpu_are_those_of_the_cpu(backend):
    if backend == "faiss" and faiss.get_num_gpus() == 0:
        pytest.skip("this faiss is built for CPUs")
    train, test = (
        torch.nn.functional.normalize(torch.randn(num, 64, generator=seeded(num)), dim=1)
        for num in (3000, 500)
    )
    best = (test.double() @ train.double().T).topk(21, dim=1).values
    test = test[(best[:, :-1] - best[:, 1:]).min(1).values > 1e-5]  # without ties, in float32 too
    assert len(test) > 100
    expected_similarity, expected = nearest(train, test, 20, "torch")
    similarity, neighbours = nearest(train.to(CUDA), test.to(CUDA), 20, backend)
    assert neighbours.device.type == "cuda"
    torch.testing.assert_close(similarity.cpu(), expected_similarity, atol=1e-5, rtol=0)
    assert torch.equal(neighbours.cpu(), expected)


def test_more_neighbours_than_faiss_can_name_are_found_by_torch():
    train = torch.randn(MOST_ON_GPU + 10, 8, device=CUDA)
    assert nearest(train, train[:3], MOST_ON_GPU + 5)[1].shape == (3, MOST_ON_GPU + 5)
    with pytest.raises(UsageError, match="take 'torch' or 'auto'"):
        nearest(train, train[:3], MOST_ON_GPU + 5, "faiss")


def test_a_grid_on_a_gpu_chooses_as_on_the_cpu():
    vectors, labels = blobs(300, 2)
    sgd = v.LinearSGD(lr=(1e-9, 0.5), batch_size=16, epochs=5)
    scores = [
        sgd.class_scores(
            LabelledFeatures(vectors.to(device), labels.to(device), 4),
            vectors.to(device),
            seeded(0),
        ).cpu()
        for device in (torch.device("cpu"), CUDA)
    ]
    torch.testing.assert_close(*scores, atol=1e-2, rtol=1e-3)


def test_patch_tokens_of_bfloat16_features_feed_an_attentive_probe(monkeypatch, tmp_path):
    keys = {"size": 32, "digit_size": 24, "num_frames": 4, "num_videos": 40}
    views = v.UniformClips(num_frames=4, frame_stride=1, size=32)
    network = v.ViT(embed_dim=32, depth=2, num_heads=2, patch_size=(2, 8, 8))
    tables = [
        v.extract(
            network,
            v.MovingDigits(split=split, **keys),
            views,
            patches="float16",
            device=CUDA,
            autocast=True,
        )
        for split in ("train", "test")
    ]
    assert tables[0].vectors.device.type == "cuda"
    assert tables[0].patches["normal"].device.type == "cpu"
    means = tables[0].patches["normal"].float().mean(2)
    torch.testing.assert_close(means, tables[0].vectors.cpu(), atol=1e-2, rtol=1e-2)
    found = probe(v.Attentive(lr=(1e-3, 3e-3), epochs=2), *tables)
    assert {row.num_test for row in found} == {40}
