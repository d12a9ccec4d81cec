"""What hooks hear of a model in PyTorch while the user's own step runs it."""

from functools import partial
from inspect import signature

from minicompress.verification.torch_parts import HEADS, host

HEARD_IN = {"attended": "attn_proj", "middle": "ln_2", "gelu": "mlp_proj"}  # what goes into a part
HEARD_OUT = {"ln_1": "ln_1", "ln_2": "ln_2", "fc": "fc"}  # what comes out of one


class Ear:
    """What the hooks of one forward and of all backward passes hear; arrays are copied at once, before anyone moves on.

    values, grads: (B, R, ...) by name; of the R rows the last T are the tokens'. grads also by a parameter's id, from
    when a backward reaches the recorded forward's end until the model runs again.
    """

    def __init__(self, subject, which=None):
        self.subject, self.which, self.forwards = subject, which, 0
        self.running = self.going_back = False
        self.values, self.grads, self.past, self.given, self.handles = {}, {}, {}, {}, []

    def attach(self):
        s, add = self.subject, self.handles.append
        add(s.model.register_forward_pre_hook(self.begin, with_kwargs=True))
        for layer, (block, parts) in enumerate(zip(s.stack, s.blocks, strict=True)):
            self.before(block, f"hidden.{layer}", wanted=True)
            add(block.register_forward_pre_hook(partial(self.keep_past, layer), with_kwargs=True))
            for name, part in HEARD_IN.items():
                self.before(parts[part][0], f"{name}.{layer}")
            for name, part in HEARD_OUT.items():
                self.after(parts[part][0], f"{name}.{layer}")
            self.after_c_attn(parts["c_attn"], layer)
        self.before(s.ends["ln_f"], f"hidden.{len(s.blocks)}", wanted=True)
        self.after(s.ends["ln_f"], "ln_f", wanted=True)
        for module, name in ((s.ends.get("head"), "logits"), (s.encoder, "prompt")):
            if module is not None:
                self.after(module, name, wanted=True)
        for p in {id(p): p for weight in s.weights.values() for p in weight.params}.values():
            if p.requires_grad:
                add(p.register_hook(partial(self.keep_weight_grad, id(p))))
        add(s.model.register_forward_hook(self.end))

    def before(self, module, name, wanted=False):
        hear = lambda _, args, kwargs: self.keep(name, first_tensor([*args, *kwargs.values()]), wanted)
        self.handles.append(module.register_forward_pre_hook(hear, with_kwargs=True))

    def after(self, module, name, wanted=False):
        hear = lambda _, __, out: self.keep(name, first_tensor([out]), wanted)
        self.handles.append(module.register_forward_hook(hear))

    def after_c_attn(self, modules, layer):
        """Queries, keys and values: of three modules, or a third each of one's output."""
        for n, name in enumerate(HEADS):
            if len(modules) == 3:
                self.after(modules[n], f"{name}.{layer}")
            else:
                third = lambda _, __, out, n=n, name=name: self.keep(f"{name}.{layer}", out.chunk(3, -1)[n])
                self.handles.append(modules[0].register_forward_hook(third))

    def begin(self, module, args, kwargs):
        """The model's forward begins. Raises ValueError where it is the second, and nobody said which to keep."""
        if self.forwards and self.which is None:
            raise ValueError("the model runs a second time inside `record`: say which=0, or 1, to record one of the "
                             "forwards, or run the second afterwards, inside `with trace.again():`")  # fmt: skip
        self.running, self.forwards = self.forwards == (self.which or 0), self.forwards + 1
        self.going_back = False
        if not self.running:
            return
        self.given = signature(module.forward).bind(*args, **kwargs).arguments
        self.given |= self.given.pop("kwargs", {})
        s = self.subject
        if s.encoder is not None or s.prompt is not None:  # an encoder's own output, if it is run, is heard later
            own = s.weights["prompt"].array(lambda p: p) if "prompt" in s.weights else host(s.encoder.embedding.weight)
            self.values["prompt"] = own[None]

    def end(self, module, args, out):
        parts = [out.loss] if hasattr(out, "loss") else out if isinstance(out, tuple | list) else [out]
        scalars = [x for x in parts if hasattr(x, "detach") and not x.ndim]
        if self.running and scalars:
            self.values["loss"] = host(scalars[0])
        self.running = False  # what a backward runs again, to save memory, is not heard

    def keep(self, name, x, wanted=False):
        if self.running and x is not None:
            self.values[name] = host(x)
            if wanted and x.requires_grad:
                self.handles.append(x.register_hook(partial(self.keep_grad, name)))

    def keep_grad(self, name, grad):
        self.going_back = True
        if name != "logits":
            self.grads[name] = self.grads.get(name, 0) + host(grad)

    def keep_weight_grad(self, number, grad):
        if self.going_back:
            self.grads[number] = self.grads.get(number, 0) + host(grad)

    def keep_past(self, layer, module, args, kwargs):
        """Keys and values that stand before this layer's own: of Transformers' cache, or a pair of tensors."""
        for x in [*args, *kwargs.values()] if self.running else []:
            if hasattr(x, "get_seq_length") and x.get_seq_length(layer):
                own = x.layers[layer] if hasattr(x, "layers") else x[layer]
                pair = (own.keys, own.values) if hasattr(own, "keys") else own[:2]
                self.past[layer] = [host(part) for part in pair]
            elif isinstance(x, tuple) and len(x) == 2 and all(getattr(part, "ndim", 0) == 4 for part in x):
                self.past[layer] = [host(part) for part in x]


def first_tensor(values):
    """The first tensor among values, or in a tuple that is one of them."""
    flat = [y for x in values for y in (x if isinstance(x, tuple | list) else [x])]
    return next((x for x in flat if hasattr(x, "detach")), None)
