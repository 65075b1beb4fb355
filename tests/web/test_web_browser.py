"""The page in a browser: upload, settings, progress, before/after, downloads, cancelling, what it loads."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 120_000  # milliseconds, on a busy machine; everything is waited for by what the page shows
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
# Every status line is noted as it is shown: looking from time to time would miss some.
NOTE_STATUS = """() => {
  window.statusLines = [];
  const status = document.querySelector('#status');
  const note = () => window.statusLines.push(status.innerText);
  new MutationObserver(note).observe(status, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=WAIT)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(run_server):
    with run_server() as (address, _):
        yield address


@pytest.fixture
def page(browser, address):
    """The page, freshly opened; `page.requested` has every address that it asked for."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, accept_downloads=True)
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(address)
    page.wait_for_selector("#pictures input[type=file]", state="attached")
    page.evaluate(NOTE_STATUS)
    yield page
    context.close()


def write_picture(path, width, height):
    gradient = Image.linear_gradient("L").resize((width, height))
    Image.merge("RGB", (gradient, gradient.rotate(180), Image.new("L", (width, height), 90))).save(path)
    return path


def put(page, *paths):
    page.set_input_files("#pictures input[type=file]", [str(path) for path in paths])
    wait_for(page, "about", "#estimate")


def fill(page, name, value):
    """Type a number, and wait until the page has it: then a slider beside the field stands there, too."""
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")
    page.wait_for_function(
        "([name, value]) => [...document.querySelectorAll(`#${name} input`)].every(i => +i.value === value)",
        arg=[name, value],
    )


def wait_for(page, text, where="#status"):
    """Wait until a part of the page has a text."""
    try:
        page.wait_for_function(
            "([where, text]) => document.querySelector(where).innerText.includes(text)", arg=[where, text]
        )
    except Exception as error:
        raise AssertionError(f"{text} did not come in {where}; status: {status_lines(page)}") from error


def status_lines(page):
    """All that the status has shown so far."""
    return page.evaluate("window.statusLines")


def command_line(model, source, target, *flags):
    command = [
        sys.executable,
        "-m",
        "clearsr",
        "upscale",
        str(source),
        "-o",
        str(target),
        "--model",
        str(model),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--device", "cpu", *flags], check=True, env=environment, timeout=120)
    return target.read_bytes()


def test_from_upload_to_download(page, address, model_folder, tmp_path):
    source = write_picture(tmp_path / "my photo (1).png", 96, 64)
    put(page, source)
    assert "96×64 → 384×256" in page.inner_text("#estimate")
    fill(page, "upscale", 3)
    fill(page, "detail", -50)
    assert not page.is_visible("#cancel")
    page.locator("#advanced button").first.click()
    assert page.locator("#negative").count() == 0  # the model takes no text
    fill(page, "steps", 25)
    fill(page, "seed", 11)
    page.click("#run")
    wait_for(page, "Done.")
    seen = status_lines(page)
    assert any("step" in text and "of 25" in text for text in seen), seen
    sizes = "[...document.querySelectorAll('#slider img')].map(i => `${i.naturalWidth}x${i.naturalHeight}`)"
    page.wait_for_function(f"{sizes}.join() == '288x192,288x192'")
    wait_for(page, "--alpha 0.03 --beta 0.01", "#summary")
    with page.expect_download() as download:
        page.click("#png")
    assert download.value.suggested_filename == "my photo (1)_x3.png"
    flags = ("--upscale", "3", "--lsa", "fidelity", "--seed", "11", "--steps", "25")
    expected = command_line(model_folder, source, tmp_path / "expected.png", *flags)
    assert download.value.path().read_bytes() == expected
    with page.expect_download() as download:
        page.click("#copy")
    assert download.value.suggested_filename == "my photo (1)_x3.jpg"
    with Image.open(download.value.path()) as image:
        assert (image.format, image.size) == ("JPEG", (288, 192))
    elsewhere = [url for url in page.requested if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


def test_cancel_ends_the_run_and_the_next_one_works(page, tmp_path):
    put(page, write_picture(tmp_path / "large.png", 400, 300))
    page.locator("#advanced button").first.click()
    fill(page, "steps", 50)
    page.click("#run")
    wait_for(page, "of 50")
    page.click("#cancel")
    wait_for(page, "Cancelled.")
    assert not [text for text in status_lines(page) if "50 of 50" in text]
    page.wait_for_selector("#cancel", state="hidden")
    assert page.locator("#slider img").count() == 0  # no early look passes for a result
    fill(page, "steps", 1)
    fill(page, "upscale", 1)
    page.click("#run")
    wait_for(page, "Done.")


def test_several_pictures_and_one_that_is_none(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(write_picture(tmp_path / "b.png", 40, 40).read_bytes()[:-30])
    put(page, write_picture(tmp_path / "a.png", 20, 20), broken, write_picture(tmp_path / "c.png", 20, 30))
    page.click("#run")
    wait_for(page, "Done: 2 of 3.")
    assert "broken.png" in page.inner_text("#status")
    page.wait_for_function("document.querySelectorAll('#gallery img').length == 2")
    page.locator("#gallery img").nth(0).click()
    wait_for(page, "20×20", "#summary")


def test_grid_of_alpha_and_beta(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 32, 32))
    page.locator("#comparison button").first.click()
    page.click("#compare")
    page.wait_for_function("document.querySelector('#sheet img')?.naturalWidth > 0")
    width, height = page.eval_on_selector("#sheet img", "i => [i.naturalWidth, i.naturalHeight]")
    assert width >= 3 * 128
    assert height >= 3 * 128


def test_nothing_hangs_over_on_a_phone(browser, address, tmp_path):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#pictures input[type=file]", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(","))) < 3 * 60  # dark, as the phone asks for
    page.evaluate(NOTE_STATUS)
    put(page, *(write_picture(tmp_path / f"{name}.png", 20, 30) for name in ("a" * 30, "b", "c")))
    page.locator("#advanced button").first.click()
    page.click("#run")
    wait_for(page, "Done: 3 of 3.")
    page.wait_for_selector("#gallery img")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    top = page.evaluate("document.querySelector('#status').getBoundingClientRect().top")
    assert 0 <= top <= 844 / 2  # the result came into view
    context.close()
