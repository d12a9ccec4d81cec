"""A page of notes becomes four vectors, in Python rather than on the command line."""

from pathlib import Path

from minicompress.commands import open_model
from minicompress.compression.problem import Recipe
from minicompress.compression.queries import answer_greedily
from minicompress.compression.run import Run
from minicompress.training.shards import Shards

model = open_model()
text = (Path(__file__).parent / "notes.txt").read_text()
with Shards() as shards:
    run = Run(model, model, text, Recipe(slots=4, steps=60, self_study=96), shards=shards)
    losses = []
    run.train_slots(progress=lambda step, steps, loss: losses.append(loss))
print(f"{len(run.ids)} tokens -> {len(run.slots)} slots; KL {losses[0]:.3f} -> {losses[-1]:.3f} nats a token")

questions = ["Where does Mara live?", "What pet does Tom have?", "How old is Iris?"]
prefix = run.as_prompt(run.slots).prefix(*model.pair)
answers = answer_greedily(model.pair, model.tokenizer, prefix, questions)
for question, answer in zip(questions, answers, strict=True):
    print(f"  {question} {answer}")
