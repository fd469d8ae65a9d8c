"""Forward and backward of each building block beside a named block of torch, in one run.

    python benchmarks/blocks.py
    python benchmarks/blocks.py --device cuda --repetitions 200
    python benchmarks/blocks.py --only FocalLoss

Repetitions are interleaved (one of each in turn), so that a change of the machine's pace hits both alike; the ratio is that of medians.
The exit status is 1 if a ratio is above its limit.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import complete_box_iou, drop_block2d

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from holocron_nb import nn as hnn  # noqa: E402
from holocron_nb.ops import ciou_loss  # noqa: E402


def classification(n, k):
    """Logits (n, k) that need a gradient, and class indices (n,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, k, generator=generator).requires_grad_(), torch.randint(k, (n,), generator=generator)


def box_pairs(m, n):
    """Boxes (m, 4) that need a gradient, and boxes (n, 4)."""
    generator = torch.Generator().manual_seed(0)
    centre, half = 100 * torch.rand(m + n, 2, generator=generator), 0.5 + 20 * torch.rand(m + n, 2, generator=generator)
    boxes = torch.cat([centre - half, centre + half], dim=1)
    return boxes[:m].requires_grad_(), boxes[m:]


def feature_map(*shape):
    """A map (N, C, H, W) that needs a gradient."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(),)


class SideBySide(nn.ModuleList):
    """The modules on the same input, one by one."""

    def forward(self, x):
        return sum(module(x).sum() for module in self)


def pooled_maps():
    """A map, and what triplet attention's branches see of it; all need a gradient."""
    (x,) = MAP()
    n, c, h, w = x.shape
    generator = torch.Generator().manual_seed(1)
    return x, *(torch.randn(n, 2, *side, generator=generator).requires_grad_() for side in ((h, w), (c, w), (h, c)))


class BranchesAlone(hnn.TripletAttention):
    """The convolutions and batch norms of triplet attention, on maps that are pooled already."""

    def forward(self, x, *pooled):
        branches = (self.c_branch, self.h_branch, self.w_branch)
        return sum(branch.compress[:2](maps).sum() for branch, maps in zip(branches, pooled, strict=True))


class OfTheMap(nn.Module):
    """A module that is handed more than the map."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, *_):
        return self.module(x)


@dataclass
class Row:
    name: str
    baseline_name: str
    shape: str
    inputs: Callable[[], tuple[Tensor, ...]]  # the first needs a gradient
    block: Callable[..., Tensor]
    baseline: Callable[..., Tensor]
    limit: float  # largest ratio of the times
    slow: int = 1  # divides the repetitions


MAP = partial(feature_map, 8, 64, 32, 32)
ROWS = [
    Row("FocalLoss", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.FocalLoss(), F.cross_entropy, 2.5),
    Row(
        "ComplementCrossEntropy", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.ComplementCrossEntropy(),
        F.cross_entropy, 4.0,
    ),
    Row("PolyLoss", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.PolyLoss(), F.cross_entropy, 2.5),
    Row(
        "Involution2d", "nn.Conv2d", "8x64x32x32", MAP, hnn.Involution2d(64, 7, padding=3, groups=4), nn.Conv2d(64, 64, 3, padding=1),
        5.0, slow=5,
    ),
    Row(
        "PyConv2d", "its four Conv2d", "8x64x32x32", MAP, hnn.PyConv2d(64, 64, 3, 4, 1), SideBySide(hnn.PyConv2d(64, 64, 3, 4, 1)),
        1.1, slow=10,
    ),
    Row("NormConv2d", "nn.Conv2d", "8x64x32x32", MAP, hnn.NormConv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), 3.0, slow=5),
    Row("Add2d", "nn.Conv2d", "8x64x32x32", MAP, hnn.Add2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), 45.0, slow=20),
    Row(
        "Add2d, compiled", "nn.Conv2d", "8x64x32x32", MAP, torch.compile(hnn.Add2d(64, 64, 3, padding=1)), nn.Conv2d(64, 64, 3, padding=1),
        20.0, slow=20,
    ),
    Row("HardMish", "nn.ReLU", "8x64x32x32", MAP, hnn.HardMish(), nn.ReLU(), 5.0),
    Row("NLReLU", "nn.ReLU", "8x64x32x32", MAP, hnn.NLReLU(), nn.ReLU(), 3.5),
    Row("FReLU", "its Conv2d and norm", "8x64x32x32", MAP, hnn.FReLU(64), nn.Sequential(hnn.FReLU(64).conv, hnn.FReLU(64).bn), 1.3, slow=5),
    Row(
        "TripletAttention", "its Conv2d and norms", "8x64x32x32", pooled_maps, OfTheMap(hnn.TripletAttention()), BranchesAlone(), 1.3, slow=5
    ),
    Row(
        "BlurPool2d", "depthwise nn.Conv2d", "8x64x32x32", MAP, hnn.BlurPool2d(64),
        nn.Conv2d(64, 64, 3, stride=2, padding=1, groups=64, bias=False), 1.2,
    ),
    Row(
        "DropBlock2d", "tv's drop_block2d", "8x64x32x32", MAP, hnn.DropBlock2d(0.1, 7), partial(drop_block2d, p=0.1, block_size=7), 1.0, slow=5
    ),
    Row("ciou_loss", "complete_box_iou", "2000 x 500", partial(box_pairs, 2000, 500), ciou_loss, complete_box_iou, 1.0),
]


def step(function, inputs, device):
    """Seconds of one forward and backward pass."""
    inputs[0].grad = None
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function(*inputs).sum().backward()
    synchronize()
    return time.perf_counter() - start


def race(row, device, repetitions, warm_up=10):
    """Median seconds of the block and of its baseline."""
    inputs = [x.detach().to(device).requires_grad_(x.requires_grad) for x in row.inputs()]
    block, baseline = (f.to(device) if isinstance(f, nn.Module) else f for f in (row.block, row.baseline))
    seconds = [(step(block, inputs, device), step(baseline, inputs, device)) for _ in range(repetitions // row.slow + warm_up)]
    return [statistics.median(column) for column in zip(*seconds[warm_up:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--only", nargs="*", help="names of blocks (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.empty(30 * 2**20, dtype=torch.uint8).fill_(0)  # once freed, glibc keeps blocks up to this size, as in any net that trains
    over = []
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads\n")
    print(f"{'block':24}{'baseline':20}{'input':16}{'us':>8}{'us':>8}{'ratio':>7}{'limit':>7}")
    for row in ROWS:
        if args.only and row.name not in args.only:
            continue
        ours, theirs = race(row, args.device, args.repetitions)
        print(f"{row.name:24}{row.baseline_name:20}{row.shape:16}{ours * 1e6:8.0f}{theirs * 1e6:8.0f}{ours / theirs:7.2f}{row.limit:7.1f}")
        if ours / theirs > row.limit:
            over.append(f"{row.name}: {ours / theirs:.2f} > {row.limit}")
    if over:
        sys.exit("above the limit: " + "; ".join(over))


if __name__ == "__main__":
    main()
