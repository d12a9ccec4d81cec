"""What PEFT saves, and what it makes of a folder again."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minicompress.prompts.layout import kv_from_flat
from minicompress.prompts.parameterisations import kind_of
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.peft_conformance.bench import (
    CONFIG,
    ROWS,
    TASK,
    P,
    asked,
    config_of,
    encoder_of,
    flat,
    our_logits,
    peer,
    prompt_of,
    their_logits,
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

CONFIG_FILE, TENSORS = "adapter_config.json", "adapter_model.safetensors"
REFUSE = "and nothing is said; `minicompress import` refuses such a file by name"


@contextmanager
def saved(model):
    """The folder that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def tensors_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / TENSORS)


def changed(folder, tensors=None, **facts):
    """The same folder with other tensors or facts in it."""
    from safetensors.numpy import save_file

    if tensors is not None:
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG_FILE).read_text()) | facts
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def loaded(lib, folder):
    return lib.peft.PeftModel.from_pretrained(peer(lib), str(folder))


# Every kind of prompt.


def file(lib, kind):
    """The tensor that is saved, against the slots that our own encoder bakes."""
    model = tuned(lib, kind)
    with saved(model) as folder:
        tensors = tensors_of(folder)
    theirs = tensors["prompt_embeddings"]
    if kind == "multitask":  # the parts are saved, and not the product
        theirs = theirs * (tensors["prefix_task_cols"][TASK] @ tensors["prefix_task_rows"][TASK])
    return held(flat(prompt_of(encoder_of(model))), theirs)


def reloaded(lib, kind):
    """Logits of the prompt loaded again, which is then in float32."""
    model = tuned(lib, kind)
    with saved(model) as folder:
        theirs = their_logits(loaded(lib, folder), asked(lib, kind, ROWS))
    return held(our_logits(model), theirs, SINGLE)


def trained_on(lib, kind):
    """The numbers that get a gradient before saving, which is what our files keep, and after loading."""
    model = tuned(lib, kind)
    with saved(model) as folder:
        after = loaded(lib, folder).get_nb_trainable_parameters()[0]
    words = "all of it is frozen when loaded; fill a fresh adapter by hand"
    if kind != "cartridge":
        words = "the encoder is not in the file, and training cannot go on; keep prompt_encoder.state_dict() beside it"
    return Finding(model.get_nb_trainable_parameters()[0], after, otherwise=CONVENTION, words=words)


# Single ones.


def encoder_kept(lib):
    """P-tuning's encoder by way of its state_dict: the advice, tried."""
    model, kind = tuned(lib, "P-tuning, LSTM"), "P-tuning, LSTM"
    again = lib.peft.get_peft_model(peer(lib), config_of(lib, kind)).double().eval()
    again.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    return held(our_logits(model), their_logits(again, asked(lib, kind, ROWS)))


def filled_by_hand(lib, kind):
    """A fresh adapter in float64, filled from the file: the advice for what loading takes away, tried."""
    model = tuned(lib, kind)
    with saved(model) as folder:
        slots = lib.torch.as_tensor(tensors_of(folder)["prompt_embeddings"])
    again = lib.peft.get_peft_model(peer(lib), config_of(lib, kind)).double().eval()
    if kind == "cartridge":
        encoder_of(again).load_prompt_embeddings(slots)
    else:
        encoder_of(again).embedding.weight.data.copy_(slots)
    if again.get_nb_trainable_parameters() != model.get_nb_trainable_parameters():
        raise ValueError("the fresh adapter does not train what the saved one did")
    return held(our_logits(model), their_logits(again, asked(lib, kind, ROWS)))


def dtype(lib):
    """Of a prompt that was saved in float64, when it is loaded for a model in float64."""
    model = tuned(lib, "prompt tuning")
    with saved(model) as folder:
        stored = tensors_of(folder)["prompt_embeddings"].dtype
        theirs = encoder_of(loaded(lib, folder)).embedding.weight.dtype
    words = "a prompt is held in float32 whatever the file holds; fill a fresh adapter in float64 by hand"
    return Finding(str(stored), str(theirs).removeprefix("torch."), otherwise=CONVENTION, words=words)


