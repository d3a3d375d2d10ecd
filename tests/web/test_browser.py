"""The page as a person uses it, in a real browser."""

import re
import shutil

import numpy as np
import pytest
from helpers_emojiland import QUICK, SCORE
from helpers_web import browser_page, photos, uploads
from PIL import Image

from perfusion.method.concept import Concept

pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
CHANGED = "([id, old]) => { const i = document.querySelector(id + ' img'); return i && i.complete && i.getAttribute('src') !== old }"
FOCUSED = (
    "() => { const ids = []; for (let e = document.activeElement; e; e = e.parentElement) ids.push(e.id); return ids }"
)


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


def learn(page, folder, word: str, name: str, stop: bool = False, count: int = 2) -> None:
    page.get_by_role("tab", name="Teach").click()
    if page.locator("#uploads [aria-label='Clear']").count():
        page.locator("#uploads [aria-label='Clear']").click()
    page.locator("#uploads input[type=file]").set_input_files(uploads(folder, count))
    page.locator("#uploads").get_by_text("photo").first.wait_for()
    page.locator("#kind textarea").fill(word)
    page.locator("#near").get_by_text(word, exact=True).wait_for()
    page.locator("#name textarea").fill(name)
    if stop:
        page.locator("#max_steps input").fill("5000")
    page.locator("#cancel:disabled").wait_for()
    page.click("#learn")
    page.locator("#cancel:enabled").wait_for()
    if stop:
        page.locator("#said").get_by_text("of 5000").wait_for()
        page.click("#cancel")
    page.wait_for_function("name => document.querySelector('#said').innerText.includes(name + ' is learned')", arg=name)
    page.locator("#cancel:disabled").wait_for()


def test_learned_then_slid_then_both(site, tmp_path):
    with browser_page() as page:
        hosts = opened(page, site[0])
        learn(page, tmp_path, "teddy", "bear*")
        assert page.locator("#masks img").count() == 2 and page.locator("#curve svg").count() == 1
        assert page.locator("#drawn img").count() == 1 and page.locator("#file a[download]").count() >= 1
        learn(page, tmp_path, "cat", "kitty*", stop=True)
        kept, last = map(int, re.search(r"step (\d+) of (\d+) kept", page.locator("#said").inner_text()).groups())
        assert 1 <= kept <= last < 5000
        said = (site[1] / "server.log").read_text()
        assert "page: " in said and not re.search("litlogger|GPU available", said)  # nothing of Lightning's own

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


def test_learning_fits_a_phone(site, tmp_path):
    """Seven pictures: every control and all that comes of learning lies within the window's width, and can be pressed."""
    parts = "#uploads, #example, #kind, #near label, #show, #masks img, #name, #max_steps, #learn, #cancel, #said, #curve svg, #scores svg, "
    parts += "#drawn img, #file a"
    outside = (
        "parts => [...document.querySelectorAll(parts)].map(e => [e.closest('[id]').id, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.left < 0 || r.right > innerWidth || r.width < 20 || r.height < 12).map(([id]) => id)"
    )
    with browser_page(390, 844) as page:
        opened(page, site[0])
        learn(page, tmp_path, "teddy", "pocket*", count=7)
        assert page.locator("#masks img").count() == 7 and page.locator("#drawn img").count() == 1
        assert page.evaluate(outside, parts) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in ("#show", "#masks button >> nth=6", "#learn", "#drawn img >> nth=0"):
            page.click(button, trial=True)
        with page.expect_download() as download:
            page.locator("#file a[download]").first.click()
        assert Concept.load(download.value.path()).trigger == "pocket*"
        page.get_by_role("tab", name="Play").click()
        assert page.locator("#concepts").get_by_label("pocket*").is_checked()


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
        assert not page.get_by_text("no super-category is given").count()  # of the try before
        badges = page.locator("[data-testid=status-tracker] .error")
        assert badges.count() and not [
            b for b in badges.all() if b.is_visible()
        ]  # nothing lies over what is to be mended
        page.locator("#kind textarea").fill("ted")
        assert toast.count()  # still to be read while it is mended
        page.keyboard.press("Escape")
        toast.wait_for(state="detached")
        page.click("#show")
        page.get_by_test_id("toast-close").wait_for()
        page.get_by_test_id("toast-close").press("Enter")  # by the keyboard
        page.get_by_test_id("toast-close").wait_for(state="detached")
        page.get_by_role("tab", name="Play").click()
        page.locator("#prompt textarea").fill("a dog")
        page.click("#draw")
        page.wait_for_function(CHANGED, arg=["#base", None])


@pytest.mark.parametrize("width", [390, 1280])
def test_a_sentence_covers_no_button_and_is_text(site, width, tmp_path):
    """What a file is called is not taken for HTML."""
    with browser_page(width, 900) as page:
        opened(page, site[0])
        evil = tmp_path / "<img src=x onerror=document.title=1>.safetensors"
        evil.write_bytes(b"no concept at all")
        if not page.locator("input[type=file][accept*=safetensors]").count():
            page.get_by_text("Add concepts").click()
        page.locator("input[type=file][accept*=safetensors]").set_input_files(str(evil))
        toast = page.get_by_test_id("toast-body")
        toast.wait_for()
        assert "safetensors" in toast.inner_text() and not toast.locator("img").count() and page.title() == "Perfusion"
        page.wait_for_timeout(1000)  # it comes in
        box = toast.bounding_box()
        assert box["y"] > 450 and box["y"] + box["height"] <= 900 and box["x"] + box["width"] <= width
        page.locator("#draw").scroll_into_view_if_needed()
        page.click("#draw", trial=True)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(site, dark):
    with browser_page(390, dark=dark) as page:
        opened(page, site[0])
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 1000})
            for tab in ("Teach", "Compare", "Play"):
                page.get_by_role("tab", name=tab).click()
                page.wait_for_timeout(300)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.locator("#guidance").scroll_into_view_if_needed()  # the pictures stay in sight of a phone's sliders
        assert page.evaluate("scrollY") > 200 and abs(page.locator("#pair").bounding_box()["y"]) < 2
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


