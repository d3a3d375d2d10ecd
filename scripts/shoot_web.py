"""Shoot the pictures of docs/web.md with a real browser: the page is served, taught a teddy and a cat, and played with.

python scripts/shoot_web.py [--to docs] [--steps 400] [--width 1180] [--dark]    # writes web_play.png, web_teach.png

Needs the extra [web], playwright, and Debian's chromium.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
LONG = 3_600_000  # ms, of a training
SETTLED = "([id, count]) => [...document.querySelectorAll(id + ' img')].filter(i => i.complete && i.naturalWidth).length >= count"


@contextmanager
def served(folder: Path):
    """The address of `perfusion web` in an empty folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "perfusion", "web", "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, env=env)
    try:
        while True:
            if process.poll() is not None:
                sys.exit("the page did not start")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except OSError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def teach(page: Page, example: str, steps: int) -> None:
    page.get_by_role("tab", name="Teach").click()
    page.locator("#example input").click()
    page.get_by_role("option", name=example, exact=True).click()
    page.locator("#near").get_by_text(example, exact=True).wait_for()
    page.locator("#max_steps input").fill(str(steps))
    page.click("#show")
    page.wait_for_function(SETTLED, arg=["#masks", 4])
    page.click("#learn")
    page.wait_for_function(
        "name => document.querySelector('#said').innerText.includes(name + ' is learned')",
        arg=f"{example}*",
        timeout=LONG,
    )


def play(page: Page) -> None:
    page.get_by_role("tab", name="Play").click()
    page.get_by_text("Add concepts").click()  # open for as long as there are none
    page.locator("#concepts").get_by_label("cat*").check()
    page.locator("#concepts").get_by_label("teddy*").check()
    page.locator("#beta1").wait_for()
    page.locator("#prompt textarea").fill("a cat* and a teddy* on a beach")
    page.wait_for_function("() => document.querySelectorAll('#seen .token.highlighted').length === 2")
    page.click("#draw")
    page.wait_for_function(SETTLED, arg=["#base", 1])
    page.click("#five")
    page.wait_for_function(SETTLED, arg=["#strip", 5])
    page.locator("#word").get_by_text("teddy*", exact=True).click()
    page.wait_for_function(SETTLED, arg=["#overlay", 1])


def main(to: Path, steps: int, width: int, dark: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light")
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector("#prompt textarea")
        page.wait_for_timeout(2000)  # its load event
        for name in ("cat", "teddy"):
            teach(page, name, steps)

        def shoot(name: str) -> None:
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(1000)
            page.screenshot(path=to / name, full_page=True)
            print(to / name)

        shoot("web_teach.png")
        play(page)
        shoot("web_play.png")
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "docs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--dark", action="store_true")
    main(**vars(parser.parse_args()))
