"""The bound on how far a perturbation moves a ReLU encoder, against Jacobians, attacks and products of norms."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import DOUBLE, random_vae, seeded, uniform
from hypothesis import given
from hypothesis import strategies as st

from vaerobust.certify import encoder_shift as module
from vaerobust.certify.encoder_shift import lipschitz_bound, shift_metric
from vaerobust.jacobians import encoder_gram, encoder_jacobian
from vaerobust.linear import LinearGaussianVAE
from vaerobust.model import mean_layers

SINGLE = 1e-6
"""Relative error of W from the descent in single precision: roundings of 6e-8 each may grow tenfold."""

EXCESS = 1e-6
"""Rounding of a shift, relative to the longest shift that W allows for the length of its perturbation, plus 1e-7.
The shift is a difference of numbers up to 1e3, each with a relative rounding of 1e-16. Where a' W a should be 0, it is
about 1e-15, and its root is larger."""


class ReLUEncoder:
    """An encoder with random layers of the given widths and a random constant sigma; it has no decoder."""

    def __init__(self, *widths: int, gain: float = 1.5, seed: int = 0) -> None:
        generator = seeded(seed)
        self.layers = [
            (
                gain * torch.randn(out, into, generator=generator, dtype=torch.float64) / into**0.5,
                0.5 * torch.randn(out, generator=generator, dtype=torch.float64),
            )
            for into, out in itertools.pairwise(widths)
        ]
        self.scale = 0.1 + torch.rand(widths[-1], generator=generator, dtype=torch.float64)

    def mean_layers(self):
        return self.layers

    def mean(self, x):
        for i, (weight, bias) in enumerate(self.layers):
            x = (torch.relu(x) if i else x) @ weight.T + bias
        return x

    def encode(self, x):
        return self.mean(x), self.scale.expand(*x.shape[:-1], -1).to(x)

    def metric(self, x, radius, **options):
        return shift_metric(self.layers, self.scale.expand(len(x), -1), x, radius, **options)

    def shift(self, x, delta):
        """Return u for perturbations delta of shape (k, n, d_x)."""
        return (self.mean(x + delta) - self.mean(x)) / self.scale

    def jacobian(self, x):
        """Return S^-1 J, from which units are on."""
        product = self.layers[0][0].expand(len(x), -1, -1)
        a = x @ self.layers[0][0].T + self.layers[0][1]
        for weight, bias in self.layers[1:]:
            product = weight @ ((a > 0)[:, :, None] * product)
            a = torch.relu(a) @ weight.T + bias
        return product / self.scale[:, None]


NETS = st.builds(
    ReLUEncoder,
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    gain=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 999),
) | st.integers(0, 999).flatmap(
    lambda seed: st.lists(st.integers(1, 9), min_size=2, max_size=6).map(
        lambda widths: ReLUEncoder(*widths, gain=(0.3, 1.0, 3.0)[seed % 3], seed=seed)
    )
)
"""Encoders with up to 4 hidden layers, and with fewer inputs than units, as many, or more."""


def top(metric):
    return torch.linalg.eigvalsh(metric)[..., -1]


def regular(metric):
    """Return W plus a millionth of its norm: W is singular where the latents outnumber the inputs or the units."""
    return metric + (1e-30 + 1e-6 * top(metric))[:, None, None] * torch.eye(metric.shape[1]).to(metric)


def excess(metric, u, delta):
    """Return how far |a . u| exceeds ||delta|| sqrt(a' W a), relative to the largest ||u|| that W allows; (k, n).

    The largest excess over some unit vectors a is returned: W^-1 u, along which it is the largest of all if W is
    regular, u itself, and the axes.
    """
    solved = torch.linalg.solve(regular(metric), u[..., None])[..., 0]
    axes = torch.eye(u.shape[-1]).to(u)[:, None, None].expand(-1, *u.shape)
    a = torch.cat([torch.stack([solved, u]), axes])
    a = a / a.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    allowed = torch.einsum("dkni,nij,dknj->dkn", a, metric, a).clamp(min=0).sqrt() * delta.norm(dim=-1)
    over = ((a * u).sum(-1).abs() - allowed).amax(0)
    return over / (1e-7 + delta.norm(dim=-1) * top(metric).clamp(min=0).sqrt())


def climb(net, x, delta, radius, metric):
    """Climb to perturbations in the ball whose shift is longer, as the metric measures it, by gradient ascent."""
    inverse = torch.linalg.inv(regular(metric))
    for step in range(15):
        delta = delta.clone().requires_grad_(True)
        u = net.shift(x, delta)
        value = torch.einsum("kni,nij,knj->kn", u, inverse, u) / delta.pow(2).sum(-1)
        (slope,) = torch.autograd.grad(value.sum(), delta)
        with torch.no_grad():
            slope = slope / slope.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            delta = delta + radius[:, None] * 0.5 * (1 - step / 15) * slope
            delta = delta + 1e-3 * radius[:, None] * (delta == 0)  # at delta = 0 the ratio has no gradient
            delta = delta * (radius[:, None] / delta.norm(dim=-1, keepdim=True)).clamp(max=1)
    return delta.detach()


@given(NETS, st.sampled_from([1e-3, 0.1, 0.5, 2.0, 20.0]), st.sampled_from([0, 3]))
def test_no_perturbation_moves_the_mean_beyond_the_bound(net, radius, refine):
    """Neither random nor attacked perturbations exceed what W allows by more than the rounding EXCESS."""
    width = net.layers[0][0].shape[1]
    x = torch.randn(3, width, generator=seeded(1), dtype=torch.float64)
    radii = radius * torch.tensor([0.3, 1.0, 1.0], dtype=torch.float64)
    metric = net.metric(x, radii, refine=refine)
    finite = torch.isfinite(metric).all((1, 2))
    assert finite.any() or radius >= 2  # only for the largest balls nothing may be found
    if not finite.any():
        return
    x, radii, metric = x[finite], radii[finite], metric[finite]
    delta = torch.randn(50, *x.shape, generator=seeded(2), dtype=torch.float64)
    delta = delta / delta.norm(dim=-1, keepdim=True) * radii[:, None]
    delta[::2] *= torch.rand(25, len(x), 1, generator=seeded(3), dtype=torch.float64)
    attacked = climb(net, x, delta[:10], radii, metric)
    for tried in (delta, attacked):
        assert (tried.norm(dim=-1) <= radii * (1 + DOUBLE)).all()
        assert (excess(metric, net.shift(x, tried), tried) <= EXCESS).all()


@given(NETS)
def test_at_radius_0_the_bound_is_the_jacobian(net):
    x = torch.randn(3, net.layers[0][0].shape[1], generator=seeded(1), dtype=torch.float64)
    jacobian = net.jacobian(x)
    expected = jacobian @ jacobian.mT
    size = 1e-100 + float(expected.abs().max())
    for refine in (0, 2):
        torch.testing.assert_close(net.metric(x, 0.0, refine=refine), expected, rtol=0, atol=DOUBLE * size)


def test_at_radius_0_it_is_torchs_jacobian_of_the_paper_network():
    vae, x = random_vae(), uniform(5, 12)
    sigma = vae.encode(x)[1]
    found = shift_metric(mean_layers(vae, x), sigma, x, 0.0)
    jacobian = encoder_jacobian(vae, x) / sigma[:, :, None]
    torch.testing.assert_close(found, jacobian @ jacobian.mT, rtol=DOUBLE, atol=DOUBLE * float(found.abs().max()))
    torch.testing.assert_close(found * sigma[:, :, None] * sigma[:, None], encoder_gram(vae, x), rtol=DOUBLE, atol=1e-9)


@given(NETS, st.floats(1e-3, 3.0))
def test_it_covers_the_jacobian_at_every_radius(net, radius):
    """W - S^-1 J J' S^-1 has no negative eigenvalue, up to rounding: the ball contains very short perturbations."""
    x = torch.randn(3, net.layers[0][0].shape[1], generator=seeded(1), dtype=torch.float64)
    metric, jacobian = net.metric(x, radius), net.jacobian(x)
    finite = torch.isfinite(metric).all((1, 2))
    metric, jacobian = metric[finite], jacobian[finite]
    rest = torch.linalg.eigvalsh(metric - jacobian @ jacobian.mT)
    assert (rest >= -DOUBLE * (1 + top(metric))[:, None]).all()


def test_a_unit_on_its_kink_may_do_either():
    """At a = 0 every slope in [0, 1] occurs: +delta moves the mean by delta and -delta by 0, and W must allow both.

    For one such unit the change is delta / 2 + z / 2 with |z| <= |delta|, and no multiplier gives less than W = 1.
    """
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = shift_metric([(one, none), (one, none)], one, torch.zeros(1, 1, dtype=torch.float64), 0.5, refine=30)
    assert 1 - DOUBLE <= float(found) <= 1.02  # 30 steps of descent come within 2%
    assert float(shift_metric([(one, none), (one, none)], one, torch.zeros(1, 1, dtype=torch.float64), 0.0)) >= 1


@pytest.mark.parametrize(("a", "reach"), [(0.0, 0.0), (0.0, 1.0), (0.3, 1.0), (-0.3, 1.0), (2.0, 1.0), (-2.0, 1.0)])
def test_a_deviation_is_at_most_its_share_of_the_change(a, reach):
    """p = relu(a + h) - relu(a) - 1[a > 0] h has 0 <= p <= t g, with equality at the far end of the interval."""
    share = float(module._share(*torch.tensor([[a], [reach]], dtype=torch.float64)))
    if reach == 0:
        assert share == 1  # that of every larger reach
        return
    h = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    p = (a + h).clamp(min=0) - max(a, 0) - (h if a > 0 else 0)
    g = -h if a > 0 else h
    assert (p >= -DOUBLE).all() and (p <= share * g.clamp(min=0) + DOUBLE).all()
    assert float((p / g.clamp(min=1e-3)).max()) == pytest.approx(share, abs=DOUBLE)


def test_one_unit_is_bounded_by_its_steepest_chord():
    """No chord of relu(x - 0.3) from 0 with length <= 1 is steeper than 0.7; sqrt(W) is at least that, and near it."""
    one = torch.ones(1, 1, dtype=torch.float64)
    layers = [(one, torch.tensor([-0.3], dtype=torch.float64)), (one, torch.zeros(1, dtype=torch.float64))]
    found = float(shift_metric(layers, one, torch.zeros(1, 1, dtype=torch.float64), 1.0, refine=30)) ** 0.5
    assert 0.7 - DOUBLE <= found <= 0.71


@given(NETS, st.floats(0.01, 3.0))
def test_refinement_never_loosens(net, radius):
    x = torch.randn(4, net.layers[0][0].shape[1], generator=seeded(1), dtype=torch.float64)
    rough = net.metric(x, radius)
    finite = torch.isfinite(rough).all((1, 2))
    fine = [net.metric(x, radius, refine=steps)[finite] for steps in (1, 5)]
    for found in fine:
        assert torch.isfinite(found).all()
        assert (top(found) <= top(rough[finite]) * (1 + DOUBLE)).all()


def test_refinement_tightens():
    """On a network of the paper's kind the descent lowers lambda_max(W) by more than 5%."""
    net = ReLUEncoder(30, 40, 40, 5)
    x = torch.randn(4, 30, generator=seeded(1), dtype=torch.float64)
    assert (top(net.metric(x, 0.3, refine=20)) < 0.95 * top(net.metric(x, 0.3))).all()


def test_it_grows_with_the_radius_from_the_jacobian_to_the_product_of_norms():
    """The bound rises with the radius, from the norm of the Jacobian towards the product of the layers' norms.

    At radius 0.3, where tens of units may change sign, it is less than a third of the product.
    """
    net = ReLUEncoder(30, 40, 40, 5)
    x = torch.randn(4, 30, generator=seeded(1), dtype=torch.float64)
    norms = [torch.linalg.matrix_norm(weight, 2) for weight, _ in net.layers[:-1]]
    product = torch.stack([*norms, torch.linalg.matrix_norm(net.layers[-1][0] / net.scale[:, None], 2)]).prod()
    radii = [0.0, 0.03, 0.06, 0.12, 0.3]
    reach = torch.stack([top(net.metric(x, radius, refine=10)).sqrt() for radius in radii])
    assert (reach[0] > 0).all()
    assert (reach.diff(dim=0) > 0).all()
    assert (reach[-1] < product / 3).all()


def test_what_is_not_bounded_is_infinite_and_not_wrong():
    """In a ball of radius 1e6 every unit may change sign. No finite W is found for this network, so W is infinite."""
    net = ReLUEncoder(5, 30, 30, 30, 3, gain=3.0)
    x = torch.randn(2, 5, generator=seeded(1), dtype=torch.float64)
    found = net.metric(x, torch.tensor([0.01, 1e6], dtype=torch.float64), refine=2)
    assert torch.isfinite(found[0]).all()
    assert torch.isinf(found[1].diagonal()).all()
    bound = lipschitz_bound(net.layers, net.scale.expand(2, -1), x, torch.tensor([0.01, 1e6]).double(), refine=2)
    assert torch.allclose(bound[0] ** 2, torch.linalg.eigvalsh(found[0])[-1], rtol=DOUBLE)
    assert bound[1] == torch.inf


@given(NETS, st.floats(0.01, 1.0), st.integers(0, 99))
def test_rotations_of_the_input_change_nothing(net, radius, seed):
    """Q x with W_1 Q' is the same network on the same ball. The order of sums differs, and G^-1 magnifies rounding."""
    width = net.layers[0][0].shape[1]
    x = torch.randn(2, width, generator=seeded(1), dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(width, width, generator=seeded(seed), dtype=torch.float64)).Q
    (first, bias), *rest = net.layers
    turned = [(first @ q.T, bias), *rest]
    found = shift_metric(turned, net.scale.expand(2, -1), x @ q.T, radius)
    expected = net.metric(x, radius)
    assert torch.equal(torch.isfinite(found), torch.isfinite(expected))
    size = 1e-100 + float(expected[torch.isfinite(expected)].abs().max()) if torch.isfinite(expected).any() else 1.0
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * size)


