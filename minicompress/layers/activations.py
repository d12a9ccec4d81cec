"""ReLU and tanh, for the small networks that make soft prompts. Any shape."""

from minicompress.arrays import array_module


def relu(x):
    """x where it is positive, else 0; a complex x is judged by its real part, not-a-number stays."""
    off = x.real <= 0
    return array_module(x).where(off, 0, x), off


def relu_backward(dout, off):
    """Slope 1 or 0; at 0 itself, where there is none, 0."""
    return array_module(dout).where(off, 0, dout)


def tanh(x):
    out = array_module(x).tanh(x)
    return out, out


def tanh_backward(dout, out):
    """dx = dout (1 - tanh² x)."""
    return dout * (1 - out * out)
