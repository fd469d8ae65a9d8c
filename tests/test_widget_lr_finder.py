"""The learning-rate finder as a user meets it: in JupyterLab, in headless Chromium."""

import math

import pytest

SETUP = """
import torch
from torch import nn
from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.utils.datasets import BatchLoader, Shapes
from holocron_nb.widgets import LRFinder

torch.manual_seed(0)
model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4))
loader = BatchLoader(Shapes(64 * 3000), batch_size=64, shuffle=True, mean=(0.5,) * 3, std=(0.25,) * 3)
trainer = ClassificationTrainer(model, loader, loader, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
before = {k: v.clone() for k, v in model.state_dict().items()}
unchanged = lambda: all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
"""
SHORT = "finder = LRFinder(trainer, start_lr=1e-4, end_lr=10, num_it=60); finder"
LONG = "finder = LRFinder(trainer, start_lr=1e-4, end_lr=10, num_it=3000); finder"


def press(page, name):
    """Presses the widget's own button."""
    page.locator(".holocron-lr-finder").get_by_role("button", name=name, exact=True).click()


def status(page, text):
    """Waits until the widget's status line holds a text, and returns the line."""
    line = page.locator(".holocron-lr-finder .status", has_text=text)
    line.wait_for(timeout=60_000)
    return line.inner_text()


@pytest.fixture(scope="module")
def finished(lab):
    """A widget in which a search of 60 steps was started by its button and has ended."""
    page = lab.open("finder.ipynb", [SETUP, SHORT])
    press(page, "Start")
    status(page, "Done after 60 steps")
    return page


def test_a_run_draws_the_curve_and_leaves_no_trace(lab, finished):
    points = finished.locator(".holocron-lr-finder polyline.smooth").get_attribute("points").split()
    assert len(points) == len(lab.ask("finder.curve['lrs']")) == 60
    assert lab.ask("unchanged()")


def test_suggestions_are_marked_named_and_chosen_by_their_buttons(lab, finished):
    suggestions = lab.ask("finder.suggestions")
    assert set(suggestions) == {"steepest", "valley", "minimum/10", "slide"}
    assert finished.locator(".holocron-lr-finder svg[role=slider] .mark").count() == 4
    shapes = finished.locator(".holocron-lr-finder svg[role=slider] .mark").evaluate_all("marks => marks.map(m => m.getAttribute('d'))")
    assert len(set(shapes)) == 4, "marks that differ by colour alone or not at all"
    for name, lr in suggestions.items():
        button = finished.locator(f".holocron-lr-finder .chips button[data-name='{name}']")
        assert f"{lr:.1e}".replace("e-0", "e-").replace("e+0", "e") in button.inner_text()
        button.click()
        status(finished, f"Chosen rate: {button.inner_text().split()[-1]}")
        lab.until(f"abs(finder.lr / {lr} - 1) < 1e-6")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_click_chooses_the_rate_under_the_pointer(lab, finished, share):
    box = finished.locator(".holocron-lr-finder svg[role=slider]").bounding_box()
    left, right = 56 / 720 * box["width"], 16 / 720 * box["width"]  # the chart's margins, in units of its view box
    finished.mouse.click(box["x"] + left + share * (box["width"] - left - right), box["y"] + box["height"] / 2)
    lab.until(f"abs(__import__('math').log10(finder.lr) - {-4 + 5 * share}) < 0.02")


def test_arrow_keys_choose(lab, finished):
    chart = finished.locator(".holocron-lr-finder svg[role=slider]")
    chart.focus()
    for key, expected in [("Home", 1e-4), ("ArrowRight", 1e-4 * 10**0.05), ("PageUp", 1e-3 * 10**0.05), ("ArrowLeft", 1e-3), ("End", 10)]:
        chart.press(key)
        lab.until(f"abs(finder.lr / {expected} - 1) < 1e-6")
        finished.wait_for_function("([chart, x]) => Math.abs(chart.ariaValueNow - x) < 1e-6", arg=[chart.element_handle(), math.log10(expected)])


def test_a_choice_made_in_code_is_shown(lab, finished):
    assert lab.ask("setattr(finder, 'lr', 0.02) or finder.lr") == 0.02
    status(finished, "Chosen rate: 2.0e-2")
    assert "2.0e-2" in finished.locator(".holocron-lr-finder .choice-label").inner_html()


def test_the_smoothing_slider_reads_the_same_losses_anew(lab, finished):
    losses, smooth = lab.ask("finder.curve['losses']"), lab.ask("finder.curve['smooth']")
    slider = finished.get_by_role("slider", name="smoothing")
    slider.focus()
    slider.press("Home")
    finished.locator(".holocron-lr-finder output", has_text="0.00").wait_for()
    lab.until("finder.beta == 0")
    assert lab.ask("finder.curve['losses']") == losses != smooth
    assert lab.ask("finder.curve['smooth']") == pytest.approx(losses)
    assert lab.ask("setattr(finder, 'beta', 0.95) or finder.curve['smooth']") == pytest.approx(smooth)


