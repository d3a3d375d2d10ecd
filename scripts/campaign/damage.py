"""Ways in which a file can be damaged: `mutated` draws one."""

import io
import json
import pickle
import random
import struct
import zlib

from kinds import AROUND


def mutated(kind: str, whole: bytes, other: bytes) -> tuple[str, bytes]:
    """One way of damaging, and the file's bytes."""
    data = bytearray(whole)
    if kind == "job" and random.random() < 0.7:  # the others seldom leave it JSON
        return "special", SPECIAL[kind](whole)
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
        data = huge(kind, data)
    elif how == "special":
        data = bytearray(SPECIAL[kind](whole))
    else:
        data = bytearray(random.choice([b"", b"\0", b"{}", b"\x80\x02}.", b"PK\3\4", random.randbytes(1000)]))
    return how, bytes(data)


def huge(kind: str, data: bytearray) -> bytearray:
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
    if kind in ("result", "job", "yaml"):
        deep = random.choice(["[" * 100_000, '{"a":' * 50_000, "9" * 100_000, "1e999999", "&a [" * 3000])
        laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
        )
        return bytearray(random.choice([deep, laughs]).encode())
    at = data.rfind(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<II", size & 0xFFFFFFFF, size & 0xFFFFFFFF)
    return data


# -- whole files of other content ----------------------------------------------------------------------------------
def foreign_tensors(whole: bytes) -> bytes:
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


def foreign_pickle(whole: bytes) -> bytes:
    import torch

    around = AROUND | {"global_step": 3}
    sound = around | {"state_dict": {"x": torch.ones(2)}}
    out = io.BytesIO()
    torch.save(
        random.choice(
            [
                [1, 2],
                {"a": torch.ones(3)},
                torch.ones(2),
                around | {"state_dict": {"x": torch.tensor(float("nan"))}},
                sound | {"callbacks": {}},
                {name: part for name, part in sound.items() if name != "optimizer_states"},
                torch.nn.Linear(2, 2),
            ]
        ),
        out,
    )
    return random.choice([out.getvalue(), pickle.dumps({"state_dict": print})])


def foreign_text(whole: bytes) -> bytes:
    texts = [b"null", b"[1, 2]", b'"format"', b'{"format": NaN}', b'{"format": "1"}', b'{"format": 2}', b"\xff\xfe\0\0", b"name: [a, b]",
             b"super_category: 5", b"name: ${oc.env:HOME}\nsuper_category: teddy", b"super_category: yes", b"a: 1\na: 2", b"name: t\xe9ddy*",
             b"super_category: {a: b}", b"- a\n- b", b"name: !!python/object/apply:os.system [true]"]  # fmt: skip
    return random.choice([*texts, whole.replace(b"0.1", b"NaN"), whole.replace(b"teddy", b"\xc3\x28")])


def foreign_values(whole: bytes) -> bytes:
    """A sound file of another shape: values of other kinds, keys and entries that lack or are too many."""
    result = json.loads(whole)
    for _ in range(random.choice([1, 1, 2])):
        inner = [result]
        for one in inner:
            inner += [v for v in (one.values() if isinstance(one, dict) else one) if isinstance(v, (dict, list)) and v]
        where = random.choice(inner)
        at = random.choice([*where] if isinstance(where, dict) else range(len(where)))
        other = random.choice(
            [None, True, 5, -1, 0.5, 1e400, float("nan"), "a", "", [], [1, 2], {}, {"a": [1]}, 10**400, "\ud800"]
        )
        what = random.choice(["other", "other", "less", "more"])
        if what == "less":
            del where[at]
        elif what == "more" and isinstance(where, list):
            where.insert(at, other)
        else:
            where[at if what == "other" else "more"] = other
        if not result:
            break
    return json.dumps(result).encode()


def foreign_picture(whole: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new(random.choice(["RGB", "L", "1", "RGBA"]), random.choice([(48, 32), (32, 48), (1, 1)])).save(
        out, random.choice(["PNG", "GIF", "TIFF"])
    )
    return out.getvalue()


SPECIAL = {
    "concept": foreign_tensors, "covariance": foreign_tensors, "checkpoint": foreign_pickle, "imported": foreign_pickle,
    "result": foreign_text, "job": foreign_values, "yaml": foreign_text, "mask": foreign_picture,
}  # fmt: skip
