"""A compressor's folder: its own file, and where all weights were trained, the model that they have become."""

import json
from pathlib import Path

import weights_loader
from minicompress import commands
from minicompress.arrays import to_host
from minicompress.compression.compressor import Compressor
from minicompress.compression.problem import Model, place
from minicompress.trees import tree_map

FILE = "compressor.safetensors"


def keep_compressor(made: Compressor, model: Model, folder: Path | None, out: Path) -> None:
    """Writes the compressor that was trained of the model in `folder`."""
    if "params" in made.raw:
        config = json.loads((Path(folder or weights_loader.EMBEDDED) / "config.json").read_text(encoding="utf-8"))
        weights_loader.save(out, tree_map(to_host, made.raw["params"]), config)
        model.tokenizer.save(str(out / "tokenizer.json"))
    made.save(out / FILE)


def open_compressor(folder: Path, model: Model, device: str) -> tuple[Compressor, Model]:
    """A compressor, and the model that reads what it makes: its own, or the one whose weights it adapts.

    Raises ValueError where the folder is none, or belongs to another model.
    """
    own = (folder / "config.json").exists()
    reader = commands.open_model(folder, device) if own else model
    if not (folder / FILE).exists():
        raise ValueError(f"{folder} holds no {FILE}; name a folder that `minicompress train-compressor` made")
    made = Compressor.load(folder / FILE, reader.pair[0])
    if (trained_from := made.provenance.get("model")) != model.hash:
        words = f"was trained from the model {trained_from}; this one is {model.hash}: name it with --model"
        raise ValueError(f"{folder} {words}")
    placed = place({name: part for name, part in made.raw.items() if name != "params"}, model.wte)
    return Compressor(made.kind, made.raw | placed, made.segment, made.provenance), reader
