"""What `benchmarks kv_remainder` rounds is what the cache rounds, read where steps read it."""

import pytest
import torch

from benchmarks.kv_remainder import Form, RoundedCache
from infopt.codegen.kernels.kv_int4 import _from_pages, _to_pages
from infopt.models.decoder import SMALL
from tests.compiler.decoding.sharp_decoder import sharp_decoder


@pytest.mark.parametrize("per_token", [False, True])
def test_four_bits_are_those_of_the_cache(per_token: bool) -> None:
    x = torch.randn(1, 2, 80, 64)
    made = Form(4)(x, per_token)
    pages = x[:, :, :64].unflatten(2, (2, 32))
    wanted = _from_pages(_to_pages(pages, per_token), 64, per_token).flatten(2, 3)
    torch.testing.assert_close(made[:, :, :64], wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(made[:, :, 64:], x[:, :, 64:])


def test_outliers_stay_and_factors_repair() -> None:
    x = torch.randn(1, 1, 32, 64)
    x[0, 0, 3, 5] = 100.0
    assert Form(4, outliers=1)(x, False)[0, 0, 3, 5] == 100.0

    def error(form: Form) -> float:
        return float((form(x, False) - x).norm())

    assert error(Form(4, outliers=1, rank=2)) < error(Form(4, outliers=1)) < error(Form(4))
    assert error(Form(4, rank=32)) < 0.05 * error(Form(4))
    assert Form(4).size(64) == 5.0
    assert Form(4, outliers=2, rank=2).size(64) == 8.0


@torch.no_grad()
def test_a_query_reads_what_is_complete_at_its_place() -> None:
    decoder, ids = sharp_decoder(2), torch.randint(SMALL.vocabulary, (1, 70))
    places = torch.arange(70)[None]
    wanted = decoder(ids)
    exact = decoder(ids, places, RoundedCache(None))
    torch.testing.assert_close(exact, wanted, rtol=1e-3, atol=1e-3)
    found = decoder(ids, places, RoundedCache(Form(2)))
    torch.testing.assert_close(found[:, :31], wanted[:, :31], rtol=1e-3, atol=1e-3)
    assert (found[:, 31] - wanted[:, 31]).abs().max() > 1e-2
    nearly = decoder(ids, places, RoundedCache(Form(16)))
    torch.testing.assert_close(nearly, wanted, rtol=5e-2, atol=5e-2)
