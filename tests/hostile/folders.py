"""Hugging Face folders that reach out of themselves, lack what they list, or claim more than any machine holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostile.assemble import Case, floats, program, torch_zip
from hostile.executing import attack
from hostile.headers import framed

CONFIG: Mapping[str, Any] = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 4, "n_layer": 1, "n_head": 1,
    "vocab_size": 6, "n_positions": 5, "n_inner": None, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: Mapping[str, tuple[int, ...]] = {
    "transformer.wte.weight": (6, 4), "transformer.wpe.weight": (5, 4),
    "transformer.h.0.ln_1.weight": (4,), "transformer.h.0.ln_1.bias": (4,),
    "transformer.h.0.attn.c_attn.weight": (4, 12), "transformer.h.0.attn.c_attn.bias": (12,),
    "transformer.h.0.attn.c_proj.weight": (4, 4), "transformer.h.0.attn.c_proj.bias": (4,),
    "transformer.h.0.ln_2.weight": (4,), "transformer.h.0.ln_2.bias": (4,),
    "transformer.h.0.mlp.c_fc.weight": (4, 16), "transformer.h.0.mlp.c_fc.bias": (16,),
    "transformer.h.0.mlp.c_proj.weight": (16, 4), "transformer.h.0.mlp.c_proj.bias": (4,),
    "transformer.ln_f.weight": (4,), "transformer.ln_f.bias": (4,),
}  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FIRST = tuple(SHAPES)[:8]


def weights(names: tuple[str, ...] = tuple(SHAPES)) -> bytes:
    """Write these tensors as safetensors."""
    header, body = {}, b""
    for number, name in enumerate(names):
        content = floats(*[(number + 1) / 16 + n / 1024 for n in range(math.prod(SHAPES[name]))])
        header[name] = {"dtype": "F32", "shape": SHAPES[name], "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    return framed(header, body)


def single(home: Path, **config: Any) -> None:
    (home / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (home / "model.safetensors").write_bytes(weights())


def sharded(home: Path, **moved: str) -> None:
    """Write two shards and their index; `moved` changes where the index says that a tensor lies."""
    (home / "config.json").write_text(json.dumps(CONFIG))
    rest = tuple(name for name in SHAPES if name not in FIRST)
    for shard, names in zip(SHARDS, (FIRST, rest), strict=True):
        (home / shard).write_bytes(weights(names))
    where = {name: SHARDS[name not in FIRST] for name in SHAPES} | moved
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def _other(home: Path) -> Path:
    """Lay another user's weights beside the folder."""
    other = home.parent / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(weights())
    return other / "model.safetensors"


def _moved(home: Path, target: str) -> None:
    _other(home)
    sharded(home, **{"transformer.wte.weight": target})


def _link_shard(home: Path) -> None:
    sharded(home)
    (home / SHARDS[1]).unlink()
    (home / SHARDS[1]).symlink_to(_other(home))


def _link_config(home: Path) -> None:
    single(home)
    (home / "config.json").unlink()
    (home / "config.json").symlink_to("/etc/hostname")


def _missing_shard(home: Path) -> None:
    sharded(home)
    (home / SHARDS[1]).unlink()


def _missing_tensor(home: Path) -> None:
    sharded(home)
    (home / SHARDS[0]).write_bytes(weights(FIRST[1:]))


def _extra_tensor(home: Path) -> None:
    sharded(home)
    (home / SHARDS[1]).write_bytes(weights(tuple(SHAPES)[7:]))


def _half(home: Path) -> None:
    single(home)
    (home / "model.safetensors").write_bytes(weights(FIRST))


def _index(text: str) -> Callable[[Path], None]:
    def fill(home: Path) -> None:
        sharded(home)
        (home / "model.safetensors.index.json").write_text(text)

    return fill


def _config(text: bytes) -> Callable[[Path], None]:
    def fill(home: Path) -> None:
        single(home)
        (home / "config.json").write_bytes(text)

    return fill


def _pickled(file: str) -> Callable[[Path], None]:
    def fill(home: Path) -> None:
        single(home)
        (home / file).write_bytes(program(attack(home.parent)))

    return fill


def _fifo(home: Path) -> None:
    sharded(home)
    (home / SHARDS[1]).unlink()
    os.mkfifo(home / SHARDS[1])


def _trainer(home: Path) -> None:
    """Lay the pickles of transformers' Trainer beside good weights; they stay shut."""
    single(home)
    for file in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch_zip(home / file, program({"x": attack(home.parent)}))
    (home / "trainer_state.json").write_text('{"epoch": 2.0, "global_step": 40, "log_history": [{"eval_loss": 0.5}]}')


