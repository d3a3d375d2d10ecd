"""The tables in README.md and docs/*.md, made anew from the result files.

python scripts/tables.py             # rewrites what stands between <!-- table: NAME --> and <!-- end -->
python scripts/tables.py --check     # writes nothing; exit code 1 where a table is stale
"""

import math
import re
import sys
from pathlib import Path

from safetensors import safe_open
from tables_cells import RESULTS, ROOT, load, seconds, table
from tables_paper import attention, baselines, claims, committed, equal_bias, gates, locks, main_claims, rates

from perfusion.emojiland.vocabulary import ARTISTS, CLASSES, COLORS, FINAL, HELD_OUT, PLACES

ASSETS = ROOT / "perfusion/assets/emojiland"
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


# -- the tables ----------------------------------------------------------------------------------------------------------
def measured() -> str:
    """What it costs, from the scripts that measure it."""
    rows = []
    for name, numbers in (("main_job", "bfloat16"), ("main_job_float32", "float32")):
        if (RESULTS / f"{name}.json").exists():
            job = load(name)
            what = f"teddy\\* learned from five pictures, {job['cores']} cores, {numbers}"
            rows.append((what, seconds(job["train_seconds"]), "`scripts/measure_main_job.py`"))
            rows.append(("`make demo` after installation", seconds(job["demo_seconds"]), "the same"))
    split, shapes = len(rows), load("true_shapes")
    rows += [
        ("numbers learned", f"{shapes['trained_numbers']:,}", "`scripts/check_true_shapes.py`"),
        ("concept file", f"{load('true_shapes_models')['sd15']['file_bytes']:,} bytes", "`scripts/check_true_shapes.py --shapes`"),
        *_costs(""),
    ]  # fmt: skip
    head = [(f"Emojiland: {what}", *rest) for what, *rest in rows[:split]]
    tail = [(f"SD 1.5's shape: {what}", *rest) for what, *rest in rows[split:]]
    tail += [(f"SDXL's shape: {what}", *rest) for what, *rest in _costs("_sdxl")]
    return table("what | measured | by", head + tail)


def _costs(shape: str) -> list[tuple]:
    """What the scripts measured at a shape; SDXL's, "_sdxl", as far as they were run."""
    has = lambda name: not shape or (RESULTS / f"{name}{shape}.json").exists()
    script, rows = lambda name: f"`scripts/measure_{name}.py{' --shape sdxl' * bool(shape)}`", []
    if has("step_cost"):
        step = load(f"step_cost{shape}")
        rows += [
            ("denoising step with 1 concept; 1.00 = the stock pipeline's", f"{step['ratio_1']:.2f}", script("step_cost")),
            ("the same with 16 concepts", f"{step['ratio_16']:.2f}", "the same"),
        ]  # fmt: skip
    if has("loading"):
        loading = load(f"loading{shape}")
        many = f"a step with {loading['concepts']:,} concepts; 1.00 = the stock pipeline's"
        took = f"{loading['load_ms_first'] / 1000:.1f} s, {loading['load_ms']:.0f} ms"
        rows += [
            (many, f"{loading['step_ratio']:.2f}", script("loading")),
            ("a concept put on the pipeline: the first, a further one", took, "the same"),
        ]
    if has("train_step_cost"):
        train = load(f"train_step_cost{shape}")
        rows += [
            ("training step; 1.00 = Textual Inversion's", f"{train['time_vs_textual_inversion']:.2f}", script("train_step_cost")),
            ("its peak memory; 1.00 = Textual Inversion's", f"{train['memory_vs_textual_inversion']:.2f}", "the same"),
        ]  # fmt: skip
    return rows


def world() -> str:
    rows = [
        ("classes, each a super-category", len(CLASSES)),
        ("artists; captions name them as styles", f"{len(ARTISTS)}: {', '.join(ARTISTS.values())}"),
        ("colours, places", f"{len(COLORS)}, {len(PLACES)}"),
        ("held-out drawings, each a concept", f"{len(HELD_OUT)}: {', '.join(sorted(HELD_OUT))}"),
        ("of these for the final evaluation alone", f"{len(FINAL)}: {', '.join(sorted(FINAL))}"),
    ]
    return table("what | how many", rows)