def test_it_is_the_same_in_any_order_and_any_split_of_a_batch(monkeypatch):
    net = ReLUEncoder(8, 12, 12, 3)
    x = torch.randn(7, 8, generator=seeded(1), dtype=torch.float64)
    radius = torch.linspace(0, 1, 7, dtype=torch.float64)
    whole = net.metric(x, radius, refine=3)
    for points in (torch.tensor([3, 0, 6, 5, 1, 4, 2]), torch.tensor([4])):
        found = net.metric(x[points], radius[points], refine=3)
        torch.testing.assert_close(found, whole[points], rtol=SINGLE, atol=SINGLE * float(whole.max()))
    monkeypatch.setattr(module, "POINTS", 2)
    found = net.metric(x, radius, refine=3)
    torch.testing.assert_close(found, whole, rtol=SINGLE, atol=SINGLE * float(whole.max()))


def awkward(seed):
    """Return a network with dead, duplicate and badly scaled units, and points on or next to kinks of its units."""
    net = ReLUEncoder(6, 10, 10, 3, seed=seed)
    (first, bias), (second, shift), _ = net.layers
    x = torch.randn(3, 6, generator=seeded(seed + 1), dtype=torch.float64)
    first[1], bias[1] = first[0], bias[0]  # a duplicate
    second[:, 2], bias[2] = 0, -100.0  # dead
    first[3], bias[3], second[:, 3] = first[3] * 1e6, bias[3] * 1e6, second[:, 3] * 1e-6
    first[4], bias[4], second[:, 4] = first[4] * 1e-6, bias[4] * 1e-6, second[:, 4] * 1e6
    bias[5] = -(first[5] @ x[0])  # on the kink at the first point, up to rounding
    bias[6] = 1e-9 - (first[6] @ x[1])  # next to it at the second
    first[7], bias[7] = 0.0, 0.0  # always on it
    shift[8] = shift[8] - (torch.relu(x[2] @ first.T + bias) @ second.T + shift)[8]  # on it in the second layer
    return net, x


