"""Every tensor of a trace against Transformers and PEFT: ragged rows, prompt tuning, distillation, all gradients."""

import pytest
from peer_models import SHAPES, TOLERANCES, assert_equal, peer, to_numpy, torch, tree_of

import weights_loader
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten
from minicompress.verification.trace import trace
from verifying import contract

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_loss = pytest.mark.parametrize("loss", ["ce", "kl"])
each_prompt = pytest.mark.parametrize("P", [0, 4])
ROWS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
LABELS = [[3, -100, 8, 1, -100, 2], [7], [-100, 6, 2]]
CONTEXT = [8, 9, 7, 9, 3]


def tuned(model, P):
    """The model inside PEFT's prompt tuning, every weight with a gradient again, and the virtual tokens (P, C)."""
    if not P:
        return model, None
    facts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    wrapped = peft.get_peft_model(model, facts).to(model.dtype).eval().requires_grad_(True)
    slots = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        slots.normal_()
    return wrapped, slots


def read_row(wrapped, model, row, P):
    """One row alone, without padding -> its tensors, under a trace's names, and the logits of all P + T places."""
    last = []
    hook = model.transformer.ln_f.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    out = wrapped(torch.as_tensor([row]), output_hidden_states=True, output_attentions=True)
    hook.remove()
    stream = [*out.hidden_states[:-1], *last]  # their last hidden states are after ln_f
    tensors = {"logits": out.logits[0, P:]} | {f"hidden.{i}": x[0, P:] for i, x in enumerate(stream)}
    return tensors | {f"attention.{i}": x[0, :, P:] for i, x in enumerate(out.attentions)}, out.logits[0]


def losses_of(logits, P, labels, teacher=None):
    """The losses at one row's scored places; `teacher` are the logits of one that has read CONTEXT before the row."""
    logits = torch.cat([torch.zeros_like(logits[:1]), logits])[P : P + len(labels)]  # place t predicts token t
    scored = [t for t, label in enumerate(labels) if label != -100 and (t or P)]
    if teacher is None:
        return torch.nn.functional.cross_entropy(logits[scored], torch.tensor(labels)[scored], reduction="none")
    start = len(CONTEXT) - 1
    log_p, log_q = (torch.log_softmax(x[scored], -1) for x in (teacher[start : start + len(labels)], logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def their_trace(model, wrapped, slots, P, guide):
    """What PyTorch computes, row by row: {tensor and row: array}, the loss, and its gradients."""
    tensors, losses = {}, []
    for row, (ids, labels) in enumerate(zip(ROWS, LABELS, strict=True)):
        found, logits = read_row(wrapped, model, ids, P)
        found |= {"first_logits": logits[P - 1]} if P else {}
        tensors |= {f"{name}, row {row}": to_numpy(x) for name, x in found.items()}
        with torch.no_grad():
            expected = guide(torch.as_tensor([CONTEXT + ids])).logits[0] if guide else None
        losses.append(losses_of(logits, P, labels, expected))
    loss = torch.cat(losses).mean()
    loss.backward()
    tensors |= {"loss": to_numpy(loss)} | ({"grad.prompt": to_numpy(slots.grad)} if P else {})
    return tensors | {f"grad.model.{name}": g for name, g in flatten(tree_of(model, lambda w: w.grad)).items()}


def cut(traced, P):
    """Our tensors, with the padding of each row cut off."""
    tensors = {}
    for name, x in traced.items():
        for row, ids in enumerate(ROWS):
            n = len(ids)
            if name.startswith(("logits", "hidden")):
                tensors[f"{name}, row {row}"] = x[row, :n]
            elif name.startswith("attention"):
                tensors[f"{name}, row {row}"] = x[row, :, :n, : P + n]
            elif name == "first_logits":
                tensors[f"{name}, row {row}"] = x[row]
    return tensors | {name: x for name, x in traced.items() if name.startswith(("loss", "grad"))}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@each_shape
@each_loss
@each_prompt
def test_every_tensor(config, loss, P, dtype):
    model = peer(config, 0, dtype)
    params, guide = tree_of(model), peer(config, 1, dtype) if loss == "kl" else None
    wrapped, slots = tuned(model, P)
    theirs = their_trace(model, wrapped, slots, P, guide)
    teacher = (tree_of(guide), config) if guide else None
    ours = trace((params, config), ROWS, SoftPrompt(to_numpy(slots)) if P else None, LABELS, teacher, CONTEXT if guide else None, "all")
    assert all(x.dtype == ours["logits"].dtype for x in ours.values())
    assert_equal(cut(contract(ours), P), theirs, TOLERANCES[dtype])


def test_a_folder_that_peft_wrote(tmp_path):
    """PEFT saves, we read: the same virtual tokens, and so the same loss."""
    config = SHAPES[0]
    model = peer(config, 2)
    params = tree_of(model)
    wrapped, slots = tuned(model, 4)
    wrapped.save_pretrained(tmp_path)
    read = weights_loader.load_peft_prompt(tmp_path).array
    assert read.tobytes() == to_numpy(slots).tobytes()
    theirs = their_trace(model, wrapped, slots, 4, None)
    assert_equal(cut(contract(trace((params, config), ROWS, SoftPrompt(read), LABELS, gradients="all")), 4), theirs, 1e-10)
