"""What each top-k form makes of KL(teacher ‖ student): the embedded model with the notes, against 8 of their tokens."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, plt, save

import weights_loader
from minicompress.compression.queries import pad, question_query
from minicompress.gpt2 import Config, logits
from minicompress.gpt2.prefix import predictors, read_slots, read_tokens
from minicompress.layers import divergences
from minicompress.layers.losses import kl_divergence, kl_divergence_backward, log_softmax
from minicompress.prompts.initialise import from_tokens

EXAMPLES, SLOTS, NEAR = FIGURES.parents[1] / "examples", 8, 0.05
KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2047, 2048)
FORMS = {"truncated": "top_k_kl", "renormalised": "top_k_renormalised_kl", "tail bucket": "top_k_tail_kl"}
STYLES = {"truncated": (ORANGE, "o-"), "renormalised": (GREEN, "s-"), "tail bucket": (BLUE, "^-")}


def pair():
    """The teacher's log-probabilities and the student's logits (N, V), at every token of the questions and answers."""
    params, raw = weights_loader.load(weights_loader.EMBEDDED, "float64")
    model, tokenizer = (params, Config.from_dict(raw)), weights_loader.load_tokenizer(weights_loader.EMBEDDED)
    context = tokenizer.encode((EXAMPLES / "notes.txt").read_text()).ids
    lines = map(json.loads, (EXAMPLES / "questions.jsonl").read_text().splitlines())
    ids, scored = pad([question_query(tokenizer, line["question"], line["answer"]) for line in lines])
    scored |= np.arange(ids.shape[1]) < scored.argmax(-1)[:, None]  # the question's own tokens too
    slots = read_slots(*model, from_tokens(params["wte"]["weight"], context, SLOTS))[0]
    teacher, student = (
        logits(params, predictors(*model, prefix, ids, scored)[0]) for prefix in (read_tokens(*model, context), slots)
    )
    return log_softmax(teacher), student


def full(student, teacher_logp):
    """KL over all tokens, and its gradient at the student's logits."""
    out, cache = kl_divergence(student, teacher_logp)
    return out, kl_divergence_backward(np.ones_like(out), cache)


def top(form, student, teacher_logp, k):
    """The same of one of FORMS."""
    name = FORMS[form]
    out, cache = getattr(divergences, name)(student, teacher_logp, k)
    return out, getattr(divergences, f"{name}_backward")(np.ones_like(out), cache)


def measured(share=1.0):
    """The full KL's mean; {form: its mean for each k}; {form: the length of what is wrong in the gradient, over its own}.

    The student's log-probabilities are moved towards the teacher's, until this share of the way is left.
    """
    teacher_logp, student = pair()
    student = teacher_logp + share * (log_softmax(student) - teacher_logp)
    (truth, gradient), values, errors = full(student, teacher_logp), {}, {}
    for form in FORMS:
        found = [top(form, student, teacher_logp, k) for k in KS]
        values[form] = [out.mean() for out, _ in found]
        errors[form] = [np.linalg.norm(dlogits - gradient) / np.linalg.norm(gradient) for _, dlogits in found]
    return truth.mean(), values, errors


def main():
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.8, 3.1))
    truth, values, far = measured()
    near_truth, _, near = measured(NEAR)
    left.axhline(truth, color=GREY, ls="--", label="all 2,048 tokens")
    titles = f"far: KL {truth:.2f} nats", f"near: KL {near_truth:.4f} nats"
    for form, (colour, style) in STYLES.items():
        left.plot(KS, values[form], style, ms=4, color=colour, label=form)
        for axis, errors, title in ((middle, far, titles[0]), (right, near, titles[1])):
            axis.loglog(KS[:-2], errors[form][:-2], style, ms=4, color=colour)
            axis.set(xlabel="k", title=title, ylim=(3e-6, 30))
            axis.axhline(1, color=GREY, lw=0.8, ls=":")
    left.set(xscale="log", xlabel="k", title="loss, nats a token", ylim=(0, None))
    left.legend(fontsize=8)
    middle.set_ylabel("error of the gradient, relative")
    save(figure, __file__)


if __name__ == "__main__":
    main()