@given(st.integers(0, 999), st.sampled_from([1e-6, 0.05, 0.3, 1.0]), st.sampled_from([0, 6]))
def test_awkward_units_are_bounded_too(seed, radius, refine):
    net, x = awkward(seed)
    metric = net.metric(x, radius, refine=refine)
    finite = torch.isfinite(metric).all((1, 2))
    assert finite.all() or radius >= 0.3
    x, metric = x[finite], metric[finite]
    if not len(x):
        return
    radii = torch.full((len(x),), radius, dtype=torch.float64)
    delta = torch.randn(40, *x.shape, generator=seeded(2), dtype=torch.float64)
    delta = climb(net, x, delta / delta.norm(dim=-1, keepdim=True) * radii[:, None], radii, metric)
    assert (excess(metric, net.shift(x, delta), delta) <= EXCESS).all()


def test_without_pairs_it_is_the_bound_by_the_middle_of_each_chord_slope():
    """With N = 0, W is that of an error around the middle slope: z^2 <= e h^2, weighed by lambda e, in the same G."""
    net = ReLUEncoder(7, 9, 3)
    x, radius = torch.randn(1, 7, generator=seeded(1), dtype=torch.float64), 0.4
    relaxation = module._relax(net.layers, net.scale[None], x, torch.full((1,), radius, dtype=torch.float64))
    kept, pairs = relaxation.start
    (first, bias), (second, _) = net.layers
    a = (first @ x[0] + bias)[:, None]
    share = (1 - a.abs() / (radius * first.norm(dim=1, keepdim=True))).clamp(min=0)
    middle = torch.where(a > 0, 1 - share / 2, share / 2)
    some = share[:, 0].topk(kept.shape[1]).indices  # in the order in which they are kept
    error = share[some] / 2
    rows = error.sqrt() * first[some]
    weight = torch.diag(kept[0] * error[:, 0])
    matrix = torch.block_diag(torch.eye(7).double() - rows.mT @ weight @ rows, weight)
    change = torch.cat([second @ (middle * first), second[:, some] * error[:, 0].sqrt()], 1) / net.scale[:, None]
    expected = change @ torch.linalg.solve(matrix, change.mT)
    torch.testing.assert_close(relaxation.solve([kept, pairs]).metric[0], expected, rtol=1e-9, atol=1e-9)


