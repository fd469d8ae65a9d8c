"""TopLosses in JupyterLab, used as a person does: by mouse, by keyboard alone, in both themes."""

import csv
import gc
import json
import re

import pytest
import torch
from playwright.sync_api import expect
from torch import nn

from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.widgets import TopLosses

SETUP = '''
import sys, pathlib, shutil, torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.widgets.top_losses import TopLosses

# photographs of one colour each, some of them in the wrong folder, and a net that reads the colour: nothing to train, nothing random
COLOURS = {"blue": (40, 40, 220), "green": (40, 200, 40), "red": (220, 40, 40)}
for folder in ("photos", "corrected"):
    shutil.rmtree(folder, ignore_errors=True)
for i in range(40):
    truth = list(COLOURS)[i % 3]
    folder = list(COLOURS)[(i + 1) % 3] if i % 8 == 1 else truth
    image = Image.new("RGB", (120, 120), tuple(c - 2 * i // 3 for c in COLOURS[truth]))
    image.paste((250, 250, 250), (i, i, i + 40, i + 40))
    path = pathlib.Path("photos", folder, f"{i:02}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
net = nn.Sequential(nn.Conv2d(3, 3, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
with torch.no_grad():
    net[0].bias.zero_()
    net[0].weight.fill_(-0.02)
    for out, channel in enumerate((2, 1, 0)):
        net[0].weight[out, channel] = 0.12
data = ImageFolder("photos", transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]))
loader = DataLoader(data, 16)
trainer = ClassificationTrainer(net, loader, loader, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters()), output_file="best.pth")
'''
SHOW = "top = TopLosses(trainer, num_samples=20, mean=(0.5,) * 3, std=(0.25,) * 3, page_size=8)\ntop"


@pytest.fixture(scope="module")
def opened(lab):
    return lab.open("top_losses.ipynb", [SETUP, SHOW], width=1280, height=1150)


@pytest.fixture
def page(lab, opened):
    """The notebook run anew: a fresh widget, nothing decided, the light theme."""
    opened.evaluate("document.querySelectorAll('.hn-top-losses').forEach(node => node.classList.add('of-the-last-test'))")
    lab.command("notebook:run-all-cells")
    opened.wait_for_selector(".hn-top-losses:not(.of-the-last-test)", timeout=60_000)
    expect(cards(opened)).to_have_count(8)
    opened.wait_for_function("[...document.querySelectorAll('.hn-gallery img')].filter(i => i.naturalWidth > 0).length === 8")
    return opened


def cards(page):
    return page.locator(".hn-gallery .hn-card")


def card(page, index):
    return page.locator(f'.hn-gallery .hn-card[data-index="{index}"]')


def indices(page):
    return [int(i) for i in cards(page).evaluate_all("nodes => nodes.map(n => n.dataset.index)")]


def expect_indices(page, expected):
    """Waits until the gallery shows these samples in this order."""
    page.wait_for_function("e => [...document.querySelectorAll('.hn-gallery .hn-card')].map(c => c.dataset.index).join() === e.join()", arg=expected)


def status(page):
    return page.locator(".hn-status")


def choose(page, label, value):
    page.get_by_label(label, exact=True).select_option(value)


def focused(page):
    return page.evaluate("document.activeElement.closest('.hn-card')?.dataset.index ?? document.activeElement.className")


def test_gallery_shows_real_images_and_their_facts(lab, page):
    worst = lab.ask("[[s.index, f'{s.loss:.2f}', top.classes[s.prediction], top.classes[s.target]] for s in top.samples[:8]]")
    assert indices(page) == [w[0] for w in worst]
    for index, loss, prediction, target in worst:
        text = card(page, index).inner_text()
        assert loss in text and prediction in text and target in text
        alt = card(page, index).locator("img").get_attribute("alt")
        assert f"labelled {target}" in alt and f"predicted {prediction}" in alt
    # the picture is that sample's own: its corner has the colour of the file's
    corner = card(page, worst[0][0]).locator("img").evaluate(
        "i => { const c = document.createElement('canvas'); c.width = c.height = 120; const g = c.getContext('2d');"
        " g.drawImage(i, 0, 0); return [...g.getImageData(110, 3, 1, 1).data].slice(0, 3) }"
    )  # fmt: skip
    expected = lab.ask(f"list(top.image({worst[0][0]}).getpixel((110, 3)))")
    assert max(abs(a - b) for a, b in zip(corner, expected, strict=True)) < 12


