"""The shape of a GPT-2, under the names of Hugging Face's `config.json`."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Config:
    """Sizes of one model; C = n_embd, H = n_head, D = C/H, L = n_layer, V = vocab_size."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; None means 4 C
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, which n_head {self.n_head} does not divide")

    @property
    def width(self):
        """The MLP's hidden width."""
        return self.n_inner or 4 * self.n_embd

    @classmethod
    def from_dict(cls, raw):
        """From a parsed `config.json`; keys that do not shape the model are passed over."""
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})
