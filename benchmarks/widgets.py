"""What looking at the worst samples costs: the pass, beside a plain evaluation, and a click, from the mouse to the kernel and back.

    python benchmarks/widgets.py

Prints the time of TopLosses over the 10,000 test images of CIFAR-10 as a ratio to a bare evaluation loop in the same run (at most
1.15), and the milliseconds from a click in JupyterLab to the card that shows the kernel's answer (median; at most 150), for a decision, a
page of other images, and the large view with Grad-CAM. The latter need Chromium.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from holocron_nb import models
from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.utils.datasets import CIFAR10_MEAN, CIFAR10_STD, BatchLoader, cifar10
from holocron_nb.widgets import TopLosses

SETUP = """
import torch
from torch import nn
from holocron_nb import models
from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.utils.datasets import CIFAR10_MEAN, CIFAR10_STD, ArrayDataset, BatchLoader, cifar10
from holocron_nb.widgets import TopLosses
torch.manual_seed(0)
model, data = models.resnet20(num_classes=10), cifar10("test")
loader = BatchLoader(ArrayDataset(data.images[:500], data.targets[:500], data.classes), 250, mean=CIFAR10_MEAN, std=CIFAR10_STD)
trainer = ClassificationTrainer(model, loader, loader, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()), output_file="best.pth")
top = TopLosses(trainer)
top
"""

# clicks, and resolves with the milliseconds until something in the page matches
CLICK = """([button, expected]) => new Promise((resolve) => {
  const start = performance.now();
  const look = () => {
    if (!document.querySelector(expected)) return;
    observer.disconnect();
    resolve(performance.now() - start);
  };
  const observer = new MutationObserver(look);
  observer.observe(document.querySelector('.hn-top-losses'), { subtree: true, childList: true, attributes: true, characterData: true });
  document.querySelector(button).click();
})"""


@torch.inference_mode()
def bare(model, loader, criterion):
    """The loop that TopLosses is measured against: mean loss and accuracy."""
    model.eval()
    loss, right = torch.zeros(()), torch.zeros(())
    start = time.perf_counter()
    for x, target in loader:
        logits = model(x)
        loss += criterion(logits, target) * len(x)
        right += (logits.argmax(1) == target).sum()
    loss.item(), right.item()
    return time.perf_counter() - start


def measure_pass(repeats):
    torch.manual_seed(0)
    model, criterion = models.resnet20(num_classes=10).to(memory_format=torch.channels_last), nn.CrossEntropyLoss()
    loader = BatchLoader(cifar10("test"), 500, mean=CIFAR10_MEAN, std=CIFAR10_STD, device="cpu")
    trainer = ClassificationTrainer(model, loader, loader, criterion, torch.optim.SGD(model.parameters()), output_file=f"{tempfile.mkdtemp()}/best.pth")
    ratios = []
    for _ in range(repeats):
        base = bare(trainer.model, loader, criterion)
        start = time.perf_counter()
        TopLosses(trainer)
        ratios.append((time.perf_counter() - start) / base)
    print(f"TopLosses over {len(loader.dataset):,} images: {statistics.median(ratios):.2f} times a bare evaluation (at most 1.15), {base:.1f} s the latter")


def measure_clicks(repeats):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from browser import CHROMIUM_ARGUMENTS, Lab, find_chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        lab = Lab(folder, playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS))
        try:
            page = lab.open("clicks.ipynb", [SETUP])
            page.wait_for_function("document.querySelectorAll('.hn-gallery img').length === 12")
            first = ".hn-gallery .hn-card:first-child"
            rounds = {
                "a decision": ([f"{first} [data-do=delete]", f"{first} .hn-badge.hn-delete"], [f"{first} [data-do=keep]", f"{first} .hn-badge.hn-keep"]),
                "a page of other images": (
                    ["[aria-label='next page']", "[aria-label='previous page']:enabled"],
                    ["[aria-label='previous page']", "[aria-label='previous page']:disabled"],
                ),
                "the large view with Grad-CAM": ([f"{first} .hn-frame", ".hn-large figure:nth-child(2) img"], ["[data-do=back]", ".hn-large[hidden]"]),
            }
            for name, (there, back) in rounds.items():
                times = [(page.evaluate(CLICK, there), page.evaluate(CLICK, back)) for _ in range(repeats)]
                print(f"{name}: {statistics.median(t for t, _ in times):.0f} ms from the click to the kernel's answer on the page (at most 150)")
        finally:
            lab.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clicks", action="store_true", help="measure the clicks only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.clicks:
        measure_pass(args.repeats)
    measure_clicks(20)
