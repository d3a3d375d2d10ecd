"""The page as a person uses it, in a real browser."""

import re

import pytest
from helpers_web import browser_page, uploads

pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
CHANGED = "([id, old]) => { const i = document.querySelector(id + ' img'); return i && i.complete && i.getAttribute('src') !== old }"


def opened(page, address: str):
    """The page, and every other host that it talks to."""
    hosts = set()
    page.on("request", lambda r: hosts.add(re.sub(r"^(data|blob):.*", "", r.url).partition("//")[2].partition("/")[0]))
    page.goto(address)
    page.wait_for_selector("#prompt textarea")
    page.wait_for_timeout(1500)  # its load event
    return hosts


def source(page, id: str) -> str | None:
    image = page.locator(f"{id} img")
    return image.first.get_attribute("src") if image.count() else None


def learn(page, folder, word: str, name: str) -> None:
    page.get_by_role("tab", name="Teach").click()
    if page.locator("#uploads [aria-label='Clear']").count():
        page.locator("#uploads [aria-label='Clear']").click()
    page.locator("#uploads input[type=file]").set_input_files(uploads(folder))
    page.locator("#uploads").get_by_text("photo").first.wait_for()
    page.locator("#kind textarea").fill(word)
    page.locator("#near").get_by_text(word, exact=True).wait_for()
    page.locator("#name textarea").fill(name)
    page.click("#learn")
    page.wait_for_function("name => document.querySelector('#said').innerText.includes(name + ' is learned')", arg=name)


def test_learned_then_slid_then_both(site, tmp_path):
    with browser_page() as page:
        hosts = opened(page, site[0])
        learn(page, tmp_path, "teddy", "bear*")
        assert page.locator("#masks img").count() == 2 and page.locator("#curve svg").count() == 1
        assert page.locator("#drawn img").count() == 1 and page.locator("#file a[download]").count() >= 1
        learn(page, tmp_path, "cat", "kitty*")

        page.get_by_role("tab", name="Play").click()
        page.locator("#concepts").get_by_label("bear*").check()
        page.locator("#beta1").wait_for()
        page.locator("#prompt textarea").fill("a bear* and a kitty* at night")
        page.wait_for_function("() => document.querySelectorAll('#seen .token.highlighted').length === 2")
        page.locator("#prompt textarea").press("Enter")
        page.wait_for_function(CHANGED, arg=["#base", None])
        assert page.locator("#status").inner_text().startswith("2 steps")
        before, base = source(page, "#picture"), source(page, "#base")
        for slot in ("#beta0", "#beta1"):  # by the keyboard, each concept's own
            slider = page.locator(f"{slot} input[type=range]")
            slider.focus()
            for _ in range(6):
                slider.press("ArrowLeft")
            page.wait_for_function(CHANGED, arg=["#picture", before])
            page.wait_for_function("() => document.querySelector('#status').innerText.startsWith('2 steps')")
            page.wait_for_timeout(1500)
            before = source(page, "#picture")
        assert source(page, "#base") == base

        page.click("#five")
        page.wait_for_function("() => document.querySelectorAll('#strip img').length === 5")
        page.locator("#word").get_by_text("night", exact=True).click()
        page.wait_for_function(CHANGED, arg=["#overlay", None])
        assert hosts - {""} == {site[0].partition("//")[2]}


def test_a_mistake_is_one_kind_sentence_and_the_page_goes_on(site, tmp_path):
    with browser_page() as page:
        opened(page, site[0])
        (tmp_path / "concept.safetensors").write_bytes(b"no concept at all")
        if not page.locator("input[type=file][accept*=safetensors]").count():
            page.get_by_text("Add concepts").click()
        page.locator("input[type=file][accept*=safetensors]").set_input_files(str(tmp_path / "concept.safetensors"))
        page.get_by_text("is not a safetensors file").wait_for()
        page.get_by_role("tab", name="Teach").click()
        page.click("#learn")
        page.get_by_text("no super-category is given").wait_for()
        page.locator("#kind textarea").fill("zzyzxq")
        page.click("#show")
        toast = page.get_by_text("exactly 1 is allowed")
        toast.wait_for()
        assert "Traceback" not in page.content() and "nearest single-token words" in toast.inner_text()
        page.get_by_role("tab", name="Play").click()
        page.locator("#prompt textarea").fill("a dog")
        page.locator("#prompt textarea").press("Enter")  # the sentences may still stand over the button
        page.wait_for_function(CHANGED, arg=["#base", None])


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(site, width, dark):
    with browser_page(width, dark=dark) as page:
        opened(page, site[0])
        for tab in ("Play", "Teach", "Compare"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


def test_everything_is_reached_by_the_keyboard(site):
    with browser_page() as page:
        opened(page, site[0])
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.closest('[id]')?.id || document.activeElement.innerText"))
        for part in ("prompt", "draw", "seed", "steps", "five"):
            assert any(part in str(r) for r in reached) or page.locator(f"#{part} [tabindex='-1']").count() == 0, (
                part,
                reached,
            )
        assert {"prompt", "draw", "five"} <= {r for r in reached if isinstance(r, str)}, reached
