"""A visit in the browser: what a reload finds again, and what people do while the page is at work."""

import io
import re
import time

import pytest
from browsing import (
    WAIT,
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

KEPT = """() => new Promise((done) => {
  const request = indexedDB.open('clearsr', 1);
  request.onsuccess = () => {
    const all = request.result.transaction('pictures').objectStore('pictures').getAll();
    all.onsuccess = () => { request.result.close(); done(all.result.map(({name}) => name)); };
  };
})"""


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    yield page
    assert page.errors == []
    page.context.close()


def reload(page):
    page.reload()
    until(page, "document.querySelector('#groups').children.length > 0")


def names(page):
    return page.locator("#strip .name").all_inner_texts()


def until_kept(page, expected):
    end = 200
    while page.evaluate(KEPT) != expected and (end := end - 1):
        page.wait_for_timeout(50)
    assert page.evaluate(KEPT) == expected


def test_a_reload_keeps_the_pictures_and_their_results(page, tmp_path):
    put(page, *(write_picture(tmp_path / f"{name}.png", 30, 20) for name in "ab"))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    setting(page, "steps", 1)
    page.locator("#strip .thumb").nth(1).click()
    upscale(page)
    until(page, "document.querySelectorAll('#history li').length === 2")
    content = downloaded(page).path().read_bytes()
    until_kept(page, ["a.png", "b.png"])
    reload(page)
    until(page, "document.querySelectorAll('#history li').length === 2")
    assert names(page) == ["a.png", "b.png"]
    page.locator("#strip .thumb").nth(1).click()
    wait_for(page, "Done in")
    assert downloaded(page).path().read_bytes() == content
    page.get_by_role("button", name="Remove a.png").click()
    until_kept(page, ["b.png"])
    reload(page)
    until(page, "document.querySelectorAll('#strip li').length === 1")
    wait_for(page, "Upscale", "#run")
    setting(page, "steps", 2)
    upscale(page)  # its bytes are there, not its picture alone


def test_what_is_kept_is_bounded_and_another_tab_has_its_own(page, browser, address, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    drop(page, "#stage", *((f"{number}.png", buffer.getvalue()) for number in range(53)))
    until(page, "document.querySelectorAll('#strip li').length === 53")
    until_kept(page, [f"{number}.png" for number in range(3, 53)])
    other = page.context.new_page()
    other.goto(address)
    until(other, "document.querySelector('#groups').children.length > 0")
    assert names(other) == [] and len(other.evaluate(KEPT)) == 50
    # an hour after it was last seen, the other visit is over
    page.close()
    other.evaluate(
        """() => {
          const seen = JSON.parse(localStorage.clearsrVisits);
          for (const visit in seen) if (visit !== sessionStorage.clearsrVisit) seen[visit] -= 2 * 3600e3;
          localStorage.clearsrVisits = JSON.stringify(seen);
        }"""
    )
    reload(other)
    until_kept(other, [])


def test_without_a_store_it_works_as_well(browser, address, tmp_path):
    page = open_page(browser, address)
    page.add_init_script(
        "for (const name of ['indexedDB', 'localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, {get() { throw new Error('not here'); }});"
    )
    reload(page)
    put(page, write_picture(tmp_path / "a.png", 20, 20))
    setting(page, "steps", 1)
    upscale(page)
    assert page.errors == []
    page.context.close()


def test_a_picture_is_there_at_once_and_large_and_then_how_far_it_is(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 200, 150))
    until(page, "document.querySelector('#before').naturalWidth === 200")
    box = page.locator("#paper").bounding_box()
    assert max(box["width"] / 1440, box["height"] / 900) > 0.6
    until(page, "document.querySelector('#estimate').innerText.includes('about')")
    setting(page, "steps", 100)
    upscale(page, "Step")
    said = "Step \\d+ of 100 · about \\d+ (s|min) left"
    until(page, f"/{said}/.test(document.querySelector('#status').innerText)")
    until(page, "document.querySelector('#tag-after').innerText === 'Early look'")
    until(page, "document.querySelector('#after').naturalWidth > 0")
    share = "Number(document.querySelector('#bar').getAttribute('aria-valuenow'))"
    now = page.evaluate(share)
    until(page, f"now => {share} > now", now)
    page.click("#cancel")
    wait_for(page, "Cancelled.")


def test_a_size_in_place_of_a_factor(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 150, 100), write_picture(tmp_path / "b.png", 40, 80))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    page.locator("#strip .thumb").first.click()
    page.get_by_text("To size").click()
    assert page.input_value("#target") == "2000"
    page.select_option("#measure", "megapixels")
    assert page.input_value("#target") == "12"  # each measure has its own number
    page.fill("#target", "0.06")
    page.select_option("#measure", "longest_side")
    page.fill("#target", "240")
    page.select_option("#measure", "megapixels")
    assert page.input_value("#target") == "0.06"
    page.select_option("#measure", "longest_side")
    for wrong, said in (
        ("", "a whole number above 0."),
        ("-5", "a whole number above 0."),
        ("2.5", "a whole number above 0."),
        ("90000", "at most 64 times"),
        ("9000000", "at most 1000000."),
    ):
        page.fill("#target", wrong)
        wait_for(page, f"Size: {said}", "#estimate")
        assert page.is_disabled("#run") and page.get_attribute("#target", "aria-invalid") == "true"
    page.fill("#target", "240")
    wait_for(page, "--longest-side 240", "#command")
    until(page, "!document.querySelector('#run').disabled")
    assert page.get_attribute("#target", "aria-invalid") is None
    setting(page, "steps", 1)
    upscale(page, "Done in")  # of each the longest side, whatever its shape
    until(page, "document.querySelectorAll('#history li').length === 2")
    sizes = []
    for number in range(2):
        page.locator("#strip .thumb").nth(number).click()
        wait_for(page, "Done in")
        sizes.append(page.inner_text("#status").split(", ")[1])
    assert sizes == ["240 × 160", "120 × 240"]


