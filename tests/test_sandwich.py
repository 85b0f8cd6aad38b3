"""The margin from both sides: columns that fit together, attacks above exact margins, and violations that are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, graded_model, most_misses, random_vae, seeded, square_model, uniform
from scipy import optimize, stats

from vaerobust.bounds import encoder_gram, encoder_jacobian, first_order_radii, linearised_radii
from vaerobust.certify import both_sides as module
from vaerobust.certify.both_sides import curves, sandwich, strongest_attack, violations
from vaerobust.certify.certificates import certified_margin
from vaerobust.criterion import distances
from vaerobust.linear import LinearGaussianVAE
from vaerobust.model import VAE
from vaerobust.zoo.data import read_sample
from vaerobust.zoo.weights import pretrained

COLUMNS = [
    "r", "p low", "theorem 1", "spectral", "whitened", "half space", "certified", "decoder aware", "second moment",
    "attack", "confirmed", "censored", "random", "random censored", "moment at attack",
]  # fmt: skip


# the sandwich


@pytest.fixture(scope="module")
def measured():
    vae, x = random_vae(12, 16, 3), uniform(4, 12)
    return vae, x, *sandwich(vae, x, fixed_r=1.5, samples=5000)


def test_there_is_a_number_for_every_column_and_point(measured):
    _, x, columns, deltas = measured
    assert list(columns) == list(deltas) == ["own", "fixed"]
    for name, table in columns.items():
        assert list(table) == COLUMNS
        for column, values in table.items():
            kind = torch.bool if column.endswith(("confirmed", "censored")) else torch.float64
            assert values.shape == (4,) and values.dtype == kind, (name, column)
            assert torch.isfinite(values.double()).all() and (values >= 0).all()
        assert deltas[name].shape == x.shape
    assert columns["fixed"]["r"].tolist() == [1.5] * 4


def test_lower_bounds_lie_below_upper_bounds(measured):
    """A rule of certificates and confirmed attacks, each of which errs once in a thousand; the rest is algebra."""
    _, _, columns, _ = measured
    for table in columns.values():
        assert (table["theorem 1"] <= table["spectral"] * (1 + DOUBLE)).all()
        assert (table["spectral"] <= table["whitened"] * (1 + DOUBLE)).all()
        assert (table["half space"] <= table["certified"]).all()
        assert (table["half space"] <= table["whitened"] * (1 + DOUBLE)).all()  # the Jacobian at x is the least of W
        assert (table["certified"] > 0).all()
        assert table["confirmed"].all() and not table["censored"].any()
        assert (table["certified"] < table["attack"]).all()
        # half of the mass lies beyond r, so the mean of D^2 / r^2 is 1/2 at least, but for a tenth that samples may err
        assert (table["moment at attack"] > 0.45).all()
        assert (table["attack"] < table["random"]).all()  # in 12 dimensions a random direction is far from the worst
        assert (table["decoder aware"] > 0).all() and (table["second moment"] > 0).all()


def test_r_is_a_quantile_and_p_low_is_below_its_level(measured):
    """By samples of its own: 0.9 give or take five standard errors of the 4,000 that chose it and the 20,000 here."""
    vae, x, columns, _ = measured
    r = columns["own"]["r"]
    p = (distances(vae, x, samples=20_000, seed=11) <= r[:, None]).double().mean(1)
    assert (p - 0.9).abs().max() < 5 * (0.09 / 4000 + 0.09 / 20_000) ** 0.5
    assert (columns["own"]["p low"] < p).all() and (columns["own"]["p low"] > 0.85).all()


def test_deltas_are_as_long_as_the_attack_margin_and_break_robustness(measured):
    """Judged once more with other samples; Hoeffding's error for each of the 8."""
    vae, x, columns, deltas = measured
    for name, table in columns.items():
        torch.testing.assert_close(deltas[name].norm(dim=1), table["attack"], rtol=DOUBLE, atol=0)
        within = (distances(vae, x, deltas[name], samples=2000, seed=7) <= table["r"][:, None]).double()
        assert (within.mean(1) < 0.5 + np.sqrt(np.log(8 / ALARM) / 4000)).all()


