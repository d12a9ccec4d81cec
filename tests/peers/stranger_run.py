"""What someone else's program answers to a Setup: batches, losses, gradients, decoding, steps. `bug` as in GPT2."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from stranger_gpt2 import GPT2
from stranger_prompts import Prompt

CONTRACT = ("logits", "first_logits", "loss", "hidden", "attention", "grad.prompt", "grad.beta", "grad.raw", "grad.model",
            "decoded", "decoded_logits", "steps", "after", "adam")  # fmt: skip
IN_BOTH = (
    "float16",
    "variance",
    "eps-",
    "gelu",
    "scale",
    "qkv",
    "key-value-swapped: in c_attn",
    "final-norm",
    "mask-off",
    "mask-missing: ",
    "mask-inverted: causal",
)  # the teacher runs through the same code
IGNORED = -100


class Run:
    """One program, asked about one Setup."""

    def __init__(self, setup, bug=""):
        self.setup, self.bug = setup, bug
        self.kind, _, self.how = bug.partition(": ")
        self.config = setup.model[1]
        self.model = GPT2(*setup.model, bug, training=self.kind == "model-in-train-mode")
        self.prompt = setup.prompt and Prompt(setup.prompt, self.config, bug)
        self.injected = self.prompt and (
            self.kind != "prompt-not-injected" or self.how in ("placeholders", "in the first layer only")
        )
        carrier = self.prompt.carrier if self.prompt else None
        length, rows = setup.prompt.length if setup.prompt else 0, carrier == "in rows"
        self.carrier, self.P = carrier, 0 if rows else length
        self.ahead = self.P if self.injected and carrier in ("embeddings", "hidden") else 0  # columns before tokens
        self.before = self.P if self.injected and carrier == "kv" else 0  # keys before all columns
        self.pad = self.config.vocab_size - 1 if bug.endswith("eos") else 0
        self.start = self.first_position()

    def first_position(self):
        prompt, kind, P = self.setup.prompt, self.kind, self.P
        if (
            not prompt
            or self.carrier == "in rows"
            or kind == "positions-unshifted"
            or not self.injected
            and self.how != "placed"
        ):
            return 0
        start = {"compact": P, "unshifted": 0, "logical": prompt.offset}[prompt.positions]
        return start + P if kind == "positions-shifted-twice" else start

    # The batch.

    def padded(self, rows, fill):
        """-> [B,T], on the right, or on the left."""
        T, left = max(map(len, rows)), self.kind == "left-padding"
        return torch.tensor([[fill] * (T - len(row)) + row if left else row + [fill] * (T - len(row)) for row in rows])

    def batch(self, rows):
        """-> ids, real [B,T] as they stand in the columns, and columns [B,T] of token t, padding behind the last."""
        rows = [list(row) for row in rows]
        ids, real = self.padded(rows, self.pad), self.padded([[1] * len(row) for row in rows], 0) == 1
        return ids, real, torch.argsort(~real, dim=1, stable=True) + self.ahead

    def positions(self, real):
        running = torch.arange(real.shape[1]).expand(real.shape)
        if self.bug == "left-padding: padding seen":
            running = (real.cumsum(1) - 1).clamp(min=0)
        return running + self.start

    def slots(self, B):
        slots = self.prompt.slots()
        self.baked = slots
        if self.bug == "prompt-detached: behind the first layer":
            slots = torch.cat([slots[:1], slots[1:].detach()])
        if self.bug == "prompt-not-injected: placeholders":
            wte = self.model.weights["wte.weight"]
            return wte[torch.full((B, self.setup.prompt.length), self.pad)]
        return self.prompt.shared(slots, B)

    def embedded(self, ids, real, slots):
        x = self.model.look_up(ids.clamp(min=0), real & (ids >= 0))
        wpe = self.model.weights["wpe.weight"]
        places = wpe[self.positions(real)]
        if self.carrier == "in rows" and self.injected:
            soft = (ids < 0)[..., None]
            own = torch.stack([own[(-1 - row).clamp(min=0)] for own, row in zip(slots, ids, strict=True)])
            places = places * ~soft if self.kind == "slots-without-positions" else places
            return torch.where(soft, own, x) + places
        x = x + places
        if self.carrier == "embeddings" and self.injected:
            begin = self.P if self.bug == "positions-shifted-twice: slots too" else 0
            mine = (
                wpe[:1]
                if self.bug == "slots-without-positions: all at 0"
                else 0
                if self.kind == "slots-without-positions"
                else wpe[begin : begin + self.P]
            )
            return torch.cat([slots + mine, x], 1)
        if self.ahead:
            x = torch.cat([x.new_zeros(len(x), self.P, x.shape[2]), x], 1)
        return x

    def read(self, rows, left_over=None):
        """-> logits [B,N,V], per layer what is kept, its own part, notes, real, columns."""
        ids, real, columns = self.batch(rows)
        B = len(ids)
        slots = self.slots(B) if self.prompt else None
        x = self.embedded(ids, real, slots)
        past = self.prompt.past(slots, self.model) if self.before else None
        deep = slots if self.ahead and self.carrier == "hidden" else None
        if left_over:
            past = (
                [
                    tuple(torch.cat(pair, 2) for pair in zip(*pasts, strict=True))
                    for pasts in zip(left_over, past, strict=True)
                ]
                if past
                else left_over
            )
        N, old = x.shape[1], past[0][0].shape[2] if past else 0
        shown = torch.ones_like(real) if self.kind == "left-padding" and self.how in ("padding seen", "both") else real
        keys = torch.cat([torch.ones(B, old + self.ahead, dtype=torch.bool), shown], 1)
        allowed = self.model.allowed(keys, N, self.before + self.ahead)
        watched = ["ln_f", *(f"hidden.{layer}" for layer in range(self.config.n_layer + 1))]
        return *self.model.forward(x, allowed, past, deep, self.ahead, watched), real, columns

    # Losses.

    def targets(self):
        """[B,T] in the rows' own order, -100 where nothing is scored."""
        labels = self.setup.labels or [[IGNORED if i < 0 else i for i in row] for row in self.setup.rows]
        fill, T = self.pad if self.kind == "padding-scored" else IGNORED, max(map(len, labels))
        if self.bug == "ignored-labels-counted: as token 0":
            labels = [[0 if y == IGNORED else y for y in row] for row in labels]
        if self.bug == "ignored-labels-counted: as eos":
            labels = [[self.pad if y == IGNORED else y for y in row] for row in labels]
        if self.bug == "padding-scored: the first, eos":
            labels, fill = [list(row) + [self.pad] for row in labels], IGNORED
            labels = [row[:T] for row in labels]
        if self.kind == "slots-scored" and self.carrier == "in rows":
            labels = [
                [self.pad if i < 0 else y for i, y in zip(*pair, strict=True)]
                for pair in zip(self.setup.rows, labels, strict=True)
            ]
        return torch.tensor([list(row) + [fill] * (T - len(row)) for row in labels])

    def loss(self, logits, real, columns):
        """-> losses [B,T] of token t, their mean, the teacher's log-probabilities [B,T,V] or None."""
        targets, before = (
            self.targets(),
            columns
            + (1 if self.bug == "labels-not-shifted: the wrong way" else -int(self.kind != "labels-not-shifted")),
        )
        scored = (targets != IGNORED) & (before >= 0) & (before < logits.shape[1])
        predictable = torch.ones_like(scored)
        if self.kind != "labels-not-shifted":
            first_too = self.carrier == "embeddings" and self.injected and self.kind != "first-token-unscored"
            predictable[:, 0] = first_too
        scored &= predictable
        rows = torch.arange(len(logits))[:, None]
        picked = logits[rows, before.clamp(0, logits.shape[1] - 1)]
        if self.kind == "loss-in-float32":
            picked = picked.float()
        guide = self.teacher() if self.setup.teacher_context is not None else None
        each = self.cross_entropy(picked, targets) if guide is None else self.divergence(picked, guide)
        losses = torch.where(scored, each, 0)
        total, counts = losses.sum(), scored.sum(1)
        if self.kind == "slots-scored" and self.ahead:
            among = self.cross_entropy(
                logits[:, : self.P - 1],
                (
                    torch.tensor([[max(row[0], 0)] * (self.P - 1) for row in self.setup.rows], dtype=torch.long)
                    if self.how == "as the first token"
                    else torch.full((len(logits), self.P - 1), self.pad)
                ),
            )
            total, counts = total + among.sum(), counts + self.P - 1
        if self.bug == "mean-of-row-means: by position":
            some = scored.any(0)
            return losses, (losses.sum(0)[some] / scored.sum(0)[some]).mean(), guide, scored
        if self.kind == "mean-of-row-means":
            means, some = losses.sum(1) / counts.clamp(min=1), counts > 0
            return losses, means.mean() if self.how == "empty rows too" else means[some].mean(), guide, scored
        if self.bug == "ignored-labels-counted: in the denominator":
            counts = real.sum(1) - (~predictable[:, 0]).int()
        if self.bug == "ignored-labels-counted: none, then mean":
            counts = torch.tensor(len(logits) * (logits.shape[1] - 1))
        return (
            losses,
            total / len(logits)
            if self.bug == "loss-summed: per row"
            else total
            if self.kind == "loss-summed"
            else total / counts.sum(),
            guide,
            scored,
        )

    def cross_entropy(self, logits, targets):
        return F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")

    def divergence(self, logits, guide):
        T = self.setup.temperature
        log_q = (logits if self.bug == "kl-temperature-one-side: teacher" else logits / T).log_softmax(-1)
        log_p = guide.to(log_q.dtype)
        if self.kind.startswith("kl-top-k"):
            best = log_p.topk(int(self.how), -1).indices
            log_p, log_q = log_p.gather(-1, best), log_q.gather(-1, best)
            if self.kind == "kl-top-k-renormalised":
                log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        if self.kind == "kl-reversed":
            log_p, log_q = log_q, log_p
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (
            each * T
            if self.bug == "kl-without-t2: T once"
            else each
            if self.kind == "kl-without-t2" or self.how == "student, and no T²"
            else each * T * T
        )

    @torch.no_grad()
    def teacher(self):
        """Log-probabilities [B,T,V] of token t (of the token after t, where labels are not shifted)."""
        setup, kind = self.setup, self.kind
        given = setup.teacher or setup.model
        bug = self.bug if self.bug.startswith(IN_BOTH) or kind == "teacher-in-train-mode" else ""
        model = GPT2(*given, bug, training=kind == "teacher-in-train-mode")
        if setup.teacher is None:  # the model itself, as it is by now
            model.weights = self.model.weights
        context = list(setup.teacher_context)
        context = (
            context[1:] if self.how == "the first" else context[:-1] if kind == "teacher-misses-last-token" else context
        )
        read = [context + [i for i in row if i >= 0] for row in setup.rows]
        N = len(context) + max(map(len, setup.rows))
        ids = torch.tensor([row + [self.pad] * (N - len(row)) for row in read])
        real = torch.tensor([[i < len(row) for i in range(N)] for row in read])
        x = model.weights["wte.weight"][ids] + model.weights["wpe.weight"][:N]
        logits = model.forward(x, model.allowed(real, N, 0))[0]
        hard = torch.tensor(
            [[sum(i >= 0 for i in row[:t]) for t in range(max(map(len, setup.rows)))] for row in setup.rows]
        )
        hard = torch.where(self.right_real(), hard, torch.arange(hard.shape[1]))  # padding goes on
        where = (len(context) - 1 + hard + int(kind == "labels-not-shifted")).clamp(max=N - 1)
        logits = logits[torch.arange(len(ids))[:, None], where]
        return (logits if self.how.startswith("student") else logits / setup.temperature).log_softmax(-1)

    def right_real(self):
        T = max(map(len, self.setup.rows))
        return torch.tensor([[t < len(row) for t in range(T)] for row in self.setup.rows])

    # Gradients.

    @property
    def leaves(self):
        """{name: tensor} of all that may have a gradient."""
        own = self.prompt.leaves if self.prompt else {}
        weights = self.model.weights if self.setup.gradients == "all" or not self.prompt else {}
        return own | {f"model.{name}": weight for name, weight in weights.items()}

    def differentiate(self, losses, loss, retained):
        if self.bug != "float16-accumulation: gradients":
            loss.backward()
            return
        leaves, total = [leaf for leaf in self.leaves.values() if leaf.requires_grad], None
        for part in losses.sum(1) * (loss / losses.sum()).detach():
            grads = torch.autograd.grad(part, leaves, retain_graph=True, allow_unused=True)
            halves = [
                torch.zeros_like(leaf).half() if g is None else g.half() for g, leaf in zip(grads, leaves, strict=True)
            ]
            total = halves if total is None else [a + b for a, b in zip(total, halves, strict=True)]
        for x in retained:
            x.grad = None
        loss.backward()
        for leaf, grad in zip(leaves, total, strict=True):
            leaf.grad = grad.to(leaf.dtype)
        if self.prompt and self.setup.prompt.raw:
            self.baked.grad = self.baked.grad.half().to(self.baked.dtype)

    def answer(self, gradients=True):
        """One pass both ways: {name: tensor}."""
        logits, _, _, notes, real, columns = self.read(self.setup.rows)
        losses, loss, guide, scored = self.loss(logits, real, columns)
        found = self.laid_out(logits, notes, columns) | {"losses": losses, "loss": loss}
        if self.carrier == "embeddings" and self.injected:
            found["first_logits"] = logits[:, self.P - 1]
        if guide is not None:
            found["teacher_log_probs"] = torch.where(scored[..., None], guide, 0)
        if self.prompt:
            found["prompt"] = self.baked
            found |= {"prompt.beta": self.prompt.leaves["beta"]} if "beta" in self.prompt.leaves else {}
        if gradients:
            for leaf in self.leaves.values():
                leaf.grad = None
            if loss.requires_grad:
                self.differentiate(losses, loss, [*notes.values(), *([self.baked] if self.prompt else [])])
            found |= {f"grad.{name}": grad_of(leaf) for name, leaf in self.leaves.items()}
            if self.prompt:
                found["grad.prompt"] = grad_of(self.baked)
            watched = {name: grad_of(notes[name]) for name in notes if name.startswith(("hidden", "ln_f"))}
            gathered = self.laid_out(None, watched, columns)
            found |= {f"grad.{name}": grad for name, grad in gathered.items()}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def laid_out(self, logits, notes, columns):
        """From columns, with slots and padding among them, to the rows' tokens in order, padding 0."""
        rows, real, found = torch.arange(len(columns))[:, None], self.right_real(), {}
        slots = torch.arange(self.before + self.ahead).expand(len(columns), -1)
        keys, both = torch.cat([slots, columns + self.before], 1), torch.cat([torch.ones_like(slots) == 1, real], 1)
        for name, x in notes.items():
            if name.startswith(("query", "attention")):
                x = x.transpose(1, 2)[rows, columns] * real[..., None, None]
                x = x.transpose(1, 2)
                if name.startswith("attention"):
                    x = x.transpose(1, 3)[rows, keys] * both[..., None, None]
                    x = self.with_slots(x.transpose(1, 3), -1)
            elif name.startswith(("key", "value")):
                x = (x.transpose(1, 2)[rows, keys] * both[..., None, None]).transpose(1, 2)
            else:
                x = x[rows, columns] * real[..., None]
            found[name] = x
        return found | ({} if logits is None else {"logits": logits[rows, columns] * real[..., None]})

    def with_slots(self, attention, axis):
        """Where the prompt never came in, nothing looked at it."""
        missing = self.P if not self.injected and self.how in ("left out", "placed") else 0
        return torch.cat([attention.new_zeros(*attention.shape[:axis], missing), attention], axis)

    # Decoding, with a cache, a row at a time.

    @torch.no_grad()
    def decoded(self):
        written, expected, left_over = [], [], None
        for row in self.setup.rows:
            self.length = len(row)
            logits, cache, _, _, _, _ = self.read([row], left_over)
            ids, seen, lag = [], [], cache
            for step in range(self.setup.decode):
                seen.append(logits[0, -1])
                ids.append(int(logits[0, -1].argmax()))
                if step + 1 == self.setup.decode:
                    break
                logits, cache, lag = self.one_more(ids[-1], len(row) + step, cache, lag)
            left_over = cache if self.bug == "cache-stale: of the row before" else None
            written.append(torch.tensor(ids))
            expected.append(torch.stack(seen))
        return {"decoded": torch.stack(written), "decoded_logits": torch.stack(expected)}

    def one_more(self, token, place, cache, lag):
        """Reads one token -> logits, the cache, and what the cache was before."""
        begin = self.start if self.bug != "cache-position-off: the prompt not counted" else 0
        place = (
            begin + place + {"cache-position-off: one too far": 1, "cache-position-off: one short": -1}.get(self.bug, 0)
        )
        place = 0 if self.bug == "cache-position-off: from 0 again" else place
        if self.bug == "cache-position-off: behind the longest":
            place += max(map(len, self.setup.rows)) - self.length
        x = self.model.weights["wte.weight"][token] + self.model.weights["wpe.weight"][place]
        past = lag if self.bug == "cache-stale: a step behind" else cache
        keys = torch.ones(1, past[0][0].shape[2] + 1, dtype=torch.bool)
        slots = min(self.before + self.ahead, keys.shape[1] - 1)
        logits, present, own, _ = self.model.forward(x[None, None], self.model.allowed(keys, 1, slots), past)
        if self.bug == "cache-stale: never grows":
            present = cache
        if self.bug == "cache-stale: overwrites the last":
            cut = lambda x: torch.cat([x[:, :, :-2], x[:, :, -1:]], 2)
            present = [tuple(map(cut, layer)) for layer in present]
        if self.bug == "cache-stale: the last token only":
            present = [
                (k, v, *(b.new_zeros(1, b.shape[1], 1) for b in rest))
                for (k, v), (_, _, *rest) in zip(own, present, strict=True)
            ]
        return logits, present, cache

    # Steps.

    @property
    def moving(self):
        if self.prompt:
            return self.prompt.moving
        return {f"model.{name}": weight for name, weight in self.model.weights.items()}

    def stepped(self, steps=1, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip=None):
        moving, kept = self.moving, {"loss": [], "norm": []}
        copy = getattr(self.model, "copied_head", None)
        optimiser = AdamW(
            moving | ({} if copy is None else {"copied_head": copy}), lr, betas, eps, weight_decay, self.bug
        )
        for _ in range(steps):
            kept["loss"].append(self.answer()["loss"])
            grads = [grad_of(leaf) for leaf in moving.values()]
            kept["norm"].append(torch.stack([(g * g).sum() for g in grads]).sum().sqrt())
            self.clip(moving, clip)
            optimiser.step()
        found = {f"steps.{name}": torch.stack(values) for name, values in kept.items()}
        for name, tensors in (("after", moving), ("adam.m", optimiser.m), ("adam.v", optimiser.v)):
            found |= {f"{name}.{part}": tensors[part].detach().clone() for part in moving}
        return found

    def clip(self, moving, limit):
        if limit is None:
            return
        for names in self.groups(moving):
            grads = [moving[name].grad for name in names if moving[name].grad is not None]
            norm = torch.stack([(g * g).sum() for g in grads]).sum().sqrt() if grads else torch.tensor(0.0)
            for g in grads:
                if self.bug == "clipped-per-tensor: by value":
                    g.clamp_(-limit, limit)
                elif self.bug == "clipped-per-tensor: whatever their length" or norm > limit:
                    g *= limit / norm

    def groups(self, moving):
        """Whose gradients are clipped together."""
        if self.kind != "clipped-per-tensor":
            return [list(moving)]
        if self.how != "layer by layer":
            return [[name] for name in moving]
        names = {}
        for name in moving:
            names.setdefault(".".join(name.split(".")[:3]), []).append(name)
        return list(names.values())


