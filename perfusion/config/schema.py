"""What every key of every command may hold. What a key means is said in conf/*.yaml.

A description says what is allowed; `check` builds its sentence of it, or of the type where there is none.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perfusion.config.groups import Concept, Covariance, Evaluation, Group, Loggers, Method, Model, Selection, Trainer
from perfusion.config.kinds import (
    Beta,
    Device,
    Flag,
    Lock,
    Path,
    Seed,
    Source,
    Tau,
    Text,
    Tokens,
    Word,
    none,
    number,
    per_concept,
    several,
    whole,
)
from perfusion.errors import UserError


def along_its_strength(self):
    """An evaluation's operating points are of the method's kind."""
    if (self.evaluation.strength is None) != (self.method.strength is None):
        given = "null" if self.evaluation.strength is None else self.evaluation.strength
        raise UserError(
            f"evaluation.strength={given} does not go with method={self.method.name}; "
            + ("null is allowed, give evaluation.beta." if self.method.strength is None else "give a list of numbers.")
        )
    return self


class Train(Group):
    model: Model
    concept: Concept
    method: Method
    covariance: Covariance
    logger: Loggers
    evaluation: Evaluation
    trainer: Trainer
    seed: Seed
    lock: Literal["local", "trained"]
    beta: Beta
    tau: Tau
    shots: whole(1) | None
    masks: Annotated[Literal["clipseg"] | None, BeforeValidator(none)]
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

    points = model_validator(mode="after")(along_its_strength)

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
    logger: Loggers
    concept_file: Path

    points = model_validator(mode="after")(along_its_strength)


class Comparison(Group):
    better: Text
    worse: Text
    measure: Literal["hypervolume", "matched_text", "read_hypervolume", "matched_facts"]
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
    captions: Source | None
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
    scenes: whole(100, 1_000_000)
    seed: Seed
    models: Flag
    results: Path
    sheet: Path


COMMANDS = {
    "train": Train, "generate": Generate, "evaluate": Evaluate, "collect": Collect, "report": Report,
    "covariance": CovarianceFile, "import": Import, "measure": Measure,
}  # fmt: skip
