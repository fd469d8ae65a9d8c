"""Two processes train as one with the double batch does, and go on after a kill: over gloo on the CPU, by torchrun or Accelerate's launchers."""

import copy
import os
import signal
import subprocess
import sys

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holocron_nb.trainer import Callback, ClassificationTrainer
from holocron_nb.trainer.core import make_scheduler


class Dies(Callback):
    """Kills one of the processes at a step; torchrun then ends the other."""

    def __init__(self, step):
        self.step = step

    def on_batch_end(self, trainer, loss):
        if trainer.step == self.step and trainer.accelerator.process_index == self.step % 2:
            os.kill(os.getpid(), signal.SIGKILL)


def make(folder, batch_size, samples=64, layers=(), dies_at=None):
    torch.manual_seed(0)
    x = torch.randn(samples, 3, 8, 8)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    loader = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(3))
    val_loader = DataLoader(TensorDataset(x[:41], data.tensors[1][:41]), batch_size)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    loader.collate_fn = val_loader.collate_fn = lambda batch: (torch.stack([x for x, _ in batch]).double(), torch.stack([y for _, y in batch]))
    optimizer, output_file = torch.optim.AdamW(model.parameters()), f"{folder}/model.pth"
    criterion, callbacks = nn.CrossEntropyLoss(), [Dies(dies_at)]
    return ClassificationTrainer(model, loader, val_loader, criterion, optimizer, output_file=output_file, callbacks=callbacks)


def train(folder, batch_size, samples=64, layers=(), dies_at=None):
    trainer = make(folder, batch_size, samples, layers, dies_at)
    trainer.fit_n_epochs(2, lr=0.01, resume=True, save_every=1)
    return trainer


LAYERS = {"none": (), "norm": (nn.BatchNorm2d(4),), "noisy": (nn.BatchNorm2d(4), nn.Dropout(0.3))}


def train_a_share(folder, samples, layers="none", dies_at=None):
    torch.set_num_threads(1)
    train(folder, 8, samples, LAYERS[layers], dies_at)


def launch(folder, samples, starter="torchrun", layers="none", dies_at=0):
    """Starts two processes that each train with half the batch."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if starter == "torchrun" else []
    command = [sys.executable, *torchrun, __file__, str(folder), str(samples), starter, layers, str(dies_at)]
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


def test_batch_norm_sees_one_share_and_keeps_the_averages_of_the_first_process(tmp_path):
    done = launch(tmp_path, 64, layers="norm")
    assert done.returncode == 0, done.stderr[-3000:]
    trainer = make(tmp_path, 8, layers=LAYERS["norm"])  # here both shares go through two nets in turn, and the gradients are averaged by hand
    first, second = trainer.model, copy.deepcopy(trainer.model)
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.01)
    scheduler = make_scheduler(optimizer, 0.01, 8)
    for _ in range(2):
        batches = list(trainer.train_loader)
        for shares in zip(batches[::2], batches[1::2], strict=True):
            second.load_state_dict(first.state_dict())
            for net, (x, target) in zip((first, second), shares, strict=True):
                net.train().zero_grad()
                trainer.criterion(net(x), target).backward()
            for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
                ours.grad.add_(theirs.grad).div_(2)
            optimizer.step()
            scheduler.step()
    state = torch.load(tmp_path / "model.last.pth", weights_only=True)["model"]
    for name, value in first.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder, 64, layers="noisy")
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "model.last.pth", weights_only=True)


@pytest.mark.parametrize("step", [3, 6])
def test_two_processes_of_which_one_was_killed_go_on_to_the_same_end(tmp_path, undisturbed, step):
    """Killed in the first and in the second epoch, the second and the first process; with dropout, of which each process draws its own."""
    died = launch(tmp_path, 64, layers="noisy", dies_at=step)
    assert died.returncode != 0 and torch.load(tmp_path / "model.last.pth", weights_only=True)["step"] in (step - 1, step)
    done = launch(tmp_path, 64, layers="noisy")
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "model.last.pth", weights_only=True)
    for name in ("model", "optimizer", "history", "step"):
        ours, theirs = (torch.utils._pytree.tree_leaves(found[name]) for found in (state, undisturbed))
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(ours, theirs, strict=True)), name


if __name__ == "__main__":
    folder, samples, starter, layers, dies_at = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
    if starter == "torchrun":
        train_a_share(folder, samples, layers, dies_at)
    else:
        getattr(accelerate, starter)(train_a_share, (folder, samples, layers, dies_at), num_processes=2)
