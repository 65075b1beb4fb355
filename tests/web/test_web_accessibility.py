"""The page for everyone, in every state, at three widths, light and dark: axe-core, keys, focus, order."""

import pytest
from browsing import IS_FIREFOX, SIZES, open_page, put, setting, until, upscale, wait_for, write_picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LOOKS = [(width, scheme) for width in SIZES for scheme in ("light", "dark")]
# How what has the focus shows it, and what it is.
FOCUSED = """() => {
  const e = document.activeElement, ring = e.matches('.segments input') ? e.nextElementSibling
    : e.id === 'handle' ? e.firstElementChild : e, style = getComputedStyle(ring);
  return [e.tagName, e.id || e.textContent.slice(0, 20), style.outlineStyle, parseFloat(style.outlineWidth)];
}"""


@pytest.fixture(scope="module")
def axe():
    """`axe(page, state)`: axe-core finds nothing."""
    package = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core here")

    def look(page, state):
        page.wait_for_timeout(300)  # what moves has come to rest
        found = package.Axe().run(page, options={"runOnly": {"type": "tag", "values": LEVELS}})
        said = [
            (violation["id"], node["html"][:120])
            for violation in found.response["violations"]
            for node in violation["nodes"]
        ]
        assert said == [], state

    return look


def is_in_view(page, selector):
    """Whether all of an element is in the window, and nothing lies over it."""
    return page.evaluate(
        """selector => {
          const element = document.querySelector(selector), box = element.getBoundingClientRect();
          const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
          return box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth
            && element.contains(top);
        }""",
        selector,
    )


def looked_at(page, axe, width, state):
    axe(page, state)
    seen, whole = page.evaluate("(e => [e.clientWidth, e.scrollWidth])(document.documentElement)")
    assert whole <= seen <= width, state  # Firefox's scroll bar takes some
    assert is_in_view(page, "#run"), state


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_state(browser, address, axe, tmp_path, width, scheme):
    if IS_FIREFOX and scheme == "dark":
        pytest.skip("Playwright cannot ask for the dark there")
    page = open_page(browser, address, width, scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 60) == (scheme == "dark")
    looked_at(page, axe, width, "empty")
    page.evaluate("document.querySelector('#over').hidden = false")
    axe(page, "dragged over")
    page.evaluate("document.querySelector('#over').hidden = true")
    put(page, write_picture(tmp_path / ("a" * 60 + ".png"), 300, 200))
    looked_at(page, axe, width, "loaded")
    setting(page, "steps", 60)
    upscale(page, "Step")
    looked_at(page, axe, width, "running")
    page.click("#cancel")
    wait_for(page, "Cancelled.")
    setting(page, "steps", 1)
    page.get_by_text("2×").click()
    upscale(page)
    looked_at(page, axe, width, "done")
    (tmp_path / "notes.txt").write_text("hello")
    put(page, tmp_path / "notes.txt", write_picture(tmp_path / "b.png", 20, 20))
    until(page, "document.querySelector('#unread').innerText.includes('is not a picture')")
    looked_at(page, axe, width, "several, and one that is not read")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.locator("#strip .thumb").first.click()
    page.click("#draw")
    until(page, "document.querySelectorAll('#grid td img').length === 9")
    looked_at(page, axe, width, "grid, and all settings")
    setting(page, "steps", 5000)
    wait_for(page, "Steps: a whole number", "#estimate")
    looked_at(page, axe, width, "a setting out of its range")
    page.context.close()


def test_the_form_for_a_token(browser, run_server, axe):
    with run_server("--token", "a-long-enough-secret") as (address, _):
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme).new_page()
            page.goto(address)
            axe(page, scheme)
            page.context.close()


def test_on_a_phone_the_picture_then_the_result_then_the_settings(browser, address, tmp_path):
    page = open_page(browser, address, 390)
    put(page, write_picture(tmp_path / "a.png", 60, 40))
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert is_in_view(page, "#run")
    upscale(page)
    parts = ("#stage", "#result", "#settings")
    tops = [page.evaluate(f"document.querySelector('{part}').getBoundingClientRect().top") for part in parts]
    assert tops == sorted(tops)
    assert is_in_view(page, "#handle span")  # the result has come into view
    assert is_in_view(page, "#status")
    page.context.close()


@pytest.mark.parametrize("width", [1440, 390])
def test_all_is_reached_by_keys_with_a_ring_and_none_is_a_trap(browser, address, tmp_path, width):
    page = open_page(browser, address, width)
    put(page, write_picture(tmp_path / "a.png", 40, 30))
    upscale(page)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate("scrollTo(0, 0)")
    page.click("h1")  # from here on
    reached = []
    for _ in range(90):
        page.keyboard.press("Tab")
        tag, name, style, ring = page.evaluate(FOCUSED)
        if tag == "BODY":  # all round, and out at the end
            break
        assert (style, ring >= 2) == ("solid", True), (tag, name)
        reached.append(name)
    else:
        raise AssertionError(f"the focus does not come out: {reached}")
    assert {"handle", "view", "detail", "run", "download", "format", "set-steps", "draw"} <= set(reached)
    page.context.close()


@pytest.mark.skipif(IS_FIREFOX, reason="Playwright hears of no file dialogs there")
def test_from_a_picture_to_its_result_by_keys_alone(browser, address, tmp_path):
    page = open_page(browser, address)
    page.click("h1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Choose pictures"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(write_picture(tmp_path / "a.png", 40, 30)))
    until(page, "!document.querySelector('#run').disabled")
    page.focus("#detail")
    page.keyboard.press("End")
    wait_for(page, "alpha 0 · beta 0.01", "#strengths")
    assert page.get_attribute("#detail", "aria-valuetext") == "Crispest"
    page.keyboard.press("Enter")
    wait_for(page, "Done in")
    page.context.close()


def test_what_happens_is_said_to_those_who_hear_the_page(browser, address, tmp_path):
    page = open_page(browser, address)
    page.evaluate("""() => {
      window.heard = [];
      const live = document.querySelector('#live');
      new MutationObserver(() => window.heard.push(live.textContent)).observe(live, {childList: true});
    }""")
    put(page, write_picture(tmp_path / "a.png", 40, 30))
    setting(page, "steps", 20)
    upscale(page)
    heard = page.evaluate("window.heard")
    assert heard[-1].startswith("a.png: Done in ")
    assert len(heard) < 8, heard  # not every step
    assert page.get_attribute("#before", "alt") == "a.png, before"
    assert page.get_attribute("#after", "alt") == "a.png, upscaled"
    page.context.close()


@pytest.mark.skipif(IS_FIREFOX, reason="Playwright cannot ask for less motion there")
def test_nothing_moves_for_who_does_not_want_it(browser, address):
    page = open_page(browser, address, reduced_motion="reduce")
    moving = page.evaluate("""[...document.querySelectorAll('*')].map(e => getComputedStyle(e))
      .filter(style => style.transitionDuration !== '0s' || style.animationName !== 'none').length""")
    assert moving == 0
    page.context.close()


@pytest.mark.parametrize("width", list(SIZES))
def test_targets_are_large_enough_to_be_hit(browser, address, tmp_path, width):
    page = open_page(browser, address, width)
    put(page, write_picture(tmp_path / "a.png", 40, 30))
    upscale(page)
    small = page.evaluate("""[...document.querySelectorAll('button, select, input:not([type=radio])')]
      .filter(e => e.getClientRects().length && e.type !== 'file' && e.type !== 'checkbox')
      .map(e => [e.id || e.textContent, e.getBoundingClientRect()])
      .filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)""")
    assert small == []
    page.context.close()