def test_first_order_bounds_are_those_at_the_lower_limit(measured):
    vae, x, columns, _ = measured
    for table in columns.values():
        expected = first_order_radii(vae, x, table["p low"].numpy())
        for name, radii in zip(("theorem 1", "spectral", "whitened"), expected, strict=True):
            torch.testing.assert_close(table[name], radii, rtol=DOUBLE, atol=0)


def test_a_model_in_single_precision_has_a_sandwich_too():
    vae = random_vae(12, 16, 3).float()
    columns, deltas = sandwich(vae, uniform(2, 12).float(), samples=1000, level=0.8, confidence=0.9)
    assert deltas["own"].dtype == torch.float32
    assert (columns["own"]["certified"] <= columns["own"]["attack"]).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((1, 12), torch.nan)}, ValueError, "x must be finite"),
        ({"level": 1.0}, ValueError, "level must lie strictly between 0 and 1"),
        ({"fixed_r": -1.0}, ValueError, "r must be finite and >= 0"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"confidence": 1.5}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_of_the_sandwich_are_named(change, error, message):
    arguments = {"x": uniform(1, 12), "samples": 10} | change
    with pytest.raises(error, match=message):
        sandwich(random_vae(), arguments.pop("x"), **arguments)


# the strongest attack


def test_the_strongest_attack_is_above_the_exact_margin_and_close(graded):
    """Each of its tests errs once in a million; only one of 20 directions is bad, and both starts are along it."""
    r, x = torch.full((3,), graded.quantile(0.9), dtype=torch.float64), uniform(3, 20)
    exact = graded.margin(float(r[0]))
    p = stats.binom.ppf(ALARM / 8, 4000, 0.5) / 4000 - np.sqrt(np.log(100 / ALARM) / 8000)
    most = optimize.brentq(lambda s: graded.probability(float(r[0]), s) - p, 0, 2 * float(r[0]))
    for linearised in (None, linearised_radii(graded, x, r, seed=0)):
        found = strongest_attack(
            graded, x, r, linearised=linearised, confidence=1 - ALARM, judging_samples=4000, final_samples=4000
        )
        assert found.confirmed.all() and not found.censored.any()
        assert (found.radius >= exact).all()
        # where P is below p, 4,000 samples reject 1/2 in each of 100 tests with such certainty; the bracket and three
        # more attempts are 3% each, and 10 steps from along the worst direction lose 3% more
        assert (found.radius <= most * 1.03**5).all()


def test_confirmed_attacks_are_above_the_exact_margin_as_often_as_they_say():
    """Independent runs; each confirmed radius lies below the exact margin with probability alpha / 2 at most."""
    model, alpha, runs = LinearGaussianVAE(6, 3, seed=3), 0.4, 60
    r, x = torch.tensor([model.quantile(0.8)], dtype=torch.float64), uniform(1, 6)
    found = [
        strongest_attack(
            model, x, r, steps=2, samples=4, judging_samples=100, final_samples=100, confidence=1 - alpha, seed=10 * run
        )
        for run in range(runs)
    ]
    wrong = sum(bool(one.confirmed) and float(one.radius) < model.margin(float(r)) for one in found)
    assert wrong <= most_misses(runs, alpha / 2)
    assert sum(bool(one.confirmed) for one in found) > runs / 2


# the curves


def least_r(model, shift, level):
    """Return the quantile of D at a shift of the latents."""
    return optimize.brentq(lambda r: model.probability(r, shift) - level, 1e-9, 10.0)