def test_what_is_large_enough(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 150, 100))
    page.get_by_text("To size").click()
    page.select_option("#measure", "fit")
    assert page.input_value("#target") == "1920x1080"
    page.fill("#target", "60 by 60")
    wait_for(page, "Size: width x height in pixels", "#estimate")
    page.fill("#target", "60x60")
    wait_for(page, "150 × 100 → 150 × 100", "#estimate")
    for rule, told in (("skip", "It is as large already"), ("shrink", "60 × 40"), ("copy", "150 × 100")):
        page.select_option("#when-large", rule)
        if rule != "copy":
            wait_for(page, f"--when-large {rule}", "#command")
        upscale(page, told)
    assert "copied as it is" in page.inner_text("main")
    page.select_option("#measure", "upscale")
    assert page.is_disabled("#when-large")


def test_a_click_is_not_lost_to_news(page, tmp_path):
    put(page, write_picture(tmp_path / "large.png", 200, 200), write_picture(tmp_path / "small.png", 20, 20))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    setting(page, "steps", 100)
    upscale(page, "Step")
    box = page.locator("#strip .thumb").nth(1).bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    said = page.inner_text("#status")
    until(page, "said => document.querySelector('#status').innerText !== said", said)
    page.mouse.up()
    wait_for(page, "small.png", "#caption")
    # taken out, the one at work makes way for the other
    setting(page, "steps", 1)
    page.get_by_role("button", name="Remove large.png").click()
    wait_for(page, "Done in")
    assert names(page) == ["small.png"]
    assert page.evaluate("document.activeElement.className") == "thumb"  # the focus has not gone with it


def test_a_link_that_is_dropped_does_not_lead_away(page):
    prevented = page.evaluate(
        """() => ['dragover', 'drop'].map((kind) => {
          const data = new DataTransfer();
          data.setData('text/uri-list', 'http://example.org/');
          const event = new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
          document.body.dispatchEvent(event);
          return event.defaultPrevented;
        })"""
    )
    assert prevented == [True, True]


