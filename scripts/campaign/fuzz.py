"""Damaged files of every kind that is read: python scripts/campaign/fuzz.py --files 10000

Concept, covariance, checkpoint, result, mask and YAML files, and the checkpoints that `perfusion import` reads, with bits
flipped, cut, lengthened, swapped headers, huge sizes, foreign tensors and NaN. Each must be refused in one sentence
(UserError) or say exactly what the whole file says. `silent_loads` counts those that say something else, `tracebacks` any
other error, `over_memory` those that took more than twice the file (and 16 MiB, which is the allocator's grain).
"""

import json
import os
import signal
import struct
import time
import zlib
from collections import Counter
from dataclasses import fields
from pathlib import Path

from common import Child, arguments, digest, keep, preload, rng, workplace

GRAIN = 2**24


def main() -> None:
    asked, started = arguments(__doc__, files=10_000, kinds=",".join(KINDS)), time.perf_counter()
    figures: Counter = Counter()
    examples: list[str] = []
    preload()
    with workplace() as folder:
        kinds = asked.kinds.split(",")
        for i, kind in enumerate(kinds):
            count = (asked.files * (i + 1)) // len(kinds) - (asked.files * i) // len(kinds)
            child = Child(lambda: batch(kind, folder / kind, count, asked.seed), folder, folder / f"{kind}.log")
            assert child.wait() == 0, (folder / f"{kind}.log").read_text()[-3000:]
            found = json.loads((folder / kind / "found.json").read_text())
            examples += found.pop("examples")
            figures.update(found)
            print(f"{kind}: {found}, {child.seconds:.0f} s", flush=True)
    counted = {
        k: figures[k] for k in ("fuzzed_files", "refused", "unchanged", "silent_loads", "tracebacks", "over_memory")
    }
    keep(asked.results, "fuzz", counted | {"fuzzed_kinds": kinds, "fuzz_examples": examples[:20]}, started)


def batch(kind: str, folder: Path, count: int, seed: int) -> None:
    """`count` damaged files of one kind, read one after the other; counts go to found.json."""
    from perfusion.errors import UserError

    random, (make, read, name) = rng(seed), KINDS[kind]
    folder.mkdir()
    whole, other = make(folder, 0), make(folder, 1)
    path = folder / name
    path.write_bytes(whole)
    signal.signal(signal.SIGALRM, slow)
    expected = read(path)
    assert expected == read(path), f"{kind}: the whole file does not say the same twice"
    found, examples = Counter(fuzzed_files=count), []
    for i in range(count):
        how, damaged = mutated(kind, whole, other, random)
        path.write_bytes(damaged)
        before = memory(reset=True)
        try:
            signal.alarm(20)  # seconds: some small files describe what no one waits for
            outcome = "unchanged" if read(path) == expected else "silent_loads"
            if damaged == other and outcome == "silent_loads":
                outcome = "unchanged"  # another whole file
        except UserError:
            outcome = "refused"
        except BaseException as error:
            outcome = "tracebacks"
            examples.append(f"{kind} {how}: {type(error).__name__} {error}"[:200])
        signal.alarm(0)
        found[outcome] += 1
        if memory() - before > 2 * len(damaged) + GRAIN:
            found["over_memory"] += 1
            examples.append(f"{kind} {how}: {(memory() - before) >> 20} MiB for {len(damaged)} bytes")
        if outcome == "silent_loads":
            examples.append(f"{kind} {how}: loads and says something else")
            (folder.parent / f"silent-{kind}-{i}").write_bytes(damaged)
    (folder / "found.json").write_text(json.dumps(found | {"examples": examples[:5]}))


def slow(*_):
    raise TimeoutError("20 s were not enough")


