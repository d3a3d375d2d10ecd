"""What users do to a PixArt or Sana pipeline beside loading concepts: compile, offload, copy, pickle, cast; guidance off and on."""

import copy

import numpy as np
import pytest
import torch
from helpers import check_model_cpu_offload, differ, saved_by_torch, twin_of
from helpers_denoisers import TINY, draw

from perfusion.method.pipeline import load_concepts


@pytest.fixture(params=list(TINY))
def pipe(request):
    return TINY[request.param]()


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_guidance_off_and_on(guidance, pipe, make_concept):
    given = {"guidance_scale": guidance}
    base, without = draw(pipe, **given), draw(pipe, "a cat", negative_prompt="red", **given)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    local = draw(pipe, **given)
    assert differ(local, base) and np.array_equal(draw(pipe, "a cat", negative_prompt="red", **given), without)
    with handle.gate(lock="global"):
        assert differ(draw(pipe, **given), local)
    handle.unload()
    assert np.array_equal(draw(pipe, **given), base)


@pytest.mark.parametrize("offload_first", [True, False])
def test_model_cpu_offload(offload_first, pipe, make_concept):
    check_model_cpu_offload(pipe, make_concept(pipe), offload_first, draw)


@pytest.mark.slow
def test_compiled_transformer(pipe, make_concept):
    """Compiled before loading: the concepts act as in the plain pipeline, under both locks, and leave it."""
    concept, base = make_concept(pipe), draw(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    expected = draw(pipe)
    with handle.gate(lock="global"):
        locked = draw(pipe)
    handle.unload()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")  # traces and guards, and generates no code
    compiled = draw(pipe)
    assert np.allclose(compiled, base, rtol=1e-4, atol=1e-4)
    handle = load_concepts(pipe, {"teddy*": concept})
    assert np.allclose(draw(pipe), expected, rtol=1e-4, atol=1e-4)
    with handle.gate(lock="global"):
        assert np.allclose(draw(pipe), locked, rtol=1e-4, atol=1e-4)
    with handle.gate(beta=-0.5):
        assert differ(draw(pipe), expected)
    handle.unload()
    assert np.array_equal(draw(pipe), compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "pickle the handle"])
def test_a_copy_is_a_pipeline_of_its_own(way, pipe, make_concept):
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    twin = twin_of(pipe, handle, way)
    assert np.array_equal(draw(twin), loaded) and twin._perfusion is not handle and twin._perfusion.pipe is twin
    twin._perfusion.set_gate(beta=-0.5)
    assert differ(draw(twin), loaded) and np.array_equal(draw(pipe), loaded)
    with torch.no_grad():  # the copy's layers are its own: nothing of the first pipeline's is read
        pipe.transformer.caption_projection.own[0].linear_1.weight.mul_(2)
    twin._perfusion.set_gate(beta=None)
    assert np.array_equal(draw(twin), loaded)
    with torch.no_grad():
        pipe.transformer.caption_projection.own[0].linear_1.weight.div_(2)
    twin._perfusion.unload()
    assert np.array_equal(draw(twin), base) and np.array_equal(draw(pipe), loaded)
    handle.unload()
    assert np.array_equal(draw(pipe), base)


def test_the_denoiser_is_saved_by_torch(pipe, make_concept):
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    pipe.transformer = saved_by_torch(pipe.transformer)
    assert np.array_equal(draw(pipe), loaded)


def test_saving_while_concepts_are_loaded_saves_the_base_model(pipe, make_concept, tmp_path):
    base = draw(pipe)
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    pipe.save_pretrained(tmp_path)
    assert np.array_equal(draw(pipe), loaded)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.allclose(draw(again), base, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_to_after_loading(pipe, make_concept):
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    for dtype in (torch.float64, torch.bfloat16):
        pipe.to(dtype)
        assert np.isfinite(draw(pipe)).all() and differ(draw(pipe), draw(pipe, "a teddy on a beach")), dtype
    pipe.to(torch.float32)
    pipe.to("cpu")
    handle.unload()
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32} and differ(loaded, base)
    assert np.isfinite(draw(pipe)).all()
    for half in (torch.float16, torch.bfloat16):  # loaded first, then cast, as docs/pipelines.md says
        handle = load_concepts(twin := copy.deepcopy(pipe), {"teddy*": make_concept(pipe)})
        twin.to(half)
        assert np.isfinite(draw(twin)).all() and differ(draw(twin), draw(twin, "a cat")), half
        handle.unload()
