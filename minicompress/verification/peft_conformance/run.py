"""The table of checks, and how all of them are asked. One small function each; a check knows nothing of the others."""

import warnings
from functools import partial

from minicompress.verification.peft_conformance import adaption, folders, passes, traps, writing
from minicompress.verification.peft_conformance.bench import KINDS, Libraries
from minicompress.verification.peft_conformance.finding import examined

EVERY_KIND = {  # asked of each kind of prompt
    "logits, rows padded on the right": passes.logits,
    "a batch against its rows alone": passes.rows_alone,
    "the loss that is returned": passes.loss,
    "the gradient of all that is trained": passes.gradient,
    "numbers trained": passes.numbers_trained,
    "logits, rows padded on the left": passes.left,
    "logits, padded on the left, positions given": passes.left_with_positions,
    "greedy text, no cache": writing.uncached,
    "greedy text, with the cache": writing.cached,
    "greedy text, a batch padded on the left": writing.left_batch,
    "the saved tensor": folders.file,
    "logits after loading": folders.reloaded,
    "numbers trained after loading": folders.trained_on,
}
SINGLE_KINDS = [  # (check, kind of prompt, function of the libraries and that kind)
    ("a text's own slots against the text", "prompt tuning", passes.text_in_front),
    ("a text's own slots against the text", "prefix tuning", passes.text_in_front),
    ("position_ids 3, 4, ... given", "prompt tuning", passes.positions_given),
    ("position_ids 3, 4, ... given", "prefix tuning", passes.positions_given),
    ("a fresh adapter, filled by hand", "prompt tuning", folders.filled_by_hand),
    ("a fresh adapter, filled by hand", "cartridge", folders.filled_by_hand),
]
SINGLES = [  # (check, kind of prompt, function of the libraries)
    ("padded on the left, by inputs_embeds and positions", "prompt tuning", passes.left_by_hand),
    ("greedy text, pads before the slots by inputs_embeds", "prompt tuning", writing.left_by_hand),
    ("init_weights zero, against no prompt", "prefix tuning", passes.zero_prefix),
    ("init_weights zero, against keys and values of zero", "prefix tuning", passes.zero_prefix_as_keys),
    ("precision of a float64 model's loss", "prompt tuning", passes.loss_dtype),
    ("adapter_names in one batch", "prompt tuning", traps.adapter_names),
    ("tasks in one batch", "multitask", traps.tasks_in_one_batch),
    ("made without task_type", "prompt tuning", traps.no_task),
    ("loaded without task_type", "prompt tuning", folders.no_task),
    ("n + T above n_positions", "prompt tuning", traps.too_long),
    ("num_layers too large", "prefix tuning", traps.too_many_layers),
    ("num_layers too small", "prefix tuning", traps.too_few_layers),
    ("zero slots", "prompt tuning", traps.zero_slots),
    ("precision of a loaded prompt", "prompt tuning", folders.dtype),
    ("loaded with is_trainable=True", "prompt tuning", folders.trainable_asked),
    ("the encoder kept by its state_dict", "P-tuning, LSTM", folders.encoder_kept),
    ("saved twice while training", "P-tuning, LSTM", folders.saved_while_training),
    ("saved into a model's folder", "prompt tuning", folders.beside_a_model),
    ("an extra tensor in the file", "prompt tuning", folders.extra_tensor),
    ("integers in the file", "prompt tuning", folders.integer_tensor),
    ("NaN in the file", "prompt tuning", folders.nan_tensor),
    ("one column in the file", "cartridge", folders.broadcast),
    ("an unknown encoder in the configuration", "P-tuning, MLP", folders.unknown_encoder),
    ("its file read as prompt tuning's", "CPT", folders.cpt_slots),
    ("the ball of what is trained", "CPT", traps.cpt_ball),
    ("input_type_mask after a pass", "CPT", traps.cpt_mask),
    ("loss, context's types not ending with a label", "CPT", traps.cpt_types),
    ("loss, adapter not called default", "CPT", traps.cpt_name),
    ("a closed gate, against no prompt", adaption.KIND, adaption.closed_gate),
    ("an open gate, added behind c_proj", adaption.KIND, adaption.formula),
    ("an open gate, as in the paper", adaption.KIND, adaption.paper),
    ("greedy text, cache against none", adaption.KIND, adaption.cached),
    ("logits after loading", adaption.KIND, adaption.saved_and_loaded),
]


def catalogue(lib: Libraries):
    """(check, kind, what to call) for every line of the table; kinds that this PEFT has not are left out."""
    known = {*lib.kinds, *([adaption.KIND] if hasattr(lib.peft, "AdaptionPromptConfig") else [])}
    lines: list[tuple] = [(check, kind, ask, (lib, kind)) for check, ask in EVERY_KIND.items() for kind in KINDS]
    lines += [(check, kind, ask, (lib, kind)) for check, kind, ask in SINGLE_KINDS]
    lines += [(check, kind, ask, (lib,)) for check, kind, ask in SINGLES]
    return [line for line in lines if line[1] in known], [k for k in (*KINDS, adaption.KIND) if k not in known]


def examine(lib):
    """-> the Rows of all checks, and the kinds that this PEFT has not."""
    (lines, absent), threads = catalogue(lib), lib.torch.get_num_threads()
    lib.torch.set_num_threads(1)  # for models this small more threads only wait for one another
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [examined(check, kind, partial(ask, *given)) for check, kind, ask, given in lines], absent
    finally:
        lib.torch.set_num_threads(threads)
