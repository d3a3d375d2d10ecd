"""An evaluation's result.json read back: every field that something is made of is of the kind that `evaluate` writes."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from perfusion.errors import UserError
from perfusion.results import read_result

Number = Annotated[float, Field(allow_inf_nan=False)]
STRICT = ConfigDict(strict=True, extra="allow")


class Point(BaseModel):
    """Where a concept was drawn: a gate's setting, or a baseline's strength."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lock: str | None = None
    tau: Number | None = None
    beta: Number | None = None
    strength: Number | None = None

    @model_validator(mode="after")
    def of_one_kind(self):
        given = {name for name in ("beta", "strength") if name in self.model_fields_set}
        if len(given) != 1 or getattr(self, *given) is None:
            raise ValueError("it needs a beta, or else a strength")
        return self


class Job(BaseModel):
    model_config = STRICT

    arm: str
    concept: str
    seed: int


class Training(BaseModel):
    model_config = STRICT

    train_seconds: Number
    folder: str | None = None


class Surroundings(BaseModel):
    model_config = STRICT

    commit: str | None


class Trained(BaseModel):
    model_config = STRICT

    base_hash: str


class Front(BaseModel):
    model_config = STRICT

    hypervolume: Number
    interval: list[Number | None]


class Row(BaseModel):
    """An operating point's settings, every score's mean, and whether it is on the front."""

    model_config = STRICT
    __pydantic_extra__: dict[str, Number | str | bool | None]

    text: Number
    image: Number
    pareto: bool


class Evaluated(BaseModel):
    model_config = STRICT

    concept: str
    prompts: Annotated[list[str], Field(min_length=1)]
    points: Annotated[list[Point], Field(min_length=1)]
    rows: dict[str, list[Number | None]]
    summary: list[Row]
    front: Front | None = None
    definitions: dict[str, str]
    config: dict[str, Any]
    scorers: dict[str, str | None]
    trained: Trained
    surroundings: Surroundings
    seconds: Number
    job: Job | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def of_one_shape(self):
        """A row for every prompt, noise and point, in this order; a line of the summary for every point."""
        points, prompts = len(self.points), len(self.prompts)
        if len(self.summary) != points:
            raise ValueError(f"summary has {len(self.summary)} entries for {points} points")
        given = [point.model_dump(exclude_unset=True) for point in self.points]
        if any(point.keys() != given[0].keys() for point in given):
            raise ValueError("points are of two kinds")
        if any(point.items() - row.model_dump().items() for point, row in zip(given, self.summary)):
            raise ValueError("summary has other points")
        count = len(self.rows.get("text", []))
        noises = count // (prompts * points)
        if not count or noises * prompts * points != count:
            raise ValueError(f"rows.text has {count} entries for {prompts} prompts and {points} points")
        for name, column in self.rows.items():
            if len(column) != count:
                raise ValueError(f"rows.{name} has {len(column)} entries, rows.text has {count}")
        order = [(i, k, p) for i in range(prompts) for k in range(noises) for p in range(points)]
        for place, name in enumerate(("prompt", "k", "point")):
            if self.rows.get(name) != [row[place] for row in order]:
                raise ValueError(f"rows.{name} does not go through the prompts, noises and points in order")
        for name in ("text", "image"):
            if None in self.rows.get(name, [None]):
                raise ValueError(f"rows.{name} is not known for every picture")
        return self


class OfAJob(Evaluated):
    """What `perfusion collect` joins."""

    job: Job
    training: Training
    job_seconds: Number


def read_evaluation(path: str | Path, of_a_job: bool = False) -> dict:
    """A result of perfusion evaluate, or of an experiment's job. Raises UserError that names the file and the field."""
    result = read_result(path)
    kind = OfAJob if of_a_job else Evaluated
    try:
        kind.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        said = str(first.get("ctx", {}).get("error") or first["msg"])
        raise UserError(
            f"{path} is damaged or was edited ({field and f'{field}: '}{said[:200]}); remove its folder and run the job again, "
            "or restore the file."
        ) from None
    return result
