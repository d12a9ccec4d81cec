"""What the commands share: opening what a user names, and saying plainly what is wrong with it."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import weights_loader
from minicompress.arrays import device_module, to_host
from minicompress.compression.problem import Model, check_positions, place
from minicompress.compression.texts import read_text
from minicompress.gpt2 import Config
from minicompress.prompts.layout import kv_from_flat
from minicompress.prompts.low_rank_weights import LowRankWeights
from minicompress.prompts.soft_prompt import SoftPrompt, bytes_hash
from minicompress.prompts.template import parse
from minicompress.trees import flatten, tree_map
from minicompress.verification.setup import Setup


def open_model(folder=None, device="cpu", dtype="float32", words=True):
    """A model folder in Hugging Face layout, default the embedded model, its weights on the device."""
    folder = Path(folder or weights_loader.EMBEDDED)
    params, raw = weights_loader.load(folder, dtype)
    xp = device_module(device)
    if xp is not np:
        params = tree_map(xp.asarray, params)
    tokenizer = weights_loader.load_tokenizer(folder) if words else None
    hashed = cache(lambda: weights_loader.model_hash(folder))
    return Model((params, Config.from_dict(raw)), tokenizer, hashed)


def open_prompt(path, model):
    """`read_prompt`, with its arrays where the model is, in its dtype."""
    prompt = read_prompt(path, model)
    here = lambda part: None if part is None else place(part, model.wte)
    return replace(prompt, slots=here(prompt.slots), beta=here(prompt.beta), raw=here(prompt.raw))


def open_standing(path, model):
    """What a context has become -> the model that reads it, and a SoftPrompt or that model's LowRankWeights."""
    if Path(path).is_file() and (weights := read_weights(path, model)):
        weights = replace(weights, low=place(weights.low, model.wte))
        return model._replace(pair=weights.reader(*model.pair)), weights
    return model, open_prompt(path, model)


def read_weights(path, model):
    """Low-rank weights of this very model; None where the file is something else."""
    if not LowRankWeights.names(path):
        return None
    weights = LowRankWeights.load(path)
    if (made_for := weights.provenance.get("model")) != model.hash:
        raise ValueError(f"{path} is of the model {made_for}; this one is {model.hash}: name its own with --model")
    weights.check_model(model.pair[1], path)
    return weights


def read_prompt(path, model):
    """A soft prompt for this very model, or a PEFT folder as one, on the host, in the file's own numbers."""
    if Path(path).is_dir():
        prompt = peft_prompt(path, model.pair[1])
    else:
        prompt = SoftPrompt.load(path)
        made_for = prompt.provenance.get("model")
        if made_for is None:
            raise ValueError(f"{path} does not name its model; save it with the model's hash in its provenance")
        if made_for != model.hash:
            raise ValueError(
                f"{path} was made for the model {made_for}; this one is {model.hash}: name its own with --model"
            )
    prompt.check_model(model.pair[1], path)
    return prompt


def peft_prompt(folder, config):
    """A PEFT folder as a SoftPrompt: keys and values where PEFT keeps a prefix, else embeddings."""
    given, facts, dtype = weights_loader.load_peft_prompt(folder)
    sizes = {"token_dim": config.n_embd, "num_layers": config.n_layer, "num_attention_heads": config.n_head}
    for name, ours in sizes.items():
        if facts.get(name, ours) not in (ours, None):
            raise ValueError(f"{folder}: its {name} is {facts[name]}, this model's {ours}; name its own with --model")
    provenance = {"peft": facts, "dtype": dtype}
    if facts["peft_type"] in weights_loader.EMBEDDING_TYPES:
        return SoftPrompt(given, provenance=provenance)
    if given.shape[1] != 2 * config.n_layer * config.n_embd:
        raise ValueError(
            f"{folder}: its prefix is {given.shape[1]:,} wide; this model's {config.n_layer} layers of {config.n_embd} "
            f"need 2 x {config.n_layer} x {config.n_embd} = {2 * config.n_layer * config.n_embd:,}"
        )
    return SoftPrompt(kv_from_flat(given, config.n_layer, config.n_head), "kv", provenance=provenance)


