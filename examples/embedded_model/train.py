"""Trains the embedded model from nothing, on the rows of corpus.py. Stop it at any moment and start it again.

    python examples/embedded_model/train.py --out runs/embedded
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from corpus import CURRICULUM, batches
from minicompress.gpt2 import Config, init
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.checkpoints import load_tree, save_tree
from minicompress.training.language_model import language_model_step
from minicompress.training.schedules import warmup_cosine
from minicompress.training.shards import Shards

ROOT = Path(__file__).parents[2]
CONFIG = Config(vocab_size=2048, n_positions=512, n_embd=192, n_layer=4, n_head=6)
TOKENS_PER_BATCH, LR, WARMUP, SEED, EVERY = 2048, 1e-3, 100, 0, 100  # EVERY: steps between checkpoints


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=CURRICULUM[-1][0], help="millions")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = args.out / "checkpoint.safetensors", args.out / "log.jsonl"
    params = init(CONFIG, np.random.default_rng(SEED))
    state = adamw_init(params)
    if checkpoint.exists():
        tree, facts = load_tree(checkpoint)
        params, state = tree["params"], {"step": facts["step"], "m": tree["m"], "v": tree["v"]}
    steps = int(args.tokens * 1e6 / TOKENS_PER_BATCH)
    tokenizer = Tokenizer.from_file(str(ROOT / "weights_loader/embedded/tokenizer.json"))
    stream = batches(SEED, tokenizer, TOKENS_PER_BATCH, state["step"])
    start, losses = time.time(), []
    with Shards(args.threads) as shards:
        for step in range(state["step"], steps):
            tokens, weights, offset = next(stream)
            loss, grads = language_model_step(params, CONFIG, tokens, weights, shards, offset)
            norm = clip_by_global_norm(grads, 1.0)
            adamw_step(params, grads, state, warmup_cosine(step, steps, LR, WARMUP, final=0.05), betas=(0.9, 0.99))
            losses.append(loss)
            if (step + 1) % 50 == 0 or step + 1 == steps:
                facts = {"step": step + 1, "tokens": (step + 1) * TOKENS_PER_BATCH, "loss": round(float(np.mean(losses)), 4), "norm": round(norm, 3)}
                with log.open("a") as file:
                    print(json.dumps(facts | {"seconds": round(time.time() - start)}), file=file)
                losses = []
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                save_tree(checkpoint, {"params": params, "m": state["m"], "v": state["v"]}, step=state["step"])


if __name__ == "__main__":
    main()
