"""Margins of the linearised model: closed forms on linear VAEs, and brute force over directions."""

from __future__ import annotations

import pytest
import torch
from conftest import DOUBLE, random_vae, seeded, uniform

from vaerobust import linearised
from vaerobust.distance import distances
from vaerobust.jacobians import encoder_jacobian
from vaerobust.linear import LinearGaussianVAE
from vaerobust.linearised import linearised_radii


@pytest.mark.parametrize(("pixels", "latents"), [(6, 1), (20, 4), (30, 20)])
def test_second_moment_and_decoder_aware_radii_have_closed_forms_on_linear_models(pixels, latents):
    """R = sqrt(r^2 - d_z s^2) / ||A||_2 and (r - s median ||eta||) / ||A||_2.

    The mean of s^2 ||eta||^2 over 4,000 samples has the standard error s^2 sqrt(2 d_z / 4,000), and the mean of eta
    adds 2 R ||A|| s / sqrt(4,000); five of each are allowed. The standard error of the median is sqrt(pi / 2) = 1.25
    times that of the mean, and one sample's standard deviation is at most s / sqrt(2).
    """
    model, samples = LinearGaussianVAE(pixels, latents, sigma=0.2, seed=1), 4000
    r, x = model.quantile(0.9), uniform(2, pixels)
    norm = float(torch.linalg.matrix_norm(model.weight, 2))
    found = linearised_radii(model, x, r, samples=samples, seed=0)
    exact = (r**2 - latents * 0.04) ** 0.5 / norm
    error = 5 * 0.04 * (2 * latents / samples) ** 0.5 + 10 * exact * norm * 0.2 / samples**0.5
    assert (found.second_moment**2 * norm**2 - exact**2 * norm**2).abs().max() < error
    aware = (r - model.quantile(0.5)) / norm
    assert (found.decoder_aware - aware).abs().max() * norm < 5 * 1.26 * 0.2 / 2**0.5 / samples**0.5
    # the direction has unit length, and is the top singular vector up to the error of the mean of eta
    torch.testing.assert_close(found.direction.norm(dim=1), torch.ones(2, dtype=torch.float64), rtol=DOUBLE, atol=0)
    if latents < 20:
        assert ((found.direction @ torch.linalg.svd(model.weight).Vh[0]).abs() > 0.95).all()


@pytest.mark.parametrize("latents", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("level", [0.6, 0.9, 0.999])
def test_the_second_moment_radius_is_below_the_exact_margin_of_linear_models(latents, level):
    """The median of a noncentral chi-square lies below its mean: at the radius the mean of D^2 is r^2."""
    model = LinearGaussianVAE(latents + 5, latents)
    r = model.quantile(level)
    shift = max(0.0, r**2 - latents * model.sigma**2) ** 0.5
    norm = float(torch.linalg.matrix_norm(model.weight, 2))
    assert shift / norm <= model.margin(r) * (1 + DOUBLE)
    if shift:
        assert model.probability(r, shift) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_second_moment_radius_is_the_largest_ball_by_brute_force(seed):
    """No direction v has a mean of |moved + R J_g J v|^2 above r^2, and the direction that is returned has r^2.

    The test tries 2,000 directions and ascends from the best of them, with the same samples as the call.
    """
    vae, x, samples = random_vae(seed=seed), uniform(2, 12, seed=seed), 30
    r = distances(vae, x, samples=500, seed=1).quantile(0.95, dim=1)
    found = linearised_radii(vae, x, r, samples=samples, seed=2)
    eta = torch.randn(samples, 3, generator=seeded(2), dtype=torch.float64)
    mu, sigma = vae.encode(x)
    encoder = encoder_jacobian(vae, x)
    for i in range(2):
        z = mu[i] + sigma[i] * eta
        moved = vae.decode(z) - vae.decode(mu[i : i + 1])
        slopes = torch.stack([torch.autograd.functional.jacobian(vae.decode, one) for one in z]) @ encoder[i]
        v = torch.randn(2000, 12, generator=seeded(3), dtype=torch.float64)

        def moves(v, moved=moved, slopes=slopes, radius=found.second_moment[i]):
            v = radius * v / v.norm(dim=-1, keepdim=True)
            return moved[:, None] + torch.einsum("sij,kj->ski", slopes, v)

        def mean_square(v, moves=moves):
            return moves(v).pow(2).sum(-1).mean(0)

        v = v[mean_square(v).topk(20).indices]
        for _ in range(300):  # a convex function does not fall on a step to where its gradient points
            v = torch.einsum("sij,ski->kj", slopes, moves(v))
        limit = float(r[i]) ** 2
        assert found.second_moment[i] > 0
        assert float(mean_square(v).max()) <= limit * (1 + 1e-9)  # the secular equation is solved by 100 bisections
        assert float(mean_square(v).max()) >= limit * 0.999  # the ascent is a power iteration and comes this near
        assert float(mean_square(found.direction[i : i + 1])) == pytest.approx(limit, rel=1e-6)


def test_no_room_gives_radius_0():
    model = LinearGaussianVAE(6, 3)
    found = linearised_radii(model, uniform(2, 6), torch.tensor([0.0, model.quantile(0.01)]), seed=0)
    assert found.second_moment.tolist() == [0, 0] and found.decoder_aware.tolist() == [0, 0]


def test_the_linearised_radii_depend_neither_on_order_nor_on_company_nor_on_chunks(vae, monkeypatch):
    """The direction solves a secular equation in double precision; its relative error is 1e-9, as above."""
    x, r = uniform(7, 12), torch.linspace(1.0, 3.0, 7, dtype=torch.float64)
    every, order = torch.arange(7), torch.tensor([3, 0, 6, 5, 1, 4, 2])
    whole = linearised_radii(vae, x, r, samples=30)

    def agrees(points):
        found = linearised_radii(vae, x[points], r[points], samples=30)
        for name, expected in vars(whole).items():
            torch.testing.assert_close(getattr(found, name), expected[points], rtol=1e-9, atol=1e-9)

    agrees(order)
    agrees(every[2:3])
    for size in (1, 60, 1000):
        monkeypatch.setattr(linearised, "POINTS", size)
        agrees(every)
