"""`export` and `import`: soft prompts as PEFT's folders, and as plain arrays for whatever reads safetensors."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import weights_loader
from minicompress import commands
from minicompress.cli.common import Json, ModelDir, app, show
from minicompress.compression.problem import Model
from minicompress.gpt2 import Config
from minicompress.prompts.layout import flat_from_kv
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.template import Slots, parse
from minicompress.training.checkpoints import save_arrays

DTYPES = ("F64", "F32", "F16", "BF16")
NUMBERS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}  # NumPy has no bfloat16


@app.command()
def export(
    prompt: Annotated[Path, typer.Argument(help="a soft prompt, or a PEFT folder")],
    out: Annotated[Path, typer.Argument(help="for peft a folder, for arrays a file (.safetensors)")],
    to: Annotated[str, typer.Option(help="peft, or arrays: inputs_embeds, or past_key_values")],
    dtype: Annotated[str | None, typer.Option(help="F64, F32, F16 or BF16; default: as imported, else F32")] = None,
    model: ModelDir = None,
    as_json: Json = False,
) -> None:
    """Write a soft PROMPT for other programs."""
    commands.check_choice("--to", to, "peft", "arrays")
    if dtype:
        commands.check_choice("--dtype", dtype, *(DTYPES if to == "peft" else NUMBERS))
    opened = commands.open_model(model, words=False)
    stands = commands.read_prompt(prompt, opened)
    dtype = dtype or (stands.provenance["dtype"] if "peft" in stands.provenance else "F32")
    if to == "peft":
        check_peft(stands, prompt)
        wrote = write_peft(stands, out, dtype, opened.pair[1])
    else:
        commands.check_out(out, "")
        dtype = "F32" if dtype == "BF16" else dtype  # which holds every bfloat16
        if stands.carrier == "hidden":  # what is computed is rounded once, at the end
            opened = commands.open_model(model, dtype="float64", words=False)
            stands = commands.open_prompt(prompt, opened)
        wrote = write_arrays(stands, out, dtype, opened)
    result = {"out": str(out), "to": to, "holds": wrote, "dtype": dtype, "slots": stands.length}
    form = f"; its texts have the form {stands.template!r}, which PEFT does not keep" if stands.template else ""
    show(result, as_json, f"{stands.length} slots written to {out} as {wrote}, {dtype}{form if to == 'peft' else ''}")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="a folder that PEFT's save_pretrained wrote", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="where the soft prompt goes (.safetensors)")],
    model: ModelDir = None,
    as_json: Json = False,
) -> None:
    """Make a soft prompt of a PEFT folder."""
    commands.check_out(out)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; import takes a folder of PEFT's")
    opened = commands.open_model(model, words=False)
    stands = commands.peft_prompt(folder, opened.pair[1])
    stands.check_model(opened.pair[1], folder)
    stands.provenance["model"] = opened.hash
    stands.save(out)
    kind, dtype = stands.provenance["peft"]["peft_type"], stands.provenance["dtype"]
    result = {"out": str(out), "peft_type": kind, "carrier": stands.carrier, "slots": stands.length, "dtype": dtype}
    show(result, as_json, f"{stands.length} slots of {kind} ({stands.carrier}, {dtype}) written to {out}")


def check_peft(prompt: SoftPrompt, name: Path) -> None:
    """Raises ValueError where PEFT's files cannot say what this prompt says."""
    if prompt.carrier == "hidden":
        raise ValueError(f"{name}: PEFT has no slots as hidden states; --to arrays writes the keys and values of them")
    if prompt.beta is not None and prompt.beta.any():
        raise ValueError(f"{name}: its keys have log-masses (β), which PEFT's have not; use --to arrays")
    if not prompt.in_rows and prompt.start != prompt.length:
        raise ValueError(
            f"{name}: its tokens begin at position {prompt.start:,} ({prompt.positions}), PEFT's behind the slots, at "
            f"{prompt.length:,}; use --to arrays"
        )
    if prompt.in_rows and not in_front(prompt.template):
        raise ValueError(f"{name}: its template {prompt.template!r} has slots elsewhere than in front; use --to arrays")


def in_front(template: str | None) -> bool:
    """Whether a template's slots all come first, and each once: then they are a prefix."""
    parts = parse(template).parts
    blocks = [part for part in parts if isinstance(part, Slots)]
    names = [part.name for part in blocks if part.name]
    return list(parts[: len(blocks)]) == blocks and len(set(names)) == len(names)


def peft_facts(prompt: SoftPrompt, config: Config) -> dict[str, Any]:
    """The adapter_config.json: as it was imported, else the least that says what the prompt is."""
    if "peft" in prompt.provenance:
        return prompt.provenance["peft"]
    recipe = prompt.provenance.get("recipe", {})
    kind, more = ("PREFIX_TUNING" if prompt.carrier == "kv" else "PROMPT_TUNING"), {}
    if recipe.get("method") == "p-tuning":
        kind = "P_TUNING"
    if recipe.get("parameterisation") == "cartridge":
        kind, more = "CARTRIDGE", {"num_frozen_tokens": recipe["frozen"]}
    return weights_loader.peft_config(
        kind, prompt.length, token_dim=config.n_embd, num_layers=config.n_layer, num_attention_heads=config.n_head,
        num_transformer_submodules=1, **more,
    )  # fmt: skip


def write_peft(prompt: SoftPrompt, folder: Path, dtype: str, config: Config) -> str:
    """-> the type under which PEFT knows it."""
    facts = peft_facts(prompt, config)
    weights_loader.save_peft_prompt(folder, flat_from_kv(prompt.slots) if prompt.carrier == "kv" else prompt.slots,
                                    facts, dtype)  # fmt: skip
    return facts["peft_type"]


def write_arrays(prompt: SoftPrompt, path: Path, dtype: str, model: Model) -> str:
    """inputs_embeds (1, P, C); or for each layer key and value (1, H, P, D) and, where there is one, beta (1, H, P).

    The metadata say where a row's first token stands. -> which of the two it is.
    """
    if prompt.carrier == "embeddings":
        arrays = {"inputs_embeds": prompt.slots[None]}
    else:
        layers = enumerate(prompt.prefix(*model.pair).past)
        parts = ("key", "value", "beta")
        arrays = {f"past_key_values.{n}.{part}": x for n, past in layers for part, x in zip(parts, past, strict=False)}
    facts = {"position_start": str(prompt.start), "carrier": prompt.carrier, "model": model.hash}
    facts |= {"template": prompt.template} if prompt.template else {}
    save_arrays(path, {name: rounded(x, dtype, path) for name, x in arrays.items()}, facts)
    return next(iter(arrays)).split(".")[0]


def rounded(x: Any, dtype: str, name: Path) -> Any:
    """x in another dtype. Raises ValueError where a finite number becomes infinite."""
    with np.errstate(over="ignore"):
        stored = x.astype(NUMBERS[dtype])
    if (np.isinf(stored) & np.isfinite(x)).any():
        largest = np.abs(x[np.isfinite(x)]).max()
        raise ValueError(f"{name}: {largest:.7g}, the largest number, is too large for {dtype}; choose F32 or F64")
    return stored
