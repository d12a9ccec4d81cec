"""What `properties` asks of a function and its backward: both called on copies, their slopes side by side."""

import inspect

import numpy as np

from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, complex_step, leaning_direction, suits_complex_step

TOLERANCES = {"complex step": 1e-10, "central difference": 1e-6}
FLOOR = 1e-3  # a slope below this share of Σ |dout out| is measured against that share


def argument_names(f, count):
    """The names under which f takes its first arguments; `argument 3` where it does not say."""
    try:
        kinds = inspect.signature(f).parameters.values()
        names = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # functions written in C
        names = []
    return [names[i] if i < len(names) else f"argument {i}" for i in range(count)]


def with_gradient(given, leave_out):
    """The arguments that are not left out, in float64. Raises ValueError where leave_out names another."""
    left, names = {leave_out} if isinstance(leave_out, str | int) else set(leave_out), list(given)
    if strange := left - {*names, *range(len(names))}:
        raise ValueError(f"leave_out names {', '.join(map(str, strange))}; the arguments are {', '.join(names)}")
    return {n: as_float64(x, n) for place, (n, x) in enumerate(given.items()) if not {n, place} & left}


def as_float64(tree, name):
    """A copy, every array of it float64. Raises ValueError where one holds no real numbers."""

    def copy(x):
        if np.asarray(x).dtype.kind != "f":
            raise ValueError(f"{name} is {np.asarray(x).dtype}, which has no gradient; name it in leave_out")
        return np.array(x, np.float64)

    return tree_map(copy, tree)


def filled(tree, flat):
    """The tree with copies of the arrays of `flat`, in its order; where one is complex, all are."""
    dtype, leaves = np.result_type(*flat.values()), iter(flat.values())
    return tree_map(lambda _: next(leaves).astype(dtype), tree)


def first_of(found):
    """out, of what f gave."""
    return np.asarray(found[0] if isinstance(found, tuple) else found)


def checked_out(run, flat):
    """out, asked for twice. Raises ValueError where no gradient could be told from it."""
    if not len(flat):
        raise ValueError("every argument is left out: there is no gradient to check")
    out = run(flat)
    if out.dtype != np.float64:
        raise ValueError(f"f gives {out.dtype} for float64: a dtype is fixed in it, whose rounding hides errors")
    if not np.isfinite(out).all():
        raise ValueError("f gives numbers that are not finite, which have no gradient")
    if not same_bits(out, run(flat)):
        raise ValueError("f gives another out when asked again: something is drawn anew (dropout?); fix it first")
    return out


def chosen_oracle(oracle, run, flat, rng):
    """Its name. Raises ValueError for another one, and for a complex step that f does not bear."""
    if oracle not in (None, *TOLERANCES):
        raise ValueError(f"oracle is {oracle!r}; it can be {' or '.join(map(repr, TOLERANCES))}")
    if oracle == "central difference" or suits_complex_step(run, flat, rng):
        return oracle or "complex step"
    if oracle:
        raise ValueError(
            "f takes no complex numbers or is not analytic (abs, conj, max); use oracle='central difference'"
        )
    return "central difference"


def gradients_of(f, f_backward, dout, given, held):
    """{name of each array: gradient} by one forward and one backward, which leave what they are given as it is."""
    args, asked = given | filled(held, flatten(held)), dout.copy()
    found = f(*args.values())
    grads = f_backward(asked, *([found[-1]] if isinstance(found, tuple) else args.values()))
    after = flatten({name: args[name] for name in held} | {"dout": asked})
    for name, before in flatten(held | {"dout": dout}).items():
        if not same_bits(before, after[name]):
            raise AssertionError(f"f or its backward writes into {name}, which others may need later; work on a copy")
    grads = [g for g in (grads if isinstance(grads, tuple | list) else (grads,)) if g is not None]
    if len(grads) != len(held):
        wanted = f"{len(held)} ({', '.join(held)}) are wanted"
        raise ValueError(f"the backward gives {len(grads)} gradients and {wanted}; leave_out names those without one")
    return matching(dict(zip(held, grads, strict=True)), held)


def matching(grads, held):
    """{name: gradient} of every array held, each of its array's shape."""
    arrays, grads = flatten(held), {name: np.asarray(g) for name, g in flatten(grads).items()}
    for name, x in arrays.items():
        if name not in grads:
            raise AssertionError(f"the gradient of {name} is missing in the tree; it has {', '.join(grads)}")
        if grads[name].shape != x.shape:
            raise AssertionError(
                f"the gradient of {name} has shape {list(grads[name].shape)}, {name} has {list(x.shape)}: "
                "usually it is not summed over the axes along which the array was broadcast"
            )
    return {name: grads[name] for name in arrays}


def two_slopes(oracle, f, x, gradient, dout, out, rng):
    """Along a direction u: <gradient, u>, the oracle's slope of <dout, f>, and the relative error of the first."""
    u, length = leaning_direction(rng, gradient), float(np.linalg.norm(x))
    if oracle == "complex step":
        truth = complex_step(f, x, u, dout)
    else:
        truth = central_difference(f, x, u, dout, step=6e-6 * (min(1.0, length) or 1.0))
    ours, floor = float((gradient * u).sum()), FLOOR * float(np.abs(dout * out).sum()) / max(1.0, length)
    return ours, truth, abs(ours - truth) / (max(abs(truth), floor) or 1.0)


def worst(errors):
    """The largest; not a number, where one is not."""
    return max(errors, key=lambda error: (np.isnan(error), error))


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
