"""The page in a browser: from a picture to its download, by mouse, keys, touch; and when all is not well."""

import re
import shlex

import pytest
from browsing import (
    IS_FIREFOX,
    command_line,
    downloaded,
    drop,
    open_page,
    put,
    setting,
    until,
    upscale,
    wait_for,
    write_picture,
)
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    yield page
    assert page.errors == []
    page.context.close()


PAPER = """() => {
  const {x, y, width, height} = document.querySelector('#paper').getBoundingClientRect();
  return [x, y, width, height];
}"""
DRAG = """kind => {
  const data = new DataTransfer();
  data.items.add(new File(['x'], 'a.png'));
  document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true}));
}"""
PASTE = """bytes => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));
  const event = new ClipboardEvent('paste', {bubbles: true, cancelable: true});
  Object.defineProperty(event, 'clipboardData', {value: data});  // Firefox takes none when an event is made
  document.dispatchEvent(event);
}"""


def paper(page):
    """Left, top, width and height of the picture on the stage."""
    return page.evaluate(PAPER)


def handle(page):
    return int(page.get_attribute("#handle", "aria-valuenow"))


def test_few_requests_and_bytes_to_a_usable_page_none_elsewhere(browser, address):
    page = open_page(browser, address)
    until(page, "document.querySelector('#command').textContent != ''")
    sizes = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".map(entry => entry.transferSize)"
    )
    assert len(page.requested) <= 12 and sum(sizes) <= 150_000
    elsewhere = [url for url in page.requested if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []
    page.context.close()


def test_from_a_picture_to_its_download(page, address, model_folder, tmp_path):
    source = write_picture(tmp_path / "my photo (1).png", 96, 64)
    assert page.is_disabled("#run")
    assert page.inner_text("#estimate") == "Choose a picture to begin."
    put(page, source)
    wait_for(page, "96 × 64 → 384 × 256", "#estimate")
    page.evaluate("document.querySelector('[name=size][value=to]').click()")
    page.select_option("#measure", "width")
    page.fill("#target", "288")
    wait_for(page, "96 × 64 → 288 × 192", "#estimate")
    page.get_by_role("button", name="Truer").click()
    wait_for(page, "alpha 0.03 · beta 0.01", "#strengths")
    assert page.locator("[id='set-negative_prompt']").count() == 0  # the model takes no text
    setting(page, "steps", 25)
    setting(page, "seed", 11)
    upscale(page)
    seen = page.evaluate("window.lines")
    assert any(re.search(r"Step \d+ of 25", line) for line in seen), seen
    assert re.fullmatch(r"Done in \d+ s, 288 × 192, \d+ kB|Done .* MB", page.inner_text("#status"))
    until(page, "document.querySelector('#after').naturalWidth === 288")
    file = downloaded(page)
    assert file.suggested_filename == "my photo (1)_width288.png"
    flags = ("--width", "288", "--lsa", "fidelity", "--seed", "11", "--steps", "25")
    assert file.path().read_bytes() == command_line(model_folder, source, tmp_path / "out.png", *flags)
    file = downloaded(page, "jpg")
    assert file.suggested_filename == "my photo (1)_width288.jpg"
    with Image.open(file.path()) as image:
        assert (image.format, image.size) == ("JPEG", (288, 192))
    assert page.locator("#history li").count() == 1
    elsewhere = [url for url in page.requested if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


def test_the_estimate_follows_the_settings(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 200, 150))
    until(page, "/about \\d+ (s|min)/.test(document.querySelector('#estimate').innerText)")

    def seconds():
        page.wait_for_timeout(600)
        amount, unit = re.search(r"about (\d+) (s|min)", page.inner_text("#estimate")).groups()
        return int(amount) * (60 if unit == "min" else 1)

    few = seconds()
    setting(page, "steps", 90)
    many = seconds()
    setting(page, "guidance_scale", 5)
    assert few < many <= seconds()
    page.get_by_text("8×").click()
    wait_for(page, "1600 × 1200", "#estimate")
    page.get_by_text("To size").click()
    for kind, amount, result in (("longest_side", "300", "300 × 225"), ("megapixels", "0.12", "400 × 300")):
        page.select_option("#measure", kind)
        page.fill("#target", amount)
        wait_for(page, result, "#estimate")


def test_cancel_ends_the_run_and_the_next_one_works(page, tmp_path):
    put(page, write_picture(tmp_path / "large.png", 400, 300))
    setting(page, "steps", 50)
    upscale(page, "Step")
    assert page.is_disabled("#run")
    page.click("#cancel")
    wait_for(page, "Cancelled.")
    assert not [line for line in page.evaluate("window.lines") if "50 of 50" in line]
    page.wait_for_selector("#cancel", state="hidden")
    assert not page.is_visible("#after") and not page.is_visible(
        "#download"
    )  # no early look passes for a result
    setting(page, "steps", 1)
    page.get_by_text("2×").click()
    upscale(page)


def test_several_pictures_and_one_that_is_none(page, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    pictures = [write_picture(tmp_path / f"{name}.png", 20, 30) for name in "abc"]
    put(page, pictures[0], tmp_path / "notes.txt", *pictures[1:])
    until(page, "document.querySelector('#strip').innerText.includes('not read')")
    page.locator("#strip .thumb").nth(1).click()
    said = page.inner_text("#unread")
    assert said.startswith("“notes.txt” is not a picture that can be read.")
    assert "{" not in said and said.count(".") < 5  # neither JSON nor a list of suffixes
    wait_for(page, "Upscale 3 pictures", "#run")
    page.click("#run")
    until(page, "document.querySelectorAll('#history li').length === 3")
    assert page.inner_text("#strip").count("done") == 3
    page.locator("#history .thumb").nth(2).click()
    wait_for(page, "a.png", "#caption")
    page.get_by_role("button", name="Remove notes.txt").click()
    assert page.locator("#strip li").count() == 3
    page.set_input_files("#files", str(write_picture(tmp_path / "d.png", 20, 20)))  # nothing is jammed
    until(page, "document.querySelectorAll('#strip li').length === 4")


def test_a_damaged_picture_is_said_to_be_so(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(write_picture(tmp_path / "b.png", 60, 60).read_bytes()[:-60])
    put(page, broken)
    until(
        page,
        "document.querySelector('#run').disabled === false || document.querySelector('#unread').innerText",
    )
    if page.is_enabled("#run"):  # the browser shows what there is of it
        upscale(page, "is damaged or incomplete")
    assert "is damaged or incomplete" in page.inner_text("#stage") + page.inner_text("#status")


@pytest.mark.parametrize("target", ["header", "#stage", "#settings"])
def test_the_whole_window_takes_what_is_dropped(page, tmp_path, target):
    content = write_picture(tmp_path / "a.png", 20, 20).read_bytes()
    drop(page, target, ("one.png", content), ("two.png", content))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    assert not page.is_visible("#over")
    assert page.url.count("/") == 3  # the browser has not gone to the file


def test_it_shows_that_it_would_take_it(page):
    page.evaluate(DRAG, "dragenter")
    assert page.inner_text("#over") == "Drop to add"
    page.evaluate(DRAG, "dragleave")
    assert not page.is_visible("#over")


def test_pasting(page, tmp_path):
    page.evaluate(PASTE, list(write_picture(tmp_path / "a.png", 30, 20).read_bytes()))
    wait_for(page, "image.png · 30 × 20", "#caption")


def test_an_example_to_try(page):
    pytest.importorskip("skimage", reason="scikit-image, which brings the photographs, is not installed")
    page.click("#example")
    wait_for(page, ".png · ", "#caption")


def test_a_picture_that_browsers_do_not_know(page, tmp_path):
    write_picture(tmp_path / "a.tif", 50, 40)
    put(page, tmp_path / "a.tif")
    wait_for(page, "a.tif · 50 × 40", "#caption")
    until(page, "document.querySelector('#before').naturalWidth === 50")
    page.get_by_text("2×").click()
    upscale(page)


def test_before_and_after_by_mouse_and_keys(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 40, 30))
    upscale(page)
    left, top, width, height = paper(page)
    assert handle(page) == 50
    page.mouse.move(left + 0.5 * width, top + height / 2)
    page.mouse.down()
    page.mouse.move(left + 0.2 * width, top + height / 2, steps=4)
    page.mouse.up()
    assert handle(page) == pytest.approx(20, abs=1)
    shown = page.evaluate("getComputedStyle(document.querySelector('#after')).clipPath")
    assert float(re.findall(r"([\d.]+)px\)", shown)[0]) == pytest.approx(0.2 * width, abs=3)
    assert page.evaluate("document.activeElement.id") == "handle"
    for key, place in (("ArrowRight", 22), ("ArrowLeft", 20), ("PageUp", 30), ("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        assert handle(page) == pytest.approx(place, abs=1), key


def test_zoom_by_buttons_keys_and_the_wheel_only_when_it_is_meant(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 400, 300))
    fitted = paper(page)[2]
    page.get_by_role("button", name="100 %").click()
    assert paper(page)[2] == 400
    page.get_by_role("button", name="200 %").click()
    assert paper(page)[2] == 800
    page.mouse.move(500, 400)
    page.mouse.wheel(0, 120)
    page.wait_for_timeout(200)
    assert paper(page)[2] == 800  # the wheel alone scrolls
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    until(page, "document.querySelector('#paper').getBoundingClientRect().width > 900")
    page.get_by_role("button", name="Fit").click()
    assert paper(page)[2] == pytest.approx(fitted, abs=1)


@pytest.mark.skipif(IS_FIREFOX, reason="touches are sent through Chromium's own protocol")
def test_touch_slides_and_pinches(browser, address, tmp_path):
    page = open_page(browser, address, 390, has_touch=True, is_mobile=True)
    put(page, write_picture(tmp_path / "a.png", 60, 40))
    upscale(page)
    page.evaluate("scrollTo(0, 0)")
    left, top, width, height = paper(page)
    session, y = page.context.new_cdp_session(page), top + height / 2

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": n} for n, x in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", left + 0.5 * width)
    for share in (0.6, 0.7, 0.8):
        touch("touchMove", left + share * width)
    touch("touchEnd")
    assert handle(page) == pytest.approx(80, abs=2)
    middle = left + width / 2
    touch("touchStart", middle - 30)
    touch("touchStart", middle - 30, middle + 30)
    for apart in (45, 60, 90):
        touch("touchMove", middle - apart, middle + apart)
    touch("touchEnd")
    assert paper(page)[2] > 1.8 * width
    page.context.close()


def test_transparency_on_a_checkerboard_on_both_sides_and_what_a_format_lacks(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 40, 30, alpha=0))
    upscale(page)
    for part in ("#paper", "#after"):
        background = page.evaluate(f"getComputedStyle(document.querySelector('{part}')).backgroundImage")
        assert background.startswith("repeating-conic-gradient"), part
    assert page.locator("#warnings li").count() == 0
    downloaded(page, "jpg")
    wait_for(page, "ransparen", "#warnings")


def test_the_grid_has_a_status_of_its_own_and_its_cells_set_their_values(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 32, 32))
    setting(page, "steps", 2)
    page.evaluate("document.querySelector('#compare').open = true")
    page.click("#draw")
    until(page, "document.querySelectorAll('#grid td img').length === 9")
    until(page, "[...document.querySelectorAll('#grid img')].every(i => i.naturalWidth === 128)")
    assert page.inner_text("#status") == ""
    page.get_by_role("button", name="Use alpha 0.03, beta 0", exact=True).click()
    wait_for(page, "alpha 0.03 · beta 0", "#strengths")
    wait_for(page, "--alpha 0.03 --beta 0", "#command")
    page.get_by_role("button", name="Crisper").click()  # the dial takes over again
    wait_for(page, "alpha 0.005 · beta 0.01", "#strengths")


