"""A soft prompt made of a text's own embeddings is that text: the same logits, to the last bit but rounding."""

import numpy as np

from minicompress.commands import open_model
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import read_slots

model = open_model(dtype="float64")
params, config = model.pair
texts = "Notes: Mara lives in Oslo.\n", "Q: Where does Mara live?\nA:"
context, question = (model.tokenizer.encode(text).ids for text in texts)

hard, _, _ = forward(params, config, embed(params, [context + question]), keep="nothing")
slots = params["wte"]["weight"][context]  # (P, C), one vector a token
prefix, _ = read_slots(params, config, slots)
soft, _, _ = forward(params, config, embed(params, [question], prefix.start), prefix.past, keep="nothing")
difference = np.abs(logits(params, hard)[:, len(context) :] - logits(params, soft)).max()
print(f"{len(slots)} slots instead of {len(context)} tokens: largest difference of a logit {difference:.1e}")
