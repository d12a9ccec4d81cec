"""One transformer block: attention, then an MLP, each added to the residual stream."""

from minicompress.arrays import array_module
from minicompress.layers.attention import attention_in_pieces, attention_in_pieces_backward
from minicompress.layers.gelu import gelu, gelu_backward
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.layers.linear import linear, linear_backward
from minicompress.trees import child


def block(x, params, config, past=None, key_mask=None, frozen=True, attended=None):
    """x (B, T, C) -> x, present, cache. `present` are this block's keys and values (B, H, T, D).

    attended: a list that receives what attention adds to x.
    """
    eps, cache = config.layer_norm_epsilon, {}
    a, cache["ln_1"] = layernorm(x, **params["ln_1"], eps=eps)
    a, present, cache["attn"] = self_attention(a, params["attn"], config.n_head, past, key_mask, frozen)
    if attended is not None:
        attended.append(a.copy())
    a += x
    m, cache["ln_2"] = layernorm(a, **params["ln_2"], eps=eps)
    m, cache["mlp"] = mlp(m, params["mlp"], frozen)
    m += a
    return m, present, cache


def block_backward(dout, cache, dpresent=None, grads=None, dattended=None):
    """dout (B, T, C) -> dx, dpast. `dpresent` is what later tokens asked of this block's keys and values.

    dattended (B, T, C): what is asked of attention's own output, before x.
    """
    da = mlp_backward(dout, cache["mlp"], child(grads, "mlp"))
    da = layernorm_backward(da, cache["ln_2"], child(grads, "ln_2"))
    da += dout  # the residual stream passes the gradient on unchanged
    dadded = da if dattended is None else da + dattended
    dx, dpast = self_attention_backward(dadded, cache["attn"], dpresent, child(grads, "attn"))
    dx = layernorm_backward(dx, cache["ln_1"], child(grads, "ln_1"))
    dx += da
    return dx, dpast


def self_attention(x, params, n_head, past=None, key_mask=None, frozen=True):
    """x (B, T, C) -> out (B, T, C), present, cache."""
    B, T, C = x.shape
    qkv, cache_qkv = linear(x, **params["c_attn"], frozen=frozen)  # (B, T, 3C)
    q, k, v = qkv.reshape(B, T, 3, n_head, -1).transpose(2, 0, 3, 1, 4)  # each (B, H, T, D)
    out, cache_attention = attention_in_pieces(q, k, v, past, key_mask)
    out = out.swapaxes(1, 2).reshape(B, T, C)  # the heads side by side again
    out, cache_proj = linear(out, **params["c_proj"], frozen=frozen)
    return out, (k, v), {"c_attn": cache_qkv, "attention": cache_attention, "c_proj": cache_proj}


def self_attention_backward(dout, cache, dpresent=None, grads=None):
    """dout (B, T, C) -> dx (B, T, C), dpast."""
    B, T, C = dout.shape
    _, k, *_ = cache["attention"]
    dout = linear_backward(dout, cache["c_proj"], child(grads, "c_proj"))
    dout = dout.reshape(B, T, k.shape[1], -1).swapaxes(1, 2)  # (B, H, T, D)
    dq, dk, dv, dpast = attention_in_pieces_backward(dout, cache["attention"])
    if dpresent is not None:
        dk += dpresent[0]
        dv += dpresent[1]
    dqkv = array_module(dq).stack([d.swapaxes(1, 2) for d in (dq, dk, dv)], axis=2).reshape(B, T, 3 * C)
    return linear_backward(dqkv, cache["c_attn"], child(grads, "c_attn")), dpast


def mlp(x, params, frozen=True):
    """x (B, T, C) -> (B, T, C) through one hidden layer of width 4C."""
    x, cache_fc = linear(x, **params["c_fc"], frozen=frozen)
    x, cache_gelu = gelu(x)
    x, cache_proj = linear(x, **params["c_proj"], frozen=frozen)
    return x, {"c_fc": cache_fc, "gelu": cache_gelu, "c_proj": cache_proj}


def mlp_backward(dout, cache, grads=None):
    dout = linear_backward(dout, cache["c_proj"], child(grads, "c_proj"))
    dout = gelu_backward(dout, cache["gelu"])
    return linear_backward(dout, cache["c_fc"], child(grads, "c_fc"))