def test_a_setting_out_of_its_range_is_explained_by_its_name(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 32, 32))
    setting(page, "steps", 5000)
    wait_for(page, "Steps: a whole number from 0 to 100.", "#estimate")
    assert page.is_disabled("#run")
    assert page.get_attribute("#set-steps", "aria-invalid") == "true"
    setting(page, "steps", 3)
    until(page, "!document.querySelector('#run').disabled")
    setting(page, "start", "noise")
    setting(page, "noise_scale", 0)
    wait_for(page, "These settings do not go together:", "#estimate")
    said = page.inner_text("#estimate")
    assert not re.search(r"Input should|Value error|_|\{|--", said), said
    page.click("#reset")
    until(page, "!document.querySelector('#run').disabled")
    assert page.input_value("#set-steps") == "4"


def test_every_setting_has_a_label_and_its_help(page):
    fields = page.evaluate(
        """[...document.querySelectorAll('.field')].map(field => {
          const input = field.querySelector('input, select');
          const help = document.getElementById(input.getAttribute('aria-describedby'));
          return [input.labels[0].textContent, help.textContent];
        })"""
    )
    assert len(fields) >= 19
    assert all(label and len(text) > 8 for label, text in fields), fields


@pytest.mark.skipif(IS_FIREFOX, reason="Playwright cannot let Firefox read the clipboard")
def test_the_same_elsewhere(browser, address, tmp_path):
    page = open_page(browser, address, permissions=["clipboard-read", "clipboard-write"])
    put(page, write_picture(tmp_path / "it's.png", 32, 32))
    setting(page, "color", "adain")
    wait_for(page, "--color adain", "#command")
    page.evaluate("document.querySelector('#elsewhere').open = true")
    page.get_by_role("button", name="Copy as command").click()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:3] == ["clearsr", "upscale", "it's.png"] and words[-2:] == ["--color", "adain"]
    page.get_by_role("button", name="Copy as curl").click()
    until(page, "navigator.clipboard.readText().then(text => text.startsWith('curl'))")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[-1] == f"{address}v1/upscale" and "color=adain" in words
    page.context.close()


