"""Experiments: one job an arm x concept x seed, in multirun/NAME/KEY by its configuration; done jobs are not done again.

    perfusion train -m +experiment=key_locking concept=teddy,cat seed=0,1
    perfusion collect experiment=key_locking

A job trains one concept and evaluates it. Trainings lie in multirun/trainings/KEY, by the configuration of training alone,
so arms that differ only at inference, and experiments that share an arm, share them. Both keys leave out where the
repository lies, and what precision the processor chose, so a sweep can go on in another checkout or on another machine.
"""

import hashlib
import json
import shutil
import sys
import time
import traceback
from pathlib import Path

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from perfusion.config import ASSETS, CONF, ROOT, check, concept_of
from perfusion.errors import UserError, reader_left

OF_EXPERIMENTS = ("hydra", "name", "arms", "arm", "comparisons")  # what an experiment adds to a configuration
NOT_KEYED = ("logger", "concept_file", "resume", "picture", "attention")  # what no result depends on
NOT_TRAINED = ("evaluation", *NOT_KEYED)  # what training's does not
TRAININGS = "trainings"
PRECISIONS = (("trainer", "precision"), ("model", "draw_precision"))  # conf leaves them to the processor
CONCEPTS = (  # the final ones, and four of the others, on which no rate was chosen
    "backpack", "cake", "dog", "fox", "ghost", "guitar", "house", "mushroom", "owl", "snowman", "teapot", "television",
)  # fmt: skip
ONE_PLACE = ("key_locking", "zero_shot_mask")  # on photos with one background, what both are for
SEEDS = {"baselines": "0,1", "key_locking": "0,1,2", "zero_shot_mask": "0,1,2"}  # of training; others have 0 alone
TUNING = ("rates", "gates")  # on dev concepts and dev prompts, which their files name


def experiments() -> list[str]:
    """The names that experiment= may have."""
    return sorted(p.stem for p in (CONF / "experiment").glob("*.yaml") if p.stem != "sweep")


def commands(experiment: str) -> tuple[str, str]:
    """The two behind results/ablations/EXPERIMENT.json: the sweep, and what joins its jobs."""
    where = "one_place/" if experiment in ONE_PLACE else ""
    own = experiment.endswith("quick") or experiment in TUNING
    concepts = "" if own else f"concept={','.join(where + name for name in CONCEPTS)} "
    seeds = f"seed={SEEDS[experiment]} " if experiment in SEEDS else ""
    split = "dev" if experiment in TUNING else "final"
    sweep = f"perfusion train -m +experiment={experiment} {concepts}{seeds}evaluation.split={split}"
    return sweep, f"perfusion collect experiment={experiment}"


def made_by(experiment: str) -> str:
    """`commands` as a sentence says them."""
    return " and then ".join(commands(experiment))


def resolved(cfg: DictConfig) -> DictConfig:
    """The job's configuration: the arm's settings merged in, the experiment's own keys left out."""
    plain = OmegaConf.masked_copy(cfg, [k for k in cfg if k not in OF_EXPERIMENTS])
    if not OmegaConf.is_dict(cfg.get("arms")):
        raise UserError(
            f"name={cfg.name} is of an experiment, and none is chosen; give +experiment=NAME, or name=null."
        )
    if OmegaConf.is_missing(cfg, "arm") or cfg.arm not in cfg.arms:
        given = None if OmegaConf.is_missing(cfg, "arm") else cfg.arm
        raise UserError(
            f"arm={given} is not in experiment {cfg.name}; allowed are: {', '.join(cfg.arms)}; -m runs them all."
        )
    arm = OmegaConf.to_container(OmegaConf.create(cfg.arms[cfg.arm] or {}), resolve=False)
    if method := arm.pop("method", None):  # by name, as on the command line, or by name with settings of its own
        given = {"name": method} if isinstance(method, str) else method
        plain.method = OmegaConf.merge(OmegaConf.load(CONF / f"method/{given['name']}.yaml"), given)
    OmegaConf.set_struct(plain, True)
    return OmegaConf.merge(plain, arm)


def check_job(cfg: DictConfig) -> None:
    """Raises UserError for keys with which an experiment's job cannot run; concept=custom without pictures is left out later."""
    plain = resolved(cfg)
    if not OmegaConf.is_missing(plain.concept, "images"):
        check("train", plain)