def test_two_opposite_units_cannot_both_deviate():
    """At x = 0, relu(x) - relu(-x) moves by delta. Only with pairs is that known: p_1 p_2 >= 0.

    By hand, with both lambda = l and N_12 = l n, W = 2 / (l (1 + n) - l^2 / 2): at least 4 for n = 0, and close to 1
    for l close to 2 and n close to 1. The search for multipliers gets far below 4.
    """
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    layers = [(torch.cat([one, -one]), torch.zeros(2, dtype=torch.float64)), (torch.cat([one, -one], 1), none)]
    x, radius = torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    relaxation = module._relax(layers, one, x, radius)
    for single, pair in ((1.0, 0.0), (0.7, 0.0), (1.9, 0.95)):
        kept = torch.full((1, 2), single, dtype=torch.float64)
        solution = relaxation.solve([kept, torch.full((1, 2, 2), pair, dtype=torch.float64)])
        by_hand = 2 / (single * (1 + pair) - single**2 / 2)
        assert bool(solution.sound) and float(solution.metric) == pytest.approx(by_hand, rel=DOUBLE)
        assert by_hand >= 4 if pair == 0 else 1 <= by_hand < 1.06
    assert 1 - DOUBLE <= float(shift_metric(layers, one, x, radius, refine=30)) < 2


