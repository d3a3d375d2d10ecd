"""Groups of keys that several commands have: a model, a concept, a method, an evaluation, a trainer."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perfusion.config.callables import check_arguments, check_logger
from perfusion.config.kinds import (
    Beta,
    Dotted,
    Flag,
    Lock,
    Path,
    Plain,
    Seed,
    Source,
    Strengths,
    Tau,
    Template,
    Text,
    Tokens,
    Word,
    none,
    number,
    several,
    whole,
)
from perfusion.errors import UserError


class Group(BaseModel):
    """A group of keys; any other is refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


Mean = Literal["harmonic", "arithmetic"]  # of image and text similarity


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
    draw_precision: Literal["32-true", "bf16-mixed"]
    scorer: Text
    dino: Text | None = None
    segmenter: Path
    captions: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", description="a module, as in perfusion.learning.captions")]
    covariances: Path | None = None
    shrinkage: number(0, 1000)
    flip: Flag = True
    batch_size: whole(1, 4096) = 16
    max_steps: whole(1, 10_000_000) = 400
    mean: Mean = "harmonic"
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


class Beside(BaseModel):
    """concept.yaml beside the pictures; it may come from anybody, and may hold notes of its own."""

    model_config = ConfigDict(extra="ignore")

    name: Plain | None = None
    super_category: Plain | None = None
    artist: Plain | None = None
    split: Literal["dev", "final"] | None = None


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

    @model_validator(mode="after")
    def of_one_kind(self):
        parts = {name: getattr(self, name) for name in ("module", "learned", "strength")}
        if len({value is None for value in parts.values()}) > 1:
            said = ", ".join(f"method.{name}={'null' if value is None else value}" for name, value in parts.items())
            raise UserError(
                f"{said} do not go together: all are null for Perfusion, whose strength is evaluation.beta, and none of them "
                "for a baseline; choose one by its name, as in method=perfusion or method=dreambooth_lora."
            )
        return self


class Selection(Group):
    every: whole(1) | None
    start: whole(0)
    patience: whole(1) | None
    mean: Mean
    seed: Seed
    prompts: several(Template, 'a list of prompts, each with one {} for the word, as in ["a photo of a {}"],')


class Covariance(Group):
    """Of a training; C out of a file needs neither captions nor tokens."""

    captions: whole(1) | None
    source: Source | None = None
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


class CSVLogger(BaseModel):
    model_config = ConfigDict(extra="allow")

    save_dir: Path | None = None
    name: Text | None = None
    version: Text | None = None


class WandbLogger(CSVLogger):
    offline: Flag = True
    project: Text | None = None
    entity: Text | None = None
    group: Text | None = None


READY = {f"pytorch_lightning.loggers.{kind.__name__}": kind.model_fields for kind in (CSVLogger, WandbLogger)}


class Logger(WandbLogger):
    """One logger, or several by name; other loggers of Lightning have keys of their own."""

    flush_logs_every_n_steps: whole(1) = 100  # of CSVLogger, which divides by it
    csv: "Logger | None" = None
    wandb: "Logger | None" = None


def _no_logger(value):
    return {} if none(value) is None else value


def _of_their_classes(loggers: Logger) -> Logger:
    given = loggers.model_dump(exclude_unset=True)
    for group, one in (
        {"logger": given} if "_target_" in given else {f"logger.{n}": v for n, v in given.items()}
    ).items():
        check_logger(group, one, READY)
    return loggers


Loggers = Annotated[Logger, BeforeValidator(_no_logger), AfterValidator(_of_their_classes)]


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
        if self.model_extra:
            from pytorch_lightning import Trainer as Lightning  # seconds, for names that are seldom given

            check_arguments("trainer", self.model_extra, Lightning, OURS)
        return self