def key(cfg: DictConfig, leave_out: tuple[str, ...] = ()) -> str:
    """16 hex digits of a resolved configuration. Missing values (concept=custom) count as null."""
    missing = [k for k in ("images", "super_category") if "concept" in cfg and OmegaConf.is_missing(cfg.concept, k)]
    if missing:  # the job itself says so
        cfg = OmegaConf.merge(cfg, {"concept": dict.fromkeys([*missing, "name"])})
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k not in leave_out]), resolve=True)
    plain.get("trainer", {}).pop("enable_progress_bar", None)
    given = OmegaConf.to_container(cfg, resolve=False)
    for group, name in PRECISIONS:
        if given.get(group, {}).get(name) == "${cpu_precision:}":  # a sweep can go on on another machine
            plain[group][name] = "the processor's own"
    plain.get("evaluation", {}).pop("reads", None)  # where a class lies
    text = json.dumps(plain, sort_keys=True).replace(str(ASSETS), "ASSETS").replace(str(ROOT), "ROOT")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def job_key(*, _root_: DictConfig) -> str:
    """For hydra.sweep.subdir. An unknown arm has no key; the job itself says so."""
    return key(resolved(_root_), NOT_KEYED) if _root_.get("arm") in _root_.arms else "unknown"


OmegaConf.register_new_resolver("job_key", job_key, replace=True)


def job(cfg: DictConfig) -> dict:
    """Run one job of an experiment, unless its result is there.

    In a sweep (-m) a failure is kept in error.txt and does not raise, so that the other jobs go on; alone it raises.
    """
    from perfusion.atomic import write_text

    arm = None if OmegaConf.is_missing(cfg, "arm") else cfg.arm
    about = {"experiment": cfg.name, "arm": arm, "concept": None, "seed": cfg.seed}
    try:
        return _job(cfg, about)
    except Exception as error:  # whatever it is, the other jobs go on
        if HydraConfig.get().mode != RunMode.MULTIRUN or (isinstance(error, BrokenPipeError) and reader_left()):
            raise
        folder = Path(HydraConfig.get().runtime.output_dir)
        write_text(folder / "error.txt", f"{json.dumps(about)}\n{traceback.format_exc()}")
        return _say("FAILED", about, " ".join(str(error).split()))


