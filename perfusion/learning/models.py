"""The configured base model: a stock diffusers pipeline, and its inverse covariance.

model.path is a folder that save_pretrained wrote, an id of the Hugging Face hub, or one .safetensors or .ckpt file of the
original layout; the latter needs model.config, a folder or hub id whose configurations and tokenizer it goes by.
"""

import importlib.util
import inspect
import logging
from pathlib import Path

import diffusers
import hydra
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.schedulers import KarrasDiffusionSchedulers
from huggingface_hub import hf_hub_download
from omegaconf import DictConfig
from transformers import AutoTokenizer, CLIPTextConfig

from perfusion.config import home
from perfusion.errors import UserError, first_sentence, loading
from perfusion.learning.captions import Captions, MadeCaptions
from perfusion.method.covariance import Covariance, second_moment
from perfusion.method.denoiser import denoiser_of
from perfusion.method.fingerprint import hash_of
from perfusion.method.hub import REPO
from perfusion.method.text_encoders import text_encoder_of

log = logging.getLogger(__name__)
FILES = {"path": "model_index.json", "config": "model_index.json", "segmenter": "config.json"}
SMALL = 32 * 32  # latents: above, plain products would fill the memory, which grows with the square (SD 1.5: 64 x 64)
SCHEDULERS = [kind.name for kind in KarrasDiffusionSchedulers]  # those that Stable Diffusion's pipelines can draw with


def check_model(model: DictConfig, parts: tuple[str, ...] = ("path", "segmenter", "scorer")) -> None:
    """Raises UserError where the model's parts are not to be had here; no weights are loaded."""
    if model.get("scheduler") and model.scheduler not in SCHEDULERS:
        raise UserError(
            f"model.scheduler={model.scheduler} is unknown; allowed are null, for the pipeline's own, and: "
            f"{', '.join(SCHEDULERS)}."
        )
    given = parts
    if model.get("attention") == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UserError("model.attention=xformers needs the package xformers; allowed without it are sdpa and sliced.")
    if "path" in parts and is_single_file(model):
        if not Path(model.path).is_file():
            raise UserError(f"model.path={model.path} does not exist; give a checkpoint file, a folder or a hub id.")
        if not model.get("config"):
            raise UserError(
                f"model.path={model.path} is a single file and model.config={model.get('config')}; give a folder or hub id "
                "of the same kind of model, whose configurations and tokenizer it goes by."
            )
        parts = ("config", *(part for part in parts if part != "path"))
    for key in parts:
        if key != "scorer":
            _check_source(key, model[key], FILES[key])
        elif model.scorer.startswith("local-dir:"):
            _check_source(key, model.scorer.removeprefix("local-dir:"), "open_clip_config.json")
        elif tuple(model.scorer.split("/", 1)) not in _pretrained():
            raise UserError(
                f"model.scorer={model.scorer} is no NAME/TAG of open_clip; allowed are local-dir:FOLDER and those of "
                "open_clip.list_pretrained(), such as ViT-B-32/openai."
            )
    if "path" in given:
        _check_kind(model)
        _check_scheduler(model)


def _check_scheduler(model: DictConfig) -> None:
    """Whether the scheduler can be made of the model's own, for so many steps: some need packages, or steps of their own."""
    source, names = _source(model), _index(model)
    try:
        name = model.get("scheduler") or names["scheduler"][1]
        getattr(diffusers, name).from_pretrained(source, subfolder="scheduler").set_timesteps(model.steps)
    except Exception as error:  # each scheduler's own
        raise UserError(
            f"model.scheduler={model.get('scheduler') or 'null'} cannot draw in model.steps={model.steps} here "
            f"({first_sentence(error)}); give another number of steps, or a scheduler such as DDIMScheduler."
        ) from error


