"""The shipped folder: small, complete, and as good as its training.json says."""

import json
import math

import pytest
import torch

from ensemble_sae.files import read_json
from ensemble_sae.lm.corpus import documents, is_held_out
from ensemble_sae.lm.load import EMBEDDED_FOLDER
from ensemble_sae.lm.model_card import BEGIN, END, filled, numbers


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def training():
    return read_json(EMBEDDED_FOLDER / "training.json")


def test_ships_small_and_without_pickles():
    files = [path for path in EMBEDDED_FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x  # naïve\n",
        "\t\r\n  \n\n",
        "☃ \U0001f600 \u0000 \ufeff e\u0301",
        "don't  'S  can not , . !",
        "",
    ],
)
def test_tokenizer_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_token(tokenizer):
    assert len(tokenizer) == 4096
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"


def test_recorded_losses_beat_counting(training):
    losses = training["held_out"]
    nats = {name: loss["nats_per_token"] for name, loss in losses.items()}
    assert nats["model"] < nats["bigram"] - 0.8
    assert nats["bigram"] < nats["unigram"] < math.log(4096)
    scale = training["corpus"]["held_out_tokens"] / training["corpus"]["held_out_bytes"]
    for loss in losses.values():
        bits = loss["nats_per_token"] * scale / math.log(2)
        assert loss["bits_per_byte"] == pytest.approx(bits, abs=1e-3)


def test_loss_on_held_out_documents_measured_anew(tokenizer, training):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER).eval()
    texts = [text for name, text in documents() if is_held_out(name)]
    ids = [i for text in texts for i in [0, *tokenizer.encode(text, add_special_tokens=False)]]
    rows = torch.tensor(ids[: 24 * 256]).view(-1, 256)
    with torch.no_grad():
        loss = model(rows, labels=rows).loss.item()
    losses = training["held_out"]
    assert loss < losses["bigram"]["nats_per_token"] - 0.5
    assert loss == pytest.approx(losses["model"]["nats_per_token"], abs=0.6)


def test_card_numbers_come_from_the_record(training):
    card = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = filled(card, training)
    assert new == f"before\n{BEGIN}\n{numbers(training)}\n{END}\nafter\n"
    assert filled(new, training) == new
    assert f"{training['tokens_seen']:,}" in new
    assert f"{training['held_out']['model']['nats_per_token']:.3f}" in new


def test_card_in_the_documentation_is_up_to_date(training):
    card = EMBEDDED_FOLDER.parents[2] / "docs" / "model_card.md"
    if not card.is_file() or not training["complete"]:
        pytest.skip("no card beside the package, or the model is still in training")
    text = card.read_text(encoding="utf-8")
    assert text == filled(text, training)


def test_no_machine_in_the_folder():
    for path in EMBEDDED_FOLDER.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in json.loads(text)
        assert "/home/" not in text
        assert "/root" not in text