def test_a_drawing_without_a_size_and_a_folder_are_explained(page, tmp_path):
    drop(page, "#stage", ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>'))
    wait_for(page, "“drawing.svg” is not a picture that can be read.", "#unread")
    page.evaluate(
        """() => {
          const gone = new File(['x'], 'gone.png');
          gone.slice = () => ({arrayBuffer: () => Promise.reject(new DOMException('', 'NotFoundError'))});
          const data = new DataTransfer();
          const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
          Object.defineProperty(event, 'dataTransfer', {value: {types: ['Files'], files: [gone]}});
          document.body.dispatchEvent(event);
        }"""
    )
    wait_for(page, "“gone.png” cannot be opened", "#unread")


def test_of_several_the_one_that_is_too_large_is_named(page, tmp_path):
    put(page, write_picture(tmp_path / "fine.png", 20, 20), write_picture(tmp_path / "wide.png", 3000, 700))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    page.get_by_text("8×").click()
    wait_for(page, "“wide.png”: The result would have 134.4 megapixels", "#estimate")
    assert page.is_disabled("#run")
    page.get_by_text("2×").click()
    until(page, "!document.querySelector('#run').disabled")


def test_a_preset_of_the_settings_takes_over_from_the_dial(page):
    page.get_by_role("button", name="Crisper").click()
    wait_for(page, "alpha 0.005 · beta 0.01", "#strengths")
    setting(page, "lsa", "fidelity")
    wait_for(page, "alpha 0.03 · beta 0.01", "#strengths")
    until(page, "document.querySelector('#detail').value === '-50'")
    page.get_by_role("button", name="Crisper").click()
    wait_for(page, "alpha 0.005 · beta 0.01", "#strengths")
    assert page.input_value("#set-lsa") == "clearsr"


def test_a_comparison_can_be_stopped(page, tmp_path):
    put(page, write_picture(tmp_path / "a.png", 96, 96))
    setting(page, "steps", 100)
    page.evaluate("document.querySelector('#compare').open = true")
    page.click("#draw")
    wait_for(page, "0 of 9", "#compare-status")
    page.get_by_role("button", name="Stop the comparison").click()
    wait_for(page, "Cancelled.", "#compare-status")
    setting(page, "steps", 1)
    page.click("#draw")
    until(page, "document.querySelectorAll('#grid td img').length === 9")


def test_a_result_that_the_server_has_no_longer_is_said_to_be_gone(page, tmp_path):
    put(page, *(write_picture(tmp_path / f"{name}.png", 30, 20) for name in "ab"))
    until(page, "document.querySelectorAll('#strip li').length === 2")
    setting(page, "steps", 1)
    upscale(page)
    until(page, "document.querySelectorAll('#history li').length === 2")
    events = [url for url in page.requested if url.endswith("/events")]
    page.evaluate("job => fetch(job, {method: 'DELETE'})", events[-1].removesuffix("/events"))
    page.locator("#strip .thumb[aria-current=false]").click()
    wait_for(page, "The server no longer has this result. Run the picture again.")
    assert page.locator("#history li").count() == 1 and not page.is_visible("#download")


def test_events_that_end_in_an_error_are_taken_up_again(page, tmp_path):
    failed = []

    def once(route):
        if not failed:
            failed.append(route.request.url)
            route.fulfill(status=502, body="a proxy's answer")
        else:
            route.continue_()

    page.route("**/events", once)
    put(page, write_picture(tmp_path / "a.png", 30, 20))
    setting(page, "steps", 1)
    upscale(page)
    assert failed


def test_restarted_in_the_middle_of_a_run(page, tmp_path):
    gone = {"error": {"code": "no_such_job", "message": "no such job"}}
    page.route("**/events", lambda route: route.abort())
    page.route(re.compile(r"/v1/jobs/[^/]+$"), lambda route: route.fulfill(status=404, json=gone))
    put(page, write_picture(tmp_path / "a.png", 30, 20))
    page.click("#run")
    wait_for(page, "The server was restarted while it worked on this. Run the picture again.")
    assert page.locator("#strip .what").all_inner_texts() == ["failed"]  # the picture was read
    until(page, "!document.querySelector('#run').disabled")


def test_examples_that_are_not_there_yet(page):
    pytest.importorskip("skimage", reason="scikit-image, which brings the photographs, is not installed")

    def not_yet(route):
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "examples": None})

    page.route("**/v1/settings", not_yet)
    page.click("#example")
    wait_for(page, "The examples are being prepared.", "#notice")
    page.unroute("**/v1/settings")
    end = time.monotonic() + WAIT
    while not page.locator("#strip li").count() and time.monotonic() < end:
        page.click("#example")
        page.wait_for_timeout(300)
    wait_for(page, ".png · ", "#caption")
    assert page.inner_text("#notice") == ""
