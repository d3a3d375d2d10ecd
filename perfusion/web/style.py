"""How the page looks: Gradio's base theme with the machine's own fonts, so that nothing is fetched from elsewhere."""

import gradio as gr

SYSTEM = ["system-ui", "sans-serif"]
FIXED = ["ui-monospace", "monospace"]

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto; }
.pixels img { width: 100%; height: auto; image-rendering: pixelated; }
.pixels .image-frame, .pixels .image-container { height: auto !important; }
.hint { font-size: var(--text-sm); min-height: 1.4em; }
.knob { border-left: 3px solid var(--color-accent); padding-left: 8px; }
.chart { width: 100%; height: auto; color: var(--body-text-color); font: 11px system-ui, sans-serif; }
.chart .shot { display: none; pointer-events: none; }
.chart .point:hover .shot, .chart .point:focus .shot { display: block; }
.chart .point:hover circle, .chart .point:focus circle { r: 7; }
.chart .point:focus { outline: none; }
.chart .point { cursor: pointer; }
.chart .card { fill: var(--block-background-fill); stroke: currentColor; }
.chart image { image-rendering: pixelated; }
"""


def theme() -> gr.themes.Base:
    return gr.themes.Default(font=SYSTEM, font_mono=FIXED)
