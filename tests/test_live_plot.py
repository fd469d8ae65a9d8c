"""The live plot and the progress bar as one sees them in JupyterLab: one picture that changes, below one bar, not a page of them."""

SETUP = """
import time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from holocron_nb.trainer import ClassificationTrainer, LivePlot

torch.manual_seed(0)
x = torch.randn(64, 8)
data = TensorDataset(x, (x.sum(1) > 0).long())
model = nn.Linear(8, 2)

def slowly(x, target):
    time.sleep(0.15)
    return x, target

plot = LivePlot(seconds=0.2)
trainer = ClassificationTrainer(
    model, DataLoader(data, 8), DataLoader(data, 64), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()),
    output_file="best.pth", callbacks=[plot], batch_transform=slowly,
)
"""
NOTE_PICTURES = """() => {
  window.pictures = new Set();
  new MutationObserver(() => {
    for (const image of document.querySelectorAll(".jp-OutputArea-output img")) window.pictures.add(image.src.length + image.src.slice(-200));
    window.most = Math.max(window.most ?? 0, document.querySelectorAll(".jp-OutputArea-output img").length);
  }).observe(document.querySelector(".jp-Notebook"), { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
}"""


def test_one_picture_grows_while_the_model_trains(lab):
    page = lab.open("live.ipynb", [SETUP, "# the training follows"])
    page.evaluate(NOTE_PICTURES)
    lab.command("notebook:replace-selection", text="trainer.fit_n_epochs(3, lr=0.1)")
    lab.command("notebook:run-cell")
    page.wait_for_function("window.pictures.size >= 4", timeout=60_000)
    lab.until("len(trainer.history) == 3 and len(plot.epochs) == 3")
    page.wait_for_function("document.querySelectorAll('.jp-OutputArea-output img').length === 1")
    assert page.evaluate("window.most") == 1, "the picture is replaced, not added"
    text = page.locator(".jp-Cell").last.inner_text()
    assert [text.count(f"epoch {epoch}: train_loss") for epoch in (1, 2, 3)] == [1, 1, 1]
    assert lab.ask("[len(plot.figure.axes[0].lines), len(plot.points) >= 3]") == [3, True]
