"""The tab to play: concepts, a prompt, a bias and a temperature for each concept, and what is drawn at once."""

import random
import threading
import time
from collections import OrderedDict

import gradio as gr

from perfusion.plots import heat_overlay
from perfusion.web.kindly import kindly, warn
from perfusion.web.studio import MOST_GUIDANCE, MOST_STEPS, Knob, Studio, Wish
from perfusion.web.words import bold, hints, spans

SLOTS = 4  # concepts in one prompt at most
LOCKS = {"the concepts' own": None, "global": "global"}


class Play:
    """Builds the tab within a gr.Blocks and holds its events. `chosen` and `refresh` are for the other tabs."""

    def __init__(self, studio: Studio):
        self.studio, self.library = studio, studio.library
        self._newest: OrderedDict[str, Wish] = OrderedDict()  # of each visitor
        self._guard = threading.Lock()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._controls()
            with gr.Column(scale=1, min_width=320, elem_id="pictures"):
                self._pictures()
        self._events()

    # -- what is seen -------------------------------------------------------------------------------------------------
    def _controls(self) -> None:
        words, sampling = self.library.words(), self.studio.sampling
        self.chosen = gr.CheckboxGroup(
            words, value=words[:1], label="Concepts", info=f"up to {SLOTS} at once", elem_id="concepts"
        )
        with gr.Accordion("Add concepts", open=not words):
            self.dropped = gr.File(
                label="Drop concept files here", file_count="multiple", file_types=[".safetensors"], height=140
            )
            self.address = gr.Textbox(
                label="or an address on the Hugging Face hub, then Enter", placeholder="hf://user/teddy"
            )
        first = words[0] if words else "teddy"
        self.prompt = gr.Textbox(
            f"a {first} on a beach", label="Prompt", info="Enter draws", elem_id="prompt", max_length=1000
        )
        self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
        self.seen = gr.HighlightedText(label="What is recognised", show_inline_category=False, elem_id="seen")
        self.hint = gr.Markdown(elem_classes="hint", elem_id="hint")
        self.words = gr.State([])
        self.groups, self.names, self.betas, self.taus = [], [], [], []
        for n in range(SLOTS):
            with gr.Group(visible=False, elem_classes="knob") as group:
                self.names.append(gr.Markdown(padding=True))
                self.betas.append(
                    gr.Slider(
                        0,
                        1.5,
                        0.75,
                        step=0.05,
                        label="bias",
                        info="lower: more likeness; higher: more of the prompt",
                        elem_id=f"beta{n}",
                    )
                )
                self.taus.append(
                    gr.Slider(
                        0.01, 0.5, 0.1, step=0.01, label="temperature", info="higher: a softer gate", elem_id=f"tau{n}"
                    )
                )
            self.groups.append(group)
        self.lock = gr.Radio(
            list(LOCKS),
            value=next(iter(LOCKS)),
            label="Key lock",
            info="global: the keys see the prompt with the super-category's word",
        )
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="seed")
            self.dice = gr.Button("Other noise", min_width=90)
        self.steps = gr.Slider(1, MOST_STEPS, sampling.steps, step=1, label="Steps", elem_id="steps")
        self.guidance = gr.Slider(1, MOST_GUIDANCE, sampling.guidance, step=0.5, label="Guidance", elem_id="guidance")

    def _pictures(self) -> None:
        shown = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "elem_classes": "pixels"}
        with gr.Row(elem_id="pair"):
            self.picture = gr.Image(label="With the concepts", min_width=140, elem_id="picture", **shown)
            self.base = gr.Image(label="Base, same noise", min_width=140, elem_id="base", **shown)
        self.status = gr.Markdown(elem_classes="hint", elem_id="status")
        self.five = gr.Button("Five biases", elem_id="five")
        self.strip = gr.Gallery(
            label="Every bias shifted", columns=5, height="auto", format="png", buttons=["download"], elem_classes="pixels",
            elem_id="strip", allow_preview=False, visible=False,
        )  # fmt: skip
        self.word = gr.Radio([], label="Where is this word looked at?", elem_id="word")
        self.overlay = gr.Image(
            label="Attention: from dark (none) to yellow (most)", elem_id="overlay", visible=False, **shown
        )

    def _events(self) -> None:
        gates = [*self.betas, *self.taus]
        self.wish = [self.words, self.prompt, self.lock, self.seed, self.steps, self.guidance, *gates]
        moved = [x.input for x in (*gates, self.steps, self.guidance, self.lock, self.seed)]
        drawn = {"inputs": self.wish, "outputs": [self.picture, self.base, self.status], "concurrency_id": "draw"}
        private = {"api_visibility": "private"}
        quick = private | {"queue": False, "show_progress": "hidden"}
        gr.on(moved, kindly(self.note), self.wish, None, **quick)
        # While one is under way, of several moves the last alone is sent, which `note` makes room for.
        gr.on(moved, kindly(self.redraw), **drawn, trigger_mode="always_last", show_progress="hidden", **private)
        gr.on(
            [self.draw.click, self.prompt.submit],
            kindly(self.redraw),
            **drawn,
            show_progress_on=self.picture,
            **private,
        )
        self.dice.click(lambda: random.randrange(10**6), None, self.seed, **quick).then(
            kindly(self.redraw), **drawn, **private
        )
        read = {
            "fn": kindly(self.read),
            "inputs": [self.prompt, self.words],
            "outputs": [self.seen, self.hint, self.word],
        }
        self.prompt.change(**read, **quick)  # typed, pasted, or put there by the other tab
        slots = {
            "inputs": [self.chosen, self.words, *gates],
            "outputs": [self.words, *self.groups, *self.names, *gates],
        }
        self.chosen.change(kindly(self.choose), **slots, **quick).then(**read, **quick)
        into = [self.chosen, self.dropped, self.address]
        self.dropped.upload(kindly(self.drop), [self.dropped, self.chosen], into, **private)
        self.address.submit(kindly(self.fetch), [self.address, self.chosen], into, concurrency_id="fetch", **private)
        self.five.click(kindly(self.biases), self.wish, self.strip, concurrency_id="draw", **private)
        self.word.input(kindly(self.attention), [self.word, *self.wish], self.overlay, concurrency_id="draw", **private)
        self.opened = {"slots": slots, "read": read, "quick": quick}

    def on_load(self, page: gr.Blocks) -> None:
        """What a visitor who comes later finds: the concepts of now."""
        quick = self.opened["quick"]
        opened = page.load(lambda: self.refresh(self.library.words()[:1]), None, self.chosen, **quick)
        opened.then(kindly(self.choose), **self.opened["slots"], **quick).then(**self.opened["read"], **quick)

    # -- what happens -------------------------------------------------------------------------------------------------
    def refresh(self, chosen: list[str]):
        return gr.update(choices=self.library.words(), value=chosen)

    def wish_of(self, words, prompt, lock, seed, steps, guidance, *gates) -> Wish:
        knobs = tuple(Knob(w, float(b), float(t)) for w, b, t in zip(words, gates[:SLOTS], gates[SLOTS:]))
        return Wish(prompt or "", knobs, LOCKS.get(lock), int(seed or 0), int(steps), float(guidance))

    def note(self, request: gr.Request, *values) -> None:
        """Remember a visitor's newest wish, and break off their drawing of the one before."""
        wish = self.wish_of(*values)
        with self._guard:
            before = self._newest.pop(request.session_hash, None)
            self._newest[request.session_hash] = wish
            while len(self._newest) > 1000:
                self._newest.popitem(last=False)
        if before is not None and before != wish:
            self.studio.break_off(before, request.session_hash)

    def redraw(self, request: gr.Request, *values):
        """The coarse picture, then the full one, then the base model's."""
        self.note(request, *values)
        wish, visitor, started = self.wish_of(*values), request.session_hash, time.perf_counter()
        said = lambda what: f"{what} after {time.perf_counter() - started:.2f} s"
        yield self.studio.picture(wish, coarse=True, visitor=visitor), gr.skip(), said("coarse picture")
        if self._newest.get(visitor, wish) != wish:
            return
        yield self.studio.picture(wish, visitor=visitor), gr.skip(), said(f"{wish.steps} steps")
        yield gr.skip(), gr.update(value=self.studio.base(wish, visitor)[1]), gr.skip()

    def read(self, prompt: str, words: list[str]):
        """The recognised words, hints about the others, and the words whose attention can be seen."""
        supers = {w: self.library[w].super_category for w in words}
        if not self.library.words():
            return (
                spans(prompt, []),
                "There are no concepts yet: teach one in the next tab, or add a file.",
                gr.update(choices=[]),
            )
        said = hints(prompt, supers, self.library.words())
        held, length = self.studio.words(prompt, words)
        if length > (limit := self.studio.limit):
            said.append(f"The prompt has {length} tokens, of which the model reads {limit}: shorten it.")
        return spans(prompt, words), "  \n".join(said), gr.update(choices=held, value=None)

    def choose(self, chosen: list[str], words: list[str], *gates):
        """A row of sliders for each chosen concept; one that stays keeps what its sliders say."""
        if len(chosen) > SLOTS:
            warn(f"At most {SLOTS} concepts at once: the first {SLOTS} are in play.")
        now = [w for w in words if w in chosen]
        now = [*now, *(w for w in chosen if w not in now)][:SLOTS]
        old = {w: (gates[i], gates[SLOTS + i]) for i, w in enumerate(words)}
        both = [old.get(w) or (self.library[w].beta, self.library[w].tau) for w in now] + [(0.75, 0.1)] * (
            SLOTS - len(now)
        )
        titles = [f"{bold(w)} is a {self.library[w].super_category}" for w in now] + [""] * (SLOTS - len(now))
        groups = [gr.update(visible=n < len(now)) for n in range(SLOTS)]
        return now, *groups, *titles, *(b for b, _ in both), *(t for _, t in both)

    def drop(self, paths: list[str], chosen: list[str]):
        """Every dropped file that is a concept is added; of the others, one sentence."""
        words, failed = [], []
        for path in paths:
            try:
                words.append(self.library.add(path))
            except ValueError as error:
                failed.append(str(error))
        if failed:
            warn(" ".join(failed))
        return self.refresh([*chosen, *(w for w in words if w not in chosen)]), None, gr.skip()

    def fetch(self, address: str, chosen: list[str]):
        word = self.library.fetch(address)
        return self.refresh([*chosen, word] if word not in chosen else chosen), gr.skip(), ""

    def biases(self, request: gr.Request, *values):
        wish = self.wish_of(*values)
        strip = [(picture, f"{shift:+.2f}") for shift, picture in self.studio.strip(wish, request.session_hash)]
        return gr.update(value=strip, visible=True)

    def attention(self, request: gr.Request, word: str, *values):
        maps = self.studio.looked(self.wish_of(*values), request.session_hash)
        if word not in maps.maps:
            return gr.skip()
        return gr.update(value=heat_overlay(maps.picture, maps.maps[word]), visible=True)
