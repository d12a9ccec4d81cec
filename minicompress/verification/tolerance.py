"""How far two right implementations may be apart: what rounding does, from the dtype and the way a tensor has come.

A sum of K products, rounded to a relative u each time, is off by about u √K. A tensor d blocks down the way
has been through that many of them, so its tolerance is SAFETY · u · √K · (1 + d). Two things make rounding
larger than that: scores whose exponentials are taken (an error of u |score| becomes a relative one), and a
difference of two distributions that are nearly the same, which is where every gradient begins.

Where a tensor exceeds its tolerance by little, and the model is at hand, rounding is not estimated but
measured: the plain GPT-2 is run in the coarser dtype of the two, and what it is off by counts.
"""

import re
from dataclasses import replace

import numpy as np

from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error
from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.steps import decode, take_steps

SAFETY, UNMEASURED = 1, 4  # where the model is at hand, so that rounding can be measured; where it is not
DOUBTFUL = 1000  # times its tolerance: up to here an error may yet be rounding, in an ill-conditioned tensor
MEASURED = 32  # times the rounding error that a right implementation was seen to have
ROUNDOFF = {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}  # by bytes of a number


def bytes_of(tensors):
    """Of a float of a trace's largest tensor: a loss alone may have another dtype."""
    return max(((t.size, t.dtype.itemsize) for t in tensors.values() if t.dtype.kind == "f"), default=(0, 8))[1]


class Tolerances:
    """Tolerances of relative errors ‖a - b‖ / ‖b‖, tensor by tensor, for a reference and a suspect."""

    def __init__(self, reference, suspect, setup=None):
        self.reference, self.setup = reference, setup
        self.bytes = min(bytes_of(reference), bytes_of(suspect))
        self.u = ROUNDOFF[self.bytes]
        blocks = [1 + int(m[1]) for name in reference if (m := re.search(r"\bh\.(\d+)\.", name))]
        states = [int(name[7:]) for name in reference if re.fullmatch(r"hidden\.\d+", name)]
        self.layers = max([1, *blocks, *states])
        widths = [t.shape[-1] for n, t in reference.items() if n.startswith(("fc.", "hidden.", "attention."))]
        self.width = max(widths, default=64)
        self.sharp = self.sharpness()
        self.cancels = self.cancellation()

    def sharpness(self):
        """1 + the largest score that is exponentiated, in a layer or at the end."""
        largest = [0.0]
        for name, query in self.reference.items():
            if name.startswith("query.") and (key := self.reference.get("key." + name[6:])) is not None:
                lengths = [np.sqrt((x * x).sum(-1).max()) for x in (query, key)]
                largest.append(float(lengths[0] * lengths[1] / np.sqrt(query.shape[-1])))
        return 1 + max(largest) / 8

    def cancellation(self):
        """How much smaller the loss's gradient is than the two distributions whose difference it is.

        dlogits meet the rows of wte on their way to ln_f, and those are about as long as the rows of hidden.0.
        """
        stream, end, losses = (self.reference.get(n) for n in ("hidden.0", "grad.ln_f", "losses"))
        if stream is None or end is None or losses is None or not end.any():
            return 1.0
        scored = max(1, np.count_nonzero(losses))
        size = np.sqrt((stream * stream).sum(-1).max() / scored)
        return max(1.0, float(size / max(np.linalg.norm(end), 1e-300))) * self.norm_cancellation(end)

    def norm_cancellation(self, end):
        """How much of the gradient the last LayerNorm takes out: all but nothing is left where channels are few."""
        x, below = (self.reference.get(f"{start}hidden.{self.layers}") for start in ("", "grad."))
        if x is None or below is None or x.shape != end.shape or not below.any():
            return 1.0
        deviation = x.std(-1, keepdims=True)
        through = np.linalg.norm(np.divide(end, deviation, out=np.zeros_like(end), where=deviation > 0))
        return max(1.0, float(through / max(np.linalg.norm(below), 1e-300)))

    def depth(self, name):
        """Blocks that a tensor has come through: down to its own layer, or down and up again, or for some steps."""
        match = re.search(r"(?:^|\.)(?:h|hidden|[a-z]+(?:_\d)?)\.(\d+)$|\.h\.(\d+)\.", name)
        number = None if match is None or name.startswith("grad.raw.") else int(match[1] or match[2])
        if name.startswith("grad."):
            at_the_end = name.startswith(("grad.ln_f", "grad.model.ln_f", "grad.model.lm_head"))
            return self.layers + (0 if at_the_end else self.layers - (number or 0))
        if name.startswith(("after.", "adam.", "steps.", "decoded")):
            return 3 * self.layers
        return self.layers if number is None else number

    def of(self, name):
        """The tolerance of a tensor's relative error."""
        name = name.removeprefix("again.")
        safety = SAFETY if self.setup else UNMEASURED
        tolerance = safety * self.u * np.sqrt(self.width) * (1 + self.depth(name)) * self.sharp
        if name in ("loss", "losses", "steps.loss"):
            loss, logits = self.reference.get(name), self.reference.get("logits")
            largest = 1 + (np.abs(logits).max() if logits is not None else 10)
            tolerance *= max(1, largest / max(float(np.abs(loss).max()), 1e-300))
        if name.startswith(("grad.", "adam.", "steps.norm")):
            tolerance *= self.cancels
        if name.startswith(("after.", "adam.", "steps.")) and (self.setup is None or not self.setup.steps):
            tolerance *= 100  # what the steps were is not known
        elif name.startswith("after."):
            tolerance += self.of_steps(name, tolerance)
        return float(tolerance)

    def of_steps(self, name, tolerance):
        """Adam divides each number's gradient by its own size: of the smallest little but rounding is left."""
        v, after = self.reference.get("adam.v" + name[5:]), self.reference[name]
        if v is None or not v.any():
            return 0.0
        size = np.sqrt(v[v > 0].astype(np.float64))
        unsure = np.minimum(1, tolerance * self.cancels * np.sqrt((size * size).mean()) / size)
        step = self.setup.steps.get("lr", 1e-2) * self.setup.steps.get("steps", 1)
        return 2 * step * np.linalg.norm(unsure) / max(np.linalg.norm(after), 1e-300)


def measured(setup, reference, bytes_of_a_number):
    """{name: error} of the plain GPT-2, run in floats of so many bytes, against the reference."""
    dtype = np.dtype(f"f{max(4, bytes_of_a_number)}")
    cast = lambda tree: tree_map(lambda w: w.astype(dtype), tree)
    model, teacher = ((cast(pair[0]), pair[1]) if pair else None for pair in (setup.model, setup.teacher))
    prompt = setup.prompt
    if prompt is not None:
        here = lambda part: None if part is None else cast(part)
        prompt = replace(prompt, slots=here(prompt.slots), beta=here(prompt.beta), raw=here(prompt.raw))
    setup = setup._replace(model=model, teacher=teacher, prompt=prompt)
    made = answer(setup) | (decode(setup) if setup.decode else {}) | (take_steps(setup) if setup.steps else {})
    return {name: relative_error(made[name].astype(np.float64), x) for name, x in reference.items() if name in made}
