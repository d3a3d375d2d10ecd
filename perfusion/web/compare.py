"""The tab to compare: fronts of a run or an experiment, with the pictures behind each point."""

import gradio as gr

from perfusion.web.chart import chart
from perfusion.web.fronts import fronts, sources
from perfusion.web.kindly import kindly


class Compare:
    """Builds the tab within a gr.Blocks."""

    def __init__(self):
        gr.Markdown(
            "Likeness against prompt fidelity, better to the upper right. Point at a dot, or go from dot to dot with Tab."
        )
        with gr.Row():
            self.source = gr.Dropdown(list(sources()), value=None, label="Run or experiment", elem_id="source")
            self.again = gr.Button("Look again", min_width=120, scale=0)
        self.said = gr.Markdown(elem_classes="hint")
        self.front = gr.HTML(elem_id="front")
        quick = {"api_visibility": "private", "queue": False}
        self.source.input(kindly(self.show), self.source, [self.front, self.said], **quick)
        self.again.click(lambda: gr.update(choices=list(sources())), None, self.source, **quick)

    def show(self, name: str):
        series, said = fronts(name)
        filled = (
            ""
            if all(p.filled for s in series for p in s.points)
            else " Hollow: another point of its arm is better in both."
        )
        return chart(series, "text similarity", "image similarity"), f"{said}.{filled}"
