"""What `benchmarks kv_quality` reads of a text is what the model says of it."""

from typing import Any

import torch

import infopt
from benchmarks import kv_quality
from infopt.models.decoder import SMALL, Decoder

ASKED = (([1, 2], [3, 4, 5]), ([6], [7, 8]))


def test_answers_stand_where_they_are_looked_for() -> None:
    text = kv_quality.Questions([9, 9], [8, 8, 8], ASKED)
    assert text.ids() == [9, 9, 8, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8]
    assert text.ids()[text.answer(0)] == [3, 4, 5] and text.ids()[text.answer(1)] == [7, 8]
    assert text.undefined().ids() == text.ids()[2:]


@torch.no_grad()
def test_texts_are_read_as_the_model_reads_them() -> None:
    model = Decoder(SMALL).eval()
    lm = infopt.compile_causal_lm(model, max_length=96, batch=8)
    texts = [torch.randint(SMALL.vocabulary, (n,)).tolist() for n in (9, 12)]
    nats, best = kv_quality.read(lm, texts, 4)
    for row, text in enumerate(texts):
        logits = model(torch.tensor([text]))[0, -5:-1]
        wanted = -logits.log_softmax(-1).gather(1, torch.tensor(text[-4:])[:, None])[:, 0]
        torch.testing.assert_close(nats[row], wanted, rtol=1e-4, atol=1e-4)
        assert best[row].tolist() == logits.argmax(-1).tolist()
    prompts: Any = [list(range(32))] * 8
    assert kv_quality.greedy_as_eager(model, lm, prompts) == 1


def test_policies_have_a_quarter() -> None:
    assert kv_quality.KINDS["ring"](512).slots() == 128
    assert kv_quality.KINDS["h2o"](512).slots() == kv_quality.KINDS["roco"](512).slots() == 128
    quest = kv_quality.KINDS["quest"](512)
    assert quest.pages * quest.page == 128
