"""Every divergence against PyTorch: its own `kl_div` where it has one, and its gradient by autograd throughout."""

import pytest
from peer_models import assert_equal, to_numpy, torch

from checks import DIVERGENCES
from minicompress.layers import divergences
from minicompress.layers.losses import log_softmax

pytestmark = pytest.mark.peers


def kl_of(q, p):
    """Σ p (log p - log q) of log-probabilities, theirs: the input is the student's."""
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def bucketed(x, top):
    """The top k log-probabilities, and the log of what is left."""
    rest = x.scatter(-1, top, -torch.inf)
    return torch.cat([x.gather(-1, top), rest.logsumexp(-1, keepdim=True)], -1)


def mixture(q, p, beta):
    weights = torch.tensor([beta, 1 - beta], dtype=q.dtype).log()
    return torch.logsumexp(torch.stack([p + weights[0], q + weights[1]]), 0)


def theirs(name, z, teacher, k, temperature, beta=0.5):
    """The loss by their functions, of logits and the teacher's log-probabilities at this temperature."""
    q, top = torch.log_softmax(z / temperature, -1), teacher.topk(min(k, teacher.shape[-1])).indices
    renormalised = lambda x: torch.log_softmax(x.gather(-1, top), -1)
    if name == "reverse_kl":
        loss = kl_of(teacher, q)
    elif name == "jensen_shannon":
        m = mixture(q, teacher, beta)
        loss = beta * kl_of(m, teacher) + (1 - beta) * kl_of(m, q)
    elif name == "top_k_kl":
        loss = kl_of(q.gather(-1, top), teacher.gather(-1, top))
    elif name == "top_k_renormalised_kl":
        loss = kl_of(renormalised(z / temperature), renormalised(teacher))
    elif k < teacher.shape[-1]:
        loss = kl_of(bucketed(q, top), bucketed(teacher, top))
    else:
        loss = kl_of(q, teacher)
    return temperature**2 * loss


@pytest.mark.parametrize("name", DIVERGENCES.values())
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 20, 99, 100])
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_value_and_gradient(name, temperature, k, scale, rng):
    z, t, dout = scale * rng.standard_normal((6, 100)), scale * rng.standard_normal((6, 100)), rng.standard_normal(6)
    teacher = log_softmax(t / temperature)
    options = {"k": k} if "top_k" in name else {}
    out, cache = getattr(divergences, name)(z, teacher, temperature=temperature, **options)
    dz = getattr(divergences, f"{name}_backward")(dout, cache)
    there = torch.tensor(z, requires_grad=True)
    loss = theirs(name, there, torch.as_tensor(teacher), k, temperature)
    loss.backward(torch.as_tensor(dout))
    if (name, k) == ("top_k_renormalised_kl", 1):  # of one token there is nothing to tell
        assert not out.any() and not dz.any() and not to_numpy(loss).any()
        return
    assert_equal({"loss": out, "dlogits": dz}, {"loss": to_numpy(loss), "dlogits": to_numpy(there.grad)}, 1e-10)


@pytest.mark.parametrize("beta", [0.01, 0.2, 0.9])
def test_generalised_jensen_shannon(beta, rng):
    z, teacher, dout = rng.standard_normal((6, 50)), log_softmax(rng.standard_normal((6, 50))), rng.standard_normal(6)
    out, cache = divergences.jensen_shannon(z, teacher, beta=beta)
    there = torch.tensor(z, requires_grad=True)
    loss = theirs("jensen_shannon", there, torch.as_tensor(teacher), 1, 1.0, beta)
    loss.backward(torch.as_tensor(dout))
    found = {"loss": out, "dlogits": divergences.jensen_shannon_backward(dout, cache)}
    assert_equal(found, {"loss": to_numpy(loss), "dlogits": to_numpy(there.grad)}, 1e-10)