def row_of(prompt, tokenizer, text):
    """The token ids of a text, placed by the prompt's template where it has one: -1-j is then its slot j.

    Raises ValueError where that template wants more than one text.
    """
    if prompt is None or not prompt.template:
        return tokenizer.encode(text).ids
    template = parse(prompt.template)
    if len(template.fields) != 1:
        fields = ", ".join(template.fields) or "none"
        raise ValueError(f"one text cannot fill the prompt's template {prompt.template!r}, whose fields are: {fields}")
    return template.row(tokenizer, {template.fields[0]: text})


def labels_of(prompt, tokenizer):
    """{label: tokens of its word} of a prompt that was tuned on labels; {} of any other."""
    words = prompt.provenance.get("verbalizer")
    if not isinstance(words, dict) or not all(isinstance(word, str) and word for word in words.values()):
        return {}
    return {label: tokenizer.encode(word).ids for label, word in words.items()}


def row_with_room(model, prompt, text, tokens):
    """`row_of` a text. Raises ValueError where behind it there is no room for so many new tokens."""
    row = row_of(prompt, model.tokenizer, text)
    check_positions(model.pair[1], **before(prompt), text_tokens=len(row), new_tokens=tokens)
    return row


def read_batch(path, model, tokens):
    """Lines {"prompt": FILE or null, "text": …} -> for each line its text, its prompt or None, its row of token ids.

    A prompt that several lines name is opened once. Raises ValueError with the file's name and line.
    """
    opened, found = {None: None}, []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            name, text = batch_line(line)
            if name not in opened:
                opened[name] = open_prompt(name, model)
            row = row_with_room(model, opened[name], text, tokens)
            if not row:
                raise ValueError("its text is empty; there is nothing to continue")
        except (ValueError, OSError, RecursionError) as reason:
            raise ValueError(f"{path}, line {number}: {reason}") from None
        found.append((text, opened[name], row))
    return zip(*found, strict=True)


def batch_line(line):
    """One line of a batch -> the name of its prompt or None, and its text."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as reason:
        raise ValueError(f"{reason.msg} at column {reason.colno}; write JSON") from None
    if not isinstance(record, dict) or not {"text"} <= record.keys() <= {"prompt", "text"}:
        raise ValueError('write {"prompt": "FILE" or null, "text": "…"}')
    name, text = record.get("prompt"), record["text"]
    if not isinstance(name, str | None) or not isinstance(text, str):
        raise ValueError("its prompt must be the name of a file, or null, and its text a text")
    for words in (name or "", text):  # half of a surrogate pair is JSON, but no text
        check_words("what it holds", words)
    return name, text


def before(prompt):
    """The positions in front of a text that a prompt takes, by the name that `check_positions` calls them."""
    if prompt is None or not prompt.start:
        return {}
    return {"slots" if prompt.positions == "compact" else "positions_before_the_text": prompt.start}


def check_choice(name, value, *allowed):
    """Raises ValueError where an option is none of its values."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it can be {' or '.join(allowed)}")


