"""GPT-2's byte-level BPE, from tokenizer.json or from the older pair vocab.json and merges.txt."""

from weights_loader.files import LoadError, existing_folder, read_json

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder):
    """The `tokenizers.Tokenizer` in `folder`; it neither truncates nor pads, whatever its file says.

    `<|endoftext|>` is one special token, as in transformers: `decode(ids, skip_special_tokens=False)`
    gives back any text. Raises LoadError.
    """
    folder = existing_folder(folder)
    try:
        return _read(folder)
    except LoadError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        reason = " ".join(str(error).split())
        raise LoadError(f"{folder}: the tokenizer cannot be read ({reason}); download its files again") from None


def _read(folder):
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
    if missing:
        raise LoadError(f"{folder}: there is no tokenizer.json and no {missing[0]}; download the model's tokenizer")
    return _byte_level_bpe(folder / "vocab.json", folder / "merges.txt")


def _byte_level_bpe(vocab_file, merges_file):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = read_json(vocab_file)
    if absent := set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys():  # BPE would drop such bytes silently
        raise LoadError(f"{vocab_file}: {len(absent)} of the 256 bytes have no token; use a byte-level vocabulary")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab_file), str(merges_file)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocab:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
