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
from torch import Tensor
from torchvision.ops import complete_box_iou

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


@dataclass
class Row:
    name: str
    baseline_name: str
    shape: str
    inputs: Callable[[], tuple[Tensor, ...]]  # the first needs a gradient
    block: Callable[..., Tensor]
    baseline: Callable[..., Tensor]
    limit: float  # largest ratio of the times


ROWS = [
    Row("FocalLoss", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.FocalLoss(), F.cross_entropy, 2.5),
    Row(
        "ComplementCrossEntropy", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.ComplementCrossEntropy(),
        F.cross_entropy, 4.0,
    ),
    Row("PolyLoss", "F.cross_entropy", "[256, 1000]", partial(classification, 256, 1000), hnn.PolyLoss(), F.cross_entropy, 2.5),
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
    seconds = [(step(row.block, inputs, device), step(row.baseline, inputs, device)) for _ in range(repetitions + warm_up)]
    return [statistics.median(column) for column in zip(*seconds[warm_up:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--only", nargs="*", help="names of blocks (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
