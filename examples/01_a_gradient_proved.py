"""A layer's gradient, held against the complex step: right to the last digit, wrong by one term."""

import numpy as np

from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.verification.oracles import complex_step, relative_error, unit_direction

rng = np.random.default_rng(0)
x, weight, bias, dout = (rng.standard_normal(s) for s in ((4, 8), 8, 8, (4, 8)))
u = unit_direction(rng, x.shape)

_, cache = layernorm(x, weight, bias)
dx = layernorm_backward(dout, cache)
exact = complex_step(lambda x: layernorm(x, weight, bias)[0], x, u, dout)
print(f"layernorm            relative error {relative_error((dx * u).sum(), exact):.1e}")

xhat, rstd, _ = cache
wrong = (dout * weight - (dout * weight).mean(-1, keepdims=True)) * rstd  # forgets that x may also be stretched
print(f"without the stretch  relative error {relative_error((wrong * u).sum(), exact):.1e}")
