"""PEFT's folders against PEFT: what it saves we read to the bit, what we save it loads and computes with as we do."""

import json

import numpy as np
import pytest
from peer_models import SHAPES, mean_loss, peer, to_numpy, tokens, torch, transformers, tree_of

from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.model import positions
from minicompress.verification.oracles import relative_error
from weights_loader import KV_TYPES, LoadError, load_peft_prompt, peft_config, save_peft_prompt

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
P, B, T = 4, 3, 6
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = {
    "prompt tuning": ("PromptTuningConfig", {}),
    "P-tuning, MLP": ("PromptEncoderConfig", {"encoder_hidden_size": 7}),
    "P-tuning, LSTM": ("PromptEncoderConfig", {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 5}),
    "prefix, flat": ("PrefixTuningConfig", {}),
    "prefix, projected": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 7}),
    "cartridge, all trained": ("CartridgeConfig", {"num_frozen_tokens": 0}),
    "cartridge, two frozen": ("CartridgeConfig", {"num_frozen_tokens": 2}),
    "cartridge, all frozen": ("CartridgeConfig", {"num_frozen_tokens": P}),
}
each_kind = pytest.mark.parametrize("kind", [k for k, (name, _) in KINDS.items() if hasattr(peft, name)])
each_type = pytest.mark.parametrize(
    "peft_type", [t for t in ("PROMPT_TUNING", "P_TUNING", *KV_TYPES) if t in list(peft.PeftType)]
)
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_code = pytest.mark.parametrize("code", DTYPES)


def trained(config, kind, seed=0):
    """A model inside PEFT, after three steps of training, in evaluation mode: dropout would be saved along."""
    name, facts = KINDS[kind]
    facts = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P} | facts
    tuned = peft.get_peft_model(peer(config, seed), getattr(peft, name)(**facts))
    ids = torch.as_tensor(tokens(config, seed, B, T))
    weights = [w for w in tuned.prompt_encoder.parameters() if w.requires_grad and w.numel()]
    optimiser = torch.optim.Adam(weights, lr=0.1) if weights else None
    for _ in range(3 if weights else 0):
        optimiser.zero_grad()
        mean_loss(tuned(ids).logits[:, -T:-1], ids[:, 1:]).backward()
        optimiser.step()
    return tuned.eval()


def our_logits(model, config, array, peft_type, ids):
    """The logits (B, T, V) of ids behind a prompt as `load_peft_prompt` gives it, in float64."""
    params, array = tree_of(model), array.astype(np.float64)
    if peft_type in KV_TYPES:
        kv = array.reshape(P, config.n_layer, 2, config.n_head, -1).transpose(1, 2, 3, 0, 4)  # (L, 2, H, P, D)
        past = [(k[None], v[None]) for k, v in kv]
    else:
        _, past, _ = forward(params, config, array[None] + positions(params, P), keep="nothing")
    return logits(params, forward(params, config, embed(params, ids, P), past, keep="nothing")[0])


def their_logits(tuned, ids):
    """The logits (B, T, V) of PEFT, whose prompt tuning gives P more, with the prompt in double precision."""
    tuned.prompt_encoder.double()
    with torch.no_grad():
        return to_numpy(tuned(torch.as_tensor(ids)).logits[:, -T:])


