"""The page's two functions for programs: /draw and /learn of Gradio's API client (docs/web.md)."""

import secrets
from pathlib import Path

import gradio as gr
from omegaconf import DictConfig

from perfusion.errors import UserError
from perfusion.method.text import add_placeholders
from perfusion.web.kindly import kindly
from perfusion.web.lesson import Lesson
from perfusion.web.play import SLOTS
from perfusion.web.studio import Knob, Studio, Wish
from perfusion.web.teach import MOST_STEPS, handed_out


def offer(studio: Studio, cfg: DictConfig, lessons: Path) -> None:
    """Add both within a gr.Blocks; nothing of it is seen on the page."""
    library, sampling = studio.library, studio.sampling

    def knobs(gates: dict | None) -> tuple[Knob, ...]:
        gates = gates or {}
        if not isinstance(gates, dict) or not all(isinstance(g, dict) for g in gates.values()) or len(gates) > SLOTS:
            raise UserError(
                f'concepts={gates} does not work; give up to {SLOTS}, as {{"teddy*": {{"beta": 0.6, "tau": 0.15}}}}.'
            )
        unknown = {key for g in gates.values() for key in g} - {"beta", "tau"}
        if unknown:
            raise UserError(f"concepts holds {sorted(unknown)}; a concept's settings are beta and tau.")
        return tuple(Knob(w, g.get("beta", library[w].beta), g.get("tau", library[w].tau)) for w, g in gates.items())

    def draw(request: gr.Request, prompt, concepts, lock, seed, steps, guidance):
        wish = Wish(prompt or "", knobs(concepts), lock or None, int(seed), int(steps), float(guidance))
        return studio.picture(wish, visitor=request.session_hash)

    def learn(pictures, super_category, name, max_steps):
        word, steps = (super_category or "").strip().lower(), int(max_steps)
        if not 1 <= steps <= MOST_STEPS:
            raise UserError(f"max_steps={steps} does not work; allowed is 1 to {MOST_STEPS}.")
        name = (name or "").strip() or library.free(f"{word}*")
        add_placeholders(studio.tokenizer, [name])
        lesson = Lesson(lessons / secrets.token_hex(8), pictures or [])
        *_, last = lesson.learn(cfg, name, word, steps)
        kept = library.add(last.file)
        return kept, handed_out(library.file(kept))

    with gr.Group(visible=False):
        prompt, gates, lock = gr.Textbox(label="prompt"), gr.JSON(label="concepts"), gr.Textbox(label="lock")
        seed, steps = gr.Number(0, label="seed", precision=0), gr.Number(sampling.steps, label="steps", precision=0)
        guidance, picture = gr.Number(sampling.guidance, label="guidance"), gr.Image(label="picture", format="png")
        gr.Button().click(
            kindly(draw), [prompt, gates, lock, seed, steps, guidance], picture, api_name="draw", concurrency_id="draw",
            api_description='Draw a prompt. concepts: {"teddy*": {"beta": 0.6, "tau": 0.15}}, with {} for a concept\'s own; lock: "" or "global".',
        )  # fmt: skip
        pictures = gr.File(label="pictures", file_count="multiple", file_types=[".png", ".jpg", ".jpeg", ".webp"])
        word, name = gr.Textbox(label="super_category"), gr.Textbox(label="name")
        most, file = gr.Number(cfg.max_steps, label="max_steps", precision=0), gr.File(label="concept")
        gr.Button().click(
            kindly(learn), [pictures, word, name, most], [gr.Textbox(label="word"), file], api_name="learn", concurrency_id="learn",
            api_description="Learn a concept from 1-7 pictures; gives its word, which /draw then knows, and its file.",
        )  # fmt: skip