def _check_kind(model: DictConfig) -> None:
    """What the pipeline's kind alone allows."""
    if _index(model)["_class_name"].startswith("Sana") and model.resolution % 32:
        raise UserError(f"model.resolution={model.resolution} does not work for Sana; a multiple of 32 is allowed.")
    if not model.get("scheduler"):
        return
    kinds = {name: getattr(diffusers, name) for name in SCHEDULERS}
    flows = [n for n, kind in kinds.items() if "use_flow_sigmas" in inspect.signature(kind.__init__).parameters]
    with _whole(model):
        own = diffusers.DDPMScheduler.load_config(_source(model), subfolder="scheduler").get("prediction_type")
    if own == "flow_prediction" and model.scheduler not in flows:
        raise UserError(
            f"model.scheduler={model.scheduler} cannot draw with a flow-matching model; allowed are null, for the pipeline's "
            f"own, and: {', '.join(flows)}."
        )


def _pretrained() -> list[tuple[str, str]]:
    import open_clip

    return open_clip.list_pretrained()


def _check_source(key: str, source: str, file: str) -> None:
    """Whether `file` is in a folder, or in the cache or on the hub."""
    if Path(source).is_absolute() or Path(source).is_dir():
        if not (Path(source) / file).exists():
            raise UserError(
                f"model.{key}={source} has no {file}; give a folder that has, or a hub id, "
                "or make Emojiland's models with `make emojiland`."
            )
        return
    try:
        try:
            hf_hub_download(source, file, local_files_only=True)
        except OSError:
            hf_hub_download(source, file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.{key}={source} is no folder here and not in the Hugging Face cache, and could not be fetched "
            f"({type(error).__name__}: {first_sentence(error)}); give a local folder, or download it once where there is a "
            "network, with its licence accepted (HF_HOME says where the cache is)."
        ) from error


def check_device(device: str | None) -> str:
    """The device itself, or for None the GPU if there is one, else the CPU. Raises UserError where it is not here."""
    try:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device={device} cannot be used here ({first_sentence(error)}); give cpu, or null for what there is."
        ) from error
    return device


def encodings_width(model: DictConfig) -> int:
    """How wide the encodings are that the cross-attentions see, out of the configurations alone."""
    source, names = _source(model), _index(model)
    with _whole(model):
        if "transformer" in names:  # which projects them
            shape = PixArtTransformer2DModel.load_config(source, subfolder="transformer")
            return shape["num_attention_heads"] * shape["attention_head_dim"]
        parts = [name for name in ("text_encoder", "text_encoder_2") if name in names]
        return sum(CLIPTextConfig.from_pretrained(source, subfolder=name).hidden_size for name in parts)


def _source(model: DictConfig) -> str:
    """The folder or hub id of its configurations and tokenizer."""
    return model.config if is_single_file(model) else model.path


def _whole(model: DictConfig):
    """A with-block in which whatever the model's files cannot be loaded for is a UserError."""
    return loading(
        f"model.path={model.path} cannot be loaded",
        "give a whole pipeline: a folder, a hub id that is cached or can be reached, or a single file with model.config",
    )


def _index(model: DictConfig) -> dict:
    """What model_index.json says: the pipeline's class and its parts. Raises UserError for a damaged one."""
    with _whole(model):
        names = DiffusionPipeline.load_config(_source(model))
        if not isinstance(names, dict) or not isinstance(names.get("_class_name"), str):
            raise TypeError(f"{_source(model)} has a model_index.json that names no pipeline")
    return names


def is_single_file(model: DictConfig) -> bool:
    return Path(model.path).suffix in (".safetensors", ".ckpt")


def base_model(model: DictConfig) -> dict[str, str]:
    """{"base_model": its hub id} for a concept file's config, which the model card names; nothing for a local path."""
    local = is_single_file(model) or Path(model.path).exists() or not REPO.fullmatch(model.path)
    return {} if local else {"base_model": model.path}


def load_tokenizer(model: DictConfig):
    """The (first) tokenizer alone, to check words before any weights load. Raises UserError where it is not there."""
    source = _source(model)
    with loading(f"model {source} has no tokenizer that can be loaded", "give a whole pipeline"):
        return AutoTokenizer.from_pretrained(source, subfolder="tokenizer")


