"""What the browser tests share: opening the page, putting pictures there, waiting for what it shows."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
IS_FIREFOX = os.environ.get("CLEARSR_BROWSER") == "firefox"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 60  # seconds, on a busy machine; everything is waited for by what the page shows
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
SIZES = {1440: 900, 1024: 768, 390: 844}
# Every status line is noted as it is shown: looking from time to time would miss some.
NOTE_STATUS = """() => {
  window.lines = [];
  const status = document.querySelector('#status');
  const note = () => window.lines.push(status.innerText);
  new MutationObserver(note).observe(status, {subtree: true, childList: true, characterData: true});
}"""


@contextmanager
def launched():
    """Debian's Chromium, driven by Playwright; with CLEARSR_BROWSER=firefox its Firefox."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = FIREFOX if IS_FIREFOX else CHROMIUM
    if path is None:
        pytest.skip("the browser is not installed")
    with playwright.sync_playwright() as driver:
        if IS_FIREFOX:
            browser = _firefox(playwright, driver, path)
        else:
            browser = driver.chromium.launch(executable_path=path, args=FLAGS, timeout=WAIT * 1000)
        yield browser
        browser.close()


def _firefox(playwright, driver, path):
    """A Firefox as it is, by WebDriver BiDi."""
    kind, parts = driver.firefox, driver._impl_obj._initializer
    if "_bidiFirefox" in parts:  # Playwright up to 1.55, which speaks to Firefox 140 ESR; later ones do not
        kind = playwright.BrowserType(parts["_bidiFirefox"]._object)
        kind._impl_obj._playwright = driver._impl_obj
    try:
        return kind.launch(channel="moz-firefox", executable_path=path, timeout=WAIT * 1000)
    except playwright.Error as error:
        if "unknown command" in str(error):
            pytest.skip("this Firefox is older than this Playwright asks for")
        raise


@contextmanager
def without_policy(address):
    """The address of a server that hands on another's answers without their content security policy.

    In Firefox, Playwright makes code of text in the page, which the policy does not allow.
    """
    port, name = int(address.rstrip("/").rpartition(":")[2]), b"content-security-policy"

    def pump(source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data.replace(name, b"x" * len(name)))
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve():
        with suppress(OSError):
            while True:
                client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def until(page, condition, argument=None):
    """Wait until an expression (or function of the argument) is true in the page.

    Playwright's own `wait_for_function` makes code of text there, which the page's policy does not allow.
    """
    end = time.monotonic() + WAIT
    while not page.evaluate(condition, argument):
        if time.monotonic() > end:
            seen = [page.text_content(part) for part in ("#status", "#estimate", "#notice")]
            raise AssertionError(f"{condition} {argument or ''} did not come; the page says {seen}")
        page.wait_for_timeout(30)


def wait_for(page, text, where="#status"):
    """Wait until a part of the page has a text."""
    until(page, "([where, text]) => document.querySelector(where).textContent.includes(text)", [where, text])


def open_page(browser, address, width=1440, scheme="light", **options):
    """A page freshly opened; `page.requested` has every address that it asks for."""
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]},
        color_scheme=scheme,
        accept_downloads=True,
        **options,
    )
    context.set_default_timeout(WAIT * 1000)
    page = context.new_page()
    page.requested, page.errors = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    until(page, "document.querySelector('#groups').children.length > 0")
    page.evaluate(NOTE_STATUS)
    return page


def write_picture(path, width, height, alpha=None):
    """A picture with a course of colours; half transparent with `alpha`."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = [rows * 255 // height, columns * 255 // width, (rows + columns) % 256]
    levels = np.stack(levels, -1).astype(np.uint8)
    if alpha is not None:
        levels = np.dstack([levels, np.where(columns < width // 2, alpha, 255).astype(np.uint8)])
    Image.fromarray(levels).save(path)
    return path


def put(page, *paths):
    """Choose files, and wait until the page has read them."""
    page.set_input_files("#files", [str(path) for path in paths])
    until(page, "!document.querySelector('#strip').innerText.includes('reading')")
    until(page, "document.querySelectorAll('#strip li').length >= 1")


def setting(page, field, value):
    """Set one of all settings."""
    page.evaluate("document.querySelector('#advanced').open = true")
    control = page.locator(f"[id='set-{field}']")
    if control.evaluate("e => e.tagName") == "SELECT":
        control.select_option(str(value))
    else:
        control.fill(str(value))


def upscale(page, said="Done in"):
    """Press the button, and wait for what the status then says."""
    until(page, "!document.querySelector('#run').disabled")
    page.click("#run")
    wait_for(page, said)


def downloaded(page, name="png"):
    """The download in a format."""
    page.select_option("#format", name)
    if IS_FIREFOX:
        return _link_of_download(page)
    with page.expect_download() as download:
        page.click("#download")
    return download.value


LINK = """() => new Promise((done) => {
  const click = HTMLAnchorElement.prototype.click;
  HTMLAnchorElement.prototype.click = async function () {
    HTMLAnchorElement.prototype.click = click;
    const {download, href} = this;
    done([download, [...new Uint8Array(await (await fetch(href)).arrayBuffer())]]);
  };
  document.querySelector('#download').click();
})"""


def _link_of_download(page):
    """What the page hands to the browser to be saved: in Firefox, Playwright hears of no downloads."""
    name, content = page.evaluate(LINK)
    path = Path(tempfile.mkdtemp()) / "download"
    path.write_bytes(bytes(content))
    return SimpleNamespace(suggested_filename=name, path=lambda: path)


def drop(page, target, *files):
    """Drop files (name, bytes) onto an element, as a browser tells of it."""
    content = [[name, list(content)] for name, content in files]
    page.evaluate(
        """([target, files]) => {
          const data = new DataTransfer();
          for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
          for (const kind of ['dragenter', 'dragover', 'drop']) document.querySelector(target).dispatchEvent(
            new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [target, content],
    )


def command_line(model, source, target, *flags):
    """The bytes that `clearsr upscale` writes."""
    paths = [str(source), "-o", str(target), "--model", str(model)]
    command = [sys.executable, "-m", "clearsr", "upscale", *paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--device", "cpu", *flags], check=True, env=environment, timeout=120)
    return target.read_bytes()
