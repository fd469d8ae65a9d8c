"""A step of each optimizer beside a step of torch.optim.AdamW, in one run.

    python benchmarks/optim.py                  # ResNet-50's parameters, and 2,000 tensors of 64
    python benchmarks/optim.py --device cuda    # beside AdamW(fused=True) instead of AdamW(foreach=True)
    python benchmarks/optim.py --only AdaBelief --repetitions 40

Repetitions are interleaved (one step of each in turn), so that a change of the machine's pace hits all alike; the ratio is that of medians.
`state` counts bytes a parameter. `least GB` is what a step has to move at least (parameters, gradient and state in, parameters and state
out); `of copy` is the share of the measured copy bandwidth at which it does so. The exit status is 1 if a ratio is above its limit.
"""

import argparse
import functools
import inspect
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from holocron_nb import optim  # noqa: E402

# The largest ratio to AdamW. A row is "class" or "class, variant".
LIMITS = {"AdaBelief": 1.2, "LAMB": 1.2, "LARS": 1.2, "RaLars": 1.2, "TAdam": 1.2, "AdEMAMix": 1.5, "AdamP": 1.5, "Adan": 1.5}
# Options of a row; every optimizer of holocron_nb.optim has a row, with its defaults unless it is named here.
OPTIONS = {
    "AdaBelief, decoupled decay": {"weight_decay": 0.01, "decoupled_weight_decay": True},
    "AdaBelief, foreach=False": {"foreach": False},
    "AdamP, decoupled decay": {"weight_decay": 0.01, "decoupled_weight_decay": True},
    "LAMB": {"weight_decay": 0.01},
    "LARS": {"momentum": 0.9, "weight_decay": 1e-4},
}


def optimizers():
    """Name, constructor and limit of every row; one tensor at a time is shown without a limit."""
    classes = {name: getattr(optim, name) for name in optim.__all__}
    concrete = [name for name, cls in classes.items() if issubclass(cls, optim.ForeachOptimizer) and not inspect.isabstract(cls)]
    for row in sorted({*concrete, *OPTIONS}):
        name, options = row.split(",")[0], OPTIONS.get(row, {})
        limit = LIMITS.get(name) if options.get("foreach") is not False else None
        yield row, functools.partial(classes[name], **options), limit


# Each wrapper around AdamW beside AdamW alone, averaged over a period, at the end of which a wrapper does its work.
PERIOD = 6
WRAPPERS = {"Lookahead(AdamW)": optim.Lookahead, "Scout(AdamW)": optim.Scout}
WRAPPER_LIMIT = 1.1

SHAPES = {
    "ResNet-50, 161 tensors": [p.shape for p in torchvision.models.resnet50().parameters()],
    "2,000 tensors of 64": [torch.Size([64])] * 2000,
}


@dataclass
class Contender:
    name: str
    optimizer: torch.optim.Optimizer
    params: list[nn.Parameter]
    limit: float | None
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def state_bytes(self) -> int:
        tensors = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum(v.nbytes for v in tensors if v.dim())

    @property
    def least_bytes(self) -> int:
        return 3 * sum(p.nbytes for p in self.params) + 2 * self.state_bytes


def contender(name, build, limit, shapes, device):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=generator).mul_(0.1).to(device)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).mul_(0.1).to(device)
    return Contender(name, build(params), params, limit)


def timed(function, device):
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def copy_bandwidth(device, repetitions=10):
    """Bytes a second read and written by a copy of 256 MB."""
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(timed(lambda: target.copy_(source), device) for _ in range(repetitions))


def race(contenders, device, repetitions, steps=1, warm_up=3):
    for repetition in range(repetitions + warm_up):
        for c in contenders:
            seconds = timed(lambda step=c.optimizer.step: [step() for _ in range(steps)], device)
            if repetition >= warm_up:
                c.seconds.append(seconds / steps)


def report(title, contenders, bandwidth):
    """Prints the table, its first row the baseline; returns a sentence for each row above its limit."""
    print(f"\n{title}\n{'':28}      ms  ratio  limit  state  least GB  of copy")
    over = []
    for c in contenders:
        ratio, numel = c.median / contenders[0].median, sum(p.numel() for p in c.params)
        share = c.least_bytes / bandwidth / c.median
        limit, state = f"{c.limit:5.2f}" if c.limit else "     ", c.state_bytes / numel
        print(f"{c.name:28}{c.median * 1e3:8.2f}  {ratio:5.2f}  {limit}  {state:5.1f}  {c.least_bytes / 1e9:8.3f}  {share:6.0%}")
        if c.limit and ratio > c.limit:
            over.append(f"{c.name}, {title}: {ratio:.2f} > {c.limit}")
    return over


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="names of optimizers (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    over = []
    mode = {"fused": True} if args.device == "cuda" else {"foreach": True}
    bandwidth = copy_bandwidth(args.device)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; copy: {bandwidth / 1e9:.1f} GB/s")
    for title, shapes in SHAPES.items():

        def base(p):
            return torch.optim.AdamW(p, **mode)

        rows = [(f"AdamW({next(iter(mode))}=True)", base, None)]
        wrapped = [(name, lambda p, wrapper=wrapper: wrapper(base(p)), WRAPPER_LIMIT) for name, wrapper in WRAPPERS.items()]
        for steps, rivals, what in ((1, optimizers(), title), (PERIOD, wrapped, f"{title}, averaged over {PERIOD} steps")):
            chosen = [row for row in rivals if not args.only or row[0] in args.only]
            if chosen:
                contenders = [contender(*row, shapes, args.device) for row in [*rows, *chosen]]
                race(contenders, args.device, args.repetitions, steps)
                over += report(what, contenders, bandwidth)
    if over:
        sys.exit("above the limit: " + "; ".join(over))


if __name__ == "__main__":
    main()
