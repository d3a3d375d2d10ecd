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
    """What a concept of Emojiland costs."""
    rows = []
    for name, numbers in (("main_job", "bfloat16"), ("main_job_float32", "float32")):
        if (RESULTS / f"{name}.json").exists():
            job = load(name)
            what = f"teddy\\* learned from five pictures, {job['cores']} cores, {numbers}"
            rows.append((what, seconds(job["train_seconds"]), "`scripts/measure_main_job.py`"))
            rows.append(("`make demo` after installation", seconds(job["demo_seconds"]), "the same"))
    return table("on Emojiland | measured | by", rows)


def costs() -> str:
    """What the method costs at two true shapes, from the scripts that measure it."""
    shapes = ("", "_sdxl")
    of = {name: [load(name + shape) for shape in shapes] for name in ("step_cost", "loading", "train_step_cost")}
    models = [load("true_shapes_models")[name] for name in ("sd15", "sdxl")]
    ratio = lambda name, key: [f"{one[key]:.2f}" if key in one else "not measured" for one in of[name]]
    took = lambda one: f"{one['load_ms_first'] / 1000:.1f} s, {one['load_ms']:.0f} ms"
    by = lambda name: f"`scripts/{name}.py`"
    rows = [
        ("numbers learned", *(f"{one['trained_numbers']:,}" for one in models), "`scripts/check_true_shapes.py --shapes`"),
        ("concept file", *(f"{one['file_bytes']:,} bytes" for one in models), "the same"),
        ("denoising step with 1 concept over the stock pipeline's", *ratio("step_cost", "ratio_1"), by("measure_step_cost")),
        ("the same with 16 concepts", *ratio("step_cost", "ratio_16"), "the same"),
        ("the same with 1,000 concepts", *ratio("loading", "step_ratio"), by("measure_loading")),
        ("a concept put on the pipeline: the first, a further one", *map(took, of["loading"]), "the same"),
        ("training step over Textual Inversion's, both in float32", *ratio("train_step_cost", "time_vs_textual_inversion"), by("measure_train_step_cost")),
        ("the same, ours in bfloat16 as `perfusion train` chooses where the processor has it", *ratio("train_step_cost", "bfloat16_time_vs_textual_inversion"), "the same"),
        ("its peak memory over Textual Inversion's, both in float32", *ratio("train_step_cost", "memory_vs_textual_inversion"), "the same"),
    ]  # fmt: skip
    return table("at the true shape, random weights, on a CPU | SD 1.5 | SDXL | by", rows)


def web() -> str:
    """How soon the page redraws."""
    page = load("web")
    what = {"coarse_seconds": "after three steps", "full_seconds": "in full", "strip_seconds": "*Five biases*"}
    rows = [(said, f"{page[key]:.1f} s") for key, said in what.items()]
    return table(f"a moved slider redraws, on Emojiland and {page['cores']} cores | seconds", rows)


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
    measured, costs, web, claims, main_claims, committed, equal_bias, attention, locks, world, emojiland, gate, two_concepts, power, recipes, models, unet_cost,
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
