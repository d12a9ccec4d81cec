"""Seven trained compressors as one recurrence: what a text read in segments leaves behind, and a gradient cut by a horizon.

None of them has been trained here, so what they leave is of the right form and says nothing yet;
`minicompress train-compressor` makes the rest.
"""

from pathlib import Path

import numpy as np

from minicompress.commands import open_model
from minicompress.compression.compressor import Compressor, begin, weights_of
from minicompress.compression.segments import METHODS, states, states_backward

SLOTS, SEGMENT = 4, 24


def main():
    model = open_model()
    ids = model.tokenizer.encode((Path(__file__).parent / "notes.txt").read_text()).ids
    segments = [ids[i : i + SEGMENT] for i in range(0, len(ids), SEGMENT)]
    print(f"{len(ids)} tokens in {len(segments)} segments, {SLOTS} slots each")
    print(f"{'':16}{'carrier':12}{'slots after each segment':28}{'the gradient of the slots, by horizon 1, 2, all'}")
    for kind, method in METHODS.items():
        rng = np.random.default_rng(0)
        made = Compressor(kind, begin(kind, model.pair, SLOTS, rng), SEGMENT)
        lengths = [prompt.length for prompt in made.stream(model.pair, ids)]
        weights, _, _ = weights_of(made.raw, model.pair[0], method)
        found, caches = states(weights, model.pair[1], method, made.raw["slots"], segments, keep="dx")
        asked = [None] * (len(found) - 1) + [rng.standard_normal(found[-1].shape).astype(found[-1].dtype)]
        norms = [
            np.linalg.norm(states_backward(asked, caches, model.pair[1], method, horizon=horizon))
            for horizon in (1, 2, None)
        ]
        print(f"{kind:16}{method.carrier:12}{lengths!s:28}{', '.join(f'{norm:.3g}' for norm in norms)}")


if __name__ == "__main__":
    main()
