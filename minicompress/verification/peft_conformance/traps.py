"""What a user falls into: configurations, lengths, batches of many adapters, CPT's loss."""

import numpy as np

from minicompress.gpt2 import embed, forward
from minicompress.gpt2 import logits as head
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.tenants import read_many
from minicompress.verification.oracles import relative_error
from minicompress.verification.peft_conformance.bench import (
    CONFIG,
    CPT_TYPES,
    ROWS,
    P,
    asked,
    config_of,
    encoder_of,
    ours,
    padded,
    peer,
    prompt_of,
    raw_of,
    redraw,
    their_logits,
    traced,
    tuned,
)
from minicompress.verification.peft_conformance.finding import (
    ACCEPTED,
    CONVENTION,
    DEFECT,
    EXACT,
    SINGLE,
    Finding,
    attempt,
    refusal,
)
from minicompress.verification.peft_conformance.passes import held

# Configurations.


def no_task(lib):
    """An adapter is made, and its configuration has no task_type."""
    theirs = attempt(lambda: lib.peft.get_peft_model(peer(lib), config_of(lib, "prompt tuning", task_type=None)))
    words = 'nothing names what is missing; write task_type="CAUSAL_LM"'
    otherwise = DEFECT if theirs == ACCEPTED else CONVENTION
    return Finding(None, theirs, otherwise=otherwise, words=words, same="task_type" in theirs)


def making(lib, kind, **changes):
    """What their making of an adapter says, and what its first forward does, where it comes to that."""
    made = []
    said = attempt(lambda: made.append(lib.peft.get_peft_model(peer(lib), config_of(lib, kind, **changes)).double()))
    return said, attempt(lambda: made[0](lib.torch.as_tensor(ROWS[:1])))


def too_many_layers(lib):
    """num_layers one above the model's."""
    said, _ = making(lib, "prefix tuning", num_layers=CONFIG.n_layer + 1)
    words = "keys and values of layers that are not there are made and saved, and never read; leave num_layers out"
    return refusal(layers_refused(CONFIG.n_layer + 1), said, DEFECT, words)


def too_few_layers(lib):
    """num_layers one below it."""
    said, later = making(lib, "prefix tuning", num_layers=CONFIG.n_layer - 1)
    mine = layers_refused(CONFIG.n_layer - 1)
    return refusal(mine, said, CONVENTION, f"said by the first forward alone ({later}); leave num_layers out")


def layers_refused(layers):
    shape = (layers, *slots_shape("kv", CONFIG, P)[1:])
    return attempt(lambda: SoftPrompt(np.zeros(shape), "kv").check_model(CONFIG))


def zero_slots(lib):
    mine = attempt(SoftPrompt(np.zeros((0, CONFIG.n_embd))).check)
    said, _ = making(lib, "prompt tuning", num_virtual_tokens=0)
    return refusal(mine, said, CONVENTION, "no prompt, and nothing is said")


def too_long(lib):
    """Slots and tokens together are more than n_positions."""
    model, row = tuned(lib, "prompt tuning"), [1] * (CONFIG.n_positions - P + 1)
    mine, theirs = attempt(lambda: traced(model, [row])), attempt(lambda: model(lib.torch.as_tensor([row])))
    words = "both refuse, theirs without a number; count n with the tokens when cutting a text"
    otherwise = DEFECT if theirs == ACCEPTED else CONVENTION
    return Finding(mine, theirs, otherwise=otherwise, words=words, same="positions" in theirs)


# One batch, many adapters.


def adapter_names(lib):
    """Each row by an adapter of its own: ours as tenants, theirs as `adapter_names`, which LoRA takes."""
    kind, rows = "prompt tuning", [[3, 1, 4], [9, 2, 6]]
    model = tuned(lib, kind)
    model.add_adapter("second", config_of(lib, kind))
    redraw(lib, model.double().prompt_encoder["second"], 2)
    mine = behind(model, rows, [prompt_of(model.prompt_encoder[name]) for name in ("default", "second")])
    theirs = their_logits(model, asked(lib, kind, rows, adapter_names=["default", "second"]))
    words = "the names are passed over, and every row stands behind the active adapter; one batch for each adapter"
    return held(mine, theirs, EXACT, DEFECT, words)


