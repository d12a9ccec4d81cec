"""Layers as pairs of pure functions: each forward stands directly above its backward.

`out, cache = layer(x, **params)` and `dx = layer_backward(dout, cache, grads=None)`. A cache is
returned, never stored, so the same weights may serve a teacher and a student at once. `grads`
mirrors the layer's params and is added to; `grads=None` means frozen: `dx` alone is computed.
"""