@each_kind
@each_code
@pytest.mark.parametrize("config", SHAPES[:2], ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def test_what_peft_saves_is_read_and_saved_again_to_the_bit(config, kind, code, tmp_path):
    tuned = trained(config, kind)
    tuned.prompt_encoder.to(DTYPES[code])
    tuned.save_pretrained(tmp_path / "theirs")
    prompt = load_peft_prompt(tmp_path / "theirs")
    theirs = tuned.get_prompt_embedding_to_save("default").detach()
    assert theirs.dtype == DTYPES[code] and prompt.dtype == code
    assert prompt.array.tobytes() == to_numpy(theirs.double() if code == "F64" else theirs.float()).tobytes()
    save_peft_prompt(tmp_path / "ours", *prompt)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@each_kind
@each_shape
def test_what_peft_trained_computes_the_same_here(config, kind, tmp_path):
    tuned, ids = trained(config, kind), tokens(config, 5, B, T)
    tuned.prompt_encoder.double()
    tuned.save_pretrained(tmp_path)
    array, facts, _ = load_peft_prompt(tmp_path)
    assert facts["num_virtual_tokens"] == P and facts["token_dim"] == config.n_embd
    ours = our_logits(tuned.get_base_model(), config, array, facts["peft_type"], ids)
    assert relative_error(ours, their_logits(tuned, ids)) <= 1e-10


@each_type
@each_code
@each_shape
@pytest.mark.parametrize("told", [False, True], ids=["least config", "with sizes"])
def test_what_is_saved_here_computes_the_same_in_peft(config, code, peft_type, told, tmp_path):
    model, ids = peer(config, 1), tokens(config, 2, B, T)
    x = np.random.default_rng(3).standard_normal(
        (P, (2 * config.n_layer if peft_type in KV_TYPES else 1) * config.n_embd)
    )
    sizes = {"token_dim": config.n_embd, "num_layers": config.n_layer, "num_attention_heads": config.n_head}
    facts = peft_config(peft_type, P, **(sizes | {"num_transformer_submodules": 1} if told else {}))
    save_peft_prompt(tmp_path, x.astype(np.float32), facts, code)  # PEFT holds prompts in single precision
    array = load_peft_prompt(tmp_path).array
    tuned = peft.PeftModel.from_pretrained(model, tmp_path)
    assert to_numpy(tuned.prompt_encoder["default"].embedding.weight).tobytes() == array.astype(np.float32).tobytes()
    ours = our_logits(model, config, array, peft_type, ids)
    assert relative_error(ours, their_logits(tuned, ids)) <= 1e-10


@each_code
def test_rounding_is_pytorch_s(code, tmp_path):
    x = np.random.default_rng(0).standard_normal((P, 999)).astype(np.float32)
    save_peft_prompt(tmp_path, x, peft_config("PROMPT_TUNING", P), code)
    theirs = torch.as_tensor(x).to(DTYPES[code]).double()
    np.testing.assert_array_equal(load_peft_prompt(tmp_path).array, theirs.numpy())


# What PEFT does that a reader of its files must know.


def test_without_a_task_peft_leaves_the_prompt_out(tmp_path):
    config, ids = SHAPES[0], torch.as_tensor(tokens(SHAPES[0], 2, B, T))
    facts = peft_config("PROMPT_TUNING", P)
    save_peft_prompt(tmp_path, np.ones((P, config.n_embd)), facts)
    del facts["task_type"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    tuned = peft.PeftModel.from_pretrained(peer(config, 1), tmp_path)
    assert torch.equal(tuned(ids).logits, peer(config, 1)(ids).logits)
    with pytest.raises(LoadError, match="PEFT leaves the prompt out"):
        save_peft_prompt(tmp_path, np.ones((P, config.n_embd)), facts)


def test_a_cpt_prompt_is_read_under_the_other_name(tmp_path):
    """As its refusal advises: at inference CPT is prompt tuning with the embeddings it saved."""
    config, ids = SHAPES[0], tokens(SHAPES[0], 2, B, T)
    cpt = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3, 4], cpt_tokens_type_mask=[1, 2, 3, 4])
    tuned = peft.get_peft_model(peer(config, 1), cpt).eval()
    with torch.no_grad():
        tuned.prompt_encoder["default"].delta_embedding.weight.normal_()
    tuned.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="CPT"):
        load_peft_prompt(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"CPT"', '"PROMPT_TUNING"'))
    ours = our_logits(tuned.get_base_model(), config, load_peft_prompt(tmp_path).array, "PROMPT_TUNING", ids)
    theirs = peft.PeftModel.from_pretrained(peer(config, 1), tmp_path)
    assert relative_error(ours, their_logits(theirs, ids)) <= 1e-10
    assert relative_error(ours, to_numpy(tuned(torch.as_tensor(ids)).logits[:, -T:])) <= 1e-6  # float32 until saved


@pytest.mark.parametrize("kind", ["MultitaskPromptTuningConfig", "AdaptionPromptConfig", "LoraConfig"])
def test_other_adapters_that_peft_saves_are_refused_by_name(kind, tmp_path):
    facts = {"AdaptionPromptConfig": {"adapter_len": 2, "adapter_layers": 1}, "LoraConfig": {}}
    kind_config = getattr(peft, kind)(task_type="CAUSAL_LM", **facts.get(kind, {"num_virtual_tokens": P}))
    peft.get_peft_model(peer(SHAPES[0], 0), kind_config).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=f'peft_type is "{kind_config.peft_type.value}", not one of'):
        load_peft_prompt(tmp_path)


def test_modules_that_were_trained_along_are_refused(tmp_path):
    facts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, modules_to_save=["lm_head"])
    peft.get_peft_model(peer(SHAPES[0], 0), facts).save_pretrained(tmp_path)
    with pytest.raises(
        LoadError, match=r"lm_head\.weight', 'prompt_embeddings', expected the one tensor.*modules_to_save"
    ):
        load_peft_prompt(tmp_path)


@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "CAUSAL_LM"])
def test_slots_for_an_encoder_and_a_decoder_are_refused(task, tmp_path):
    facts = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P, num_transformer_submodules=2)
    peft.get_peft_model(peer(SHAPES[0], 0), facts).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="an encoder and a decoder"):
        load_peft_prompt(tmp_path)


def test_a_prompt_saved_while_training_carries_its_dropout(tmp_path):
    """P-tuning's LSTM: save_pretrained runs the encoder as it stands, so it must stand in evaluation mode."""
    facts = {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.5}
    facts = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, **facts)
    tuned = peft.get_peft_model(peer(SHAPES[0], 0), facts)
    for mode in (tuned.train, tuned.eval):
        mode()
        for name in ("one", "two"):
            tuned.save_pretrained(tmp_path / name)
        one, two = (load_peft_prompt(tmp_path / name).array for name in ("one", "two"))
        assert (one == two).all() == (not tuned.training)


def test_a_model_s_folder_is_spoilt_by_a_prompt(tmp_path):
    """Why none is saved there: transformers no longer loads the model."""
    model = peer(SHAPES[0], 0)
    model.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="there is a model here"):
        save_peft_prompt(tmp_path, np.ones((P, SHAPES[0].n_embd)), peft_config("PROMPT_TUNING", P))
    peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="does not support prompt learning"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