def reached(page, parts: set[str], presses: int = 60) -> set[str]:
    """Those of the parts (ids) that the focus comes into, as Tab is pressed."""
    found = set()
    for _ in range(presses):
        page.keyboard.press("Tab")
        found |= parts & set(page.evaluate(FOCUSED))
        if found == parts:
            break
    return found


def test_everything_is_reached_by_the_keyboard(site):
    play = {"prompt", "draw", "seed", "steps", "guidance", "five"}
    teach = {"uploads", "example", "kind", "show", "name", "max_steps", "learn"}
    with browser_page() as page:
        opened(page, site[0])
        assert reached(page, play) == play
        tab = page.get_by_role("tab", name="Teach")
        tab.focus()
        tab.press("Enter")
        page.locator("#learn").wait_for()
        assert reached(page, teach) == teach


def stroke(page, tool: str, at: tuple[float, float], of: int = 60) -> None:
    """Drag a tool over the canvas around a point, given as shares of it; the picture lies in its middle."""
    page.locator("#canvas").get_by_role("button", name=tool).first.click()
    box = page.locator("#canvas canvas").first.bounding_box()
    x, y = box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]
    page.mouse.move(x - of / 2, y)
    page.mouse.down()
    for n in range(11):
        page.mouse.move(x - of / 2 + n * of / 10, y + 2 * (n % 2))
    page.mouse.up()
    page.wait_for_timeout(500)


@pytest.mark.parametrize("width, button", [(390, "#mend"), (1280, "#learn")])
def test_a_mask_is_painted_erased_and_kept(site, width, button, tmp_path):
    masks = lambda: {p: np.asarray(Image.open(p).convert("L")) for p in site[1].rglob("1.mask.png")}
    with browser_page(width) as page:
        opened(page, site[0])
        before = set(masks())
        page.get_by_role("tab", name="Teach").click()
        page.locator("#uploads input[type=file]").set_input_files(photos(tmp_path))
        page.locator("#uploads").get_by_text("photo").first.wait_for()
        page.locator("#kind textarea").fill("teddy")
        page.click("#show")
        page.wait_for_function("() => document.querySelectorAll('#masks img').length === 2")
        ((path, found),) = [(p, m) for p, m in masks().items() if p not in before]
        shown = source(page, "#masks")
        page.locator("#masks button").first.click()
        page.locator("#canvas canvas").first.wait_for()
        page.wait_for_timeout(2000)  # the picture is put on it
        page.locator("#canvas").scroll_into_view_if_needed()
        stroke(page, "Brush", (0.5, 0.2))
        stroke(page, "Erase", (0.5, 0.6))
        if button == "#learn":  # strokes that nobody took count as well
            page.locator("#max_steps input").fill("1")
        page.click(button)
        page.wait_for_function(CHANGED, arg=["#masks", shown])
        mended = masks()[path]
        assert mended.shape == found.shape == (64, 64)
        full, empty = ((mended > 250) & (found < 200)).nonzero(), ((mended < 5) & (found > 20)).nonzero()
        assert len(full[0]) > 20 and full[0].max() < 32 and len(empty[0]) > 20 and empty[0].min() > 32
        # As soft as it was, but for the way over the canvas, which smooths it.
        assert np.abs(mended[:, :4].astype(int) - found[:, :4]).mean() < 16
        page.locator("#canvas").wait_for(state="hidden")
        if button == "#learn":
            page.locator("#said").get_by_text("is learned").wait_for()
        page.click("#show")  # nothing is found anew
        page.wait_for_timeout(2000)
        assert np.array_equal(masks()[path], mended)


def test_a_front_shows_the_pictures_behind_its_points(site, perfusion_here, tmp_path):
    perfusion_here("train", *QUICK, "concept_file=teddy.safetensors")
    perfusion_here("evaluate", *(q for q in QUICK if q.startswith("model.")), "concept_file=teddy.safetensors", *SCORE)
    shutil.copytree(tmp_path / "outputs", site[1] / "outputs", dirs_exist_ok=True)
    with browser_page() as page:
        opened(page, site[0])
        page.get_by_role("tab", name="Compare").click()
        points = page.locator("#front .point")
        points.first.wait_for()  # the only source is chosen
        assert points.count() == 2 and not page.locator("#front .shot").first.is_visible()
        points.first.hover()
        assert (
            page.locator("#front .shot image").first.is_visible() and not page.locator("#front .shot").last.is_visible()
        )
        box = page.locator("#front .shot").first.bounding_box()
        assert box["x"] > 0 and box["x"] + box["width"] <= 1280
        page.mouse.move(0, 0)
        points.first.focus()
        page.keyboard.press("Tab")
        assert page.locator("#front .shot").last.is_visible() and not page.locator("#front .shot").first.is_visible()
        assert re.search(r"^β 0.\d: text .*, image ", points.last.get_attribute("aria-label"))
        page.locator("#source input").click()
        page.get_by_role("option").first.click()
        page.locator("#said, .hint").get_by_text("prompts").first.wait_for()