def load_pipeline(model: DictConfig, device: str | torch.device = "cpu"):
    """The stock pipeline of `model` on a device, quiet. Raises UserError where it is not there."""
    check_model(model, ("path",))
    # A concept is bound to the weights by their hash, which float32 and float16 share and bfloat16 has not: so bfloat16
    # is a cast of float16, and the pipeline remembers the hash.
    dtype = getattr(torch, model.dtype)
    load = {"dtype": torch.float16 if dtype == torch.bfloat16 else dtype}
    with _whole(model):
        if is_single_file(model):
            names = _index(model)
            if "unet" not in names:
                raise UserError(
                    f"model.path={model.path} is a single file of {names['_class_name']}; single files of Stable Diffusion "
                    "and SDXL are read: give a folder or a hub id."
                )
            cls = StableDiffusionXLPipeline if "text_encoder_2" in names else StableDiffusionPipeline
            unsafe = {"safety_checker": None} if cls is StableDiffusionPipeline else {}
            pipe = cls.from_single_file(model.path, config=model.config, **unsafe, **load)
        else:
            pipe = DiffusionPipeline.from_pretrained(model.path, **load)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=model.id)
    if model.get("scheduler"):
        pipe.scheduler = getattr(diffusers, model.scheduler).from_config(pipe.scheduler.config)
    if dtype == torch.bfloat16:
        pipe._perfusion_base_hash = hash_of(pipe)
        pipe.to(dtype)
    pipe.to(device)
    channels_last(pipe)
    if model.get("gradient_checkpointing"):
        denoiser_of(pipe).enable_gradient_checkpointing()
    if model.get("attention") == "sliced":
        pipe.enable_attention_slicing()
    elif model.get("attention") == "xformers":
        try:
            pipe.enable_xformers_memory_efficient_attention()
        except (ModuleNotFoundError, ValueError) as error:
            raise UserError(
                f"model.attention=xformers cannot be had ({first_sentence(error)}); allowed without it are sdpa and sliced."
            ) from error
    return pipe


def channels_last(pipe) -> None:
    """Convolutions on a CPU are a fifth to a quarter faster so, on processors without bfloat16."""
    if pipe.device.type == "cpu":
        for part in (denoiser_of(pipe), pipe.vae):
            part.to(memory_format=torch.channels_last)


def plain_attention(pipe, resolution: int) -> None:
    """Attention by plain products where a training on the CPU is faster so: on small pictures the fused kernel's backward is slower."""
    if pipe.device.type == "cpu" and (resolution // pipe.vae_scale_factor) ** 2 <= SMALL:
        for layer in denoiser_of(pipe).modules():
            if isinstance(layer, Attention) and type(layer.processor) is AttnProcessor2_0:
                layer.set_processor(AttnProcessor())


def check_covariance(
    model: DictConfig,
    captions: int | None,
    tokens: str | None,
    source: str | None = None,
    file: str | None = None,
) -> None:
    """Raises UserError where the configured C cannot be had; nothing is measured."""
    if file:
        Covariance.load(file).check_width(encodings_width(model), file)
    elif source:
        Captions(source).check()
    else:
        _captions_of(model.captions)


def _captions_of(module: str):
    try:
        # Found before any weights load, called after: a name in configuration, where `_target_` would be a call.
        return hydra.utils.get_method(f"{module}.captions")
    except Exception as error:  # whatever the import of a module raises
        raise UserError(
            f"model.captions={module} cannot be imported ({' '.join(str(error).split())[:200]}); give a module that has "
            "captions(count), such as perfusion.learning.captions, or a file with covariance.source=FILE."
        ) from error


def own_captions(module: str, count: int) -> MadeCaptions:
    """The first `count` captions of model.captions, the name of a module."""
    return MadeCaptions(_captions_of(module), count)


def covariance(
    pipe,
    model: DictConfig,
    captions: int | None,
    tokens: str | None,
    source: str | None = None,
    file: str | None = None,
) -> Covariance:
    """C out of `file`, or over `captions` captions of `source` or of the model's own, measured once and cached."""
    if file:
        measured = Covariance.load(file)
        measured.check_encoder(text_encoder_of(pipe), file)
        return measured
    texts = Captions(source, captions) if source else own_captions(model.captions, captions)
    return second_moment(
        texts, pipe.tokenizer, text_encoder_of(pipe), tokens,
        cache_dir=home() / "covariance", shipped=model.get("covariances"), progress=log.isEnabledFor(logging.INFO),
    )  # fmt: skip
