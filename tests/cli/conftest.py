"""Small model folders, and commands run within the test's own process."""

import json
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest

import weights_loader
from helpers import random_params
from minicompress.cli import main
from minicompress.gpt2 import Config

SMALL = Config(vocab_size=2048, n_positions=128, n_embd=24, n_layer=2, n_head=2)
CONTEXT = "Tom has a red dog. The dog is called Rex. Ann lives in Rome and plays the drum.\n"


@pytest.fixture(scope="session")
def new_model(tmp_path_factory):
    """new_model(seed, **changes to the config) -> a folder in Hugging Face layout with the embedded tokenizer."""

    def write(seed=0, **changes):
        folder = tmp_path_factory.mktemp("model")
        config = Config(**asdict(SMALL) | changes)
        weights_loader.save(folder, random_params(config, np.random.default_rng(seed), np.float32), asdict(config))
        shutil.copy(weights_loader.EMBEDDED / "tokenizer.json", folder)
        return folder

    return write


@pytest.fixture(scope="session")
def model(new_model):
    return new_model()


@pytest.fixture
def run(monkeypatch, capsys):
    """run("ask", ...) -> exit code, standard output, standard error."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["minicompress", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a context, queries and rows of tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "context.txt").write_text(CONTEXT)
    queries = [{"question": f"Who is {name}?", "answer": f"the {name} of Rome"} for name in "abcdefgh"]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (tmp_path / "tokens.json").write_text("[[5, 6, 7, 8], [9, 10]]")
    return tmp_path


@pytest.fixture
def quick(model):
    """The arguments of a compression that takes a moment."""
    return ["--model", model, "--queries", "queries.jsonl", "--slots", 3, "--steps", 4, "--rows", 4]
