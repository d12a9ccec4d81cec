"""GPT-2 (Radford et al. 2019) from a token id to a loss, and the gradient all the way back."""

from minicompress.gpt2.config import Config
from minicompress.gpt2.head import head_loss, logits
from minicompress.gpt2.init import init
from minicompress.gpt2.model import backward, embed, embed_backward, forward

__all__ = ["Config", "backward", "embed", "embed_backward", "forward", "head_loss", "init", "logits"]