def tasks_in_one_batch(lib):
    """Multitask prompts: a task for each row."""
    rows, tasks = [[3, 1, 4], [9, 2, 6], [5, 5, 1]], [2, 0, 1]
    model = tuned(lib, "multitask")
    raw = raw_of(encoder_of(model))
    product = lambda task: raw["prefix_task_cols"][task] @ raw["prefix_task_rows"][task]
    prompts = [SoftPrompt(raw["embedding"]["weight"] * product(task)) for task in tasks]
    named = {"task_ids": lib.torch.as_tensor(tasks)}
    return held(behind(model, rows, prompts), their_logits(model, asked(lib, "multitask", rows) | named))


def behind(model, rows, prompts):
    """Our logits of rows of one length, each behind a prompt of its own."""
    params, ids = ours(model)[0], padded(rows)
    prefix, _ = read_many(params, CONFIG, prompts)
    x = embed(params, ids, prefix.start)
    hidden, _, _ = forward(params, CONFIG, x, prefix.past, prefix.key_mask(*ids.shape), keep="nothing")
    return list(head(params, hidden))


# CPT.


def cpt_ball(lib):
    """What is trained, drawn outside its ball and brought back: 0.1 √(d / 2048), and next to nothing for labels."""
    model = lib.peft.get_peft_model(peer(lib), config_of(lib, "CPT")).double()
    redraw(lib, model.prompt_encoder)
    delta = raw_of(encoder_of(model))["delta_embedding"]["weight"]
    most = np.where(np.array(CPT_TYPES) % 4 == 0, 1e-10, 0.1 * (CONFIG.n_embd / 2048) ** 0.5)[:, None]
    mine = delta * most / np.maximum(np.linalg.norm(delta, axis=1, keepdims=True), most)
    model.get_prompt_embedding_to_save("default")
    return held(mine, raw_of(encoder_of(model))["delta_embedding"]["weight"], SINGLE)


def cpt_mask(lib):
    """The input_type_mask that the caller hands over, before and after."""
    model, arguments = tuned(lib, "CPT"), asked(lib, "CPT", ROWS[:1])
    mask = lib.torch.full_like(arguments["input_ids"], 4)
    before = mask.tolist()
    model(**arguments, labels=arguments["input_ids"], input_type_mask=mask)
    words = "the caller's tensor is counted up in place, so that the next pass finds other numbers; hand over a clone"
    return Finding(str(before[0]), str(mask.tolist()[0]), words=words)


def cpt_types(lib):
    """The loss where the context's types do not end with a label."""
    model = tuned(lib, "CPT", cpt_token_ids=[1, 2, 3], cpt_tokens_type_mask=[1, 2, 3])
    arguments = asked(lib, "CPT", ROWS[:1])
    mine, theirs = float(traced(model, ROWS[:1])["loss"]), float(model(**arguments, labels=arguments["input_ids"]).loss)
    words = (
        "the row's types are counted up by the context's largest, and stay labels only where that is a multiple of 4: "
        "nothing is scored, and the mean of nothing is NaN; end the context with a label"
    )
    return Finding(mine, theirs, relative_error(theirs, mine), SINGLE, DEFECT, words)


def cpt_name(lib):
    """A loss of an adapter that is not called `default`."""
    model, arguments = tuned(lib, "CPT", adapter="other"), asked(lib, "CPT", ROWS[:1])
    theirs = attempt(lambda: model(**arguments, labels=arguments["input_ids"]))
    return Finding(ACCEPTED, theirs, words="the loss looks its settings up under the name default; keep that name")
