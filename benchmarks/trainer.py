"""What the trainer costs beyond a bare PyTorch loop, and what importing the package costs beyond torch.

    python benchmarks/trainer.py

Prints, each against its baseline in the same run: microseconds a step on a linear model (at most 180, with every callback on 250), the
share on a step of about 25 ms of a small convolutional net (at most 1 %, with every callback on as well), the rate finder against as many
training steps (at most 1.1),
a checkpoint of ResNet-50 with its optimizer against `torch.save` (at most 1.3), the import (at most 0.15 s). Where there is a GPU: images
per second of ResNet-50 in bfloat16 (at least 0.98 of a bare loop), and how often a step waits for the device (never).
"""

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from holocron_nb.models import resnet50
from holocron_nb.trainer import EMA, SWA, EarlyStopping, LivePlot, Tracking, Trainer

STEPS = 200


class Batches(list):
    """Batches that are there already: what is measured is the loop, not the data."""


def linear():
    """A model that costs nothing, batches of 32."""
    torch.manual_seed(0)
    return nn.Linear(8, 1), Batches((torch.randn(32, 8), torch.randn(32, 1)) for _ in range(STEPS)), nn.MSELoss()


def convolutional():
    """CIFAR-sized images through nine convolutions, 25 ms a step on two cores."""
    torch.manual_seed(0)
    widths = (3, 32, 32, 32, 64, 64, 64, 128, 128, 128)
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, 2 if i != o > 32 else 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
        for i, o in zip(widths, widths[1:], strict=False)
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return model, InTurns((torch.randn(16, 3, 32, 32), torch.randint(10, (16,))) for _ in range(20)), nn.CrossEntropyLoss()


