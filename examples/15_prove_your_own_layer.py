"""A layer of your own and its backward, proved; then one term of it is forgotten, and the line that this gives.

The layer is a gated linear unit (Shazeer 2020, "GLU Variants Improve Transformer"): out = silu(x W) * (x V).
Nothing of this project is in it: whatever is a NumPy function and its backward can be checked like this.
"""

import numpy as np

from minicompress.verification.properties import check_causal, check_frozen, check_gradient, taylor_test


def swiglu(x, w, v):
    """x (N, I), w and v (I, O) -> (N, O), and what the backward needs."""
    a, b = x @ w, x @ v
    s = 1 / (1 + np.exp(-a))
    return a * s * b, (x, w, v, a, b, s)


def swiglu_backward(dout, cache):
    """dout (N, O) -> dx, dw, dv. silu(a) = a s(a) has the slope s + a s (1 - s)."""
    x, w, v, a, b, s = cache
    da = dout * b * (s + a * s * (1 - s))
    db = dout * a * s
    return da @ w.T + db @ v.T, x.T @ da, x.T @ db


def forgetful_backward(dout, cache):
    """The same, but the sigmoid is taken for a constant: its own slope is forgotten."""
    x, w, v, a, b, s = cache
    da, db = dout * b * s, dout * a * s
    return da @ w.T + db @ v.T, x.T @ da, x.T @ db


def mean_square(tree, x):
    """A loss over two weights, and its gradient: what `taylor_test` holds end to end."""
    out, cache = swiglu(x, **tree)
    _, dw, dv = swiglu_backward(2 * out / out.size, cache)
    return (out * out).mean(), {"w": dw, "v": dv}


def main():
    rng = np.random.default_rng(0)
    x, w, v = rng.standard_normal((6, 4)), rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    found = check_gradient(swiglu, swiglu_backward, x, w, v)
    print(f"right, by {found.oracle}:", ", ".join(f"{name} {error:.0e}" for name, error in found.errors.items()))

    weights = {"w": w, "v": v}
    with check_frozen(weights):  # who takes a gradient may not move the weights
        rates = taylor_test(lambda tree: mean_square(tree, x), weights, mean_square(weights, x)[1])
    print("what the gradient leaves falls at rates", *(f"{rate:.3f}" for rate in rates[0]))
    print("largest leak from later rows:", check_causal(lambda x: swiglu(x, w, v), x, axis=0))

    try:
        check_gradient(swiglu, forgetful_backward, x, w, v)
    except AssertionError as line:
        print(line)


if __name__ == "__main__":
    main()
