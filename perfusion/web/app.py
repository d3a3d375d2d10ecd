"""The page: three tabs on one pipeline, and how it is served."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks its makers for the newest version

from pathlib import Path

import gradio as gr
from omegaconf import DictConfig

from perfusion.web.api import offer
from perfusion.web.compare import Compare
from perfusion.web.kindly import DISMISS
from perfusion.web.library import Library
from perfusion.web.play import Play
from perfusion.web.studio import Studio
from perfusion.web.style import CSS, theme
from perfusion.web.teach import Teach

UPLOAD = "20mb"  # a file; in number, tests of each tab say more
WAITING = 32  # events in the queue; then a visitor is told to come back
DAY = 86400

HOME = Path("outputs/web")


def build(cfg: DictConfig, concepts: Path | None = None, device: str | None = None) -> gr.Blocks:
    """The page for a configuration of conf/train.yaml. concepts: the folder of concept files, outputs/web/concepts by default.

    Raises UserError, before any weights load, for a model or device that is not to be had.
    """
    library = Library(concepts or HOME / "concepts")
    library.folder.mkdir(parents=True, exist_ok=True)
    studio = Studio(cfg.model, library, device)
    for sentence in library.skipped:
        print(f"concept:  {sentence}")
    with gr.Blocks(title="Perfusion", analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        gr.Markdown(f"# Perfusion\nOne thing from a few pictures, in any prompt. Base model: {cfg.model.id}.")
        with gr.Tabs():
            with gr.Tab("Play", id="play"):
                play = Play(studio)
            with gr.Tab("Teach", id="teach"):
                teach = Teach(studio, cfg, HOME / "lessons")
            with gr.Tab("Compare", id="compare"):
                compare = Compare()
        play.on_load(page)
        compare.on_load(page)
        into_play = lambda word: (play.refresh([word]), f"a {word} on a beach") if word else (gr.skip(), gr.skip())
        teach.done.success(into_play, teach.learned, [play.chosen, play.prompt], queue=False, api_visibility="private")
        offer(studio, cfg, HOME / "lessons")
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def serve(page: gr.Blocks, host: str | None, port: int | None, auth: tuple[str, str] | None = None, **more):
    """Gradio's launch, with nothing shared, nothing fetched from elsewhere, and no files but uploads served."""
    return page.launch(
        server_name=host, server_port=port, auth=auth, share=False, ssr_mode=False, theme=theme(), css=CSS, js=DISMISS, allowed_paths=[],
        max_file_size=UPLOAD, footer_links=["api", "settings"], enable_monitoring=False, pwa=False, mcp_server=False, **more,
    )  # fmt: skip
