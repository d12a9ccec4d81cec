"""The gradient of KL(teacher ‖ student) with respect to the student's logits, and why the loss carries T²."""

import numpy as np
from common import BLUE, GREY, ORANGE, plt, save

from minicompress.layers.losses import kl_divergence, kl_divergence_backward, log_softmax

rng = np.random.default_rng(4)
TEACHER, STUDENT = 1.5 * rng.standard_normal(7), 1.0 * rng.standard_normal(7)


def gradient(T):
    """dlogits (V,) of T² KL at temperature T."""
    _, cache = kl_divergence(STUDENT[None], log_softmax(TEACHER[None] / T), T)
    return kl_divergence_backward(np.ones(1), cache)[0]


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), gridspec_kw={"width_ratios": [1.25, 1]})
    p, q, v = np.exp(log_softmax(TEACHER)), np.exp(log_softmax(STUDENT)), np.arange(7)
    left.bar(v - 0.27, p, 0.27, color=ORANGE, label="teacher p")
    left.bar(v, q, 0.27, color=BLUE, label="student q")
    left.bar(v + 0.27, gradient(1), 0.27, color=GREY, label="gradient q − p")
    left.axhline(0, color="k", lw=0.8)
    left.set(xlabel="token of the vocabulary", xticks=v, title="logits fall where the gradient is positive")
    left.legend(fontsize=8)
    T = np.logspace(-0.3, 2, 40)
    right.loglog(T, [np.linalg.norm(gradient(t)) for t in T], color=BLUE, label="T² KL, as here")
    right.loglog(T, [np.linalg.norm(gradient(t)) / t**2 for t in T], color=GREY, label="KL without T²")
    right.set(xlabel="temperature T", title="length of the gradient")
    right.legend(fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
