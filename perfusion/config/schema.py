"""What every key of every command may hold: types, ranges and allowed words. What a key means is said in conf/*.yaml.

A description says what is allowed; `check` builds its sentence of it, or of the type where there is none.
"""

import inspect
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perfusion.errors import UserError


def whole(low: int, high: int = 2**31 - 1, **more):
    """A whole number; true and 1.0 are none."""
    said = f"of at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"
    return Annotated[int, Field(strict=True, ge=low, le=high, description=f"a whole number {said}", **more)]


def number(low: float, high: float):
    """A finite number, kept as it is written: 1 stays 1, on which the keys of finished jobs depend."""
    integer = Annotated[int, Field(strict=True, ge=math.ceil(low), le=math.floor(high))]
    kind = integer | Annotated[float, Field(strict=True, ge=low, le=high, allow_inf_nan=False)]
    return Annotated[kind, Field(description=f"a number from {low:g} to {high:g}")]


def _encodable(text: str) -> str:
    text.encode()  # UnicodeEncodeError, a ValueError, for what no file could hold
    if "\0" in text:
        raise ValueError("it holds a zero byte")
    return text


def _path(text: str) -> str:
    if not text.strip() or len(text) > 4000 or any(len(part.encode()) > 240 for part in text.split("/")):
        raise ValueError("it is empty, or too long for a file's name")
    return text


def _template(text: str) -> str:
    if text.count("{}") != 1 or re.search("[{}]", text.replace("{}", "")):
        raise ValueError("each prompt needs exactly one {}, the place of the word, and no other brace")
    return text


def _one_word(text: str) -> str:
    if not any(c.isprintable() and not c.isspace() for c in text) or len(text) > 100:
        raise ValueError("it has no letter that can be seen, or more than 100")
    return text.strip()


def _none(value):
    """masks=none and masks=false are plainly meant as null."""
    return None if value is False or (isinstance(value, str) and value.lower() in ("none", "null", "")) else value


def _no_logger(value):
    return {} if _none(value) is None else value


def _listed(value):
    """One value where a list of them is wanted."""
    return value if isinstance(value, (list, dict, type(None))) else [value]


Text = Annotated[str, AfterValidator(_encodable), Field(description="a text")]
Path = Annotated[str, AfterValidator(_encodable), AfterValidator(_path), Field(description="a path")]
Word = Annotated[str, AfterValidator(_encodable), AfterValidator(_one_word), Field(description="a word")]
Template = Annotated[str, AfterValidator(_encodable), AfterValidator(_template)]
Device = Annotated[str, Field(pattern=r"^[a-z]{2,12}(:\d{1,3})?$", description="cpu, cuda, cuda:1, mps or the like")]
Flag = Annotated[bool, Field(strict=True)]
Seed = whole(0, 2**32 - 1)
Beta, Tau = number(-100, 100), number(1e-4, 100)
Lock = Literal["global", "local", "trained"]
Tokens = Literal["valid", "content", "all"]
several = lambda kind, said: Annotated[list[kind], BeforeValidator(_listed), Field(min_length=1, description=said)]


class Group(BaseModel):
    """A group of keys; any other is refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LearningRate(Group):
    o_star: number(0, 1000)
    embedding: number(0, 1000)
    relative: Flag


class Rates(Group):
    """Of the baselines."""

    textual_inversion: number(1e-12, 1000)
    dreambooth_lora: number(1e-12, 1000)
    custom_diffusion: number(1e-12, 1000)


class Model(Group):
    id: Text
    path: Path
    config: Path | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    attention: Literal["sdpa", "sliced", "xformers"] | None = None
    gradient_checkpointing: Flag = False
    resolution: Annotated[
        int, Field(strict=True, ge=8, le=8192, multiple_of=8, description="a multiple of 8 from 8 to 8192")
    ]
    scheduler: Text | None = None  # which names, models.check_model says
    steps: whole(1, 500)  # multistep solvers draw nothing but NaN near the 1000 of training
    guidance: number(0, 100)
    draw_batch: whole(1, 4096)
    scorer: Text
    dino: Text | None = None
    segmenter: Path
    captions: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", description="a module, as in perfusion.learning.captions")]
    covariances: Path | None = None
    shrinkage: number(0, 1000)
    select_from: whole(0)
    flip: Flag = True
    learning_rate: LearningRate
    rates: Rates | None = None
    licence: Text


class Concept(Group):
    images: Annotated[
        Path | Annotated[list[Path], Field(min_length=1)],
        Field(description="a folder of pictures, one picture, or a list of pictures"),
    ]
    name: Word | None = None
    super_category: Word | None = None


def _no_reference(text: str) -> str:
    if "${" in text:
        raise ValueError("it refers to another value")
    return text


class Beside(BaseModel):
    """concept.yaml beside the pictures; it may come from anybody, and may hold notes of its own."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[Word, AfterValidator(_no_reference)] | None = None
    super_category: Annotated[Word, AfterValidator(_no_reference)] | None = None
    artist: Annotated[Word, AfterValidator(_no_reference)] | None = None
    split: Literal["dev", "final"] | None = None


