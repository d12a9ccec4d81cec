"""A prefix as PEFT's folder and back, bit for bit: what it writes, and what another program reads there."""

import tempfile
from pathlib import Path

import numpy as np

import weights_loader
from minicompress.commands import open_model
from minicompress.prompts.carriers import lift
from minicompress.prompts.layout import flat_from_kv, kv_from_flat

model = open_model()
params, config = model.pair
kv = lift(params, config, model.wte[model.tokenizer.encode("Notes: Mara lives in Oslo.\n").ids], "kv")
flat = flat_from_kv(kv)  # (P, 2 L C), PEFT's order of columns
facts = weights_loader.peft_config("PREFIX_TUNING", len(flat), token_dim=config.n_embd, num_layers=config.n_layer,
                                   num_attention_heads=config.n_head, num_transformer_submodules=1)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    weights_loader.save_peft_prompt(folder, flat, facts)
    for file in sorted(Path(folder).iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
    back, read, dtype = weights_loader.load_peft_prompt(folder)
print(f"{read['peft_type']}, {read['num_virtual_tokens']} virtual tokens, {dtype}, {back.shape[1]:,} numbers each")
print("bit for bit the same:", np.array_equal(kv_from_flat(back, config.n_layer, config.n_head), kv))
