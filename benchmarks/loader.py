"""Images per second of BatchLoader beside torchvision's pipeline, on CIFAR-10, in one run.

Both give the same thing: shuffled batches of 128, padded by 4, cropped to 32x32, mirrored half of the time, normalised.

    baseline   ImageFolder + RandomCrop, RandomHorizontalFlip, ToTensor, Normalize + DataLoader with 2 workers
    ours       holocron_nb.utils.datasets.BatchLoader

    python benchmarks/loader.py --seconds 4

The two take turns in windows of equal length, so that whatever else the machine does meets both; the ratio is the median over the
turns. Asked for: at least 10 times the images per second. The CIFAR-10 files (JPEG) are found as `find("cifar10")` says.
"""

import argparse
import statistics
import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from holocron_nb.utils.datasets import CIFAR10_MEAN, CIFAR10_STD, BatchLoader, cifar10, find

ASKED = 10


def endless(loader):
    while True:
        yield from loader


def window(batches, seconds, device):
    """Images per second that an iterator gives within a window of time."""
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[1])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return images / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4, help="length of each window (default: 4)")
    parser.add_argument("--turns", type=int, default=3, help="windows of each kind (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the baseline (default: 2)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default=None, help="where ours makes its batches (default: the GPU if there is one, else the CPU)")
    args = parser.parse_args()

    transform = transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
    ])
    dataset = cifar10("train")
    if dataset.paths is None:
        sys.exit("the baseline reads JPEG files, not the official pickles: set HOLOCRON_NB_DATA to a folder with cifar10.tar.gz")
    files = ImageFolder(str(find("cifar10") / "train"), transform)
    baseline = DataLoader(files, args.batch_size, shuffle=True, num_workers=args.workers, persistent_workers=args.workers > 0)
    ours = BatchLoader(dataset, args.batch_size, shuffle=True, mean=CIFAR10_MEAN, std=CIFAR10_STD, flip=True, pad=4, device=args.device)
    streams = [endless(baseline), endless(ours)]
    for stream in streams:  # start the workers, read the files once
        window(stream, min(1, args.seconds), ours.device)
    slow, fast = zip(*([window(stream, args.seconds, ours.device) for stream in streams] for _ in range(args.turns)), strict=True)
    ratio = statistics.median(b / a for a, b in zip(slow, fast, strict=True))
    print(f"ImageFolder + transforms + DataLoader, {args.workers} workers  {statistics.median(slow):12,.0f} images/s")
    print(f"BatchLoader, {str(ours.device):<36} {statistics.median(fast):12,.0f} images/s")
    print(f"ratio {ratio:.1f} (asked: at least {ASKED}) {'reached' if ratio >= ASKED else 'MISSED'}")
    return 0 if ratio >= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
