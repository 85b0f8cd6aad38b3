"""Jacobians of encoder and decoder against finite differences, and their norms against torch's."""

from __future__ import annotations

import pytest
import torch
from conftest import DOUBLE, random_vae, seeded, uniform

from vaerobust import jacobians
from vaerobust.jacobians import (
    decoder_jacobian,
    encoder_gram,
    encoder_jacobian,
    frobenius_norm,
    jacobian_norms,
    largest_eigenvalue,
)
from vaerobust.model import LIKELIHOODS

STEP = 1e-6
"""Step of the finite differences."""
DIFFERENCE = 1e-8
"""Error of a central difference with this step: rounding, a few dozen times 1.1e-16 / 1e-6, and the curvature of a
sigmoid of pre-activations whose slopes are below 100, 1e-12 * 100**3 / 6 / 10. Both are below 1e-8."""


def finite_differences(function, point):
    """Return the Jacobian at one point by central differences, after a check that no kink lies nearby."""
    columns = []
    for j in range(len(point)):
        step = torch.zeros_like(point)
        step[j] = STEP
        ahead, here, behind = (function((point + sign * step)[None])[0] for sign in (1, 0, -1))
        forward, backward = (ahead - here) / STEP, (here - behind) / STEP
        torch.testing.assert_close(forward, backward, rtol=0, atol=1e-3)  # a kink would show as a difference of slopes
        columns.append((forward + backward) / 2)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_encoder_jacobian_is_that_of_finite_differences(seed):
    vae, x = random_vae(seed=seed), uniform(3, 12, seed=seed)
    found = encoder_jacobian(vae, x)
    assert found.shape == (3, 3, 12)
    for point, jacobian in zip(x, found, strict=True):
        assert float(jacobian.abs().max()) > 0.1
        expected = finite_differences(lambda p: vae.encode(p)[0], point)
        torch.testing.assert_close(jacobian, expected, rtol=0, atol=DIFFERENCE)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_decoder_jacobian_is_that_of_finite_differences(likelihood):
    vae, z = random_vae(likelihood=likelihood), torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    found = decoder_jacobian(vae, z)
    assert found.shape == (3, 12, 3)
    for point, jacobian in zip(z, found, strict=True):
        assert float(jacobian.abs().max()) > 0.01
        torch.testing.assert_close(jacobian, finite_differences(vae.decode, point), rtol=0, atol=DIFFERENCE)


def test_jacobians_of_the_linear_model_are_its_matrices(linear):
    x = uniform(2, linear.weight.shape[1])
    for jacobian in encoder_jacobian(linear, x):
        assert torch.equal(jacobian, linear.weight)
    for jacobian in decoder_jacobian(linear, linear.encode(x)[0]):
        assert torch.equal(jacobian, linear.decoder)


@pytest.mark.parametrize("shape", [(12, 3), (3, 12), (1, 1)], ids=["d_x > d_z", "d_x < d_z", "one each"])
def test_norms_are_those_of_torch(shape):
    pixels, latents = shape
    vae, x = random_vae(pixels, 16, latents), uniform(5, pixels)
    found = jacobian_norms(vae, x)
    jacobian = encoder_jacobian(vae, x)
    torch.testing.assert_close(found.frobenius, torch.linalg.matrix_norm(jacobian), rtol=DOUBLE, atol=0)
    torch.testing.assert_close(found.spectral, torch.linalg.matrix_norm(jacobian, 2), rtol=DOUBLE, atol=0)
    assert (found.spectral <= found.frobenius * (1 + DOUBLE)).all()


class Plain:
    """A model that offers nothing but ``encode`` and ``decode``."""

    def __init__(self, model):
        self.encode, self.decode = model.encode, model.decode


@pytest.mark.parametrize("shape", [(12, 16, 3), (3, 16, 12), (5, 2, 7), (1, 1, 1)])
def test_the_gram_matrix_is_that_of_the_jacobian(shape):
    """Computed from the layers, and for a model that does not offer them from the Jacobian."""
    vae, x = random_vae(*shape), uniform(5, shape[0])
    jacobian = encoder_jacobian(vae, x)
    expected = jacobian @ jacobian.mT
    found = encoder_gram(vae, x)
    torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=DOUBLE * float(expected.abs().max()))
    assert torch.equal(encoder_gram(Plain(vae), x), expected)


@pytest.mark.parametrize("kind", [Plain, lambda vae: vae], ids=["by the Jacobian", "by the layers"])
def test_norms_depend_neither_on_order_nor_on_company_nor_on_chunks(kind, vae, monkeypatch):
    model, x = kind(vae), uniform(7, 12)
    every, order = torch.arange(7), torch.tensor([3, 0, 6, 5, 1, 4, 2])
    whole = jacobian_norms(model, x)

    def agrees(points):
        found = jacobian_norms(model, x[points])
        torch.testing.assert_close(found.frobenius, whole.frobenius[points], rtol=DOUBLE, atol=0)
        torch.testing.assert_close(found.spectral, whole.spectral[points], rtol=DOUBLE, atol=0)

    agrees(order)
    agrees(every[2:3])
    for size in (1, 2, 7):
        monkeypatch.setattr(jacobians, "POINTS", size)
        agrees(every)


def test_the_largest_eigenvalue_is_torchs_and_never_negative():
    factors = torch.randn(6, 4, 2, generator=seeded(1), dtype=torch.float64)  # of rank 2
    matrices = factors @ factors.mT
    found = largest_eigenvalue(matrices)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(matrices, 2), rtol=DOUBLE, atol=0)
    torch.testing.assert_close(frobenius_norm(matrices), torch.linalg.matrix_norm(factors), rtol=DOUBLE, atol=0)
    assert largest_eigenvalue(torch.diag(torch.tensor([-1e-17, -1e-18]))) == 0


def test_no_jacobian_carries_a_graph():
    vae = random_vae().requires_grad_(True)
    x = uniform(2, 12)
    norms = jacobian_norms(vae, x)
    z = vae.encode(x)[0].detach()
    for found in (encoder_jacobian(vae, x), decoder_jacobian(vae, z), norms.frobenius, norms.spectral):
        assert not found.requires_grad
