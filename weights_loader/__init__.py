"""GPT-2 checkpoints in Hugging Face layout, their tokenizers, and PEFT prompts, as NumPy arrays.

Nested dicts of arrays, named as the checkpoint names them, are all this package knows of a model.
Whatever it cannot read faithfully it refuses with a `LoadError`: one line that says what is
wrong, where, and what to do. It never unpickles.
"""

from pathlib import Path

from weights_loader.checkpoint import load, model_hash, save
from weights_loader.files import LoadError
from weights_loader.peft import EMBEDDING_TYPES, KV_TYPES, PeftPrompt, load_peft_prompt, peft_config, save_peft_prompt
from weights_loader.tokenizer import load_tokenizer

EMBEDDED = Path(__file__).parent / "embedded"  # the folder of the model that comes with the package

__all__ = ["EMBEDDED", "EMBEDDING_TYPES", "KV_TYPES", "LoadError", "PeftPrompt", "load", "load_peft_prompt",
           "load_tokenizer", "model_hash", "peft_config", "save", "save_peft_prompt"]  # fmt: skip
