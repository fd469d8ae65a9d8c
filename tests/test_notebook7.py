"""Both widgets in Notebook 7, where each document has a page of its own: used by mouse and by keys, read from the kernel."""

import re

import pytest
import test_widget_lr_finder as finder_page
import test_widget_top_losses as gallery_page
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def finder(notebook7):
    page = notebook7.open("finder.ipynb", [finder_page.SETUP, finder_page.SHORT])
    finder_page.press(page, "Start")
    finder_page.status(page, "Done after 60 steps")
    return page


def test_the_finder_searches_and_the_keyboard_chooses(notebook7, finder):
    assert notebook7.ask("len(finder.curve['lrs'])") == 60 and notebook7.ask("unchanged()")
    chart = finder.locator(".holocron-lr-finder svg[role=slider]")
    chart.press("Home")
    notebook7.until("abs(finder.lr / 1e-4 - 1) < 1e-6")
    finder_page.status(finder, "Chosen rate: 1.0e-4")
    chart.press("ArrowUp")  # which would choose the cell above if the page had it
    chart.press("ArrowRight")
    notebook7.until("finder.lr > 1.1e-4")


def test_the_finder_keeps_the_search_before_and_stays_in_the_saved_notebook(notebook7, finder):
    first = notebook7.ask("finder.curve")
    finder_page.press(finder, "Run again")
    finder.locator(".holocron-lr-finder polyline.previous").wait_for(state="attached", timeout=60_000)
    finder_page.status(finder, "Done after 60 steps")
    assert notebook7.ask("finder.previous") == first
    static = finder.locator("[data-static]")
    assert not static.is_visible()
    finder.locator(".holocron-lr-finder").evaluate("widget => widget.remove()")  # as where no kernel draws it
    expect(static).to_be_visible()
    assert static.locator("img").evaluate("image => image.naturalWidth") > 300


@pytest.fixture(scope="module")
def gallery(notebook7):
    page = notebook7.open("top_losses.ipynb", [gallery_page.SETUP, gallery_page.SHOW], width=1280, height=1150)
    expect(gallery_page.cards(page)).to_have_count(8)
    return page


def test_the_gallery_shows_pictures_and_decides_by_mouse_and_key_with_undo(notebook7, gallery):
    gallery.wait_for_function("[...document.querySelectorAll('.hn-gallery img')].filter(i => i.naturalWidth > 0).length === 8")
    assert gallery.evaluate("[...document.querySelectorAll('.hn-card')].every(card => card.scrollWidth <= card.clientWidth)"), "all fits on a card"
    first, second = gallery_page.indices(gallery)[:2]
    gallery_page.card(gallery, first).get_by_role("button", name="Delete").click()
    expect(gallery_page.card(gallery, first).locator(".hn-badge")).to_contain_text("deleted")
    gallery_page.card(gallery, second).press("k")
    expect(gallery_page.card(gallery, second).locator(".hn-badge")).to_contain_text("kept")
    assert notebook7.ask("[[r['index'], r['action']] for r in top.decisions]") == [[first, "delete"], [second, "keep"]]
    gallery_page.card(gallery, second).press("u")
    notebook7.until("len(top.decisions) == 1")
    expect(gallery_page.card(gallery, second).locator(".hn-badge")).to_be_hidden()


def test_the_large_view_opens_in_the_dark_theme_too(notebook7, gallery):
    notebook7.dark()
    gallery_page.cards(gallery).first.press("Enter")
    pictures = gallery.locator(".hn-large img")
    expect(pictures).to_have_count(3)
    gallery.wait_for_function("[...document.querySelectorAll('.hn-large img')].every(i => i.naturalWidth === 120)")
    colour = gallery.locator(".hn-large").evaluate("node => getComputedStyle(node).color")
    assert min(map(int, re.findall(r"\d+", colour)[:3])) > 150, f"light letters on the dark page, got {colour}"