def test_filters_order_and_pages(lab, page):
    choose(page, "Label", "green")
    lab.until("top.target == 'green'")
    expect_indices(page, lab.ask("[s.index for s in top.samples if s.target == 1][:8]"))
    choose(page, "Label", "")
    choose(page, "Predicted", "red")
    lab.until("top.target == '' and top.predicted == 'red'")
    expect_indices(page, lab.ask("[s.index for s in top.samples if s.prediction == 2][:8]"))
    choose(page, "Predicted", "")
    choose(page, "Order by", "confidence")
    lab.until("top.predicted == '' and top.order == 'confidence'")
    by_confidence = lab.ask("[s.index for s in sorted(top.samples, key=lambda s: -s.probability)]")
    expect_indices(page, by_confidence[:8])
    page.get_by_role("button", name="next page").click()
    expect(page.locator(".hn-position")).to_have_text("page 2 of 3")
    expect_indices(page, by_confidence[8:16])
    page.get_by_role("button", name="next page").click()
    expect_indices(page, by_confidence[16:])
    expect(page.get_by_role("button", name="next page")).to_be_disabled()
    choose(page, "Order by", "margin")
    lab.until("top.order == 'margin' and top.page == 1")
    expect_indices(page, lab.ask("[s.index for s in sorted(top.samples, key=lambda s: -s.margin)][:8]"))


def test_large_view_with_grad_cam(lab, page):
    first, second = indices(page)[:2]
    card(page, first).locator("img").click()
    expect(page.locator(".hn-large img")).to_have_count(3)
    page.wait_for_function("[...document.querySelectorAll('.hn-large img')].every(i => i.naturalWidth === 120)")
    assert lab.ask("top.selected") == first
    alts = page.locator(".hn-large img").evaluate_all("nodes => nodes.map(n => n.alt)")
    assert alts[0].startswith(f"sample {first}:") and all(re.match(r"Grad-CAM of \w+, [01]\.\d\d: (strongest|nothing)", a) for a in alts[1:])
    # original, map of the prediction and map of the label are three different pictures
    pictures = page.locator(".hn-large img").evaluate_all(
        "nodes => nodes.map(i => { const c = document.createElement('canvas'); c.width = c.height = 120;"
        " c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL() })"
    )
    assert len(set(pictures)) == 3
    page.keyboard.press("ArrowRight")
    page.wait_for_function("i => document.querySelector('.hn-large')?.dataset.shown === `val-${i}`", arg=second)
    page.keyboard.press("k")
    expect(page.locator(".hn-large .hn-badge.hn-keep")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".hn-large")).to_be_hidden()
    assert focused(page) == str(second), "back in the gallery the focus is on the sample that was looked at"
    assert lab.ask("top.decisions[0]['index']") == second and lab.ask("top.selected") is None


def test_decisions_by_mouse(lab, page):
    first, second, third = indices(page)[:3]
    target, prediction = lab.ask(f"[top.classes[top.sample({first}).target], top.classes[top.sample({first}).prediction]]")
    card(page, first).get_by_role("button", name="Relabel").click()
    assert page.locator(".hn-picker").get_by_role("option").first.inner_text().split() == [prediction, "predicted"]
    assert page.locator(".hn-picker").get_by_role("option", name=target).count() == 0
    page.locator(".hn-picker").get_by_role("option", name=prediction).click()
    expect(card(page, first).locator(".hn-badge")).to_contain_text(f"relabelled {prediction}")
    card(page, second).get_by_role("button", name="Delete").click()
    expect(card(page, second).locator(".hn-badge")).to_contain_text("deleted")
    card(page, third).get_by_role("button", name="Keep").click()
    expect(card(page, third).locator(".hn-badge")).to_contain_text("kept")
    page.get_by_role("button", name="Undo", exact=False).first.click()
    expect(card(page, third).locator(".hn-badge")).to_be_hidden()
    expect(status(page)).to_contain_text("Undone")
    made = lab.ask("[[r['index'], r['action'], r['label']] for r in top.decisions]")
    assert made == [[first, "relabel", prediction], [second, "delete", ""]]
    assert lab.ask("all(pathlib.Path(r['path']).is_file() for r in top.decisions)"), "nothing on disk changes by deciding"