def test_curves_enclose_the_exact_least_r():
    """On linear models of several shapes; each end errs once in a million. The attack finds the one bad direction."""
    for model in (graded_model(), LinearGaussianVAE(30, 6, sigma=0.05, seed=4)):
        norm = float(torch.linalg.matrix_norm(model.weight, 2))
        radii = [shift * model.sigma / norm for shift in (0.0, 0.5, 1.0, 2.0, 8.0)]
        x = uniform(3, model.weight.shape[1])
        found = curves(model, x, radii, judging_samples=4000, confidence=1 - ALARM)
        assert found.certified.shape == found.broken.shape == (5, 3) and found.confidence == 1 - ALARM
        for radius, certified, broken in zip(radii, found.certified, found.broken, strict=True):
            exact = least_r(model, radius * norm, 0.5)
            assert (certified >= exact).all() and (broken <= exact).all()
            # 4,000 samples bound a median from below by the quantile at 1/2 less two of Hoeffding's errors; the attack
            # loses a tenth of the shift at most
            assert (broken >= least_r(model, 0.9 * radius * norm, 0.5 - 2 * np.sqrt(np.log(1 / ALARM) / 8000))).all()
        assert torch.isfinite(found.certified[:4]).all() and torch.isinf(found.certified[4]).all()


def test_curves_of_a_trained_model_have_two_ends_and_rise():
    vae, x = pretrained("mnist", 5.0).vae, read_sample("mnist")[0][:2].float() / 255
    radii = (0.002, 0.005, 0.01, 0.02)
    found = curves(vae, x, radii, samples=5000, judging_samples=1000, refine=2)
    assert (found.broken > 0).all() and (found.certified > found.broken).all()
    # common noise, and attacks that begin at the last one
    assert (found.broken.diff(dim=0) > 0).all() and (found.certified.diff(dim=0) > 0).all()
    assert torch.isfinite(found.certified).all()


