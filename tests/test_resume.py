"""Training that is killed and resumed ends as if it had been left alone: weights, optimizer state and recorded losses, to the bit."""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from holocron_nb.optim.wrapper import Lookahead
from holocron_nb.trainer import EMA, Callback, ClassificationTrainer, EarlyStopping
from holocron_nb.trainer import checkpoint as checkpoint_module
from holocron_nb.trainer.checkpoint import read_checkpoint

# children are forked from a server that has imported torch once and never used it: a clean process each, without seconds of imports
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["holocron_nb.trainer", "holocron_nb.optim.wrapper", "torchvision.transforms.v2"])
STEPS = 3 * 11  # batches of an undisturbed run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here as in the processes: sums of another number of threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noisy(Dataset):
    """Images that are augmented by all three libraries' random numbers."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images, self.targets = torch.randn(86, 1, 6, 6, generator=generator), torch.randint(0, 3, (86,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(1, 6, 6) + 0.1 * float(np.random.rand())
        return (image.flip(2) if random.random() < 0.5 else image), self.targets[index]


class Fault(Callback):
    """Kills this process after a batch, in the middle of writing a checkpoint, or between writing and renaming; or calls something."""

    def __init__(self, kind=None, number=0, action=None):
        self.kind, self.number, self.action, self.count = kind, number, action or kill, 0

    def on_start(self, trainer):
        if self.kind == "write":
            checkpoint_module.torch = type("Torch", (), {"save": self.save, "__getattr__": lambda _, name: getattr(torch, name)})()
        if self.kind == "rename":
            checkpoint_module.os.replace = self.replace

    def on_batch_end(self, trainer, loss):
        if self.kind == "batch" and trainer.step == self.number:
            self.action()

    def save(self, state, file):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.count += 1
        if self.count < self.number:
            file.write(buffer.getvalue())
        else:
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            kill()

    def replace(self, source, target):
        self.count += 1
        if self.count == self.number:
            kill()
        os.rename(source, target)


def kill():
    os.killpg(os.getpgrp(), signal.SIGKILL)  # with the loader's workers, which would hold the process's end open for seconds


def make_trainer(folder, workers=0, sched_type="onecycle", fault=(None, 0), **kwargs):
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    generator = torch.Generator().manual_seed(7) if sched_type == "cosine" else None
    how = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}  # a child of the server would ask it for workers
    loader = DataLoader(Noisy(), 8, shuffle=True, generator=generator, **how)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    if sched_type == "cosine":
        optimizer = Lookahead(torch.optim.SGD(model.parameters(), momentum=0.9), sync_period=3)
    callbacks = [EMA(0.9), EarlyStopping(5), Fault(*fault)]
    options = {"batch_transform": v2.MixUp(num_classes=3), "gradient_acc": 2, "gradient_clip": 1.0, "callbacks": callbacks, **kwargs}
    val_loader = DataLoader(Noisy(), 43)
    return ClassificationTrainer(model, loader, val_loader, nn.CrossEntropyLoss(), optimizer, output_file=f"{folder}/model.pth", **options)


def fit(trainer, sched_type="onecycle", **kwargs):
    trainer.fit_n_epochs(3, lr=0.02, sched_type=sched_type, norm_weight_decay=0.0, resume=True, save_every=2, **kwargs)


def outcome(trainer):
    """All that has to be equal, as flat leaves."""
    ema = trainer.callbacks[0].state_dict()
    states = [trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.scheduler.state_dict(), trainer.history, trainer.min_loss, ema]
    return torch.utils._pytree.tree_leaves(states)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(ours, theirs, strict=True))


def child(folder, workers, sched_type, fault, result):
    """A training in a process of its own, and in a group of its own with the loader's workers."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    trainer = make_trainer(folder, workers, sched_type, fault)
    fit(trainer, sched_type)
    torch.save(outcome(trainer), result)


