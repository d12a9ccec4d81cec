"""What a compressed context has become: what each slot resembles, how far it moved, and what is lost without it."""

from pathlib import Path

from minicompress.commands import open_model
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.prompts.inspection import left_out, moved, place_rows
from minicompress.prompts.nearest import nearest
from minicompress.training.shards import Shards

model = open_model()
text = (Path(__file__).parent / "notes.txt").read_text()
with Shards() as shards:
    run = Run(model, model, text, Recipe(slots=4, steps=60, self_study=96), shards=shards)
    run.train_slots()
prompt = run.prompt()
rows = place_rows(*model.pair, prompt, [query.ids for query in run.held], [query.start for query in run.held])
(kl, _, places), far, words = (
    left_out(*model.pair, rows, prompt.length),
    moved(prompt),
    nearest(*model.pair, prompt, 1)["cosine"],
)
print("slot  nearest token       cosine  moved  bits a token without it")
for slot in range(prompt.length):
    token, cosine = repr(model.tokenizer.decode(words[0][slot].tolist())), words[1][slot, 0]
    print(f"{slot:4}  {token:18}  {cosine:6.2f}  {far['distance'][slot]:5.2f}  {kl[slot] / places[slot]:23.3f}")