@given(NETS, st.floats(0.01, 2.0))
def test_any_multipliers_bound_the_shift(net, radius):
    """Random multipliers, of single units and of pairs, give a W that no attacked perturbation exceeds."""
    width = net.layers[0][0].shape[1]
    x = torch.randn(2, width, generator=seeded(1), dtype=torch.float64)
    radii = torch.full((2,), radius, dtype=torch.float64)
    relaxation = module._relax(net.layers, net.scale.expand(2, -1), x, radii)
    generator = seeded(3)
    kept, pairs = relaxation.start
    kept = kept * torch.exp(torch.randn(kept.shape, generator=generator, dtype=torch.float64))
    pairs = torch.rand(pairs.shape, generator=generator, dtype=torch.float64) / max(1, pairs.shape[1])
    found = relaxation.solve([kept, (pairs + pairs.mT) / 2])
    x, radii, metric = x[found.sound], radii[found.sound], found.metric[found.sound]
    if not len(x):
        return
    delta = torch.randn(30, *x.shape, generator=seeded(2), dtype=torch.float64)
    delta = climb(net, x, delta / delta.norm(dim=-1, keepdim=True) * radii[:, None], radii, metric)
    assert (excess(metric, net.shift(x, delta), delta) <= EXCESS).all()


def test_slopes_are_the_derivatives_of_the_metric():
    """Central differences of a' W a in the logarithm of one multiplier, or in one pair, agree to six digits."""
    net = ReLUEncoder(8, 12, 12, 3)
    x = torch.randn(1, 8, generator=seeded(1), dtype=torch.float64)
    relaxation = module._relax(net.layers, net.scale.expand(1, -1), x, torch.full((1,), 0.3, dtype=torch.float64))
    kept, pairs = relaxation.start
    pairs = (pairs + 0.01) * (1 - torch.eye(pairs.shape[1]).double())
    solution = relaxation.solve([kept, pairs])
    a = torch.linalg.eigh(solution.metric).eigenvectors[:, :, -1:]
    slopes = relaxation.slopes(solution, a, [kept, pairs])

    def value(kept, pairs):
        return float(a.mT @ relaxation.solve([kept, pairs]).metric @ a)

    for i, j in ((0, 3), (2, 6)):
        one = torch.zeros_like(kept)
        one[:, i] = 1e-5 * kept[:, i]
        change = (value(kept + one, pairs) - value(kept - one, pairs)) / (2 * float(one[0, i]))
        assert change == pytest.approx(float(slopes[0][0, i]), rel=1e-5)
        both = torch.zeros_like(pairs)
        both[:, i, j] = both[:, j, i] = 1e-5
        change = (value(kept, pairs + both) - value(kept, pairs - both)) / 2e-5
        assert change == pytest.approx(2 * float(slopes[1][0, i, j]), rel=1e-5)