def emojiland() -> str:
    figures = load("emojiland")
    drawn, reader = figures["drawn"], figures["reader"]
    facts = {"object": "object", "place": "place, or a plain background", "color": "colour word", "accessory": "accessory",
             "second": "second object", "art": "art kind"}  # fmt: skip
    rows = [
        (f"drawn pictures read right: {label}", f"{drawn[name]:.3f}") for name, label in facts.items() if name in drawn
    ]
    more = {"vae_psnr_db": ("VAE, PSNR of reconstructions", "{:.1f} dB"), "clip_retrieval_100": ("scorer: the right caption of 100", "{:.3f}"),
            "drawn_sharpness_ratio": ("sharpness of drawn objects; 1.00 = the VAE's reconstruction of real ones", "{:.2f}"),
            "clip_same_drawing_auc": ("scorer: one drawing in two places told from two drawings of a class, area under the curve", "{:.3f}"),
            "clipseg_iou": ("segmenter: IoU of its masks", "{:.3f}"),
            "attention_in_mask_lift": ("attention of the class's word inside the object; 1.00 = an even map", "{:.2f}"),
            "seconds_per_image": (f"one picture, {figures['steps']} steps with guidance", "{:.2f} s")}  # fmt: skip
    rows += [
        (label, shown.format(figures[name])) for name, (label, shown) in more.items() if figures.get(name) is not None
    ]
    rows.append((f"reader on real scenes: {', '.join(reader)}", ", ".join(f"{v:.3f}" for v in reader.values())))
    return table(f"what, over {figures['prompts']} prompts and scenes of seeds that no training used | measured", rows)


def models() -> str:
    """Sizes out of the files' headers; ASSETS is what ships."""
    parts = {
        "pipeline/vae": ("VAE", "diffusers `AutoencoderKL`", "crops of scenes without held-out drawings"),
        "pipeline/text_encoder": ("text encoder", "transformers `CLIPTextModel`, own BPE vocabulary", "their captions, contrastively; then frozen"),
        "pipeline/unet": ("UNet", "diffusers `UNet2DConditionModel`, v-prediction", "the VAE's latents of the same scenes"),
        "clipseg": ("segmenter", "transformers `CLIPSegForImageSegmentation`", "the same scenes"),
        "open_clip": ("scorer", "open_clip", "scenes with every drawing"),
        "reader": ("reader", "own small network, safetensors", "scenes with every drawing"),
    }  # fmt: skip
    rows = []
    for folder, (name, format, trained_on) in parts.items():
        (path,) = (ASSETS / folder).glob("*.safetensors")
        with safe_open(path, "np") as file:
            numbers = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        rows.append((name, format, f"{numbers / 1e6:.2f} M", trained_on))
    return table("model | format | numbers | trained on", rows)


def gate() -> str:
    energies = load("gate")
    apart = energies["apart"]
    rows = [
        ("at the class's own word, the smallest", f"{energies['class_word_min']:.2f} ({energies['class_word_min_at'].split(': ')[1]})"),
        ("at the class's own word, the mean", f"{energies['class_word_mean']:.2f}"),
        ("at any other word, the largest", f"{energies['other_word_max']:.2f} ({energies['other_word_max_at'].split(': ')[1]})"),
        ("at EOS, at padding, the largest", f"{apart['eos']['max']:.2f}, {apart['padding']['max']:.2f}"),
    ]  # fmt: skip
    return table(f"energy r over {energies['classes']} classes in {energies['contexts']} contexts | measured", rows)


def two_concepts() -> str:
    result = load("two_concepts")
    rows, mean = [], result["both_drawings_at_the_best_strength"]
    for pair, of_pair in result["pairs"].items():
        row = [pair.replace("second_cat", "another cat"), f"{of_pair['base model']['object']:.2f}"]
        for method in ("perfusion", "dreambooth_lora"):
            best = max(of_pair[method], key=lambda p: (p["drawing"], p["object"]))
            row += [f"{best['strength']:g}", f"{best['object']:.2f}", f"{best['drawing']:.2f}"]
        rows.append(row)
    rows.append(("mean", "", "", "", f"{mean['perfusion']:.2f}", "", "", f"{mean['dreambooth_lora']:.2f}"))
    learned = [f"{who}: {what}" for who in ("Perfusion", "two LoRAs") for what in ("strength", "classes", "drawings")]
    return table(" | ".join(["pair", "base model: classes", *learned]), rows)


def power() -> str:
    scores = load("power")["scores"]
    shown = {
        "facts": "facts read right",
        "drawing": "read as the very drawing",
        "text": "CLIP text",
        "image": "CLIP image",
    }
    rows = []
    for number, design in enumerate(scores["facts"]["designs"]):
        widths = [f"{scores[score]['designs'][number]['half_width']:.3f}" for score in shown]
        rows.append((*(str(design[name]) for name in ("concepts", "seeds", "prompts", "noises")), *widths))
    needed = [f"{s['needed']['concepts']} x {s['needed']['prompts']:,}" for s in (scores[score] for score in shown)]
    rows.append(("concepts x prompts for .01", "1", "", "1", *needed))
    return table(" | ".join(["concepts", "training seeds", "prompts", "noises", *shown.values()]), rows)