class AdamW:
    """As in the paper, decay times the learning rate, vectors spared."""

    def __init__(self, params, lr, betas, eps, weight_decay, bug):
        self.params, self.lr, self.betas, self.eps, self.weight_decay = params, lr, betas, eps, weight_decay
        self.m, self.v = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
        self.t, (self.kind, _, self.how) = 0, bug.partition(": ")

    @torch.no_grad()
    def step(self):
        self.t += 1
        for name, p in self.params.items():
            late = self.kind == "adam-without-bias-correction" and self.how == "a step late"
            t = self.t + late
            g = torch.zeros_like(p) if p.grad is None else p.grad
            decay = self.weight_decay if p.ndim > 1 else 0
            if self.kind == "adamw-decays-prompt":
                decay = float(self.how)
            if self.kind == "decay-as-l2":
                g, decay = g + decay * p, 0
            (b1, b2), m, v = self.betas, self.m[name], self.v[name]
            m += (1 - b1) * (g - m)
            v *= b2
            v += (1 - b2) * g * g
            left = (
                ()
                if self.kind != "adam-without-bias-correction"
                else ("m", "v")
                if self.how == "neither"
                else (self.how,)
            )
            m_hat = m if "m" in left else m / (1 - b1**t)
            v_hat = v if "v" in left else v / (1 - b2**t)
            p *= 1 - self.lr * decay
            p -= self.lr * m_hat / (v_hat.sqrt() + self.eps)


def grad_of(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()


def answer(setup, bug="", rich=False):
    """{name: array}: what the program gives out of a Setup; rich: everything, else what the contract asks for."""
    torch.manual_seed(sum(map(sum, setup.rows)) + len(bug))
    run = Run(setup, bug)
    found = run.answer()
    found |= (
        {f"again.{name}": x for name, x in run.answer(gradients=False).items() if shows_chance(name)}
        if setup.twice
        else {}
    )
    found |= run.decoded() if setup.decode else {}
    found |= run.stepped(**setup.steps) if setup.steps else {}
    if not rich:
        found = {name: x for name, x in found.items() if in_contract(name)}
    return {name: np.asarray(x.numpy(), order="C") for name, x in found.items()}


def shows_chance(name):
    return name.startswith("hidden") or name in (
        "prompt",
        "teacher_log_probs",
        "logits",
        "first_logits",
        "losses",
        "loss",
    )


def in_contract(name):
    name = name.removeprefix("again.")
    return any(name == kept or name.startswith(f"{kept}.") for kept in CONTRACT)
