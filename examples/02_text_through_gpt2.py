"""The embedded model, loaded like any other: from text to tokens, to logits, to more text."""

import numpy as np

from minicompress.commands import open_model
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.generate import generate

model = open_model()
params, config = model.pair
text = "Notes: Mara lives in Oslo. Tom lives in Paris.\nQ: Where does Tom live?\nA:"
ids = model.tokenizer.encode(text).ids
print(f"{len(ids)} tokens: {model.tokenizer.encode(text).tokens[:12]} …")

hidden, _, _ = forward(params, config, embed(params, [ids]), keep="nothing")  # (1, T, C)
scores = logits(params, hidden)[0, -1]  # (V,)
for token in np.argsort(-scores)[:3]:
    print(f"  {scores[token]:8.3f}  {model.tokenizer.decode([int(token)])!r}")
print(repr(model.tokenizer.decode(generate(params, config, [ids], 3)[0])))
