"""TopLosses for masks and boxes in JupyterLab: what is shown, and that all can be done by keyboard."""

import pytest
from playwright.sync_api import expect

MASKS = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from holocron_nb.trainer import SegmentationTrainer
from holocron_nb.utils.datasets import Shapes
from holocron_nb.widgets import TopLosses

# discs of known masks, and a net that calls everything bright a disc: nothing to train, nothing random
discs = Shapes(num_samples=12, size=64, num_classes=1, task="masks")
loader = DataLoader([(image / 255, mask) for image, mask in discs], 4)
net = nn.Conv2d(3, 2, 1)
with torch.no_grad():
    net.weight.zero_()
    net.weight[1] = 4
    net.bias.copy_(torch.tensor([5.0, 0]))
trainer = SegmentationTrainer(net, None, loader, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters()), num_classes=2, output_file="best.pth")
top = TopLosses(trainer, classes=discs.classes, num_samples=8, page_size=4)
top
"""
BOXES = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from holocron_nb.trainer import DetectionTrainer
from holocron_nb.utils.datasets import Shapes
from holocron_nb.widgets import TopLosses

shapes = Shapes(num_samples=12, size=64, num_classes=3, task="boxes")
data = [(image / 255, target) for image, target in shapes]

class Detector(nn.Module):  # knows the boxes, misses the first of each image and adds one
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x, targets=None):
        known = [next(t for image, t in data if torch.equal(image, one)) for one in x]
        if self.training:
            return {"loss": self.scale * sum(len(t["labels"]) for t in known)}
        add = torch.tensor([[0.0, 0, 6, 6]])
        found = [(torch.cat([t["boxes"][1:], add]), torch.cat([t["labels"][1:], t["labels"][:1]])) for t in known]
        return [{"boxes": b, "labels": k, "scores": torch.full((len(k),), 0.75)} for b, k in found]

loader = DataLoader(data, 4, collate_fn=lambda batch: (torch.stack([b[0] for b in batch]), [b[1] for b in batch]))
net = Detector()
trainer = DetectionTrainer(net, None, loader, None, torch.optim.SGD(net.parameters()), output_file="best.pth")
top = TopLosses(trainer, classes=shapes.classes, num_samples=8, page_size=4)
top
"""


@pytest.mark.parametrize(("name", "cell", "views"), [("masks", MASKS, ["mask", "prediction", "errors"]), ("boxes", BOXES, ["labelled", "predicted"])])
def test_gallery_and_large_view_by_keyboard(lab, name, cell, views):
    page = lab.open(f"{name}.ipynb", [cell], width=1280, height=1100)
    cards = page.locator(".hn-gallery .hn-card")
    page.wait_for_function("[...document.querySelectorAll('.hn-gallery img')].filter(i => i.naturalWidth > 0).length === 4")
    worst = lab.ask("[[s.index, top.describe(s.index), [f[1] for f in top._task.facts(s)]] for s in top.shown[:4]]")
    for i, (index, words, values) in enumerate(worst):
        assert cards.nth(i).get_attribute("data-index") == str(index) and cards.nth(i).locator("img").get_attribute("alt") == words
        text = cards.nth(i).inner_text()
        assert all(value in text for value in values) and "Relabel" not in text
    assert page.get_by_label("Order by", exact=True).locator("option").all_inner_texts() == lab.ask("list(top._task.orders)")
    expect(page.locator("[data-help=relabel]")).to_be_hidden()

    cards.first.focus()
    page.keyboard.press("r")
    expect(page.locator(".hn-picker")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".hn-large img")).to_have_count(1 + len(views))
    page.wait_for_function("[...document.querySelectorAll('.hn-large img')].every(i => i.naturalWidth > 0)")
    expected = lab.ask(f"[f'{{title}}: {{words}}' for title, _, words in top.views({worst[0][0]})]")
    assert page.locator(".hn-large figcaption").all_inner_texts() == ["original", *expected]
    assert [text.split(":")[0] for text in expected] == views
    page.keyboard.press("d")
    expect(page.locator(".hn-large .hn-badge.hn-delete")).to_be_visible()
    page.keyboard.press("Escape")
    expect(cards.first.locator(".hn-badge")).to_contain_text("deleted")
    assert lab.ask("[[r['index'], r['action'], r['label']] for r in top.decisions]") == [[worst[0][0], "delete", ""]]
    assert lab.ask("(top.to_csv('decisions.csv'), top.from_csv('decisions.csv'), len(top.decisions))[2]") == 1

    page.get_by_label("Order by", exact=True).select_option(index=1)
    lab.until("top.order == list(top._task.orders)[1]")
    ordered = lab.ask("[s.index for s in top.shown[:4]]")
    page.wait_for_function("e => [...document.querySelectorAll('.hn-gallery .hn-card')].map(c => c.dataset.index).join() === e.join()", arg=ordered)