def check_words(name, text):
    """Raises ValueError where an argument is not text: bytes of the command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def check_at_least(least, **options):
    """Raises ValueError where an option is smaller, infinite or not a number; an absent one, None, is fine."""
    for name, value in options.items():
        if value is not None and not least <= value < float("inf"):
            number = "" if math.isfinite(value) else "a finite number of "
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be {number}at least {least}")


def check_out(path, option="--out "):
    """Raises ValueError where no file of that name can be written."""
    if path.is_dir():
        raise ValueError(f"{option}{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option}{path}: there is no folder {path.parent}")


def check_trace_options(loss, dtype, gradients, teacher_context, teacher, temperature=1.0):
    """Raises ValueError where the options of `trace` do not fit together."""
    check_choice("--loss", loss, "ce", "kl")
    check_choice("--dtype", dtype, "float64", "float32")
    check_choice("--gradients", gradients, "prompt", "all")
    if loss == "kl" and teacher_context is None:
        raise ValueError("--loss kl needs --teacher-context FILE, what the teacher reads before every row")
    if loss == "ce" and (teacher_context or teacher):
        raise ValueError("--teacher and --teacher-context belong to --loss kl; this is --loss ce")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"--temperature is {temperature}; it must be a finite number above 0")
    if loss == "ce" and temperature != 1:
        raise ValueError("--temperature belongs to --loss kl; this is --loss ce")


def open_setup(facts, device="cpu"):
    """What `trace` was asked, by a trace's facts, opened -> Setup, {part: hash of its weights}.

    Raises ValueError with the arithmetic where something does not fit into n_positions.
    """
    dtype, rows, context, decode = (facts.get(name) for name in ("dtype", "tokens", "teacher_context", "decode"))
    opened = open_model(facts["model"], device, dtype, words=False)
    stands = open_prompt(facts["prompt"], opened) if facts["prompt"] else None
    new = {"new_tokens": decode} if decode else {}
    check_positions(opened.pair[1], **before(stands), tokens=max(map(len, rows)), **new)
    guide = open_model(facts["teacher"], device, dtype, words=False) if facts["teacher"] else None
    if guide and guide.pair[1].vocab_size != opened.pair[1].vocab_size:
        sizes = f"{guide.pair[1].vocab_size:,} tokens and the model {opened.pair[1].vocab_size:,}"
        raise ValueError(f"the teacher has {sizes}; distillation needs one vocabulary")
    if context:
        longest = max(sum(i >= 0 for i in row) for row in rows)  # a teacher reads no slots
        check_positions((guide or opened).pair[1], teacher_context=len(context), tokens=longest)
    setup = Setup(opened.pair, rows, stands, facts["labels"], guide and guide.pair, context, facts["gradients"],
                  facts["temperature"], decode, facts["steps"], facts["twice"])  # fmt: skip
    hashes = {"model": opened.hash, "teacher": (guide or opened).hash if context else None}
    return setup, hashes | {"prompt": stands and bytes_hash(b"".join(array.tobytes() for array in arrays_of(stands)))}


def arrays_of(prompt):
    """Everything of a prompt that a trace depends on, on the host, in one dtype whatever the trace's is."""
    arrays = (prompt.slots, prompt.beta, *flatten(prompt.raw or {}).values())
    return [to_host(array).astype(np.float32) for array in arrays if array is not None]


def check_same_question(facts, others):
    """Raises ValueError where two traces say that they are of different rows, labels, teachers or steps."""
    asked = ("tokens", "labels", "teacher_context", "temperature", "decode", "steps", "hashes")
    for name in asked if facts and others else ():
        if facts.get(name) != others.get(name):
            what = "weights" if name == "hashes" else name.replace("_", " ")
            raise ValueError(f"the two are traces of different {what}; trace both with the same")


def setup_again(facts, paths):
    """-> the Setup of a trace that is here already and "", or None and why not. paths: where its parts are now."""
    if "tokens" not in facts:
        return None, "neither file says what it is a trace of; the first should be one that `trace` wrote"
    try:
        setup, hashes = open_setup(facts | paths)
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as reason:
        advice = "" if "--model" in str(reason) else "; say where its parts are with --model, --prompt, --teacher"
        return None, f"{reason}{advice}"
    known = facts.get("hashes") if isinstance(facts.get("hashes"), dict) else {}
    if changed := [part for part, value in hashes.items() if known.get(part) != value]:
        return None, f"the {changed[0]} is not, or no longer, the one that was traced"
    return setup, ""


def read_trace_rows(tokens, labels=None, context=None):
    """-> rows, labels or None, context or None; raises ValueError by file and row where they are not token ids."""
    rows = read_ids(tokens)
    if not rows or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(f"{tokens}: a list of rows is needed, each a list of at least one token id")
    wanted = read_ids(labels) if labels else None
    if wanted is not None and [len(row) if isinstance(row, list) else None for row in wanted] != list(map(len, rows)):
        raise ValueError(f"{labels}: labels must have the same rows and lengths as {tokens}")
    before = read_ids(context) if context else None
    if before is not None and (not before or not all(type(i) is int and abs(i) < 2**31 for i in before)):
        raise ValueError(f"{context}: one list of at least one token id is needed")
    for path, table in ((tokens, rows), (labels, wanted or [])):
        for number, row in enumerate(table):
            if not all(type(i) is int and abs(i) < 2**31 for i in row):
                raise ValueError(f"{path}: row {number} holds something that is not an integer below 2³¹")
    return rows, wanted, before


def read_ids(path):
    """A parsed JSON list."""
    try:
        found = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as reason:
        raise ValueError(f"{path} is not JSON: {reason}") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} holds a {type(found).__name__}; a list is needed")
    return found
