"""Three prompts of three carriers in one batch: every row answers as if it were alone."""

import numpy as np

from minicompress.commands import open_model
from minicompress.gpt2.generate import generate
from minicompress.prompts.carriers import lift
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.tenants import read_many

model = open_model()
params, config = model.pair
encode = lambda text: model.tokenizer.encode(text).ids
notes = (
    "Mara lives in Oslo and is a baker.",
    "Tom lives in Rome.",
    "Anna has a cat. Ben has a dog. Ben lives in Paris.",
)
asked = ("What is Mara's job?", "Where does Tom live?", "Which animal does Anna keep?")
prompts = [
    SoftPrompt(lift(params, config, model.wte[encode(f"Notes: {text}\n")], carrier), carrier)
    for text, carrier in zip(notes, ("embeddings", "hidden", "kv"), strict=True)
]
rows = [encode(f"Q: {question}\nA:") for question in asked]
together = generate(params, config, rows, 3, read_many(params, config, prompts)[0])
alone = [
    generate(params, config, [row], 3, prompt.prefix(*model.pair))[0] for row, prompt in zip(rows, prompts, strict=True)
]
for prompt, question, new in zip(prompts, asked, together, strict=True):
    print(f"{prompt.carrier:10} {prompt.length:2} slots  {question} {model.tokenizer.decode(new).split(chr(10))[0]}")
print("the same as each row alone:", bool(np.array_equal(together, alone)))
