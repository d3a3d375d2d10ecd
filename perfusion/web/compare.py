"""The tab to compare: fronts of a run or an experiment, with the pictures behind each point."""

import gradio as gr

from perfusion.web.chart import chart
from perfusion.web.fronts import OUTPUTS, RESULTS, fronts, sources
from perfusion.web.kindly import kindly
from perfusion.web.words import plain

NOTHING = f"There is nothing to compare in {RESULTS} and {OUTPUTS} yet: `perfusion evaluate` makes a run, `perfusion collect` an experiment."


class Compare:
    """Builds the tab within a gr.Blocks."""

    def __init__(self):
        gr.Markdown(
            "Likeness against prompt fidelity, better to the upper right. Point at a dot, or go from dot to dot with Tab."
        )
        with gr.Row():
            self.source = gr.Dropdown([], label="Run or experiment", elem_id="source", min_width=300)
            self.again = gr.Button("Look again", min_width=140, scale=0)
        self.said = gr.Markdown(elem_classes="hint")
        self.front = gr.HTML(elem_id="front")
        quick = {"api_visibility": "private", "queue": False}
        self.source.input(kindly(self.show), self.source, [self.front, self.said], **quick)
        self.again.click(kindly(self.look), self.source, [self.source, self.front, self.said], **quick)
        self.quick = quick

    def on_load(self, page: gr.Blocks) -> None:
        """What a visitor who comes later finds: the results of now."""
        page.load(kindly(self.look), self.source, [self.source, self.front, self.said], **self.quick)

    def look(self, name: str | None):
        """What there is to choose now, and the front of what is chosen, at first of the first."""
        names = list(sources())
        name = name if name in names else next(iter(names), None)
        return gr.update(choices=names, value=name), *(self.show(name) if name else ("", NOTHING))

    def show(self, name: str):
        series, said = fronts(name)
        filled = (
            ""
            if all(p.filled for s in series for p in s.points)
            else " Hollow: another point of its arm is better in both."
        )
        return chart(series, "text similarity", "image similarity"), plain(said + filled)