def test_a_server_with_a_token(browser, run_server, tmp_path):
    token = "a-long-enough-secret"
    with run_server("--token", token) as (address, _):
        page = browser.new_context().new_page()
        page.goto(address)
        page.get_by_label("This server asks for its token.").fill("wrong-token")
        page.get_by_role("button", name="Enter").click()
        assert page.inner_text("[role=alert]") == "That is not the token."
        background = page.evaluate("getComputedStyle(document.querySelector('button')).backgroundColor")
        assert background == "rgb(11, 107, 99)"  # its style is there without the token
        page.get_by_label("This server asks for its token.").fill(token)
        page.get_by_role("button", name="Enter").click()
        until(page, "document.querySelector('#groups')?.children.length > 0")
        put(page, write_picture(tmp_path / "a.png", 20, 20))
        upscale(page)
        page.context.close()


def test_a_restarted_server_is_noticed_and_the_pictures_are_kept(browser, run_server, tmp_path):
    with run_server() as (address, _):
        page = open_page(browser, address)
        put(page, write_picture(tmp_path / "a.png", 30, 20))
        setting(page, "steps", 1)
        upscale(page)
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(look)
    wait_for(page, "cannot be reached. Your pictures are kept", "#notice")
    with run_server("--port", address.rstrip("/").rpartition(":")[2]):
        page.evaluate(look)
        wait_for(page, "The server was restarted. Your pictures are still here.", "#notice")
        assert page.locator("#strip li").count() == 1
        page.click("#download")
        wait_for(page, "no longer has this result. Run the picture again.")
        setting(page, "steps", 2)
        upscale(page)
        assert downloaded(page).suggested_filename == "a_x4.png"
    page.context.close()


def test_a_full_queue_is_waited_for(browser, run_server, tmp_path):
    with run_server("--queue", "0") as (address, _):
        first, second = (open_page(browser, address) for _ in range(2))
        put(first, write_picture(tmp_path / "a.png", 300, 300))
        setting(first, "steps", 60)
        upscale(first, "Step")
        put(second, write_picture(tmp_path / "b.png", 20, 20))
        upscale(second, "busy with other pictures")
        first.click("#cancel")
        wait_for(second, "Done in")
        for page in (first, second):
            page.context.close()