def memory(reset: bool = False) -> int:
    """This process's peak of resident memory in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


# -- damage -----------------------------------------------------------------------------------------------------------
def mutated(kind: str, whole: bytes, other: bytes, random) -> tuple[str, bytes]:
    """One way of damaging, and the file's bytes."""
    data = bytearray(whole)
    how = random.choice(["flip", "flip", "cut", "grow", "zero", "move", "header", "huge", "special", "empty"])
    at = random.randrange(len(data))
    if how == "flip":
        for _ in range(random.choice([1, 1, 2, 8])):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif how == "cut":
        data = data[:at]
    elif how == "grow":
        data[at:at] = random.randbytes(random.choice([1, 7, 4096]))
    elif how == "zero":
        data[at : at + random.choice([1, 16, 512])] = bytes(len(data[at : at + random.choice([1, 16, 512])]))
    elif how == "move":
        block = data[at : at + 64]
        to = random.randrange(len(data))
        data[to : to + len(block)] = block
    elif how == "header":  # another file's beginning
        length = random.choice([8, 64, 512, len(other) // 2])
        data[:length] = other[:length]
    elif how == "huge":
        data = huge(kind, data, random)
    elif how == "special":
        data = bytearray(SPECIAL[kind](random, whole))
    else:
        data = bytearray(random.choice([b"", b"\0", b"{}", b"\x80\x02}.", b"PK\3\4", random.randbytes(1000)]))
    return how, bytes(data)


def huge(kind: str, data: bytearray, random) -> bytearray:
    """Sizes that nobody has."""
    size = random.choice([2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
    if kind in ("concept", "covariance"):
        if random.random() < 0.4:
            data[:8] = struct.pack("<Q", size)
            return data
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        name = random.choice([n for n in header if n != "__metadata__"])
        header[name][random.choice(["shape", "data_offsets"])] = random.choice(
            [[size], [size, size], [0, size], [-1], [2**16] * 4]
        )
        text = json.dumps(header).encode()
        return bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    if kind == "mask":
        side = random.choice([2**14, 2**15, 2**20, 2**31 - 1])
        data[16:24] = struct.pack(">II", side, random.choice([1, 2**14, side]))
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return data
    if kind in ("result", "yaml"):
        deep = random.choice(["[" * 100_000, '{"a":' * 50_000, "9" * 100_000, "1e999999", "&a [" * 3000])
        laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
        )
        return bytearray(random.choice([deep, laughs]).encode())
    at = data.rfind(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<II", size & 0xFFFFFFFF, size & 0xFFFFFFFF)
    return data


# -- the kinds: a whole file's bytes, what it says, its name ----------------------------------------------------------
def concept(folder: Path, seed: int) -> bytes:
    import torch

    from perfusion.method.concept import Concept

    g = torch.Generator().manual_seed(seed)
    r = lambda n: torch.randn(n, generator=g)
    made = Concept(
        "teddy*", "teddy", r(32), r(32), r(32), {"a": r(16), "b": r(24)}, base_hash="0" * 32, config={"seed": seed}
    )
    made.save(folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


def read_concept(path: Path):
    from perfusion.method.concept import Concept

    found = Concept.load(path)
    plain = lambda v: (
        {k: plain(x) for k, x in v.items()} if isinstance(v, dict) else digest(v.numpy()) if hasattr(v, "numpy") else v
    )
    return {f.name: plain(getattr(found, f.name)) for f in fields(found)}


def covariance(folder: Path, seed: int) -> bytes:
    import torch

    from perfusion.method.covariance import Covariance

    e = torch.randn(100, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Covariance(e.T @ e, 100, "0" * 32, "1" * 32).save(folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


def read_covariance(path: Path):
    from perfusion.method.covariance import Covariance

    found = Covariance.load(path)
    return digest(found.C.numpy()), found.count, found.hash, found.encoder


def checkpoint(folder: Path, seed: int) -> bytes:
    import torch

    state = {f"o_star_v.{i}": torch.randn(1, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(6)}
    torch.save(
        {"state_dict": state, "global_step": 7 + seed, "loops": {}, "perfusion": {}, "callbacks": {"best": 0.5}},
        folder / "made.ckpt",
    )
    return (folder / "made.ckpt").read_bytes()


def read_checkpoint(path: Path):
    from common import _tensors

    from perfusion.learning.resume import read as read_checkpoint

    return _tensors(read_checkpoint(path))


def imported(folder: Path, seed: int) -> bytes:
    """A file of ChenDarYen's Perfusion: no sums are in it, so numbers may differ; it is only read as tensors."""
    import torch

    r = lambda *n: torch.randn(*n, generator=torch.Generator().manual_seed(seed))
    parts = {"target_input": r(8), "C_inv": r(8, 8), "embedding": {"string_to_param": {"*": r(1, 8)}}}
    torch.save(
        parts | {"target_output": {"input_blocks.1.1.transformer_blocks.0.attn2.to_v.target_output": r(4, 8)}},
        folder / "made.ckpt",
    )
    return (folder / "made.ckpt").read_bytes()


def read_imported(path: Path):
    from perfusion.commands.interchange import read_checkpoint

    found = read_checkpoint(path)
    return {
        k: digest(v.numpy()) if hasattr(v, "numpy") else {n: digest(o.numpy()) for n, o in v.items()}
        for k, v in found.items()
    }


def result(folder: Path, seed: int) -> bytes:
    from perfusion.results import write_result

    rows = {"point": [0, 1] * 20, "text": [0.1 * seed + i / 100 for i in range(40)]}
    write_result(
        folder / "made.json",
        {"concept": "teddy*", "rows": rows, "points": [{"beta": 0.6}, {"beta": 0.75}], "drift": None},
    )
    return (folder / "made.json").read_bytes()


def read_result(path: Path):
    from perfusion.results import read_result

    return read_result(path)


def mask(folder: Path, seed: int) -> bytes:
    from PIL import Image

    from perfusion.learning.masks import mask_path, save_mask

    drawn = Image.effect_noise((48, 32), 60 + seed)
    save_mask(folder / "a.png", drawn, "0" * 32)
    return mask_path(folder / "a.png").read_bytes()


def read_mask(path: Path):
    from perfusion.learning.masks import read_mask

    return digest(read_mask(path.with_name("a.png"), {(48, 32)}, "0" * 32))


def yaml(folder: Path, seed: int) -> bytes:
    (folder / "0.png").write_bytes(b"")
    return f"name: teddy{seed}*\nsuper_category: teddy\nartist: openmoji\n# a comment\n".encode()


def read_yaml(path: Path):
    """What training takes from it: words. Another word is what a person may as well have meant."""
    from omegaconf import OmegaConf

    from perfusion.config import concept_of

    found = concept_of(
        OmegaConf.create({"concept": {"images": str(path.parent), "super_category": None, "name": None}})
    )
    words = {k: found.get(k) for k in ("name", "super_category", "artist")}
    return "words" if all(v is None or isinstance(v, str) for v in words.values()) else words


def foreign_tensors(random, whole: bytes) -> bytes:
    """A sound file of other numbers: NaN, other shapes, kinds of number or names, the sum of the first."""
    from safetensors.numpy import load, save

    (length,) = struct.unpack("<Q", whole[:8])
    metadata, arrays = json.loads(whole[8 : 8 + length])["__metadata__"], load(whole)
    name = random.choice(list(arrays))
    values = arrays[name].copy()
    what = random.choice(["nan", "inf", "other", "kind", "shape", "name", "more", "less"])
    if what in ("nan", "inf", "other"):
        values.flat[random.randrange(values.size)] = {"nan": float("nan"), "inf": float("inf"), "other": 3.25}[what]
    arrays[name] = values
    if what == "kind":
        arrays[name] = values.astype(random.choice(["int8", "float64", "uint16", "bool"]))
    elif what == "shape":
        arrays[name] = values[None]
    elif what == "name":
        arrays["other"] = arrays.pop(name)
    elif what == "more":
        arrays["more"] = values
    elif what == "less":
        del arrays[name]
    return save(arrays, metadata)


def foreign_pickle(random, whole: bytes) -> bytes:
    import io
    import pickle

    import torch

    sound = {"global_step": 3, "loops": {}, "perfusion": {}, "callbacks": {}}
    out = io.BytesIO()
    torch.save(
        random.choice(
            [
                [1, 2],
                {"a": torch.ones(3)},
                torch.ones(2),
                sound | {"state_dict": {"x": torch.tensor(float("nan"))}},
                torch.nn.Linear(2, 2),
            ]
        ),
        out,
    )
    return random.choice([out.getvalue(), pickle.dumps({"state_dict": print})])


def foreign_text(random, whole: bytes) -> bytes:
    texts = [b"null", b"[1, 2]", b'"format"', b'{"format": NaN}', b'{"format": "1"}', b'{"format": 2}', b"\xff\xfe\0\0", b"name: [a, b]",
             b"super_category: 5", b"name: ${oc.env:HOME}\nsuper_category: teddy", b"super_category: yes", b"a: 1\na: 2", b"name: t\xe9ddy*",
             b"super_category: {a: b}", b"- a\n- b", b"name: !!python/object/apply:os.system [true]"]  # fmt: skip
    return random.choice([*texts, whole.replace(b"0.1", b"NaN"), whole.replace(b"teddy", b"\xc3\x28")])


def foreign_picture(random, whole: bytes) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new(random.choice(["RGB", "L", "1", "RGBA"]), random.choice([(48, 32), (32, 48), (1, 1)])).save(
        out, random.choice(["PNG", "GIF", "TIFF"])
    )
    return out.getvalue()


KINDS = {
    "concept": (concept, read_concept, "a.safetensors"),
    "covariance": (covariance, read_covariance, "a.safetensors"),
    "checkpoint": (checkpoint, read_checkpoint, "last.ckpt"),
    "result": (result, read_result, "result.json"),
    "mask": (mask, read_mask, "a.mask.png"),
    "yaml": (yaml, read_yaml, "concept.yaml"),
    "imported": (imported, read_imported, "a.ckpt"),
}
SPECIAL = {
    "concept": foreign_tensors, "covariance": foreign_tensors, "checkpoint": foreign_pickle, "imported": foreign_pickle,
    "result": foreign_text, "yaml": foreign_text, "mask": foreign_picture,
}  # fmt: skip

if __name__ == "__main__":
    main()
