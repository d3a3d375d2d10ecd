"""perfusion info, export and push: what is done with a concept file alone, no model and no configuration."""

import os

from perfusion.atomic import check_place, write_tensors
from perfusion.commands.cli import Parser
from perfusion.errors import UserError
from perfusion.method.concept import SDXL, Concept, read_file
from perfusion.method.hub import push

LORA = (
    "--diffusers-lora cannot be written: a LoRA adds the same linear map to every token, but how much of o* a token gets "
    "goes by a sigmoid of its energy, which is no linear map (docs/denoisers.md has the error that a rank-1 one would make); "
    "load the concept with load_concepts, or take its word alone with --textual-inversion OUT."
)


def info(path: str) -> str:
    """Metadata and shapes of a concept file, local or hf://, a line each. Raises UserError for what is not one."""
    concept = read_file(path)
    lines = [("file", f"{concept.path}, {concept.path.stat().st_size} bytes"), *concept.fields.items()]
    lines += [(name, list(concept.arrays[name].shape)) for name in ("i_star", "c_inv_i_star", "embedding")]
    for name in ("o_star_v", "o_star_k"):
        kept = f"{len(concept.layers)} layers, {sum(concept.layers.values())} numbers"
        lines.append((name, kept if name in concept.arrays else "not stored: W_K . super-category"))
    lines += [(f"  {name}", [width]) for name, width in concept.layers.items()]
    lines += [(f"config.{name}", value) for name, value in concept.config.items()]
    return "\n".join(f"{name:18} {value}" for name, value in lines)


def export_textual_inversion(concept: Concept, path: str | os.PathLike) -> None:
    """Write the concept's embedding as {"<teddy*>": [1, d_tok]}: what `pipe.load_textual_inversion` of diffusers reads. Of SDXL
    as {"clip_l": [1, 768], "clip_g": [1, 1280]}, of which diffusers takes one a text encoder.

    Only the word embedding goes along, without o* and gate: a weaker concept, that any program can load.
    """
    word = concept.embedding[None]
    sdxl = dict(zip(SDXL, word.split([*SDXL.values()], -1))) if word.shape[-1] == sum(SDXL.values()) else None
    write_tensors(path, sdxl or {f"<{concept.trigger}>": word}, {"base_id": concept.base_id})


def main(app: str, argv: list[str]) -> None:
    """Run one of the three on the command line's words."""
    parser = Parser(prog=f"perfusion {app}")
    parser.add_argument("file", help="a concept file, or hf://user/repo[/file]")
    if app == "export":
        parser.add_argument("--textual-inversion", metavar="OUT", help="the .safetensors to write")
        parser.add_argument("--diffusers-lora", metavar="OUT", help="refused: a gated edit is no LoRA")
    if app == "push":
        parser.add_argument("repo", help="user/name on the Hugging Face hub")
        parser.add_argument("--private", action="store_true", help="seen by you alone")
        parser.add_argument("--picture", metavar="PNG", help="shown on its page, such as a training's picture.png")
    arguments = parser.parse_args(argv)
    if app == "info":
        print(info(arguments.file))
    elif app == "export":
        if arguments.diffusers_lora:
            raise UserError(LORA)
        if not arguments.textual_inversion:
            raise UserError("export is not told what to write; give --textual-inversion OUT.safetensors.")
        check_place("--textual-inversion", arguments.textual_inversion, "a word's embedding")
        export_textual_inversion(Concept.load(arguments.file), arguments.textual_inversion)
        print(f"embedding: {arguments.textual_inversion}, for pipe.load_textual_inversion")
    else:
        print(f"pushed: {push(Concept.load(arguments.file), arguments.repo, arguments.private, arguments.picture)}")