def _template(home: Path) -> None:
    single(home)
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + "{% for i in range(10**9) %}x{% endfor %}"
    (home / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": text, "auto_map": {"AutoTokenizer": "x.T"}})
    )


def _code(home: Path) -> None:
    single(home, auto_map={"AutoModel": "modeling_evil.Model", "AutoConfig": "evil/repo--configuration.Config"})
    (home / "modeling_evil.py").write_text(f"import os\nos.system('touch {home.parent}/canary')\n")


DEEP = b'{"model_type": "gpt2", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"
LARGE = b'{"model_type": "gpt2", "x": "' + b"a" * (3 << 20) + b'"}'
FOLDERS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "control": (single, "ok", ()),
    "control-sharded": (sharded, "ok", ()),
    "map-leaves-folder": (lambda home: _moved(home, "../other/model.safetensors"), "refused", ("other",)),
    "map-absolute": (lambda home: _moved(home, "/etc/hostname"), "refused", ()),
    "map-to-config": (lambda home: _moved(home, "config.json"), "refused", ()),
    "map-to-nothing": (lambda home: _moved(home, ""), "refused", ()),
    "map-to-dot": (lambda home: _moved(home, "."), "refused", ()),
    "map-with-nul": (lambda home: _moved(home, "a\0.safetensors"), "refused", ()),
    "map-long": (lambda home: _moved(home, "a" * 5000 + ".safetensors"), "refused", ()),
    "map-to-number": (_index('{"weight_map": {"transformer.wte.weight": 5}}'), "refused", ()),
    "map-list": (_index('{"weight_map": ["a"]}'), "refused", ()),
    "map-missing": (_index("{}"), "refused", ("weight_map",)),
    "index-broken": (_index('{"weight_map": {'), "refused", ()),
    "index-deep": (_index('{"weight_map": ' + "[" * 100_000), "refused", ()),
    "link-shard": (_link_shard, "refused", ()),
    "link-config": (_link_config, "refused", ()),
    "fifo-shard": (_fifo, "refused", ()),
    "missing-shard": (_missing_shard, "refused", (SHARDS[1],)),
    "missing-tensor": (_missing_tensor, "refused", ("transformer.wte.weight",)),
    "half-of-the-weights": (_half, "ok", ()),
    "tensor-in-two-shards": (_extra_tensor, "refused", (FIRST[7],)),
    "wrong-shard": (
        lambda home: sharded(home, **{"transformer.wte.weight": SHARDS[1]}),
        "refused",
        ("transformer.wte.weight",),
    ),
    "auto-map": (_code, "warning", ()),
    "layers": (lambda home: single(home, n_layer=10**9), "refused", ()),
    "embeddings": (lambda home: single(home, vocab_size=10**9, n_embd=10**6), "refused", ()),
    "negative-layers": (lambda home: single(home, n_layer=-1), "refused", ()),
    "kernels": (
        lambda home: single(home, attn_implementation="evil/kernel", _attn_implementation="evil/kernel"),
        "ok",
        (),
    ),
    "config-deep": (_config(DEEP), "refused", ()),
    "config-large": (_config(LARGE), "refused", ()),
    "config-pickle": (_config(program({"model_type": "gpt2"})), "refused", ()),
    "config-list": (_config(b"[1, 2]"), "refused", ()),
    "config-nan": (_config(b'{"model_type": "gpt2", "n_layer": NaN}'), "refused", ()),
    "config-only": (lambda home: (home / "config.json").write_text(json.dumps(CONFIG)) and None, "refused", ()),
    "tokenizer-pickle": (_pickled("tokenizer.json"), "warning", ("tokenizer.json",)),
    "vocabulary-pickle": (_pickled("vocab.pkl"), "ok", ()),
    "trainer": (_trainer, "ok", ()),
    "chat-template": (_template, "ok", ()),
    "empty": (lambda home: None, "refused", ()),
    "without-checkpoint": (lambda home: (home / "notes.txt").write_text("nothing here") and None, "refused", ()),
}


def cases() -> Iterator[Case]:
    """Yield the folders; a reader may also get them zipped."""
    for name, (fill, verdict, words) in FOLDERS.items():

        def lay(folder: Path, fill: Callable[[Path], None] = fill, name: str = name) -> Path:
            home = folder / f"folder-{name}"
            home.mkdir()
            fill(home)
            return home

        yield Case(f"folder-{name}", lay, verdict, words)