def recipes() -> str:
    tried = load("recipes")["recipes"]
    start = next(iter(tried.values()))["error_before"]
    rows = [("before", "0", f"{start:.3f}")]
    rows += [
        (
            f"{r.get('optimizer', 'adamw')}, learning rate {r['lr']:g}",
            f"{r['steps']} of {r['batch']}",
            f"{r['error']:.3f}",
        )
        for r in tried.values()
    ]
    return table("recipe | steps | error of the velocity on 256 unseen scenes", rows)


def reliability() -> str:
    """What scripts/campaign tried, how often, and what went wrong."""
    of = {name: part["figures"] for name, part in load("reliability")["commands"].items()}
    kills, resumes, fuzz, inputs, soak, places = (
        of[name] for name in ("kills", "resumes", "fuzz", "inputs", "soak", "places")
    )
    rows = [
        ("`kill -9` of a command, then the same command again",
         f"{kills['kills']:,} kills, {kills['kills_at_file_changes']:,} of them just before a file changes",
         f"{kills['results_lost']} results lost"),
        ("a training killed at a random step and resumed", f"{resumes['resumes']:,}", f"{resumes['resume_mismatches']} differ in a bit"),
        ("a damaged file is read", f"{fuzz['fuzzed_files']:,} files",
         f"{fuzz['silent_loads']} loaded wrong, {fuzz['tracebacks']} tracebacks, {fuzz['over_memory']} over twice the file's memory"),
        ("a value is given to a key", f"{inputs['bad_inputs']:,} checked, {inputs['runs']:,} of those that fit run",
         f"{inputs['tracebacks']} tracebacks"),
        (f"concepts are loaded, drawn with by {soak['soak_threads']} threads at once, unloaded",
         f"{soak['soak_loads']:,} times, {soak['soak_pictures']:,} pictures, pipelines: {soak['soak_pipelines']}",
         f"{soak['soak_wrong_pictures']} wrong pictures, memory {soak['soak_memory_growth']:+.1%} after the first tenth"),
        *((what, f"{places['places_rounds']} {'round' if places['places_rounds'] == 1 else 'rounds'} of every command", f"{places[key]} problems") for what, key in (
            ("a disk fills up", "places_full_disk"), ("a folder is read-only", "places_read_only"),
            ("the clock goes back", "places_clock_back"), ("two runs write to one folder", "places_two_runs"))),
    ]  # fmt: skip
    return table("what happens | how often | what went wrong", rows)


def denoisers() -> str:
    """What a concept is at the true shape of each model."""
    numbers = ("cross_attentions", "encoding", "embedding", "trained_numbers", "file_bytes")
    rows = [(name, *(f"{shape[n]:,}" for n in numbers)) for name, shape in load("true_shapes_models").items()]
    return table(
        "at the true shape of | cross-attentions | e as K and V see it | word embedding | trained numbers | file, bytes",
        rows,
    )


def unet_cost() -> str:
    shapes = load("unet_cost")["shapes"].items()
    rows = [(name, f"{s['parameters'] / 1e6:.1f} M", f"{s['ms_per_image']:.0f}") for name, s in shapes]
    return table("channels, heads | parameters | ms an image of a training step", rows)


TABLES = {f.__name__: f for f in (
    measured, claims, main_claims, committed, equal_bias, attention, locks, world, emojiland, gate, two_concepts, power, recipes, models, unet_cost,
    reliability, denoisers, rates, gates, baselines,
)}  # fmt: skip


# -- where they stand ----------------------------------------------------------------------------------------------------
def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """A page with every table as the result files have it now; one whose file is not there says so."""

    def made(name: str) -> str:
        try:
            return TABLES[name]()
        except FileNotFoundError as missing:
            return f"*Not measured yet: `{Path(missing.filename).relative_to(ROOT)}` is not there.*"

    return MARK.sub(lambda m: f"{m[1]}{made(m[2])}\n{m[3]}", text)


def stale() -> list[Path]:
    return [page for page in pages() if rendered(page.read_text()) != page.read_text()]


def main() -> None:
    old = stale()
    if "--check" in sys.argv[1:]:
        for page in old:
            print(f"{page.relative_to(ROOT)} has tables that are not as the result files; run python scripts/tables.py")
        sys.exit(bool(old))
    for page in old:
        page.write_text(rendered(page.read_text()))
        print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
