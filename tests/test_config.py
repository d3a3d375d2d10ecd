"""Every key of every command: one sentence for a value that cannot work, and what a person plainly meant works."""

import os.path

import hydra
import pytest
from helpers_inputs import bad_inputs, composed, configured, extras, inputs, keys_of
from omegaconf import OmegaConf

from perfusion.commands import apps
from perfusion.config import CONF, check
from perfusion.config.schema import COMMANDS
from perfusion.errors import UserError
from perfusion.experiments import sweep  # noqa: F401 registers a resolver


@pytest.mark.parametrize("command", COMMANDS)
def test_what_ships_passes_and_stays_as_it_is(command):
    cfg = composed(command)
    assert OmegaConf.to_container(check(command, cfg)) == OmegaConf.to_container(cfg) | (
        {"prompts": ["a"]} if command == "generate" else {}
    )


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("trainer", ["cpu", "gpu_8gb", "gpu_24gb", "ddp"])
def test_every_preset_passes(model, trainer):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        check("train", hydra.compose("train", [f"model={model}", f"trainer={trainer}", "logger=wandb"]))


def test_every_key_of_the_files_has_a_type_and_back():
    for command in COMMANDS:
        cfg = OmegaConf.to_container(composed(command), resolve=False)
        known = {key for key in keys_of(command) if not key.startswith(("logger.", "trainer."))}
        shown = lambda d, at="": {
            k for n, v in d.items() for k in (shown(v, f"{at}{n}.") if isinstance(v, dict) and v else [at + n])
        }
        given = {key for key in shown(cfg) if not key.startswith(("logger.", "trainer."))}
        if command not in ("collect", "report"):  # whose experiments set keys of the jobs
            assert given <= known, f"{command}: {given - known}; add them to perfusion/config/schema.py"
        optional = {"model.config", "model.dino", "model.covariances", "arms", "comparisons"}
        left = {
            key for key in known - given - optional if not key.startswith("method.")
        }  # a baseline's own, in conf/method
        assert not left, f"{command}: {left}; comment them in conf/"


