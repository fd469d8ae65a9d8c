"""Two processes train as one with the double batch does: over gloo on the CPU, started by torchrun or by Accelerate's launchers."""

import subprocess
import sys

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holocron_nb.trainer import ClassificationTrainer


def train(folder, batch_size, samples=64):
    torch.manual_seed(0)
    x = torch.randn(samples, 3, 8, 8)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    loader = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(3))
    val_loader = DataLoader(TensorDataset(x[:41], data.tensors[1][:41]), batch_size)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    loader.collate_fn = val_loader.collate_fn = lambda batch: (torch.stack([x for x, _ in batch]).double(), torch.stack([y for _, y in batch]))
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = ClassificationTrainer(model, loader, val_loader, nn.CrossEntropyLoss(), optimizer, output_file=f"{folder}/model.pth")
    trainer.fit_n_epochs(2, lr=0.01, resume=True, save_every=1)
    return trainer


def train_a_share(folder, samples):
    torch.set_num_threads(1)
    train(folder, 8, samples)


def launch(folder, samples, starter="torchrun"):
    """Starts two processes that each train with half the batch."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if starter == "torchrun" else []
    command = [sys.executable, *torchrun, __file__, str(folder), str(samples), starter]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("starter", ["torchrun", "debug_launcher", "notebook_launcher"])
def test_two_processes_train_as_one_with_the_double_batch(tmp_path, starter):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    alone = train(one, 16)
    done = launch(two, 64, starter)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2: train_loss") == 1, "one process reports"
    assert {path.name for path in two.iterdir()} == {"model.pth", "model.last.pth"}
    state = torch.load(two / "model.last.pth", weights_only=True)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(alone.history, state["history"], strict=True):
        assert ours.keys() == theirs.keys() and all(abs(ours[name] - theirs[name]) < 1e-6 for name in ours)


def test_uneven_last_batches_neither_hang_nor_count_twice(tmp_path):
    done = launch(tmp_path, 50)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "model.last.pth", weights_only=True)
    assert len(state["random"]) == 2 and state["epoch"] == 2
    right = state["history"][-1]["acc1"] * 41
    assert abs(right - round(right)) < 1e-4, "the accuracy is a share of the 41 samples"


if __name__ == "__main__":
    folder, samples, starter = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if starter == "torchrun":
        train_a_share(folder, samples)
    else:
        getattr(accelerate, starter)(train_a_share, (folder, samples), num_processes=2)