def test_keyboard_alone(lab, page):
    first, second, third = indices(page)[:3]
    page.get_by_label("Order by", exact=True).focus()
    for _ in range(4):
        page.keyboard.press("Tab")
        if focused(page) == str(first):
            break
    assert focused(page) == str(first), "Tab reaches the first card after the filters and page buttons"
    outline = page.evaluate("(({ outlineStyle, outlineWidth }) => [outlineStyle, parseFloat(outlineWidth)])(getComputedStyle(document.activeElement))")
    assert outline[0] == "solid" and outline[1] >= 2, "the focus can be seen"
    page.keyboard.press("d")
    page.keyboard.press("d")  # in JupyterLab "D D" deletes the cell
    expect(card(page, first).locator(".hn-badge")).to_contain_text("deleted")
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2
    page.keyboard.press("ArrowRight")
    assert focused(page) == str(second)
    label = lab.ask(f"[c for i, c in enumerate(top.classes) if i not in (top.sample({second}).target, top.sample({second}).prediction)][0]")
    page.keyboard.press("r")
    page.keyboard.type(label[:2])
    page.keyboard.press("Enter")
    expect(card(page, second).locator(".hn-badge")).to_contain_text(f"relabelled {label}")
    assert focused(page) == str(second), "the focus stays where it was after relabelling"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    expect(card(page, third).locator(".hn-badge")).to_contain_text("kept")
    page.keyboard.press("u")
    expect(card(page, third).locator(".hn-badge")).to_be_hidden()
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    assert focused(page) == str(third) and page.locator(".hn-picker").count() == 0
    page.keyboard.press("ArrowDown")
    below = focused(page)
    assert below not in (str(third), str(second)) and int(below) in indices(page)
    page.keyboard.press("PageDown")
    expect(page.locator(".hn-position")).to_have_text("page 2 of 3")
    page.wait_for_function("document.activeElement.closest('.hn-gallery')")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator(".hn-large")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".hn-large")).to_be_hidden()
    acts = lab.ask("[[r['index'], r['action'], r['label']] for r in top.decisions]")
    assert acts == [[first, "delete", ""], [second, "relabel", label]]
    assert page.locator(".jp-mod-dirty").count() > 0
    cards(page).first.focus()
    page.keyboard.press("Control+s")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')")  # the notebook is saved: shortcuts with Ctrl stay JupyterLab's
    for word in ("keep", "relabel", "delete", "undo", "large view"):
        expect(page.locator(".hn-help")).to_contain_text(word)


NOTE_STATUS = """() => {
  window.seen = [];
  const node = document.querySelector('.hn-status');
  new MutationObserver(() => window.seen.push(node.textContent)).observe(node, { childList: true, characterData: true, subtree: true });
}"""