Dotted = Annotated[
    str,
    Field(pattern=r"^\w+(\.\w+)+$", description="a class, as in perfusion.baselines.custom_diffusion.CustomDiffusion"),
]
Strengths = several(number(0, 100), "a list of at least one number from 0 to 100, as in [0.5,1.0],") | None


class Method(Group):
    """Perfusion's has the first four alone."""

    name: Text
    module: Dotted | None
    learned: Dotted | None
    strength: Strengths
    learning_rate: number(1e-12, 1000) | None = None
    weight_decay: number(0, 100) | None = None
    clip: number(1e-9, 1e9) | None = None
    prior_pictures: whole(0, 100_000) = 0
    prior_weight: number(0, 1000) = 1.0
    rank: whole(1, 4096) | None = None
    identifier: Word | None = None
    initializer: Word | None = None


class Selection(Group):
    every: whole(1) | None
    start: whole(0)
    patience: whole(1) | None
    seed: Seed
    prompts: several(Template, 'a list of prompts, each with one {} for the word, as in ["a photo of a {}"],')


class Covariance(Group):
    """Of a training; C out of a file needs neither captions nor tokens."""

    captions: whole(1) | None
    source: Text | None = None
    tokens: Tokens | None
    file: Path | None = None

    @model_validator(mode="after")
    def measured(self):
        for name in ("tokens", *([] if self.source else ["captions"])):
            if not self.file and getattr(self, name) is None:
                raise UserError(
                    f"covariance.{name}=null goes with covariance.file=FILE alone; allowed without it "
                    f"{'are: valid, content, all' if name == 'tokens' else 'is a whole number of at least 1'}."
                )
        return self


class Evaluation(Group):
    prompts: Path
    split: Text | None
    seeds: whole(1, 10_000)
    seed: Seed
    beta: several(Beta, "a list of at least one number from -100 to 100, as in [0.6,0.75],")
    tau: several(Tau | None, "a list of at least one null or positive number (0.0001 to 100), as in [0.1,null],")
    lock: several(
        Lock | None, "a list of global, null, or the lock that the concept was trained with, as in [null,global],"
    )
    strength: Strengths = None
    batch_size: whole(1, 4096)
    dino: Text | None
    reader: Path | None
    reads: Text | None = None
    drift: Flag


class Logger(BaseModel):
    """One logger, or several by name; other loggers of Lightning have keys of their own."""

    model_config = ConfigDict(extra="allow")

    save_dir: Path | None = None
    name: Text | None = None
    version: Text | None = None
    offline: Flag = True
    project: Text | None = None
    entity: Text | None = None
    group: Text | None = None
    csv: "Logger | None" = None
    wandb: "Logger | None" = None


OURS = (  # what perfusion train sets itself
    "max_steps", "callbacks", "logger", "default_root_dir", "enable_model_summary", "log_every_n_steps", "enable_checkpointing",
    "plugins",
)  # fmt: skip


class Trainer(BaseModel):
    """Any key of pytorch_lightning.Trainer but those that this program sets itself."""

    model_config = ConfigDict(extra="allow")

    accelerator: Text = "auto"
    devices: Annotated[
        Literal["auto", -1, "-1"]
        | whole(1)
        | Annotated[str, Field(pattern=r"^\d+(,\d+)*$")]
        | Annotated[list[whole(0)], Field(min_length=1)],
        Field(description="auto, how many, or a list of their numbers"),
    ] = "auto"
    strategy: Text = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed", 32, 16, "32", "16", "bf16"] = "32-true"
    accumulate_grad_batches: whole(1) = 1
    gradient_clip_val: number(1e-9, 1e9) | None = None
    enable_progress_bar: Flag = True
    deterministic: Flag | Literal["warn"] = False

    @model_validator(mode="after")
    def lightnings_own(self):
        if not self.model_extra:
            return self
        from pytorch_lightning import Trainer as Lightning  # seconds, for names that are seldom given

        known = [name for name in inspect.signature(Lightning.__init__).parameters if name not in ("self", *OURS)]
        for name in self.model_extra:
            if name not in known:
                raise UserError(
                    f"trainer.{name} is {'set by perfusion train itself' if name in OURS else 'no key of the trainer'}; "
                    f"allowed are: {', '.join(known)}."
                )
        return self


