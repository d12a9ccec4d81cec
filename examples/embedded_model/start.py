"""A start from which copying forms in a fifth of the tokens: what an induction head needs is almost there at step 0.

Positions begin as sinusoids, so that "one back" is a rotation; half of the first layer's heads look one back; keys begin
as queries (equal tokens find each other) and the output projection as the transposed values (a head passes on what it
saw). All of it is trained like any other weight.
"""

import numpy as np

from minicompress.gpt2 import init


def frequencies(channels):
    return 2.5 * np.exp(-np.log(2000) * np.arange(channels // 2) / (channels // 2))  # [C/2] radians a position


def look_one_back(c_attn, heads, width, scale=2.0):
    """Queries [sin pf, cos pf] and keys [sin (p+1)f, cos (p+1)f] for some of the faster f: their product peaks one back."""
    channels = c_attn.shape[0]
    f = frequencies(channels)
    for head in range(heads):
        q = c_attn[:, head * width:(head + 1) * width]  # [C, D]
        k = c_attn[:, channels + head * width:channels + (head + 1) * width]
        q[:], k[:] = 0, 0
        for j in range(width // 2):
            i = j + 4 * head
            sin, cos, turn = i, channels // 2 + i, scale * np.array([np.cos(f[i]), np.sin(f[i])])
            q[sin, 2 * j] = q[cos, 2 * j + 1] = scale
            k[sin, 2 * j], k[cos, 2 * j] = turn
            k[cos, 2 * j + 1], k[sin, 2 * j + 1] = turn[0], -turn[1]


def induction_start(config, rng):
    """GPT-2 parameters as `init` draws them, but for positions and attention."""
    params = init(config, rng)
    channels, width = config.n_embd, config.n_embd // config.n_head
    angles = np.arange(config.n_positions)[:, None] * frequencies(channels)  # [N, C/2]
    params["wpe"]["weight"][:] = 0.02 * np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    for block in params["h"].values():
        c_attn = block["attn"]["c_attn"]["weight"]  # [C, 3C]
        shared, values = rng.standard_normal((2, channels, channels)) / np.sqrt(channels)
        for part in (0, 1):  # queries and keys
            c_attn[:, part * channels:(part + 1) * channels] = 0.7 * shared + 0.02 * rng.standard_normal((channels, channels))
        c_attn[:, 2 * channels:] = 0.5 * values
        block["attn"]["c_proj"]["weight"][:] = 0.5 * values.T
    look_one_back(params["h"]["0"]["attn"]["c_attn"]["weight"], config.n_head // 2, width)
    return params