class Bare:
    """The loop that the trainer is measured against: the same schedule and the same mean of the losses."""

    def __init__(self, model, criterion, steps):
        self.model, self.criterion, self.total = model.train(), criterion, torch.zeros(())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=1e-3, total_steps=steps)

    def step(self, x, target):
        loss = self.criterion(self.model(x), target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.total += loss.detach()


def bare(model, batches, criterion):
    """Seconds of an epoch of the bare loop."""
    loop = Bare(model, criterion, len(batches))
    start = time.perf_counter()
    for x, target in batches:
        loop.step(x, target)
    return time.perf_counter() - start


class InTurns(Batches):
    """Batches that take a bare step after each of the trainer's, and note how long both took: what slows the machine meets both alike."""

    pairs = None

    def __iter__(self):
        if self.pairs is None:
            yield from super().__iter__()
            return
        loop = Bare(*self.bare, len(self))
        for x, target in super().__iter__():
            start = time.perf_counter()
            yield x, target
            middle = time.perf_counter()
            loop.step(x, target)
            self.pairs.append((middle - start, time.perf_counter() - middle))


class Log:
    """A tracker that keeps nothing."""

    def log(self, values, step):
        self.last = step


def every_callback():
    return [EMA(), SWA(start=1), EarlyStopping(patience=1000), Tracking(Log()), LivePlot()]


def make_trainer(model, batches, criterion, callbacks=(), **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    file = f"{tempfile.mkdtemp()}/best.pth"
    trainer = Trainer(model, batches, batches[:1], criterion, optimizer, output_file=file, callbacks=callbacks, **options)
    trainer.fit_n_epochs(1, lr=1e-3)
    return trainer


def epoch(trainer):
    """One epoch of the trainer, without evaluation."""
    trainer.scheduler = torch.optim.lr_scheduler.OneCycleLR(trainer.optimizer, max_lr=1e-3, total_steps=len(trainer.train_loader))
    start = time.perf_counter()
    trainer._fit_epoch()
    return time.perf_counter() - start


def interleaved(first, second, repeats):
    """Best times of two functions, run in turns so that both see the same machine."""
    times = [(first(), second()) for _ in range(repeats)]
    return min(t for t, _ in times), min(t for _, t in times)


def measure_overhead(repeats, callbacks, limit, what):
    model, batches, criterion = linear()
    trainer = make_trainer(model, batches, criterion, callbacks())
    base, ours = interleaved(lambda: bare(model, batches, criterion), lambda: epoch(trainer), repeats)
    print(f"linear model: bare loop {base / STEPS * 1e6:.0f} us a step, {what} {(ours - base) / STEPS * 1e6:+.0f} us (at most {limit})")

    model, batches, criterion = convolutional()
    trainer = make_trainer(model, batches, criterion, callbacks())
    batches.bare, batches.pairs = (copy.deepcopy(model), criterion), []
    for _ in range(2 * repeats):
        epoch(trainer)
    ours, base = (statistics.median(times) for times in zip(*batches.pairs, strict=True))
    print(f"step of {base * 1e3:.0f} ms: {what} {ours / base - 1:+.2%} (at most 1 %), medians of {len(batches.pairs)} steps of each in turn")


def measure_checkpoint(repeats):
    model = resnet50()
    batches = Batches([(torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long))])
    trainer = make_trainer(model, batches, nn.CrossEntropyLoss())
    folder = Path(trainer.output_file).parent

    def seconds(save):
        start = time.perf_counter()
        save()
        return time.perf_counter() - start

    def plain():
        torch.save({"model": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, folder / "plain.pth")

    base, ours = interleaved(lambda: seconds(plain), lambda: seconds(lambda: trainer.save(folder / "ours.pth")), repeats)
    print(f"checkpoint of ResNet-50 with its optimizer: torch.save {base:.2f} s, trainer {ours / base:.2f} times (at most 1.3)")


def measure_bf16(repeats, device="cuda", batch_size=128, size=224, steps=20):
    torch.manual_seed(0)
    model, criterion = resnet50(num_classes=10).to(device), nn.CrossEntropyLoss()
    x, target = torch.randn(batch_size, 3, size, size, device=device), torch.randint(10, (batch_size,), device=device)
    batches = Batches([(x, target)] * steps)
    trainer = make_trainer(model, batches, criterion, amp=True)
    loop = Bare(copy.deepcopy(model), criterion, (2 * repeats + 2) * steps)

    def timed(run):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def plain():
        for x, target in batches:
            with torch.autocast(device, torch.bfloat16):
                loss = criterion(loop.model(x), target)
            loss.backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            loop.scheduler.step()

    base, ours = interleaved(lambda: timed(plain), lambda: timed(lambda: epoch(trainer)), repeats)
    rate = batch_size * steps / ours
    print(f"ResNet-50, bfloat16, {device}: {rate:,.0f} images/s, {base / ours:.3f} of a bare loop (at least 0.98)")
    with torch.profiler.profile() as profile:
        epoch(trainer)
    waits = sum(event.count for event in profile.key_averages() if "Synchronize" in event.key)
    print(f"{waits} waits for the device in {steps} steps (the loss is read twice a second, and at the end; at most 3 in so short an epoch)")


def measure_find_lr(repeats):
    model, batches, criterion = linear()
    batches = Batches(batches[:100])
    trainer = make_trainer(model, batches, criterion)

    def search():
        start = time.perf_counter()
        trainer.find_lr(num_it=100)
        return time.perf_counter() - start

    base, ours = interleaved(lambda: epoch(trainer), search, repeats)
    print(f"rate finder on a linear model, the worst case: {ours / base:.2f} times 100 training steps (at most 1.1)")


def measure_import(repeats):
    def seconds(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    base, ours = interleaved(lambda: seconds("import torch, torchvision"), lambda: seconds("import torch, torchvision, holocron_nb"), repeats)
    print(f"import: torch and torchvision {base:.2f} s, with holocron_nb {ours - base:+.3f} s (at most 0.15)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure_overhead(args.repeats, tuple, 180, "trainer")
    measure_overhead(args.repeats, every_callback, 250, "trainer with every callback")
    measure_find_lr(args.repeats)
    measure_checkpoint(args.repeats)
    measure_import(args.repeats)
    if torch.cuda.is_available():
        measure_bf16(args.repeats)