def test_a_linear_encoder_is_exact_at_every_radius():
    model = LinearGaussianVAE(9, 4, sigma=0.3)
    x = uniform(2, 9)
    layers, sigma = mean_layers(model, x), model.encode(x)[1]
    expected = model.weight @ model.weight.T / 0.3**2
    for radius, refine in ((0.0, 0), (1.0, 3), (1e6, 3)):
        for found in shift_metric(layers, sigma, x, radius, refine=refine):
            torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=DOUBLE * float(expected.max()))


@pytest.mark.parametrize("widths", [(20, 4, 3), (4, 20, 3), (4, 4, 3), (6, 2, 8)])
def test_a_first_layer_without_full_rank_is_bounded_too(widths):
    """The first layer has two equal pixels and two equal units."""
    net = ReLUEncoder(*widths)
    first, bias = net.layers[0]
    first[:, 1], first[1], bias[1] = first[:, 0], first[0], bias[0]
    x = torch.randn(3, widths[0], generator=seeded(1), dtype=torch.float64)
    radius = torch.full((3,), 0.5, dtype=torch.float64)
    metric = net.metric(x, radius, refine=2)
    delta = torch.randn(50, *x.shape, generator=seeded(2), dtype=torch.float64)
    delta = climb(net, x, delta / delta.norm(dim=-1, keepdim=True) * radius[:, None], radius, metric)
    assert (excess(metric, net.shift(x, delta), delta) <= EXCESS).all()


# arguments that are refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((2, 4), torch.nan)}, ValueError, "x must be finite"),
        ({"x": torch.zeros(4)}, ValueError, r"x must have shape \(n, d\)"),
        ({"scale": torch.full((2, 2), torch.inf)}, ValueError, "scale must be finite"),
        ({"scale": [1.0]}, TypeError, "scale must be a tensor of floating point numbers"),
        ({"radius": -1.0}, ValueError, "radius must be finite and >= 0, but holds -1"),
        ({"radius": torch.nan}, ValueError, "radius must be finite and >= 0, but holds nan"),
        ({"radius": torch.ones(3)}, ValueError, r"radius must be one number or shape \(2,\)"),
        ({"refine": -1}, ValueError, "refine must be a whole number of at least 0"),
        ({"refine": 1.5}, ValueError, "refine must be a whole number of at least 0"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    net = ReLUEncoder(4, 5, 2)
    arguments = {"x": torch.zeros(2, 4), "scale": torch.ones(2, 2), "radius": 0.1, "refine": 0} | change
    with pytest.raises(error, match=message):
        shift_metric(net.layers, arguments.pop("scale"), arguments.pop("x"), arguments.pop("radius"), **arguments)
