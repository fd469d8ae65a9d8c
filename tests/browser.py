"""JupyterLab and Notebook 7 in headless Chromium, for the widgets' tests: a page as a user sees it, and the kernel behind it.

    def test_something(lab):
        page = lab.open("some.ipynb", ["from holocron_nb.widgets import LRFinder", "LRFinder(trainer)"])
        page.get_by_role("button", name="Start").click()
        assert lab.ask("finder.lr") == "0.001"
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from notebooks import ROOT

CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_SECONDS = 90


def find_chromium():
    """Path of the installed Chromium; fails where there is none, because a widget that nobody opened is not tested."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.fail("the browser tests need Chromium on the PATH: apt-get install chromium")
    return found


class Lab:
    """A JupyterLab server with a browser; one notebook open at a time."""

    module, application, path = "jupyterlab", "LabApp", "lab/tree/{}?reset"

    def __init__(self, folder, browser):
        self.folder, self.browser, self.page, self._client, self._session = Path(folder), browser, None, None, None
        news = self.folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false"}')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"), "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"), "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [
            sys.executable, "-m", self.module, "--no-browser", "--allow-root", "--ServerApp.token=", "--ServerApp.disable_check_xsrf=True",
            "--ServerApp.ip=127.0.0.1", f"--port={port}", f"--{self.application}.expose_app_in_browser=True", f"--ServerApp.root_dir={self.folder}",
        ]  # fmt: skip
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with open(self.folder / "server.log", "w") as log:
            self.server = subprocess.Popen(command, env=environment, stdout=log, start_new_session=True, **streams)
        self._wait(lambda: self._request("api"), f"{self.module} did not start")

    def _request(self, path, method="GET"):
        """What the server answers at an address of its REST interface."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", method=method), timeout=START_SECONDS) as reply:
            return json.loads(reply.read() or "null")

    def _wait(self, ready, what, seconds=START_SECONDS):
        end = time.monotonic() + seconds
        while True:
            try:
                found = ready()
                if found:
                    return found
            except OSError:
                pass
            if time.monotonic() > end or self.server.poll() is not None:
                raise AssertionError(f"{what}\n{(self.folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.05)

    def open(self, name, cells, width=1200, height=900):
        """Writes a notebook of these cells, opens it in a new page, runs it and waits until it is done."""
        self.close()
        notebook = {
            "cells": [
                {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
                for i, source in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
            "nbformat": 4, "nbformat_minor": 5,
        }  # fmt: skip
        (self.folder / name).write_text(json.dumps(notebook))
        self.page = self.browser.new_page(viewport={"width": width, "height": height})
        self.page.goto(f"{self.url}/{self.path.format(name)}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=START_SECONDS * 1000)
        sessions = self._wait(lambda: [s for s in self._request("api/sessions") if s["path"] == name and s["kernel"]], "no kernel started")
        self._session = sessions[0]["id"]
        self._connect(self.folder / "runtime" / f"kernel-{sessions[0]['kernel']['id']}.json")
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(
            "n => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].filter(p => /\\d/.test(p.textContent)).length >= n",
            arg=len(cells), timeout=START_SECONDS * 1000,
        )  # fmt: skip
        return self.page

    def _connect(self, connection):
        from jupyter_client import BlockingKernelClient

        self._wait(lambda: connection.stat().st_size > 0, "the kernel's connection file stayed empty")
        self._client = BlockingKernelClient(connection_file=str(connection))
        self._client.load_connection_file()
        self._client.start_channels(hb=False)  # a kernel that starts on a busy machine misses heartbeats: it isn't dead
        self._client.wait_for_ready(timeout=START_SECONDS)

    def command(self, name, **arguments):
        """Runs a command of JupyterLab."""
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def dark(self):
        """Switches to the dark theme."""
        self.command("apputils:change-theme", theme="JupyterLab Dark")
        self.page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def ask(self, expression, timeout=START_SECONDS):
        """The value of an expression in the open notebook's kernel, for values that survive JSON."""
        reply = self._client.execute("", user_expressions={"value": f"__import__('json').dumps({expression})"}, reply=True, timeout=timeout)
        answer = reply["content"]["user_expressions"]["value"]
        assert answer["status"] == "ok", answer
        return json.loads(eval(answer["data"]["text/plain"]))

    def until(self, expression, seconds=30):
        """Waits until an expression is true in the kernel: what the page sends takes a moment to arrive there."""
        self._wait(lambda: self.ask(f"bool({expression})"), f"not true within {seconds} s: {expression}", seconds)

    def close(self):
        """Closes the page and its kernel."""
        if self.page:
            self.page.close()
        if self._client:
            self._client.stop_channels()
        if self._session:
            self._request(f"api/sessions/{self._session}", "DELETE")  # through the server, which starts a kernel anew that just ends
        self.page = self._client = self._session = None

    def stop(self):
        """Ends the server with its kernels."""
        self.close()
        os.killpg(self.server.pid, signal.SIGTERM)
        self.server.wait()


class Notebook7(Lab):
    """A server of Notebook 7, the classic one document a page."""

    module, application, path = "notebook", "JupyterNotebookApp", "notebooks/{}"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """A JupyterLab, shared by the tests of one process."""
    lab = Lab(tmp_path_factory.mktemp("lab"), browser)
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def notebook7(browser, tmp_path_factory):
    """A Notebook 7, shared by the tests of one process."""
    server = Notebook7(tmp_path_factory.mktemp("notebook7"), browser)
    yield server
    server.stop()
