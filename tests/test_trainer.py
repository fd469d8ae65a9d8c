"""What cuts across the trainer's notebooks: precision, loaders with workers, bad input, a kill while a checkpoint is written."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holocron_nb.trainer import ClassificationTrainer, freeze_model
from holocron_nb.trainer.checkpoint import random_state, read_checkpoint, set_random_state


def make(tmp_path, batch_size=16, workers=0, seed=0, model=None, **kwargs):
    torch.manual_seed(seed)
    x = torch.randn(160, 3, 8, 8)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long() + (x[:, 0].mean((1, 2)) > 0.05).long())
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers)
    model = model or nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 3))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    return ClassificationTrainer(model, loader, DataLoader(data, 50), nn.CrossEntropyLoss(), optimizer, output_file=str(tmp_path / "best.pth"), **kwargs)


def weights(trainer):
    return torch.cat([v.flatten().double() for v in trainer.model.state_dict().values()])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("end", ["whole", "stopped", "exception", "interrupt"])
def test_find_lr_leaves_no_trace(tmp_path, workers, end):
    def on_step(iteration, lr, loss):
        if iteration == 4 and end == "exception":
            raise RuntimeError("from the callback")
        if iteration == 4 and end == "interrupt":
            raise KeyboardInterrupt
        return end == "stopped" and iteration == 4

    plain = make(tmp_path, workers=workers)
    seeds = random_state(plain.train_loader)
    plain.fit_n_epochs(1, lr=0.01)
    plain.fit_n_epochs(1, lr=0.01)
    searched = make(tmp_path, workers=workers)
    set_random_state(seeds, searched.train_loader)
    searched.fit_n_epochs(1, lr=0.01)
    try:
        searched.find_lr(freeze_until="0", norm_weight_decay=0.0, num_it=8, on_step=on_step)
        assert end in ("whole", "stopped")
    except (RuntimeError, KeyboardInterrupt):
        assert end in ("exception", "interrupt")
    assert len(searched.lr_recorder) == (8 if end == "whole" else 5)
    searched.fit_n_epochs(1, lr=0.01)
    assert torch.equal(weights(plain), weights(searched))


def test_mixed_precision_is_each_trainers_own(tmp_path):
    half = make(tmp_path, amp=True)
    full = make(tmp_path)
    dtypes = {}
    for name, trainer in {"half": half, "full": full}.items():
        trainer.model[0].register_forward_hook(lambda module, args, output, name=name: dtypes.__setitem__(name, output.dtype))
        trainer.fit_n_epochs(1, lr=0.01)
        assert math.isfinite(trainer.history[-1]["val_loss"])
    assert dtypes == {"half": torch.bfloat16, "full": torch.float32}
    again = make(tmp_path, model=half.model)
    again.model(torch.randn(2, 3, 8, 8))
    assert dtypes["half"] == torch.float32, "a trainer without amp must not inherit it from the model's former trainer"


def test_gradients_are_clipped(tmp_path):
    trainer = make(tmp_path, gradient_clip=1e-3)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item())
    )
    trainer.fit_n_epochs(1, lr=0.01)
    assert norms and max(norms) <= 1e-3 * 1.001


def test_schedules_groups_and_callback(tmp_path):
    seen = []
    trainer = make(tmp_path, on_epoch_end=seen.append)
    trainer.fit_n_epochs(2, lr=0.01, sched_type="cosine", norm_weight_decay=0.0)
    assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [0.0, 0.1]
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-8
    assert [set(m) for m in seen] == [{"val_loss", "acc1", "acc5"}] * 2 and seen[0]["acc5"] == 1.0
    frozen = trainer.model[0].weight.clone()
    trainer.fit_n_epochs(1, lr=0.1, freeze_until="0")
    assert torch.equal(frozen, trainer.model[0].weight) and trainer.optimizer.param_groups[0]["params"][0] is trainer.model[1].weight


def test_a_checkpoint_gives_everything_back(tmp_path):
    trainer = make(tmp_path)
    trainer.fit_n_epochs(2, lr=0.01, norm_weight_decay=0.0)
    trainer.save(tmp_path / "last.pth")
    other = make(tmp_path, seed=1)
    other.load(torch.load(tmp_path / "last.pth", weights_only=True))
    assert torch.equal(weights(other), weights(trainer)) and other.history == trainer.history
    for ours, theirs in zip(trainer.optimizer.state_dict()["state"].values(), other.optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(theirs[k])) for k in ours)
    draws = []
    for t in (trainer, other):
        t.load(tmp_path / "last.pth")
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def bad_inputs(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    trainer = make(tmp_path)
    trainer.save(tmp_path / "good.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:3000])
    other = make(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    infinite = make(tmp_path)
    infinite.model[0].weight.data.fill_(math.nan)
    folder = make(tmp_path)
    folder.output_file = str(file / "best.pth")
    empty = make(tmp_path)
    empty.val_loader = []
    bare = make(tmp_path)
    bare.criterion = lambda x, y: x.sum()
    return {
        "loader shorter than num_it": (lambda: trainer.find_lr(num_it=100), ValueError, r"num_it: expected 2 to 10 .*got 100"),
        "NaN from the first batch, searching": (lambda: infinite.find_lr(num_it=5), ValueError, r"loss: nan by batch 0.*skip_nan_loss"),
        "NaN from the first batch, training": (lambda: infinite.fit_n_epochs(1, lr=0.1), ValueError, r"loss: nan by batch 0 of epoch 1"),
        "a GPU that isn't there": (lambda: make(tmp_path, gpu=99), (AssertionError, ValueError), r"gpu: "),
        "classes missing": (lambda: trainer.plot_top_losses((0,) * 3, (1,) * 3), AssertionError, r"classes: "),
        "truncated checkpoint": (lambda: trainer.load(tmp_path / "cut.pth"), ValueError, r"cut.pth \(3,000 bytes\) is truncated"),
        "no checkpoint": (lambda: trainer.load(tmp_path / "none.pth"), FileNotFoundError, r"no checkpoint at .*none.pth"),
        "another model's checkpoint": (lambda: other.load(tmp_path / "good.pth"), ValueError, r"another model than this Sequential: 0.weight is unknown"),
        "a folder that can't be written": (lambda: folder.fit_n_epochs(1, lr=0.1), OSError, r"output_file: no file can be made in .*choose another"),
        "saving there": (lambda: trainer.save(file / "best.pth"), OSError, r"output_file: .*cannot be written"),
        "no validation data": (lambda: empty.evaluate(), ValueError, r"val_loader: expected at least one batch"),
        "no epochs": (lambda: trainer.fit_n_epochs(0, lr=0.1), ValueError, r"num_epochs"),
        "a criterion without reduction": (lambda: bare.top_losses(), TypeError, r"criterion: .*reduction"),
    }


@pytest.mark.parametrize("case", range(13))
def test_bad_input_is_named_and_nothing_is_lost(tmp_path, case):
    name, (action, error, message) = list(bad_inputs(tmp_path).items())[case]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        action()
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before == after, f"{name}: files changed"


def test_freezing_everything_is_refused(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(AssertionError, match="freeze_until: all parameters are frozen up to '5'"):
        trainer.fit_n_epochs(1, lr=0.1, freeze_until="5")
    freeze_model(trainer.model)
    assert all(p.requires_grad for p in trainer.model.parameters())


WRITER = """
import sys, torch
from holocron_nb.trainer.checkpoint import write_checkpoint
step = 0
while True:
    step += 1
    write_checkpoint({"step": step, "weights": torch.full((250_000,), float(step))}, sys.argv[1])
    print(step, flush=True)
"""


def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    for delay in (0.003, 0.007, 0.012, 0.02, 0.031):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        written = [int(line) for line in writer.communicate()[0].split()]
        state = read_checkpoint(path)
        assert state["step"] >= max(written, default=1) and (state["weights"] == state["step"]).all()