def test_decisions_survive_filters_pages_and_another_view(lab, page):
    first, second = indices(page)[:2]
    card(page, first).get_by_role("button", name="Delete").click()
    choose(page, "Decision", "undecided")
    expect(card(page, first)).to_have_count(0)
    card(page, second).focus()
    page.keyboard.press("k")
    expect(card(page, second)).to_have_count(0)
    assert int(focused(page)) in indices(page), "the focus goes on to the sample that took the place"
    choose(page, "Decision", "")
    expect(card(page, first).locator(".hn-badge")).to_contain_text("deleted")
    page.get_by_role("button", name="next page").click()
    page.get_by_role("button", name="previous page").click()
    expect(card(page, second).locator(".hn-badge")).to_contain_text("kept")
    page.evaluate(NOTE_STATUS)
    choose(page, "Split", "train")
    expect(page.get_by_label("Split", exact=True)).to_have_value("train")
    page.wait_for_function("document.querySelector('.hn-gallery .hn-card').dataset.key.startsWith('train')")
    assert page.evaluate("window.seen").count("Going over the 40 samples of train ...") == 1
    choose(page, "Split", "val")
    expect(card(page, first).locator(".hn-badge")).to_contain_text("deleted")
    page.evaluate("window.jupyterapp.commands.execute('inspector:close').catch(() => null)")
    assert lab.ask("[top.keep(top.samples[3].index), len(top.decisions)][1]") == 3  # from code, on the same object
    expect(page.locator(".hn-card .hn-badge:visible")).to_have_count(3)


def test_export_apply_and_undo(lab, page):
    first, second = indices(page)[:2]
    prediction = lab.ask(f"top.classes[top.sample({first}).prediction]")
    lab.ask(f"[top.relabel({first}, '{prediction}'), top.delete({second})]")
    page.get_by_text("Export and apply").click()
    page.get_by_role("button", name="Save CSV").click()
    expect(status(page)).to_contain_text("2 decisions written")
    with open(lab.folder / "decisions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["index"]), r["action"], r["label"]) for r in rows] == [(first, "relabel", prediction), (second, "delete", "")]
    before = tree(lab.folder / "photos")
    page.get_by_role("button", name="Apply to a copy").click()
    expect(status(page)).to_contain_text("39 of 40 images written to corrected")
    after = tree(lab.folder / "corrected")
    assert len(after) == 39 and tree(lab.folder / "photos") == before and len(set(after) - set(before)) == 1
    page.get_by_role("button", name="Apply to a copy").click()
    expect(status(page)).to_contain_text("Not done - folder: corrected exists and is not empty")
    assert tree(lab.folder / "corrected") == after
    page.get_by_role("button", name="Undo apply").click()
    expect(status(page)).to_contain_text("Removed the copy")
    assert not (lab.folder / "corrected").exists() and tree(lab.folder / "photos") == before
    assert lab.ask("len(top.decisions)") == 2


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


def test_a_file_that_vanished_is_a_message_not_a_blank(lab, page):
    gone = lab.ask("[s.index for s in top.shown][8]")
    lab.ask(f"pathlib.Path(top.sample({gone}).path).unlink()")
    page.get_by_role("button", name="next page").click()
    expect(card(page, gone).locator(".hn-broken")).to_contain_text("can't be read")
    page.wait_for_function("[...document.querySelectorAll('.hn-gallery img')].filter(i => i.naturalWidth > 0).length === 7")
    card(page, gone).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".hn-large .hn-broken").first).to_contain_text("can't be read")
    page.keyboard.press("Escape")
    expect(page.locator(".hn-large")).to_be_hidden()