def _job(cfg: DictConfig, about: dict) -> dict:
    """`about` is filled in as far as the job comes."""
    from perfusion.evaluation.evaluate import check_evaluation, points_of
    from perfusion.evaluation.fronts import check_front
    from perfusion.evaluation.reading import read_evaluation
    from perfusion.results import write_result

    plain, experiment = resolved(cfg), Path(HydraConfig.get().sweep.dir)
    if OmegaConf.is_missing(plain.concept, "images"):
        return _say("left out", about, "concept=custom names no pictures")
    folder = experiment / key(plain, NOT_KEYED)  # Hydra's own, see job_key
    plain = check("train", plain)
    about["concept"] = str(plain.concept.images)  # until its name is known
    concept = concept_of(plain)
    about["concept"] = concept.name
    if concept.get("split") == "final" and plain.evaluation.split != "final":
        return _say("left out", about, "it is for the committed evaluation (evaluation.split=final)")
    devices = plain.trainer.devices
    if devices not in (1, "1") and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise UserError(
            f"trainer.devices={devices} does not work in an experiment; 1, or a list of one, is allowed: run the jobs side "
            "by side instead, with hydra/launcher=joblib, submitit_slurm or ray."
        )
    if (folder / "result.json").exists():
        result = read_evaluation(folder / "result.json", of_a_job=True)
        if result["job"] != about:  # an arm or a concept that goes by another name now
            write_result(folder / "result.json", result | {"job": about})
        return _say("done before", about)
    for twin in sorted(experiment.parent.glob(f"*/{folder.name}/result.json")):  # of another experiment
        result = read_evaluation(twin, of_a_job=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("pictures.png", "scores.csv", "front.png"):
            if twin.with_name(name).exists():  # the pictures of a long sweep may have been cleared away
                shutil.copy(twin.with_name(name), folder / name)
        result["config"] = OmegaConf.to_container(plain, resolve=True)  # and not where the twin's checkout lay
        break
    else:
        check_evaluation(plain.evaluation, plain.model, plain.lock)
        check_front(cfg.arm, points_of(plain.evaluation))
        folder.mkdir(parents=True, exist_ok=True)
        result = run(plain, concept, folder, experiment.parent / TRAININGS)
    write_result(folder / "result.json", result | {"job": about})
    (folder / "error.txt").unlink(missing_ok=True)
    if "wandb" in plain.logger:  # a twin's too, so that the experiment's group has every job
        from perfusion.learning.dashboard import show_front

        show_front(plain, result, folder)
    done = len(list(experiment.glob("*/result.json")))
    return _say("done", about, f"{result['job_seconds']:.0f} s; {done} results in {experiment}")


def run(cfg: DictConfig, concept_cfg: DictConfig, folder: Path, trainings: Path) -> dict:
    """Train, or take the finished training of the same configuration; then evaluate. Returns the result."""
    from perfusion.evaluation.evaluate import evaluate
    from perfusion.learning.data import real_pictures
    from perfusion.learning.methods import open_learned
    from perfusion.learning.models import check_device, check_model, load_pipeline

    started = time.perf_counter()
    check_model(cfg.model, ("path", "scorer", *(["segmenter"] if cfg.masks else [])))
    home = training(cfg, trainings)
    trained = json.loads((home / "result.json").read_text())
    real = real_pictures(concept_cfg.images)
    pipe = load_pipeline(cfg.model, check_device(None))
    concept = open_learned(cfg.method, home / "concept.safetensors")
    artist = concept_cfg.get("artist")
    result = evaluate(pipe, concept, real, artist, cfg.evaluation, cfg.model, folder)
    kept = {k: trained[k] for k in ("train_seconds", "kept_step", "trainable", "file_bytes", "peak_mib", "selection")}
    result["config"] = OmegaConf.to_container(cfg, resolve=True)
    return result | {
        "training": kept | {"folder": str(home)},
        "job_seconds": round(time.perf_counter() - started, 1),
    }


def training(cfg: DictConfig, trainings: Path) -> Path:
    """The folder of the finished training of this configuration, which is trained first unless it is there."""
    from perfusion.learning.train import train

    home = trainings / key(cfg, NOT_TRAINED)
    trainings.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):  # jobs run side by side may need the same training: the second one waits
        if not (home / "concept.safetensors").exists():
            unfinished = home.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            mine = OmegaConf.merge(cfg, {"concept_file": None, "resume": None})
            train(mine, unfinished)
            (unfinished / "last.ckpt").unlink(missing_ok=True)
            unfinished.rename(home)
    return home


def _say(what: str, about: dict, more: str = "") -> dict:
    number = HydraConfig.get().job.get("num", 0) if not OmegaConf.is_missing(HydraConfig.get().job, "num") else 0
    who = f"{about['experiment']} {about['arm']} {about['concept']} seed {about['seed']}"
    print(f"job {number}: {what}: {who}{': ' + more if more else ''}", flush=True)
    return {"status": what}


class Failures(Callback):
    """Hydra callback: at the end of a sweep, list the jobs that failed in it; the exit code is then 1."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self.before = self.errors(config)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        folder = Path(config.hydra.sweep.dir)
        failed = [p for p, written in self.errors(config).items() if self.before.get(p) != written]
        done = len(list(folder.glob("*/result.json")))
        where = "" if folder.parent == Path("multirun") else f" multirun={folder.parent}"
        print(f"{done} jobs done in {folder}; next: perfusion collect experiment={config.name}{where}")
        if failed:
            print(f"{len(failed)} failed, and would be tried again by the same command:", file=sys.stderr)
            for path in failed:
                about, *_, last = path.read_text().strip().splitlines()
                about = json.loads(about)
                who = f"{about['arm']} {about['concept']} seed {about['seed']}"
                print(f"  {who}: {last[:160]} ({path})", file=sys.stderr)
            sys.exit(1)

    @staticmethod
    def errors(config: DictConfig) -> dict[Path, int]:
        """{error.txt: when it was written}; a file written anew is another file."""
        return {p: p.stat().st_mtime_ns for p in sorted(Path(config.hydra.sweep.dir).glob("*/error.txt"))}