def test_few_judging_samples_break_nothing():
    """Two samples never reject at one in a thousand, so 0 is all that is known to be below the median."""
    found = curves(square_model(), uniform(1, 4), [0.05], samples=1000, judging_samples=2)
    assert found.broken.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x must have shape \(n, d\)"),
        ({"radii": [-0.1]}, ValueError, "radii must be finite and >= 0"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"judging_samples": 0}, ValueError, "judging_samples must be a whole number of at least 1"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1"),
        ({"confidence": 0.0}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_of_curves_are_named(change, error, message):
    arguments = {"x": uniform(1, 4), "radii": [0.1], "samples": 1000, "judging_samples": 100} | change
    with pytest.raises(error, match=message):
        curves(square_model(), arguments.pop("x"), arguments.pop("radii"), **arguments)


# violations


def test_certified_balls_of_a_linear_model_hold_and_balls_beyond_its_margin_do_not():
    """Every direction is a worst one, so at 1.2 times the margin every perturbation breaks r-robustness.

    P(D <= r) is then 0.4, which 10,000 samples tell from 1/2 with certainty, and 100 let pass once in 1,000 at most.
    """
    model = square_model()
    r, x = model.quantile(0.9), uniform(2, 4)
    radius = certified_margin(model, x, r, samples=5000, seed=0).radius
    assert violations(model, x, radius, r, directions=500) == (2 * 501, 0, 0, 0.999)
    found = violations(model, x, 1.2 * model.margin(r), r, directions=50)
    assert found.tried == 2 * 51
    assert found.tried * 0.95 < found.suspected == found.confirmed


def test_at_the_margin_itself_nothing_is_confirmed_though_much_is_suspected():
    """Just within it P is above 1/2, by a thousandth: a screening cannot tell, and the tests err once in 10 at most."""
    model = square_model()
    r, x = model.quantile(0.9), uniform(2, 4)
    confirmed = 0
    for seed in range(20):
        found = violations(
            model,
            x,
            0.999 * model.margin(r),
            r,
            directions=20,
            attacks=0,
            judging_samples=500,
            confidence=0.9,
            seed=seed,
        )
        assert found.suspected > 20
        confirmed += found.confirmed > 0
    assert confirmed <= most_misses(20, 0.1)


def test_random_directions_of_the_encoder_and_given_ones_find_the_one_bad_direction():
    """One of 200 directions is bad: uniform ones miss it; those that move the encoder, and the attack, do not."""
    model = graded_model(200, 4)
    r, x = model.quantile(0.9), uniform(2, 200)
    radius = 1.3 * model.margin(r)
    worst = torch.linalg.svd(model.weight).Vh[0].expand(1, 2, -1)
    nothing = violations(model, x, radius, r, directions=1, attacks=0)
    assert nothing == (2, 0, 0, 0.999)
    assert violations(model, x, radius, r, directions=1, attacks=0, further=5 * worst).confirmed == 2
    assert violations(model, x, radius, r, directions=1, attacks=1).confirmed == 2
    assert violations(model, x, radius, r, directions=20, attacks=0).confirmed >= 2


def test_where_nothing_is_certified_nothing_is_tried():
    model, x = square_model(), uniform(3, 4)
    r = model.quantile(0.2)  # half-robust nowhere
    assert violations(model, x, 0.0, r) == (0, 0, 0, 0.999)
    some = torch.tensor([0.0, 0.1, 0.0])
    found = violations(model, x, some, r, directions=10, further=torch.ones(2, 3, 4).double())
    assert found.tried == 10 + 1 + 2
    assert found.confirmed == found.tried


def test_all_perturbations_are_as_long_as_the_radius_and_no_longer(monkeypatch):
    """In single precision too: a hair of it, 5e-7, is given away."""
    vae, x, seen = random_vae().float(), uniform(5, 12).float(), []

    def watched(model, x, delta, **options):
        seen.append(delta)
        return distances(model, x, delta, **options)

    monkeypatch.setattr(module, "distances", watched)
    monkeypatch.setattr(module, "PERTURBATIONS", 20)  # two points at a time
    radius = 0.1 + torch.arange(5)
    found = violations(vae, x, radius, 1e3, directions=9, samples=10)
    assert [len(delta) for delta in seen] == [20, 20, 10]
    length = torch.cat([d.double().norm(dim=1).unflatten(0, (10, -1)) for d in seen], 1)
    assert (length <= radius.double()).all() and (length >= (1 - 1e-6) * radius).all()
    assert found == (50, 0, 0, 0.999)


def test_equal_seeds_find_the_same(measured):
    vae, x, columns, _ = measured
    arguments = vae, x, 1.05 * columns["own"]["attack"], columns["own"]["r"]
    first, again = (violations(*arguments, directions=50, judging_samples=2000, seed=5) for _ in range(2))
    assert first == again
    assert first.confirmed > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x must have shape \(n, d\)"),
        ({"radius": -1.0}, ValueError, "radius must be finite and >= 0"),
        ({"r": torch.nan}, ValueError, "r must be finite and >= 0"),
        ({"directions": 0}, ValueError, "directions must be a whole number of at least 1"),
        ({"attacks": -1}, ValueError, "attacks must be a whole number of at least 0"),
        ({"further": torch.zeros(1, 3, 4)}, ValueError, r"further must have shape \(1, 4\)"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"judging_samples": 0}, ValueError, "judging_samples must be a whole number of at least 1"),
        ({"confidence": 1.0}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_of_violations_are_named(change, error, message):
    arguments = {"x": uniform(1, 4), "radius": 0.1, "r": 1.0} | change
    with pytest.raises(error, match=message):
        violations(square_model(), *(arguments.pop(name) for name in ("x", "radius", "r")), **arguments)


def test_certified_balls_of_a_shipped_model_hold_and_the_attacks_ball_does_not():
    """On three images; the count at full scale is the chapter's."""
    vae, x = pretrained("mnist", 10.0).vae, read_sample("mnist")[0][:3]
    x = x.float() / (255 if x.max() > 1 else 1)
    r = distances(vae, x, samples=1000, seed=1).quantile(0.9, dim=1)
    certificate = certified_margin(vae, x, r, samples=3000, seed=2, refine=2)
    assert (certificate.radius > 0.05).all()
    found = violations(vae, x, certificate.radius, r, directions=300, samples=50)
    assert found.tried == 3 * 301 and found.confirmed == 0
    attack = strongest_attack(vae, x, r, steps=5, judging_samples=500, final_samples=500, tolerance=0.2)
    assert (attack.radius > certificate.radius).all()
    beyond = violations(
        vae,
        x,
        1.1 * attack.radius,
        r,
        directions=2,
        attacks=0,
        further=attack.delta[None],
        samples=50,
        judging_samples=1000,
    )
    assert beyond.confirmed >= 3


# the linearised and first-order radii that the sandwich rests on


@pytest.mark.parametrize(("pixels", "latents"), [(6, 1), (20, 4), (30, 20)])
def test_second_moment_and_decoder_aware_radii_have_closed_forms_on_linear_models(pixels, latents):
    """R = sqrt(r^2 - d_z s^2) / ||A||_2 and (r - s median ||eta||) / ||A||_2.

    The mean of s^2 ||eta||^2 over 4,000 samples has a standard error of s^2 sqrt(2 d_z / 4,000), and the mean of eta
    adds 2 R ||A|| s / sqrt(4,000); five of each. The median's is sqrt(pi / 2) = 1.25 that of the mean, of s / sqrt 2 or
    less a sample.
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
    # of unit length; the worst direction is the top singular vector, but for the mean of eta
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
    """No direction has mean |moved + R J_g J v|^2 above r^2, and the one that is given has just that.

    2,000 directions and an ascent from the best of them, all with the very samples of the call.
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
        for _ in range(300):  # on a sphere a convex function never falls on the way to where its slope points
            v = torch.einsum("sij,ski->kj", slopes, moves(v))
        limit = float(r[i]) ** 2
        assert found.second_moment[i] > 0
        assert float(mean_square(v).max()) <= limit * (1 + 1e-9)  # the secular equation is halved 100 times
        assert (
            float(mean_square(v).max()) >= limit * 0.999
        )  # so near the ascent comes, whose rate is that of a power iteration
        assert float(mean_square(found.direction[i : i + 1])) == pytest.approx(limit, rel=1e-6)


def test_no_room_gives_radius_0():
    model = LinearGaussianVAE(6, 3)
    found = linearised_radii(model, uniform(2, 6), torch.tensor([0.0, model.quantile(0.01)]), seed=0)
    assert found.second_moment.tolist() == [0, 0] and found.decoder_aware.tolist() == [0, 0]


def test_first_order_radii_are_ordered_and_are_their_formulas(vae):
    x, p = uniform(5, 12), np.array([0.3, 0.5, 0.7, 0.9, 0.999])
    found = first_order_radii(vae, x, p)
    sigma, jacobian = vae.encode(x)[1], encoder_jacobian(vae, x)
    shift = torch.as_tensor(np.maximum(stats.norm.ppf(p), 0))
    norms = (
        jacobian.pow(2).sum((1, 2)).sqrt() / sigma.min(1).values,
        torch.linalg.matrix_norm(jacobian, 2) / sigma.min(1).values,
        torch.linalg.matrix_norm(jacobian / sigma[:, :, None], 2),
    )
    for radii, norm in zip(found, norms, strict=True):
        torch.testing.assert_close(radii, shift / norm, rtol=DOUBLE, atol=0)
    assert (found.frobenius <= found.spectral).all() and (found.spectral <= found.whitened * (1 + DOUBLE)).all()
    assert found.whitened[:2].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(12, 16, 3), (3, 16, 12), (5, 2, 7), (1, 1, 1)])
def test_the_gram_matrix_is_that_of_the_jacobian(shape):
    """By the layers, and without them by the Jacobian itself."""
    vae, x = random_vae(*shape), uniform(5, shape[0])
    jacobian = encoder_jacobian(vae, x)
    expected = jacobian @ jacobian.mT
    found = encoder_gram(vae, x)
    torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=DOUBLE * float(expected.abs().max()))

    class Plain:
        encode, decode = vae.encode, vae.decode

    assert torch.equal(encoder_gram(Plain(), x), expected)
    assert isinstance(vae, VAE)
