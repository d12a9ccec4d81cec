"""Fresh weights, as GPT-2 was initialised."""

import math

import numpy as np

from minicompress.trees import unflatten


def shapes(config):
    """{checkpoint name: shape} of every weight, in the checkpoint's order."""
    C, F = config.n_embd, config.width
    names = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.n_positions, C)}
    for layer in range(config.n_layer):
        block = {
            "ln_1.weight": (C,), "ln_1.bias": (C,),
            "attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,),
            "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,),
            "ln_2.weight": (C,), "ln_2.bias": (C,),
            "mlp.c_fc.weight": (C, F), "mlp.c_fc.bias": (F,),
            "mlp.c_proj.weight": (F, C), "mlp.c_proj.bias": (C,),
        }  # fmt: skip
        names |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    names |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = (config.vocab_size, C)
    return names


def init(config, rng, dtype=np.float32, scale=0.02):
    """N(0, 0.02) for matrices, that over √(2L) where a branch joins the residual stream,
    ones and zeros for LayerNorms, zeros for biases (Radford et al. 2019, section 2.3).
    """

    def fill(name, shape):
        if name.endswith("bias"):
            return np.zeros(shape, dtype)
        if "ln_" in name:
            return np.ones(shape, dtype)
        joins = name.endswith("c_proj.weight")
        return (rng.standard_normal(shape) * scale / (math.sqrt(2 * config.n_layer) if joins else 1)).astype(dtype)

    return unflatten({name: fill(name, shape) for name, shape in shapes(config).items()})
