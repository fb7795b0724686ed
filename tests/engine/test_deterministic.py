"""``run.deterministic``: the same numbers from the same seed, and what has no such form is named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_runs import make_world

from vidssl.cli.main import main
from vidssl.engine.speed import deterministic
from vidssl.errors import UsageError


def test_the_option_deterministic_is_the_key(tmp_path, monkeypatch) -> None:
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vimpac_contrast.yaml", "--deterministic", "schedule.steps=1"]) == 0
    assert "deterministic: true" in Path("runs/vimpac_contrast/recipe.yaml").read_text()


def test_deterministic_holds_within_and_is_put_back() -> None:
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_without_a_deterministic_form_is_one_line() -> None:
    with (
        pytest.raises(UsageError, match=r"^run\.deterministic: put_ .*Set run\.deterministic=false"),
        deterministic(True),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match=r"^other$"), deterministic(True):
        raise RuntimeError("other")


@pytest.mark.gpu
def test_two_runs_on_a_gpu_give_the_same_losses(tmp_path: Path) -> None:
    """In processes of their own: cuBLAS reads its setting once."""
    script = (
        "import torch\n"
        "from vidssl.backbones import VideoSwin\n"
        "from vidssl.engine.speed import deterministic\n"
        "with deterministic(True):\n"
        "    torch.manual_seed(0)\n"
        "    net = VideoSwin(embed_dim=12, depths=(2, 2), num_heads=(2, 3), window=(2, 4, 4)).cuda()\n"
        "    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)\n"
        "    for _ in range(10):\n"
        "        loss = net(torch.rand(4, 3, 8, 64, 64, device='cuda')).patches.square().mean()\n"
        "        optimizer.zero_grad()\n"
        "        loss.backward()\n"
        "        optimizer.step()\n"
        "        print(float(loss).hex())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
        )
        for _ in range(2)
    ]
    assert said[0].stdout == said[1].stdout
    assert len(said[0].stdout.split()) == 10
