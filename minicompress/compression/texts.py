"""A user's text: read at once, or as it comes, whose tokens are then the same."""

import hashlib
import re
import sys
from contextlib import contextmanager, nullcontext

BETWEEN_WORDS = re.compile(r"(?<=\S)[ \n\t](?=\S)")  # in GPT-2's tokenizer no token goes on across this place


def read_text(path):
    """A user's text file, or standard input for the text `-`. Raises ValueError where there is no text in it."""
    return "".join(read_pieces(path, size=-1))


def read_pieces(path, size=1 << 16):
    """The same text in pieces, read by so many characters, each of which ends between two words."""
    held, blank = "", True
    with user_file(path) as file:
        while read := file.read(size):
            read.encode()  # where the locale is not UTF-8, standard input arrives with halves of surrogate pairs
            held, blank = held + read, blank and not read.strip()
            if blank:
                continue
            ends = [match.start() for match in BETWEEN_WORDS.finditer(held)] if size > 0 else []
            if ends:
                yield held[: ends[-1]]
                held = held[ends[-1] :]
    if blank:
        raise ValueError(f"{path} is empty; some text is needed")
    yield held


@contextmanager
def user_file(path):
    """The open file; what goes wrong with it becomes one line."""
    try:
        with nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
            yield file
    except UnicodeEncodeError as reason:
        raise ValueError(f"{path} is not UTF-8 text (at character {reason.start})") from None
    except UnicodeDecodeError as reason:
        raise ValueError(f"{path} is not UTF-8 text ({reason.reason} at byte {reason.start})") from None
    except OSError as reason:
        raise ValueError(f"{path}: {reason.strerror}") from None


class Stream:
    """A text that is read once; of its pieces are known, as far as they have come, the tokens' number and the hash.

    `text` is all of it, or None once it has more than `most` tokens: then nobody needs to read it at once.
    """

    def __init__(self, pieces, tokenizer, most):
        whole = isinstance(pieces, str)
        self.pieces, self.tokenizer, self.most = [pieces] if whole else pieces, tokenizer, most
        self.count, self.digest, self.text, self.whole = 0, hashlib.sha256(), pieces if whole else "", whole

    def ids(self):
        """Its token ids, one by one."""
        for piece in self.pieces:
            found = self.tokenizer.encode(piece).ids
            self.count += len(found)
            self.digest.update(piece.encode())
            if not self.whole:
                self.text = self.text + piece if self.text is not None and self.count <= self.most else None
            yield from found

    @property
    def hash(self):
        """As `text_hash` has it."""
        return self.digest.hexdigest()[:16]