class Train(Group):
    model: Model
    concept: Concept
    method: Method
    covariance: Covariance
    logger: Annotated[Logger, BeforeValidator(_no_logger)]
    evaluation: Evaluation
    trainer: Trainer
    seed: Seed
    lock: Literal["local", "trained"]
    beta: Beta
    tau: Tau
    shots: whole(1) | None
    masks: Annotated[Literal["clipseg"] | None, BeforeValidator(_none)]
    flip: Flag
    max_steps: whole(1, 10_000_000)
    batch_size: whole(1, 4096)
    i_star_decay: number(0, 1)
    i_star_gradient: Flag
    masked_prior: Flag
    resume: Path | None
    picture: Flag
    attention: Flag
    concept_file: Path | None
    selection: Selection
    name: Text | None = None

    @model_validator(mode="after")
    def together(self):
        if self.i_star_gradient and self.model.gradient_checkpointing:
            raise UserError(
                "i_star_gradient=true does not go with model.gradient_checkpointing=true; set one of them to false."
            )
        kinds = {"float16": "16", "bfloat16": "bf16"}  # autocast takes float32 and its own kind
        other = {"16": "bf16", "bf16": "16"}.get(kinds.get(self.model.dtype, ""))
        if other and str(self.trainer.precision) in (other, f"{other}-mixed"):
            raise UserError(
                f"trainer.precision={self.trainer.precision} does not go with model.dtype={self.model.dtype}; give "
                f"trainer.precision={kinds[self.model.dtype]}-mixed or 32-true, or model.dtype=float32."
            )
        return self


def per_concept(kind):
    return kind | Annotated[dict[Word, kind], Field(description="{teddy*: NUMBER} for each concept")] | None


class Generate(Group):
    model: Model
    concepts: Annotated[
        dict[Word, Path] | None, Field(description="{a trigger word and a file}, as in {teddy*: teddy.safetensors},")
    ]
    prompts: several(Text, 'a prompt or a list of prompts, as in ["a teddy* on a beach"],')
    negative_prompt: Text | None
    images: whole(1, 10_000)
    beta: per_concept(Beta)
    tau: per_concept(Tau)
    lock: Lock | None
    seed: Seed
    device: Device | None


class Evaluate(Group):
    model: Model
    concept: Concept
    method: Method
    evaluation: Evaluation
    logger: Annotated[Logger, BeforeValidator(_no_logger)]
    concept_file: Path


class Comparison(Group):
    better: Text
    worse: Text
    measure: Literal["hypervolume", "matched_text"]
    claim: Text


class OfExperiment(BaseModel):
    """An experiment's file also sets keys of the jobs, which the jobs check."""

    model_config = ConfigDict(extra="ignore")

    name: Word | None
    multirun: Path
    results: Path
    arms: dict[Text, Any] | None = None
    comparisons: list[Comparison] | None = None


class Collect(OfExperiment):
    reference: Annotated[
        list[number(-1, 1)], Field(min_length=2, max_length=2, description="a list of two numbers from -1 to 1")
    ]
    draws: whole(1, 100_000)
    seed: Seed


class Report(OfExperiment):
    run: Path | None
    output: Path | None


class CovarianceFile(Group):
    model: Model
    captions: Text | None
    column: Text | None
    count: whole(1) | None
    tokens: Tokens
    batch_size: whole(1, 65_536)
    save_every: whole(1)
    device: Device | None
    output: Path

    @model_validator(mode="after")
    def ends(self):
        if self.captions is None and self.count is None:
            raise UserError("count=null needs captions=FILE or hf:DATASET; the model's own captions have no end.")
        return self


class Import(Group):
    model: Model
    file: Path
    super_category: Word
    name: Word | None
    licence: Text
    output: Path


class Measure(Group):
    model: Model
    reader: Path
    prompts: whole(1, 1_000_000)
    seed: Seed
    models: Flag
    results: Path
    sheet: Path


COMMANDS = {
    "train": Train, "generate": Generate, "evaluate": Evaluate, "collect": Collect, "report": Report,
    "covariance": CovarianceFile, "import": Import, "measure": Measure,
}  # fmt: skip
