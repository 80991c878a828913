"""1,000 random masked products on the RTL equal NumPy exactly, and their counters account for every PE-cycle."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.mask import Mask
from maskwork.sim_tb import regress

from .variants import CONFIGS

TWO = CONFIGS["abc-4-2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count"), [(preset("small"), 600), (preset("tiny"), 400), (TWO, 125)], ids=["small", "tiny", "two"]
)
def test_random_products(config, count):
    summary = regress.run_products(config, count)
    assert summary.products == count
    assert len(summary.combinations) == len(regress.COMBINATIONS) == 125
    assert 0 < summary.best <= 1
    assert sum(summary.pe_cycles.values()) == summary.cycles * config.pes


def test_what_the_products_are_made_of():
    products = list(regress.random_products(preset("tiny"), 250, seed=3))
    sizes = np.array([(*p.a.shape, p.b.shape[1]) for p in products])
    assert sizes.min() == 1 and sizes.max() == 70
    assert products[0].a.shape == (31, 32) and products[0].b.shape == (32, 31)
    extremes = [p for p in products if set(np.unique(p.a)) <= {-256, 0, 255} and p.a.any()]
    assert len(extremes) > 30
    for name in "abc":
        arrays = [p.mask(name) for p in products]
        assert sum(not mask.any() for mask in arrays) > 5, "empty masks"
        assert sum(bool(mask.all()) for mask in arrays) > 30, "full masks"
        assert sum(bool(mask.any() and not mask.all(axis=1).any()) for mask in arrays) > 30, "neither"
    assert sum(bool((~p.a.any(axis=1)).any() and p.a.any()) for p in products) > 30, "empty rows"
    assert {p.dense for p in products} == {False, True}
    assert len({p.in_stall for p in products}) == len({p.out_stall for p in products}) == 4
    again = next(regress.random_products(preset("tiny"), 1, seed=3))
    assert np.array_equal(again.a, products[0].a) and str(again) == str(products[0])


def test_expected_results_by_hand():
    a, b = np.array([[1, 0, 2], [0, 3, -1]]), np.array([[4, 5], [6, 0], [7, -8]])
    masks = {"a": Mask.vector("k", [1, 1, 0]), "b": Mask.absent(), "c": Mask.element([[1, 0], [1, 1]])}
    product = regress.Product(a, b, masks, False, 0.0, 0.0)
    assert product.expected().tolist() == [[4, 0], [18, 0]]
    assert product.macs() == 1 + 1
    assert regress.Product(a, b, masks, True, 0.0, 0.0).macs() == 2 + 4


def test_command(capsys):
    assert regress.main(["--preset", "huge"]) == 2
    assert "unknown preset 'huge'" in capsys.readouterr().err


@pytest.mark.slow
def test_command_runs(capsys, monkeypatch):
    assert regress.main(["--preset", "tiny", "--products", "3", "--seed", "9"]) == 0
    assert "tiny: 3 products (3 combinations of mask kinds) equal NumPy exactly" in capsys.readouterr().out
    monkeypatch.setattr(regress.Product, "expected", lambda self: np.full(self.shapes["c"], 7))
    assert regress.main(["--preset", "tiny", "--products", "1"]) == 1
    assert "product 0 (31 x 32 x 31, a: absent, b: absent, c: absent" in capsys.readouterr().err