@pytest.mark.parametrize("command, override, words", [
    ("generate", "prompts=[2024]", "prompts=[2024] does not work; a prompt or a list of prompts"),
    ("generate", "prompts=[2024]", """quoted twice: '"2024"'"""),
    ("generate", "prompts={a: b}", "prompts={a: b} does not work"),
    ("generate", "prompts=true", "prompts=true does not work"),
    ("generate", "prompts=???", "prompts is not given; say what to draw"),
    ("generate", "prompts=[]", "prompts=[] does not work"),
    ("generate", "concepts={42: teddy.safetensors}", "a trigger word and a file"),
    ("generate", "concepts={teddy*: null}", "concepts={teddy*: null} does not work"),
    ("generate", "concepts=teddy.safetensors", "a trigger word and a file"),
    ("generate", "seed=null", "seed=null does not work; a whole number from 0 to 4294967295"),
    ("generate", "seed=1.5", "seed=1.5 does not work"),
    ("generate", "seed=abc", "seed=abc does not work"),
    ("generate", "seed=true", "seed=true does not work"),
    ("generate", "seed=18446744073709551616", "seed=18446744073709551616 does not work"),
    ("generate", "seed=${nope}", "cannot be made out (Interpolation key 'nope' not found"),
    ("generate", "beta=nan", "beta=nan does not work; a number from -100 to 100"),
    ("generate", "beta={teddy*: high}", "beta={teddy*: high} does not work"),
    ("generate", "beta=[0.5]", "{teddy*: NUMBER} for each concept"),
    ("generate", "tau=inf", "tau=inf does not work; a number from 0.0001 to 100"),
    ("generate", "tau=0", "tau=0 does not work"),
    ("generate", "negative_prompt=5", "negative_prompt=5 does not work"),
    ("generate", "negative_prompt=[a]", "negative_prompt=[a] does not work"),
    ("generate", "model.guidance=high", "model.guidance=high does not work"),
    ("generate", "model.guidance=null", "model.guidance=null does not work"),
    ("generate", "model.steps=1001", "model.steps=1001 does not work; a whole number from 1 to 500"),
    ("generate", "lock=nowhere", "lock=nowhere is unknown; allowed are: global, local, trained or null"),
    ("generate", "device=0", "device=0 does not work"),
    ("generate", "+colour=red", "colour is no key of perfusion generate"),
    ("generate", "+model.stepz=3", "did you mean steps?"),
    ("train", "concept.name=123", "concept.name=123 does not work"),
    ("train", "concept.name='\u200b\u200d'", "no letter that can be seen"),
    ("train", "concept.super_category=true", "concept.super_category=true does not work"),
    ("train", "concept.images=null", "a folder of pictures, one picture, or a list of pictures is allowed"),
    ("train", "concept.images=[]", "concept.images=[] does not work"),
    ("train", "seed=-1", "seed=-1 does not work"),
    ("train", "beta=abc", "beta=abc does not work"),
    ("train", "beta=null", "beta=null does not work"),
    ("train", "tau=nan", "tau=nan does not work"),
    ("train", "masks=hand", "masks=hand is unknown; allowed are: clipseg or null"),
    ("train", "lock=none", "lock=none is unknown; allowed are: local, trained"),
    ("train", "flip=maybe", "flip=maybe is unknown; allowed are: true, false"),
    ("train", "shots=0", "shots=0 does not work; a whole number of at least 1 or null"),
    ("train", "max_steps=1e3", "max_steps=1000.0 does not work"),
    ("train", "selection.every=-5", "selection.every=-5 does not work"),
    ("train", "selection.every=1.5", "selection.every=1.5 does not work"),
    ("train", "selection.start=abc", "selection.start=abc does not work"),
    ("train", "selection.patience=-1", "selection.patience=-1 does not work"),
    ("train", "selection.seed=abc", "selection.seed=abc does not work"),
    ("train", "selection.prompts=[]", "selection.prompts=[] does not work"),
    ("train", "selection.prompts=['a {']", "exactly one {}, the place of the word, and no other brace"),
    ("train", "selection.prompts=['a {} {}']", "exactly one {}"),
    ("train", "selection.prompts=['a {name}']", "exactly one {}"),
    ("train", "selection.prompts=[5]", "selection.prompts=[5] does not work"),
    ("train", "selection.prompts=null", "selection.prompts=null does not work"),
    ("train", "selection=5", "a group of keys (every, start, patience, mean, seed, prompts) is allowed"),
    ("train", "i_star_decay=2", "i_star_decay=2 does not work; a number from 0 to 1"),
    ("train", "i_star_decay=abc", "i_star_decay=abc does not work"),
    ("train", "model.learning_rate=0.1", "a group of keys (o_star, embedding, relative) is allowed"),
    ("train", "model.learning_rate.o_star=-1", "model.learning_rate.o_star=-1 does not work"),
    ("train", "model.dtype=int8", "model.dtype=int8 is unknown; allowed are: float32, float16, bfloat16"),
    ("train", "model.attention=flash", "model.attention=flash is unknown; allowed are: sdpa, sliced, xformers or null"),
    ("train", "model.resolution=500", "model.resolution=500 does not work; a multiple of 8"),
    ("train", "model.draw_batch=0", "model.draw_batch=0 does not work; a whole number from 1 to 4096"),
    ("train", "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 does not work"),
    ("train", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 does not work"),
    ("train", "+trainer.max_steps=5", "trainer.max_steps is set by perfusion train itself"),
    ("train", "+trainer.speed=5", "trainer.speed is no key of the trainer; allowed are: accelerator"),
    ("train", "+trainer.max_epochs=abc", "trainer.max_epochs=abc does not work; a whole number or null is allowed."),
    ("train", "+trainer.max_epochs=true", "trainer.max_epochs=true does not work"),
    ("train", "+trainer.limit_train_batches=nan", "trainer.limit_train_batches=nan does not work; a number or null"),
    ("train", "+trainer.max_time={days: a}", "trainer.max_time={days: a} does not work"),
    ("train", "+trainer.detect_anomaly=null", "trainer.detect_anomaly=null does not work; true, false is allowed"),
    ("train", "+logger.flush_logs_every_n_steps=abc", "logger.flush_logs_every_n_steps=abc does not work; a whole number"),
    ("train", "+logger.flush_logs_every_n_steps=0", "logger.flush_logs_every_n_steps=0 does not work; a whole number of at least 1"),
    ("train", "+logger.offline=true", "logger.offline is no key of the logger; allowed are: save_dir, name, version"),
    ("train", "+logger._partial_=true", "logger._partial_ is no key of the logger"),
    ("train", "logger._target_=abc", "logger._target_=abc does not work"),
    ("train", "logger._target_=pathlib.Path", "logger._target_=pathlib.Path does not work (it is no logger)"),
    ("train", "logger={wandb: null}", "logger.wandb=null does not work; keys of one logger are allowed"),
    ("train", "logger={a: {_target_: pytorch_lightning.loggers.CSVLogger, prefix: 5}}", "logger.a.prefix=5 does not work; a text is allowed"),
    ("train", "resume=true", "resume=true does not work; a path or null"),
    ("train", "concept_file=''", "concept_file= does not work (it is empty, or too long"),
    ("train", "logger.save_dir=5", "logger.save_dir=5 does not work"),
    ("train", "covariance.tokens=null", "covariance.tokens=null goes with covariance.file=FILE alone"),
    ("train", "covariance.captions=null", "covariance.captions=null goes with covariance.file=FILE alone"),
    ("train", "evaluation.beta=[]", "evaluation.beta=[] does not work; a list of at least one number"),
    ("train", "evaluation.tau=[0]", "null or positive number"),
    ("evaluate", "evaluation.lock=[open]", "evaluation.lock=[open] does not work"),
    ("evaluate", "method.strength=100.0", "method.strength=[100.0] do not go together: all are null for Perfusion"),
    ("train", "method.strength=[1]", "whose strength is evaluation.beta"),
    ("train", "evaluation.strength=1", "evaluation.strength=[1] does not go with method=perfusion; null is allowed"),
    ("evaluate", "evaluation.seeds=0", "evaluation.seeds=0 does not work"),
    ("evaluate", "concept_file=5", "concept_file=5 does not work"),
    ("covariance", "count=null", "count=null needs captions=FILE or hf:DATASET"),
    ("covariance", "tokens=some", "tokens=some is unknown; allowed are: valid, content, all"),
    ("covariance", "batch_size=0", "batch_size=0 does not work"),
    ("collect", "draws=0", "draws=0 does not work"),
    ("collect", "reference=[0]", "reference=[0] does not work; a list of two numbers"),
    ("collect", "comparisons=[{better: a, worse: b, measure: luck, claim: c}]", "comparisons="),
    ("report", "run=true", "run=true does not work"),
    ("import", "super_category=5", "super_category=5 does not work"),
    ("measure", "prompts=many", "prompts=many does not work"),
])  # fmt: skip
def test_a_sentence_names_key_value_and_what_is_allowed(command, override, words):
    with pytest.raises(UserError) as error:
        check(command, configured(command, override))
    said = str(error.value)
    assert words in said and "\n" not in said and said.endswith("."), said


def test_keys_that_lightning_takes_pass():
    wandb = "logger={wandb: {_target_: pytorch_lightning.loggers.WandbLogger, project: a, log_model: all, tags: [b]}}"
    extra = (
        "+trainer.max_epochs=-1",
        "+trainer.limit_train_batches=0.5",
        "+trainer.max_time={hours: 1}",
        "+trainer.profiler=simple",
    )
    for overrides in (extra, ("+logger.prefix=a",), ("+trainer.fast_dev_run=true",), (wandb,)):
        cfg = configured("train", *overrides)
        assert check("train", cfg) == cfg


def test_weights_and_precision_of_two_half_kinds_are_refused():
    for dtype, precision in [("float16", "bf16-mixed"), ("bfloat16", "16-mixed")]:
        with pytest.raises(UserError, match=f"trainer.precision={precision} does not go with model.dtype={dtype}"):
            check("train", configured("train", f"model.dtype={dtype}", f"trainer.precision={precision}"))
        check("train", configured("train", f"model.dtype={dtype}", "trainer.precision=32-true"))


@pytest.mark.parametrize("command, override, key, value", [
    ("train", "masks=none", "masks", None),
    ("train", "masks=false", "masks", None),
    ("train", "logger=false", "logger", {}),
    ("train", "logger=null", "logger", {}),
    ("train", "selection.prompts='a {} here'", "selection.prompts", ["a {} here"]),
    ("train", "concept.images=one.png", "concept.images", "one.png"),
    ("train", "concept.images=[a.png,b.png]", "concept.images", ["a.png", "b.png"]),
    ("train", "concept.super_category=' teddy '", "concept.super_category", "teddy"),
    ("train", "evaluation.beta=0.6", "evaluation.beta", [0.6]),
    ("train", "evaluation.lock=global", "evaluation.lock", ["global"]),
    ("train", "beta=1", "beta", 1),
    ("train", "concept.images='~/photos'", "concept.images", os.path.expanduser("~/photos")),
    ("train", "concept_file='~/a.safetensors'", "concept_file", os.path.expanduser("~/a.safetensors")),
    ("covariance", "captions='~/a.txt'", "captions", os.path.expanduser("~/a.txt")),
    ("generate", "concepts={teddy*: '~/a.safetensors'}", "concepts", {"teddy*": os.path.expanduser("~/a.safetensors")}),
    ("generate", "prompts='a cat'", "prompts", ["a cat"]),
    ("generate", "beta={teddy*: 0.5}", "beta", {"teddy*": 0.5}),
    ("generate", "tau={teddy*: 0.5, cat.v2: 1}", "tau", {"teddy*": 0.5, "cat.v2": 1}),
])  # fmt: skip
def test_what_a_person_plainly_meant_works(command, override, key, value):
    checked = check(command, configured(command, override))
    taken = OmegaConf.to_container(checked)
    for part in key.split("."):
        taken = taken[part]
    assert taken == value and type(taken) is type(value)
    assert check(command, checked) == checked


@pytest.mark.parametrize("override", ["model=null", "trainer=5", "evaluation=true", "concept="])
def test_a_group_is_chosen_by_name(override, capsys):
    with pytest.raises(SystemExit):
        apps._of_group(override)
    assert f"{override} names no choice of" in capsys.readouterr().err
    assert apps._of_group("logger=null") == apps._of_group("logger=False") == "logger=none"
    assert apps._of_group("hydra.run.dir=~/runs") == f"hydra.run.dir={os.path.expanduser('~/runs')}"
    assert apps._of_group("concept.images=~/a") == f"concept.images={os.path.expanduser('~/a')}"
    assert apps._of_group("model=sd15") == "model=sd15" and apps._of_group("seed=5") == "seed=5"


@pytest.mark.parametrize("command, override, words", [
    ("generate", "prompts={a: b}", "prompts={a: b} does not work; a prompt or a list of prompts"),
    ("train", "++selection.prompts={a: b}", "selection.prompts={a: b} does not work; a list of prompts"),
    ("train", "max_stepz=3", "max_stepz is no key of perfusion train (did you mean max_steps?); allowed are: model"),
    ("train", "selection.evry=3", "selection.evry is no key of perfusion train (did you mean every?); allowed are: every"),
    ("train", "trainer.max_time=00:01:00", "add it with a plus sign, as in +trainer.max_time=00:01:00"),
    ("train", "hydra.nothing=3", "Could not override 'hydra.nothing'"),
    ("train", "hydra.run.dir=null", "hydra.run.dir=null does not work (ValidationError: field 'hydra.run.dir' is not Optional"),
    ("train", "~hydra.run", "hydra.run does not work"),
    ("train", "selection.prompts.x=5", "selection.prompts.x=5 cannot be put into the configuration (ValueError: invalid literal"),
    ("train", "hydra.sweeper.params.seed=5", "hydra.sweeper.params.seed=5 cannot be put into the configuration (AssertionError"),
    ("train", "=5", "=5 cannot be put into the configuration"),
    ("train", "concept.name=$y_{a*", "concept.name=$y_{a* cannot be read as KEY=VALUE (mismatched input"),
    ("train", "seed", "seed cannot be read as KEY=VALUE (missing EQUAL"),
])  # fmt: skip
def test_what_hydra_does_not_take_is_one_sentence(command, override, words, capsys):
    with pytest.raises(SystemExit):
        apps._check(command, [override])
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


KEY_LOCKING = "+experiment=key_locking"


@pytest.mark.parametrize("words", [  # the last says what is wrong
    ("seed=0,abc", "seed=abc does not work; a whole number from 0 to 4294967295 is allowed."),
    (f"seed={','.join(map(str, range(99)))},abc", "max_steps=1,2", "seed=abc does not work"),  # of 200 jobs some
    ("concept=teddy,cat", "max_steps=10", "+trainer.max_epochs=1,abc", "trainer.max_epochs=abc does not work"),
    ("trainer=cpu,nope", "trainer=nope is unknown; allowed are: cpu, ddp, gpu_24gb, gpu_8gb."),
    ("model.dtype=float16,float32", "trainer.precision=32-true,bf16-mixed", "does not go with model.dtype=float16"),
    ("selection.prompts=['a {}'],{a:b}", "selection.prompts={a:b} does not work; a list of prompts"),
    ("selection.evry=3,4", "selection.evry is no key of perfusion train (did you mean every?)"),
    ("seed=interval(0,1)", "seed=interval(0,1) names no values one by one"),
    ("concept.images=a,${nope}", "Interpolation key 'nope' not found"),
    (KEY_LOCKING, "concept=teddy,cat", "seed=0,1.5", "seed=1.5 does not work"),
    (KEY_LOCKING, "arm=locked,hot", "arm=hot is not in experiment key_locking; allowed are: locked, trained_k"),
])  # fmt: skip
@pytest.mark.parametrize("flag", ["-m", "hydra.mode=MULTIRUN"])
def test_every_job_of_a_sweep_is_checked_before_the_first(words, flag, capsys):
    *overrides, said = words
    with pytest.raises(SystemExit) as stop:
        apps._check("train", [flag, *overrides])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and said in shown and shown.count("\n") == 1, shown


@pytest.mark.slow
def test_a_sweep_that_can_run_passes():
    for overrides in (
        ["seed=0,1", "masks=none,clipseg"],
        [KEY_LOCKING, "concept=teddy,custom"],
        ["seed=range(0,9999)"],
    ):
        apps._check("train", ["-m", *overrides])


@pytest.mark.parametrize("override", ["hydra.verbose=5", "hydra.verbose={a: b}", "hydra.job_logging.root.level=abc"])
@pytest.mark.parametrize("flags", [(), ("seed=0,1", "-m")])  # -m may stand anywhere
def test_what_hydra_itself_cannot_do_is_one_sentence(override, flags, perfusion_here, capsys):
    with pytest.raises(SystemExit) as stop:
        perfusion_here("generate", "prompts=a", override, *flags)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"perfusion: {override} does not work" in said and said.count("\n") == 1, said


def test_no_value_of_any_key_ends_in_another_exception():
    for drawn_by, refused in ((inputs, 30), (extras, 5)):
        counts = bad_inputs(100, drawn_by=drawn_by)
        assert counts["bad_inputs"] == 100 and counts["tracebacks"] == [], counts["tracebacks"][:3]
        assert counts["refused"] > refused and counts["accepted"] > 10