def trainable_asked(lib):
    """`from_pretrained(..., is_trainable=True)`."""
    with saved(tuned(lib, "prompt tuning")) as folder:
        theirs = attempt(lambda: lib.peft.PeftModel.from_pretrained(peer(lib), str(folder), is_trainable=True))
    words = "refused for every kind of prompt; fill a fresh adapter by hand, which can be trained on"
    return Finding(ACCEPTED, theirs, otherwise=CONVENTION, words=words)


def saved_while_training(lib):
    """Two saves of one model in train mode, with dropout in P-tuning's LSTM."""
    model = tuned(lib, "P-tuning, LSTM", encoder_dropout=0.5).train()
    with saved(model) as one, saved(model) as two:
        first, second = (tensors_of(folder)["prompt_embeddings"] for folder in (one, two))
    words = "save_pretrained runs the encoder as it stands, and stores one draw of its dropout; call model.eval() first"
    return held(first, second, EXACT, DEFECT, words)


def no_task(lib):
    """A folder whose configuration has no task_type: our logits behind the prompt, and theirs."""
    model = tuned(lib, "prompt tuning")
    with saved(model) as folder:
        theirs = their_logits(loaded(lib, changed(folder, task_type=None)), asked(lib, "prompt tuning", ROWS))
    words = 'the prompt is left out and nothing is said; write "task_type": "CAUSAL_LM" into adapter_config.json'
    return held(our_logits(model), theirs, SINGLE, DEFECT, words)


def beside_a_model(lib):
    """A prompt saved into the folder of a model, which is then opened again."""
    with tempfile.TemporaryDirectory() as folder:
        peer(lib).save_pretrained(folder)
        tuned(lib, "prompt tuning").save_pretrained(folder)
        theirs = attempt(lambda: lib.transformers.AutoModelForCausalLM.from_pretrained(folder))
    words = "the model can no longer be loaded by its folder; save every prompt into a folder of its own"
    return Finding(ACCEPTED, theirs, otherwise=DEFECT, words=words)


def cpt_slots(lib):
    """CPT's file read as prompt tuning's: the plain slots are there, and no ball to stay in."""
    model = tuned(lib, "CPT")
    with saved(model) as folder:
        facts = {"peft_type": "PROMPT_TUNING"}
        theirs = their_logits(loaded(lib, changed(folder, **facts)), asked(lib, "prompt tuning", ROWS))
    return held(our_logits(model), theirs, SINGLE)


# Files that are wrong: `accepted`, or what is said.


def put_into(lib, kind, make, **facts):
    """What PEFT says to a folder in which make(tensors) stands for the tensors."""
    with saved(tuned(lib, kind)) as folder:
        changed(folder, make(tensors_of(folder)), **facts)
        return attempt(lambda: loaded(lib, folder)(lib.torch.as_tensor(ROWS[:1])))


def extra_tensor(lib):
    theirs = put_into(lib, "prompt tuning", lambda tensors: tensors | {"lm_head.bias": np.ones(3, np.float32)})
    return refusal(None, theirs, CONVENTION, f"what does not belong is passed over, {REFUSE}")


def integer_tensor(lib):
    theirs = put_into(lib, "prompt tuning", lambda tensors: {n: x.astype(np.int64) for n, x in tensors.items()})
    return refusal(None, theirs, CONVENTION, f"integers become slots, {REFUSE}")


def nan_tensor(lib):
    broken = lambda tensors: {n: np.full_like(x, np.nan) for n, x in tensors.items()}
    mine = attempt(SoftPrompt(np.full((P, CONFIG.n_embd), np.nan)).check)
    return refusal(mine, put_into(lib, "prompt tuning", broken), CONVENTION, f"NaN is loaded, {REFUSE}")


def broadcast(lib):
    """A cartridge of which the file holds one column."""
    narrow = lambda tensors: {n: x[:, :1].copy() for n, x in tensors.items()}
    mine = attempt(lambda: kv_from_flat(np.ones((P, 1)), CONFIG.n_layer, CONFIG.n_head))
    words = "each slot's number is repeated over all layers and channels; hold the shape against [n, 2·L·C] before"
    return refusal(mine, put_into(lib, "cartridge", narrow), DEFECT, words)


def unknown_encoder(lib):
    mine = attempt(lambda: kind_of({"embedding": None, "gru_head": None}, CONFIG))
    theirs = put_into(lib, "P-tuning, MLP", lambda tensors: tensors, encoder_reparameterization_type="GRU")
    return refusal(mine, theirs, CONVENTION, "only slots are loaded, so what made them is not looked at")