CONTRAST = """() => {
  const number = (colour) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = '#000'; c.fillStyle = colour;
    c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = (rgb) => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => { for (; node; node = node.parentElement) { const c = getComputedStyle(node).backgroundColor;
    if (!/rgba\\(.*, 0\\)|transparent/.test(c)) return c; } return 'white'; };
  const found = [];
  for (const node of document.querySelectorAll('.hn-top-losses *')) {
    const text = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!text || !node.checkVisibility() || node.disabled) continue;
    const [a, b] = [light(number(getComputedStyle(node).color)), light(number(behind(node)))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.className || node.tagName, node.textContent.slice(0, 20)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_can_be_read(lab, page, theme):
    if theme == "dark":
        lab.dark()
    first, second, third = indices(page)[:3]
    lab.ask(f"[top.keep({first}), top.delete({second}), top.relabel({third}, top.classes[top.sample({third}).prediction])]")
    expect(page.locator(".hn-card .hn-badge:visible")).to_have_count(3)
    background = page.evaluate("getComputedStyle(document.querySelector('.hn-top-losses')).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert brightness < 200 if theme == "dark" else brightness > 700
    try:
        found = page.evaluate(CONTRAST)
        assert len(found) > 60 and found[0][0] >= 4.5, found[:5]
        card(page, third).focus()
        page.keyboard.press("Enter")
        expect(page.locator(".hn-large img")).to_have_count(3)
        found = page.evaluate(CONTRAST)
        assert found[0][0] >= 4.5, found[:5]
    finally:
        if theme == "dark":
            lab.command("apputils:change-theme", theme="JupyterLab Light")


def test_likely_label_errors_are_marked_and_filtered(lab, page):
    suspects = lab.ask("[s.index for s in top.samples if s.suspect]")
    wrong = lab.ask("[s.index for s in top.samples if s.prediction != s.target]")
    assert 0 < len(suspects) < 8 and set(suspects) <= set(wrong)
    for index in indices(page):
        expect(card(page, index).locator(".hn-flag")).to_have_count(int(index in suspects))
    page.get_by_label(f"likely label errors ({len(suspects)})").check()
    expect_indices(page, suspects)
    card(page, suspects[0]).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".hn-doubt")).to_contain_text("likely a label error")
    page.keyboard.press("Escape")
    page.get_by_label(f"likely label errors ({len(suspects)})").uncheck()
    expect(cards(page)).to_have_count(8)


def test_a_saved_notebook_shows_the_page_when_opened_again(lab, page):
    first, second = indices(page)[:2]
    static = page.locator("[data-static]")
    expect(static).to_be_hidden()
    card(page, first).get_by_role("button", name="Delete").click()
    expect(card(page, first).locator(".hn-badge")).to_contain_text("deleted")
    lab.until("len(top.decisions) == 1")
    expect(static.locator("figure").first).to_contain_text("deleted")
    lab.command("docmanager:save")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
    text = (lab.folder / "top_losses.ipynb").read_text()
    notebook = json.loads(text)
    assert "widgets" not in notebook["metadata"] and len(text) < 300_000
    assert "the 20 worst of 40 samples" in "".join(notebook["cells"][1]["outputs"][0]["data"]["text/plain"])
    (lab.folder / "again.ipynb").write_text(text)
    again = lab.browser.new_page(viewport={"width": 1280, "height": 1150})
    try:
        again.goto(f"{lab.url}/lab/tree/again.ipynb?reset")
        expect(again.locator("[data-static] img")).to_have_count(8)
        expect(again.locator("[data-static] figure").first).to_be_visible()
        again.get_by_text("Error displaying widget").wait_for(state="attached")
        expect(again.get_by_text("Error displaying widget")).to_be_hidden()
        assert again.locator("[data-static] img").evaluate_all("nodes => nodes.every(i => i.naturalWidth === 120)")
        assert again.locator("[data-static] figure").first.inner_text().split("\n")[-1] == "→ deleted"
        assert again.locator("[data-static] img").first.get_attribute("alt").startswith(f"sample {first}: labelled")
    finally:
        again.close()


class Counted(torch.utils.data.Dataset):
    """Tiny images drawn a batch at a time when they are asked for; counts what all tensors that are alive hold, now and then."""

    classes = ["a", "b", "c"]

    def __init__(self, size):
        self.size, self.alive = size, []

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        if indices[0] % 5000 == 0 and len(indices) > 1:
            self.alive.append(sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor))
        index = torch.tensor(indices)
        return (index / self.size).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), index % 3


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    peaks = {}
    for size in (10_000, 100_000):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        loader = torch.utils.data.DataLoader(Counted(size), 1000, collate_fn=lambda batch: batch)
        optimizer = torch.optim.SGD(net.parameters())
        trainer = ClassificationTrainer(net, None, loader, nn.CrossEntropyLoss(), optimizer, output_file=str(tmp_path / "best.pth"))
        top = TopLosses(trainer, num_samples=20)
        assert len(top.samples) == 20 and len(loader.dataset.alive) == size // 5000
        peaks[size] = max(loader.dataset.alive)
    assert peaks[100_000] < peaks[10_000] + 1000, "something is kept of each batch"
