"""The page of a tiny world, served by another process, and a real browser where there is one."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_emojiland import QUICK, ROOT, SHIPPED, elsewhere, pictures

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
OVERRIDES = [o for o in QUICK if o != "masks=null"]


def model_at(assets: Path) -> list[str]:
    """Overrides that name the tiny world's models, without its environment."""
    home = assets / "emojiland"
    return [
        f"model.path={home}/pipeline",
        f"model.scorer=local-dir:{home}/open_clip",
        f"model.segmenter={home}/clipseg",
    ]


def with_segmenter(assets: Path) -> Path:
    """The tiny world has no segmenter of its own: the shipped one is small."""
    if not (assets / "emojiland/clipseg").exists():
        shutil.copytree(SHIPPED.parent / "clipseg", assets / "emojiland/clipseg")
    return assets


def uploads(folder: Path, count: int = 2) -> list[str]:
    paths = [folder / f"photo {n}.png" for n in range(count)]
    for path, picture in zip(paths, pictures(count)):
        picture.save(path)
    return [str(path) for path in paths]


def photos(folder: Path, count: int = 2) -> list[str]:
    """Where a mask is to be found there has to be an object."""
    return [str(shutil.copy(ROOT / f"data/concepts/teddy/{n}.png", folder / f"photo {n}.png")) for n in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command: list[str], folder: Path, assets: Path, port: int, **more: str):
    """A server's address while it runs; its window's words are in folder/server.log."""
    with (folder / "server.log").open("w") as log:
        env = elsewhere(assets) | {"GRADIO_TEMP_DIR": str(folder / "gradio"), "HF_HUB_OFFLINE": "1"} | more
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(3000):  # a busy machine
                if process.poll() is not None:
                    pytest.fail((folder / "server.log").read_text())
                try:
                    urllib.request.urlopen(address, timeout=5)
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.3)
            else:
                pytest.fail("the page did not start: " + (folder / "server.log").read_text())
            yield address
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def browser_page(width: int = 1280, height: int = 1000, dark: bool = False):
    """A page of a real browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            page.set_default_timeout(300_000)  # a busy machine
            yield page
        finally:
            browser.close()