def start(folder, workers, sched_type, fault=(None, 0)):
    process = PROCESSES.Process(target=child, args=(str(folder), workers, sched_type, fault, f"{folder}/result.pt"))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Outcome and duration of an undisturbed run of each kind, each run once."""
    found = {}

    def run(*kind):
        if kind not in found:
            folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
            process = start(folder, *kind)
            process.join(120)
            assert process.exitcode == 0
            found[kind] = torch.load(folder / "result.pt"), time.monotonic() - began
        return found[kind]

    return run


@pytest.mark.parametrize("seed", range(20))
def test_a_killed_training_ends_as_one_that_was_left_alone(tmp_path, undisturbed, seed):
    draw = random.Random(seed)
    kind = 2 * (seed % 2), ("onecycle", "cosine")[seed // 2 % 2]
    expected, seconds = undisturbed(*kind)
    how = ("time", "batch", "write", "rename", "batch")[seed % 5]
    for _ in range(draw.randint(1, 2)):
        fault = {"time": (None, 0), "batch": ("batch", draw.randrange(STEPS) + 1)}.get(how, (how, draw.randint(1, 8)))
        process = start(tmp_path, *kind, fault)
        if how == "time":
            process.join(draw.uniform(0.3, 0.9) * seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0)
    process = start(tmp_path, *kind)
    process.join(60)
    assert process.exitcode == 0
    assert same(torch.load(tmp_path / "result.pt"), expected)
    assert not same(torch.load(tmp_path / "result.pt"), [torch.zeros(1)] * len(expected))


@pytest.fixture
def whole(tmp_path):
    """An undisturbed training in this process."""
    folder = tmp_path / "whole"
    folder.mkdir()
    trainer = make_trainer(folder)
    fit(trainer)
    return trainer


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = {}

    def fill():
        kept.update(files(tmp_path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

    try:
        with pytest.raises(OSError, match=r"model.last.pth cannot be written \(.+\); what was there before is unchanged"):
            fit(make_trainer(tmp_path, fault=("batch", 15, fill)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept == files(tmp_path) and set(kept) == {"model.pth", "model.last.pth"}
    assert read_checkpoint(tmp_path / "model.last.pth")["step"] == 11
    again = make_trainer(tmp_path)
    fit(again)
    assert same(outcome(again), outcome(whole))


def in_a_locked_folder(folder, result):
    """As a user whom the folder's mode binds: before a training, and in the middle of one."""
    folder = Path(folder)
    if os.geteuid() == 0:
        os.seteuid(65534)

    def said(trainer):
        try:
            fit(trainer)
        except OSError as error:
            return str(error)

    torch.set_num_threads(1)
    during = said(make_trainer(folder, fault=("batch", 15, lambda: folder.chmod(0o555))))
    kept = files(folder)
    before = said(make_trainer(folder))
    assert kept == files(folder)
    folder.chmod(0o755)
    trainer = make_trainer(folder)
    fit(trainer)
    Path(result).unlink(missing_ok=True)
    torch.save([before, during, *outcome(trainer)], result)


def test_a_read_only_folder_is_named_and_nothing_is_lost(whole):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "models"
        for path in (Path(root), folder):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
            if os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        process = PROCESSES.Process(target=in_a_locked_folder, args=(str(folder), f"{root}/result.pt"))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        before, during, *found = torch.load(f"{root}/result.pt")
    assert "no file can be made in" in before and "Permission denied" in before
    assert "model.last.pth cannot be written" in during and "Permission denied" in during
    assert same(found, outcome(whole))


def interrupted(tmp_path, step=17, **kwargs):
    """A trainer that was stopped in the middle of an epoch."""
    trainer = make_trainer(tmp_path, fault=("batch", step, lambda: (_ for _ in ()).throw(KeyboardInterrupt())), **kwargs)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    return trainer


def test_the_interrupted_trainer_itself_can_go_on(tmp_path, whole):
    trainer = interrupted(tmp_path)
    trainer.callbacks[2].kind = None
    fit(trainer)
    assert same(outcome(trainer), outcome(whole))


def test_a_truncated_checkpoint_is_named_and_the_best_stays(tmp_path):
    interrupted(tmp_path)
    last = tmp_path / "model.last.pth"
    last.write_bytes(last.read_bytes()[:3000])
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"model.last.pth \(3,000 bytes\) is truncated"):
        fit(make_trainer(tmp_path))
    assert files(tmp_path) == before
    trainer = make_trainer(tmp_path)
    trainer.load(tmp_path / "model.pth")
    assert trainer.epoch == 1


def test_a_training_with_other_arguments_is_not_continued(tmp_path):
    interrupted(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"resume: .* another training: lr was 0.02 and is 0.5; remove it"):
        make_trainer(tmp_path).fit_n_epochs(3, lr=0.5, norm_weight_decay=0.0, resume=True)
    other = make_trainer(tmp_path, gradient_acc=1)
    with pytest.raises(ValueError, match=r"gradient_acc was 2 and is 1"):
        fit(other)
    assert files(tmp_path) == before
    persistent = make_trainer(tmp_path, workers=2)
    persistent.train_loader = DataLoader(Noisy(), 8, num_workers=2, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers"):
        fit(persistent)


def test_of_two_trainings_in_a_row_the_first_is_passed_by(tmp_path):
    def both(folder, fault=(), before=lambda: None):
        trainer = make_trainer(folder, fault=fault)
        trainer.fit_n_epochs(1, lr=0.02, freeze_until="1", resume=True)
        before()
        trainer.fit_n_epochs(2, lr=0.01, sched_type="cosine", resume=True, save_every=2)
        return trainer

    (tmp_path / "whole").mkdir()
    expected = both(tmp_path / "whole")
    for step in (11, 12, 15):  # at the end of the first, before and after the second's first checkpoint
        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(ZeroDivisionError):
            both(folder, ("batch", step, lambda: 1 / 0))
        assert same(outcome(both(folder)), outcome(expected))


def test_a_finished_or_stopped_training_is_not_trained_on(tmp_path, whole):
    folder = Path(whole.output_file).parent
    again = make_trainer(folder, fault=("batch", 1, lambda: 1 / 0))
    fit(again)
    assert same(outcome(again), outcome(whole))
    stopped = make_trainer(tmp_path)
    stopped.callbacks[1].patience, stopped.callbacks[1].min_delta = 1, 100.0
    fit(stopped)
    again = make_trainer(tmp_path)
    fit(again)
    assert stopped.epoch == again.epoch == 2 and same(outcome(again), outcome(stopped))


def test_without_resume_nothing_but_the_best_is_written(tmp_path):
    make_trainer(tmp_path).fit_n_epochs(1, lr=0.01)
    assert set(files(tmp_path)) == {"model.pth"}
