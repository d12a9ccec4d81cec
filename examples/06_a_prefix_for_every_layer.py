"""One text, three carriers: embeddings, hidden states, keys and values say the same to the last digit."""

import numpy as np

from minicompress.commands import open_model
from minicompress.gpt2 import embed, forward, logits
from minicompress.prompts.carriers import DOORS, lift

model = open_model(dtype="float64")
params, config = model.pair
context, question = (
    model.tokenizer.encode(text).ids for text in ("Notes: Mara lives in Oslo.\n", "Q: Where does Mara live?\nA:")
)
hard, _, _ = forward(params, config, embed(params, [context + question]), keep="nothing")
expected = logits(params, hard)[:, len(context) :]

for carrier, door in DOORS.items():
    slots = lift(params, config, model.wte[context], carrier)
    prefix, _ = door.read(params, config, slots)
    soft, _, _ = forward(params, config, embed(params, [question], prefix.start), prefix.past, keep="nothing")
    difference = np.abs(logits(params, soft) - expected).max()
    print(f"{carrier:10}  slots {str(slots.shape):22}  {slots.size:6,} numbers  largest difference {difference:.1e}")
