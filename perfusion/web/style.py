"""How the page looks: Gradio's own theme with the machine's fonts, so that nothing is fetched from elsewhere."""

import gradio as gr

SYSTEM = ["system-ui", "sans-serif"]
FIXED = ["ui-monospace", "monospace"]

CSS = """
.gradio-container { max-width: 1180px !important; width: 100%; margin: 0 auto; overflow: clip !important; }
.pixels img { width: 100% !important; height: auto !important; image-rendering: pixelated; object-fit: contain; }
.pixels .image-frame, .pixels .image-container > button { width: 100%; }
.pixels > label { position: static !important; width: 100%; border: none; }
.pixels .grid-wrap { min-height: 0 !important; height: auto !important; }
.pixels .grid-container { padding-top: 0 !important; }
#strip .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; }
#masks .grid-container, #drawn .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#strip .caption-label { right: 0; }
#drawn .caption-label { right: 0; max-width: 100%; }
#drawn button:hover .caption-label, #drawn button:focus .caption-label { white-space: normal; }
.hint { font-size: var(--text-sm); min-height: 1.4em; }
.knob { border-left: 4px solid var(--color-accent) !important; }
.knob .knob { border-left: none !important; }
.chart { width: 100%; height: auto; color: var(--body-text-color); font: 11px system-ui, sans-serif; }
.chart .shot { display: none; pointer-events: none; }
.chart .point:hover .shot, .chart .point:focus .shot { display: block; }
.chart .point:hover circle, .chart .point:focus circle { r: 8; }
.chart:has(.point:hover, .point:focus) .point:not(:hover, :focus) circle { opacity: .1; } /* they lie over the picture */
.chart .point { cursor: pointer; outline: none; }
.chart .card { fill: var(--block-background-fill); stroke: currentColor; }
.chart image { image-rendering: pixelated; }
/* Gradio shows no focus on these. */
input:is([type=range], [type=radio], [type=checkbox]):focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 3px; }
/* A mistake is the sentence at the foot: no badge lies over what is to be mended. */
[data-testid="status-tracker"]:has(> .error) { display: none !important; }
.toast-wrap { top: auto !important; bottom: var(--size-3); max-height: 40vh; overflow-y: auto; }
@media (max-width: 700px) {
  /* The pictures come first and stay in sight while a slider is moved. */
  #pictures { display: contents; }
  #pictures > * { flex: 1 0 100% !important; }
  #pair, #status { order: -1; }
  #pair { position: sticky; top: 0; z-index: var(--layer-5); flex-wrap: nowrap; background: var(--body-background-fill); }
  #pair > * { min-width: 0 !important; }
  #masks .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  #drawn .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
  #strip .caption-label { left: 0; max-width: none; padding: 2px 0; font-size: 11px; text-align: center; }
  #canvas { height: 420px !important; }
  .chart { font-size: 20px; overflow: visible; }
  .chart .shot { transform: scale(1.6); transform-box: fill-box; }
  .chart .shot text { font-size: 14px; }
}
"""


def theme() -> gr.themes.Base:
    return gr.themes.Default(font=SYSTEM, font_mono=FIXED)
