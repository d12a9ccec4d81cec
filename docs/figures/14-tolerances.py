"""Two right implementations on many random models: every tensor's error, over its tolerance's own measure."""

import numpy as np
from common import BLUE, GREEN, GREY, plt, save

from minicompress.gpt2 import Config
from minicompress.gpt2.init import init
from minicompress.trees import tree_map
from minicompress.verification.cases import KINDS, random_params, random_prompt, with_slots
from minicompress.verification.compare import compare
from minicompress.verification.plain.backward import answer
from minicompress.verification.setup import Setup


def setups(dtype, models=60):
    for seed in range(models):
        rng = np.random.default_rng(seed)
        heads = int(rng.integers(1, 5))
        sizes = {"vocab_size": int(rng.integers(11, 60)), "n_positions": 40, "n_layer": int(rng.integers(1, 7))}
        config = Config(**sizes, n_embd=heads * int(rng.integers(4, 13)), n_head=heads)
        params = random_params(config, rng) if seed % 2 else init(config, rng, np.float64)
        params = tree_map(lambda w: w.astype(dtype), params)
        rows = [rng.integers(config.vocab_size, size=rng.integers(2, 12)).tolist() for _ in range(3)]
        prompt = random_prompt(KINDS[seed % len(KINDS)], config, 4, rng, dtype)
        yield Setup((params, config), with_slots(rows, 4, rng) if prompt.in_rows else rows, prompt)


def main():
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    for dtype, colour in ((np.float32, GREEN), (np.float64, BLUE)):
        found = [one for setup in setups(dtype) for one in compare(setup.tensors(), answer(setup), setup).lines if one.error]
        print(np.dtype(dtype).name, len(found), "largest share of a tolerance:", max(one.error / one.tolerance for one in found))
        axis.loglog([one.tolerance for one in found], [one.error for one in found], ".", ms=1.5, color=colour, alpha=0.4)
        axis.loglog([], [], "o", ms=4, color=colour, label=f"{np.dtype(dtype).name}, {len(found):,} tensors")
    axis.loglog([1e-15, 1e-2], [1e-15, 1e-2], color=GREY)
    axis.text(3e-9, 1e-8, "the tolerance", color=GREY, rotation=24, ha="center")
    axis.set_xlabel("tolerance, from dtype, width and depth")
    axis.set_ylabel("error of a right implementation")
    axis.legend(loc="upper left")
    save(figure, __file__)


if __name__ == "__main__":
    main()