def test_a_second_run_keeps_the_first_curve_and_the_choice(lab, finished):
    first = lab.ask("setattr(finder, 'lr', 0.03) or finder.curve")
    press(finished, "Run again")
    finished.locator(".holocron-lr-finder polyline.previous").wait_for(state="attached", timeout=60_000)
    status(finished, "Done after 60 steps")
    assert lab.ask("finder.previous") == first
    assert lab.ask("finder.lr") == 0.03


def test_options_go_into_the_search(lab, finished):
    finished.get_by_role("combobox", name="freeze until").select_option("2")
    lab.until("finder.freeze_until == '2'")
    decay = finished.get_by_role("spinbutton", name="weight decay of norms")
    decay.press_sequentially("0.01")
    decay.press("Enter")
    lab.until("finder.norm_weight_decay == 0.01")
    assert lab.ask("finder.layers") == ["2", "4"]
    assert lab.ask("setattr(finder, 'freeze_until', None) or setattr(finder, 'norm_weight_decay', None)") is None
    decay.blur()
    finished.wait_for_function("() => document.querySelector('.holocron-lr-finder .freeze').value === ''")


def test_a_saved_notebook_shows_the_curve_when_opened_again(lab, finished):
    static = finished.locator("[data-static]")
    assert not static.is_visible()
    assert lab.ask("setattr(finder, 'lr', 0.04)") is None
    finished.wait_for_function("() => document.querySelector('[data-static]').textContent.includes('4.0e-02')")
    lab.command("docmanager:save")
    finished.wait_for_function("!document.querySelector('.jp-mod-dirty')")
    (lab.folder / "again.ipynb").write_text((lab.folder / "finder.ipynb").read_text())
    again = lab.browser.new_page()
    try:
        again.goto(f"{lab.url}/lab/tree/again.ipynb?reset")
        picture = again.locator("[data-static] img")
        picture.wait_for(timeout=60_000)
        assert picture.evaluate("i => i.naturalWidth > 500") and picture.get_attribute("alt").startswith("Training loss against")
        assert "Chosen rate: 4.0e-02." in again.locator("[data-static]").inner_text()
    finally:
        again.close()


def test_stop_ends_a_running_search_and_keeps_what_it_found(lab):
    page = lab.open("stopped.ipynb", [SETUP, LONG])
    press(page, "Start")
    page.locator(".holocron-lr-finder polyline.smooth").wait_for(state="attached", timeout=60_000)
    press(page, "Stop")
    status(page, "Stopped after")
    assert 0 < len(lab.ask("finder.curve['lrs']")) < 3000
    assert lab.ask("unchanged()")
    assert lab.ask("finder.status") == "stopped"


def test_an_error_is_shown_and_the_next_run_works(lab):
    page = lab.open("failed.ipynb", [SETUP, "finder = LRFinder(trainer, num_it=4000); finder"])
    press(page, "Start")
    assert "num_it: expected 2 to 3000" in status(page, "ValueError")
    lab.ask("setattr(finder, 'num_it', 30)")
    press(page, "Start")
    status(page, "Done after 30 steps")


def test_the_chosen_rate_trains_with_live_curves_and_stops(lab):
    page = lab.open("trained.ipynb", [SETUP, SHORT])
    train = page.locator(".holocron-lr-finder .train")
    assert train.is_disabled(), "there is no rate to train with yet"
    assert lab.ask("setattr(finder, 'lr', 0.02)") is None
    epochs = page.get_by_role("spinbutton", name="epochs")
    epochs.press("Control+A")
    epochs.press_sequentially("3")
    epochs.press("Enter")
    lab.until("finder.num_epochs == 3")
    press(page, "Train with 2.0e-2")
    page.locator(".holocron-lr-finder svg.training .raw").wait_for(state="attached", timeout=60_000)
    assert page.locator(".holocron-lr-finder .start").is_disabled()
    status(page, "Epoch 2 of 3")
    assert "val_loss" in status(page, "Epoch 1: train_loss")
    press(page, "Stop training")
    status(page, "Stopped")
    lab.until("finder.status == 'stopped'")
    assert lab.ask("[3000 < trainer.step < 9000, len(trainer.history), trainer.callbacks]") == [True, 1, []]
    assert page.locator(".holocron-lr-finder svg.training path.epoch-val").count() == 1


def test_an_interrupt_of_the_kernel_leaves_the_search_running(lab):
    page = lab.open("interrupted.ipynb", [SETUP, LONG])
    press(page, "Start")
    page.locator(".holocron-lr-finder polyline.smooth").wait_for(state="attached", timeout=60_000)
    lab.command("notebook:interrupt-kernel")
    steps = len(lab.ask("finder.curve['lrs']"))
    lab.until(f"len(finder.curve['lrs']) > {steps} or finder.status == 'done'")
    assert lab.ask("finder.status") in ("running", "done")
    press(page, "Stop")
    status(page, "Stopped after")
    assert lab.ask("unchanged()")
