"""The language model's run: cut off and continued it is the same run; its checkpoint loads."""

import argparse
import inspect
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import infopt
from infopt.models.language_model import checkpoint, corpus, evaluation, training


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(training, "STAGES", {0.0: (32, 16)})
    (tmp_path / "corpus").mkdir()
    ids = np.random.default_rng(0).integers(1, corpus.VOCABULARY, 600).astype(np.uint16)
    np.save(tmp_path / "corpus" / "train.npy", ids)
    return tmp_path


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_as_if_it_were_not(run: Path) -> None:
    whole = training.Trainer(run / "corpus", run, 10**6)
    whole.step()
    whole.save("latest")
    losses = [whole.step(), whole.step()]
    again = training.Trainer(run / "corpus", run, 10**6)
    assert again.resume("latest") and again.progress.tokens == 32
    assert [again.step(), again.step()] == pytest.approx(losses, rel=1e-5)
    assert again.progress == whole.progress

    weights, progress = training.newest(run)
    assert progress.step == 1
    checkpoint.export(weights, run / "out", {})
    model, theirs = (load(run / "out") for load in LOADERS)
    ids = torch.randint(corpus.VOCABULARY, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("tokens", "planned", "now", "state"),
    [
        (900, 1000, 1000, "latest"),  # no longer than before
        (850, 1000, 2000, "stable"),  # cut off inside the fall, then given more
        (700, 1000, 2000, "latest"),  # cut off before the fall
        (1500, 2000, 2000, "latest"),  # given more, and cut off since
    ],
)
def test_the_state_a_longer_run_goes_on_from(
    tmp_path: Path, tokens: int, planned: int, now: int, state: str
) -> None:
    assert training.state_to_go_on_from(tmp_path, now) == "latest"
    for name, progress in (
        ("stable", training.Progress(1, 800, 1000)),
        ("latest", training.Progress(2, tokens, planned)),
    ):
        text = {"progress": json.dumps(asdict(progress))}
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors", text)
    assert training.state_to_go_on_from(tmp_path, now) == state


LOADERS = (checkpoint.load_language_model, checkpoint.load_transformers)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.LanguageModelMissing, match="no checkpoint at"):
        checkpoint.load_language_model(tmp_path)


def test_copies_are_kept_once() -> None:
    long, other = "x = 1  # " + "a" * 120, "y = 2  # " + "b" * 120
    seen: set[bytes] = set()
    assert corpus.without_copies(f"{long}\n\nshort\n\n{long}", seen) == f"{long}\n\nshort"
    assert corpus.without_copies(f"{long.replace(' ', '  ')}\n\nshort\n\n{other}", seen) == (
        f"short\n\n{other}"
    )


def test_held_out_documents_are_those_of_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [(f"python/{n}.py", tmp_path / f"{n}.py") for n in range(300)]
    for number, (_, path) in enumerate(files):
        path.write_text(f"x = {number}  # " + "a" * 120 + "\n\n" + "same = 0  # " + "b" * 120)
    monkeypatch.setattr(corpus, "SOURCES", {"python": (None, "PSF-2.0")})
    monkeypatch.setattr(corpus, "files_of", lambda name: iter(files))
    train, held_out, _ = corpus.read_documents()
    assert corpus.held_out_documents() == held_out and len(train) + len(held_out) == 300
    assert len(held_out) > 1 and "same" in held_out[0] and "same" not in held_out[1]


def test_text_in_another_tokenizers_numbers(tmp_path: Path) -> None:
    documents = ["def f(x):\n    return x + 1\n" * 5, "class A:\n    pass  # 12\n"]
    theirs, ours = corpus.train_tokenizer(documents * 20), checkpoint.load_tokenizer()
    theirs.save(str(tmp_path / "tokenizer.json"))
    np.save(tmp_path / "held_out.npy", corpus.encode(documents, theirs))
    expected = corpus.encode(documents, ours)
    assert np.array_equal(corpus.read(tmp_path, "held_out", ours), expected)
    kept = corpus.read(tmp_path, "held_out", theirs, 7)
    assert np.array_equal(kept, corpus.encode(documents, theirs)[:7])


def test_a_question_gives_away_one_letter() -> None:
    pytest.importorskip("tokenizers")
    tokenizer = checkpoint.load_tokenizer()
    for name in evaluation.NAMES:
        asked, wanted = evaluation.question(name, tokenizer)
        text = tokenizer.decode([*asked, *wanted])
        assert text == f"\n\nresult = compute_{name}(" and wanted
        assert f"compute_{name[:2]}" not in tokenizer.decode(asked)
        assert f"compute_{name}(" in tokenizer.decode(evaluation.definition(name, tokenizer))


def test_perplexity_of_a_model_that_knows_nothing() -> None:
    class Bytes:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "ab" * len(ids)

    ids = np.arange(101).astype(np.uint16) % 8
    found = evaluation.perplexity(lambda x: torch.zeros(*x.shape, 8), ids, 10, 5, Bytes())
    assert found.nats == pytest.approx(np.log(8)) and found.tokens == 50
    assert found.bits_per_byte == pytest.approx(1.5)


@pytest.mark.slow
def test_a_run_that_begins_with_a_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LATER_STAGES", {0.0: (32, 16)})
    trainer = training.Trainer(run / "corpus", run, 10**6, checkpoint.FOLDER)
    theirs = checkpoint.load_language_model().state_dict()
    ours = trainer.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    before = ours["layers.0.up.weight"].clone()
    trainer.step()
    assert not torch.equal(trainer.model.state_dict()["layers.0.up.weight"], before)
    trainer.save("latest")
    again = training.Trainer(run / "corpus", run, 10**6, checkpoint.FOLDER)
    assert again.resume("latest") and again.step() == pytest.approx(trainer.step(), rel=1e-5)


SNIPPET = """
    def __init__(self, name, value=None):
        self.name = name
        self.value = value

    def __repr__(self):
        return f"{self.__class__.__name__}({self.name!r}, {self.value!r})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for i in range(10):
        print(i)


if __name__ == "__main__":
    main()
"""


def test_the_shipped_weights_know_python() -> None:
    pytest.importorskip("tokenizers")
    ids = torch.tensor([checkpoint.load_tokenizer().encode(SNIPPET).ids])
    with torch.no_grad():
        logits = checkpoint.load_language_model()(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
    assert loss < 2.5  # of one that knows nothing: 8.3


def test_the_shipped_weights_copy_a_name_from_500_tokens_before() -> None:
    pytest.importorskip("tokenizers")
    tokenizer = checkpoint.load_tokenizer()
    between = np.array(tokenizer.encode(inspect.getsource(argparse)).ids)
    found = evaluation.recall(checkpoint.load_language_model(), between, 500, tokenizer)
    assert found.right >= 6  # of 8; all with the argparse of Python 3.11


def test_the_shipped_weights_go_on_as_in_transformers() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    prompt = checkpoint.load_tokenizer().encode("import os\n\n\ndef read(path):\n").ids
    lm = infopt.compile_causal_lm(checkpoint.load_language_model(), max_length=64)
    theirs = checkpoint.load_transformers().generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    assert list(lm.generate(prompt, max_new_tokens=24)) == theirs[0, len(prompt) :].tolist()
