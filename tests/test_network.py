"""Bounds for encoders that are traced: convolutions, BatchNorm, skips, smooth activations."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vaerobust.certify import chord_slopes, encoder_shift
from vaerobust.certify.certificates import certified_margin, certified_r
from vaerobust.certify.encoder_shift import lipschitz_bound, shift_metric
from vaerobust.certify.network import Network, compare, compare_within, encoder_mean
from vaerobust.certify.tracing import trace
from vaerobust.model import VAE

SIDE = 6
PIXELS = 2 * SIDE**2


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Encoder(nn.Module):
    """A model whose mean is a given network on images of two channels, with a constant sigma and a linear decoder."""

    def __init__(self, mean, sigma=0.5, shape=(2, SIDE, SIDE)):
        super().__init__()
        self.mean, self.sigma, self.shape = mean, sigma, shape
        self.double().eval()

    def encode(self, x):
        mu = self.mean(x.reshape(-1, *self.shape))
        return mu, torch.full_like(mu, self.sigma)

    def decode(self, z):
        out = z @ noise(z.shape[1], 8, seed=5).to(z)
        return nn.functional.pad(out, (0, math.prod(self.shape) - 8))


def flat(mean, **settings):
    return Encoder(mean, shape=(PIXELS,), **settings)


def batch_norm(channels, seed=0):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = noise(channels, seed=seed) / 2
    norm.running_var = noise(channels, seed=seed + 1).exp()
    norm.weight.data, norm.bias.data = noise(channels, seed=seed + 2), noise(channels, seed=seed + 3)
    return norm


def network(model, x=None, **settings):
    return Network(trace(model, noise(1, PIXELS) if x is None else x), **settings)


class Skip(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x - 0.5 * self.body(x) + 1.0


class Functional(nn.Module):
    """A network from a plain function."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


# what is traced is the encoder

AFFINE = {
    "convolution": nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=1),
    "dilated": nn.Conv2d(2, 4, 2, dilation=2, groups=2, bias=False),
    "same padding": nn.Conv2d(2, 3, 3, padding="same"),
    "reflected padding": nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1, output_padding=1),
    "one dimension": nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 5, stride=3)),
    "batch norm": batch_norm(2),
    "batch norm without weights": nn.BatchNorm2d(2, affine=False),
    "average": nn.AvgPool2d(3, stride=2, padding=1),
    "adaptive average": nn.AdaptiveAvgPool2d(2),
    "average of one dimension": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(4)),
    "skip": Skip(nn.Conv2d(2, 2, 3, padding=1)),
    "linear on rows": nn.Linear(SIDE, 4),
    "padded": nn.ConstantPad2d((1, 2, 0, 1), 0.7),
    "upsampled": nn.Upsample(scale_factor=2),
    "shuffled": nn.PixelUnshuffle(2),
    "parts": Functional(lambda x: torch.cat([x.chunk(2, 1)[1], x[:, :1, 1::2].repeat_interleave(2, 2)], 1)),
    "picked": Functional(lambda x: x[:, [1, 0]].flip(2) / 3 - x.mean((2, 3), keepdim=True)),
    "turned": Functional(
        lambda x: 2.0 - x.permute(0, 3, 1, 2).transpose(1, 3) * torch.arange(6.0).reshape(6, 1, 1).double()
    ),
    "sums": Functional(lambda x: x.sum(1) + torch.stack([x[:, 0], -x[:, 1]], 1).unsqueeze(1).squeeze(1)[:, 0]),
    "split": Functional(lambda x: x.split([1, 1], 1)[1] + torch.unbind(x, 1)[0].unsqueeze(1)),
    "constant joined": Functional(lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 1)),
}
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.2),
    "steep leaky": nn.LeakyReLU(3.0),
    "prelu": nn.PReLU(2, init=-0.4),
    "elu": nn.ELU(),
    "elu 0.3": nn.ELU(0.3),
    "selu": nn.SELU(),
    "celu": nn.CELU(2.0),
    "softplus": nn.Softplus(3.0),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.3, 0.8),
    "hard sigmoid": nn.Hardsigmoid(),
    "clamped below": Functional(lambda x: x.clamp(min=-0.2)),
    "clamped above": Functional(lambda x: x.clamp(max=0.2)),
    "absolute": Functional(torch.abs),
}


@pytest.mark.parametrize("layer", [*AFFINE.values(), *ACTIVATIONS.values()], ids=[*AFFINE, *ACTIVATIONS])
def test_the_network_computes_the_mean_and_its_jacobian(layer):
    model = Encoder(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)))
    model.encode(noise(2, PIXELS))
    x = noise(5, PIXELS, seed=1)
    found = network(model)
    torch.testing.assert_close(found.mean(x), model.encode(x)[0].detach(), rtol=1e-10, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda point: model.encode(point[None])[0][0], x[0]) / 0.5
    metric = shift_metric(found, torch.full((1, 3), 0.5), x[:1], 0.0)[0]
    torch.testing.assert_close(metric, jacobian @ jacobian.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", AFFINE.values(), ids=AFFINE)
def test_the_bound_of_an_affine_encoder_is_exact_at_any_radius(layer):
    model = Encoder(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)))
    model.encode(noise(2, PIXELS))
    near, far = (shift_metric(network(model), torch.ones(1, 3), noise(1, PIXELS), radius) for radius in (0.0, 1e3))
    torch.testing.assert_close(near, far)


# chord slopes

SHAPES = {
    "sigmoid": (chord_slopes.SIGMOID, lambda t: 1 / (1 + mpmath.exp(-t))),
    "tanh": (chord_slopes.TANH, mpmath.tanh),
    "softplus": (chord_slopes.SOFTPLUS, lambda t: mpmath.log1p(mpmath.exp(t))),
    "elu": (chord_slopes.ELU, lambda t: t if t > 0 else mpmath.expm1(t)),
    "silu": (chord_slopes.SILU, lambda t: t / (1 + mpmath.exp(-t))),
    "gelu": (chord_slopes.GELU, lambda t: t * mpmath.ncdf(t)),
    "gelu by tanh": (
        chord_slopes.GELU_TANH,
        lambda t: t / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf("0.044715") * t**3))),
    ),
}


@pytest.mark.parametrize(("shape", "exact"), SHAPES.values(), ids=SHAPES)
def test_chord_slopes_in_many_digits_lie_between_their_bounds(shape, exact):
    draw = np.random.default_rng(0)
    with mpmath.workdps(40):
        for _ in range(60):
            a, reach = float(draw.normal(0, 3)), float(10 ** draw.uniform(-12, 2))
            low, high = shape.chord_slopes(*torch.tensor([[a], [reach]], dtype=torch.float64))
            for share in [-1, 1, *draw.uniform(-1, 1, 12)]:
                h = mpmath.mpf(share) * reach
                chord = (exact(mpmath.mpf(a) + h) - exact(mpmath.mpf(a))) / h
                assert float(low) - chord <= 1e-20 and chord - float(high) <= 1e-20


@pytest.mark.parametrize(("shape", "exact"), SHAPES.values(), ids=SHAPES)
def test_the_stated_curvature_and_slopes_of_each_shape_hold(shape, exact):
    with mpmath.workdps(30):
        for t in np.linspace(-7, 7, 281) + 0.001:
            assert abs(mpmath.diff(exact, t, 2)) <= shape.curvature
            assert shape.least <= mpmath.diff(exact, t) <= shape.most


@pytest.mark.parametrize("layer", ACTIVATIONS.values(), ids=ACTIVATIONS)
@given(seed=st.integers(0, 10**6), size=st.floats(-8, 2))
@settings(max_examples=15, deadline=None)
def test_chord_slopes_of_each_activation_bound_its_chords_and_are_not_much_wider(layer, seed, size):
    (step,) = network(Encoder(nn.Sequential(layer, nn.Flatten()))).activations
    a = torch.cat([noise(1, PIXELS // 2, seed=seed), torch.zeros(1, PIXELS // 2).double()], 1)
    reach = torch.full_like(a, 10**size)
    low, high = step.activation.chord_slopes(a.reshape(1, 2, SIDE, SIDE), reach.reshape(1, 2, SIDE, SIDE))
    h = torch.linspace(-1, 1, 402).double()[:, None] * reach
    f = lambda v: step.activation.value(v.reshape(-1, 2, SIDE, SIDE)).reshape(len(v), -1)
    torch.testing.assert_close(
        f(a), layer(a.reshape(1, 2, SIDE, SIDE).clone()).detach().flatten(1), atol=1e-8, rtol=1e-8
    )
    chords = (f(a + h) - f(a)) / h
    slack = 1e-12 / reach.amax()  # rounding of f in double precision
    assert (low.flatten() - slack <= chords.amin(0)).all() and (chords.amax(0) <= high.flatten() + slack).all()
    if 1e-5 < 10**size < 3 and layer is not ACTIVATIONS["selu"] and len(step.activation.terms) == 1:
        assert (
            high.flatten() - low.flatten() <= chords.amax(0) - chords.amin(0) + 0.08
        ).all()  # the grid adds M rho / 32


# soundness


def furthest(model, x, radius, scale, seed=0, steps=20):
    """Ascend on the whitened shift, and on single directions of it, from random perturbations inside the ball."""
    d = noise(24, x.shape[1], seed=seed)
    towards = noise(24, 3, seed=seed + 1)
    towards[:12] = 0.0  # these maximise the whole length
    mu, found = model.encode(x)[0].detach(), []
    for step in range(steps):
        shrink = (
            1.0 if step % 3 else 0.2 + 0.8 * torch.rand(24, 1, generator=torch.Generator().manual_seed(step)).double()
        )
        d = (d / d.norm(dim=1, keepdim=True).clamp(min=1e-12) * radius * shrink).detach().requires_grad_()
        u = (model.encode(x + d)[0] - mu) / scale
        found.append((d.detach(), u.detach()))
        goal = u.norm(dim=1)[:12].sum() + (u * towards).sum(1)[12:].abs().sum()
        (slope,) = torch.autograd.grad(goal, d, allow_unused=True)
        d = (
            d.detach()
            if slope is None
            else d.detach() + radius * slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
        )
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


def assert_sound(model, x, radius, net, scale, refine=3):
    metric = shift_metric(net, scale.expand(1, -1), x, radius, refine=refine)[0]
    assert torch.isfinite(metric).all()
    d, u = furthest(model, x, radius, scale)
    # u u' <= ||delta||^2 W: for every direction a at once exactly if u' W^-1 u <= ||delta||^2
    floor = 1e-9 * metric.diagonal().amax().clamp(min=1e-12) * torch.eye(len(metric)).double()
    quadratic = (u * torch.linalg.solve(metric + floor, u.T).T).sum(1)
    assert (quadratic <= d.square().sum(1) * (1 + 1e-6) + 1e-9).all()
    return metric


@st.composite
def architectures(draw):
    """Random encoders with convolutions, norms, skips, pools, dead and duplicate units, and inputs at kinks."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    layers, channels = [], 2
    for k in range(draw(st.integers(1, 3))):
        width = draw(st.sampled_from([2, 3]))
        convolution = nn.Conv2d(
            channels, width, draw(st.sampled_from([1, 3])), stride=draw(st.sampled_from([1, 2])), padding=1
        )
        convolution.weight.data *= draw(st.sampled_from([0.3, 1.0, 4.0]))
        if draw(st.booleans()):
            convolution.weight.data[0] = convolution.weight.data[-1]  # duplicate units
            convolution.bias.data[0] = convolution.bias.data[-1]
        if draw(st.booleans()):
            convolution.bias.data[:] = draw(st.sampled_from([0.0, -50.0]))  # kinks at x = 0, or dead units
        layers.append(convolution)
        if draw(st.booleans()):
            norm = batch_norm(width, seed=draw(st.integers(0, 99)))
            norm.running_var *= draw(st.sampled_from([1.0, 1e-3, 1e4]))
            layers.append(norm)
        layers.append(draw(st.sampled_from(list(ACTIVATIONS.values())))) if draw(st.booleans()) else layers.append(
            nn.ReLU()
        )
        if isinstance(layers[-1], nn.PReLU):
            layers[-1] = nn.PReLU(width)
        channels = width
        if draw(st.booleans()):
            layers.append(
                Skip(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh() if k else nn.ReLU()))
            )
    layers.append(draw(st.sampled_from([nn.Identity(), nn.AdaptiveAvgPool2d(2)])))
    model = Encoder(nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)))
    x = draw(st.sampled_from([0.0, 1.0])) * noise(1, PIXELS, seed=draw(st.integers(0, 99)))
    model.encode(x)
    return model, x


@given(
    made=architectures(),
    radius=st.sampled_from([1e-3, 0.05, 0.3, 2.0, 50.0]),
    kept=st.sampled_from([0, 5, 40, 2500]),
    memory=st.sampled_from([2**30, 2**19]),
)
@settings(max_examples=25, deadline=None)
def test_no_perturbation_moves_the_mean_further_than_the_bound_whatever_the_network(made, radius, kept, memory):
    model, x = made
    assert_sound(model, x, radius, network(model, x, kept=kept, memory=memory), torch.tensor([0.3, 1.0, 2.0]).double())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SiLU, nn.ELU])
@given(seed=st.integers(0, 10**6), radius=st.floats(0.01, 5.0))
@settings(max_examples=10, deadline=None)
def test_no_perturbation_moves_a_perceptron_further_than_the_bound(activation, seed, radius):
    torch.manual_seed(seed)
    model = flat(nn.Sequential(nn.Linear(PIXELS, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, 3)))
    net, x = network(model), noise(1, PIXELS, seed=seed)
    for kept in (0, 3, 100):
        net.most_kept = kept
        assert_sound(model, x, radius, net, torch.ones(3).double())


def test_a_single_unit_is_bounded_by_its_steepest_chord():
    for activation, exact in ((nn.ReLU(), 0.5), (nn.Tanh(), None), (nn.SiLU(), None)):
        line = nn.Linear(1, 1)
        line.weight.data[:], line.bias.data[:] = 1.0, -0.5
        model = Encoder(nn.Sequential(line, activation), shape=(1,))
        net = network(model, torch.zeros(1, 1).double())
        h = torch.linspace(-1, 1, 2000).double()[:, None]
        chord = ((model.encode(h)[0] - model.encode(torch.zeros(1, 1).double())[0]) / h).abs().max()
        found = lipschitz_bound(net, torch.ones(1, 1), torch.zeros(1, 1).double(), 1.0, refine=30)
        assert chord.item() <= found.item() <= chord.item() * 1.05
        if exact:
            assert found.item() == pytest.approx(exact, rel=0.05)


def test_keeping_fewer_units_is_sound_and_never_much_tighter():
    torch.manual_seed(0)
    model = Encoder(
        nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(54, 20), nn.ReLU(), nn.Linear(20, 3))
    )
    x, scale = noise(1, PIXELS), torch.ones(1, 3)
    bounds = [float(lipschitz_bound(network(model, kept=kept), scale, x, 0.8, refine=20)) for kept in (0, 20, 40, 200)]
    assert bounds == sorted(bounds, reverse=True) or np.diff(bounds).max() < 0.02 * bounds[-1]
    assert bounds[-1] < 0.8 * bounds[0]


@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_a_small_memory_budget_changes_no_bound(radius):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Skip(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU()))
    )
    model = Encoder(nn.Sequential(body, nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)))
    large, small = network(model), network(model, memory=5.0e5)
    assert small.batch(0.5) < PIXELS  # columns are made anew for each activation
    scale, x = torch.ones(1, 3), noise(1, PIXELS)
    one, other = (lipschitz_bound(net, scale, x, radius, refine=4) for net in (large, small))
    assert float(one) <= float(other) * 1.001 <= float(one) * 1.3  # the sharper reach needs memory


# agreement with the path for plain ReLU networks


def test_a_plain_relu_network_found_by_tracing_is_the_same_list_of_layers():
    class Bare:
        def __init__(self, vae):
            self.encode, self.decode = vae.encode, vae.decode

    vae, x = VAE(30, 20, 4), noise(3, 30).float()
    for one, other in zip(encoder_mean(vae, x), encoder_mean(Bare(vae), x), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    r = torch.full((3,), 1.0)
    one, other = (certified_margin(model, x, r, samples=2000) for model in (vae, Bare(vae)))
    assert torch.equal(one.radius, other.radius) and torch.equal(one.half_space, other.half_space)


def test_norms_and_reshapes_between_matrix_products_are_folded():
    norm = nn.BatchNorm1d(9)
    norm.running_mean, norm.running_var = noise(9), noise(9, seed=1).exp()
    model = flat(
        nn.Sequential(nn.Unflatten(1, (2, 36)), nn.Flatten(), nn.Linear(PIXELS, 9), norm, nn.ReLU(), nn.Linear(9, 3))
    )
    layers = encoder_mean(model, noise(2, PIXELS))
    assert [tuple(weight.shape) for weight, _ in layers] == [(9, PIXELS), (3, 9)]


def test_the_bound_is_close_to_the_one_of_the_dense_path(monkeypatch):
    """Within 5%, without the multipliers of pairs, which only the dense path has."""
    monkeypatch.setattr(encoder_shift, "PAIR_RATE", 0.0)
    torch.manual_seed(1)
    vae = VAE(30, 40, 5).double()
    x = noise(4, 30).abs()
    sigma, net = vae.encode(x)[1].detach(), Network(trace(vae, x))
    for radius in (0.0, 0.05, 0.3):
        dense, traced = (lipschitz_bound(mean, sigma, x, radius, refine=60) for mean in (encoder_mean(vae, x), net))
        torch.testing.assert_close(dense, traced, rtol=0.05, atol=0.0)


# what cannot be certified

UNSUPPORTED = {
    "max_pool2d": (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)),
        r"layer 'mean.0.1' \(MaxPool2d\) uses max_pool2d",
    ),
    "layer norm": (nn.LayerNorm(SIDE), r"\(LayerNorm\) uses native_layer_norm"),
    "group norm": (nn.GroupNorm(1, 2), r"\(GroupNorm\) uses native_group_norm"),
    "instance norm": (nn.InstanceNorm2d(2), r"\(InstanceNorm2d\) uses"),
    "attention": (Functional(lambda x: F.scaled_dot_product_attention(x, x, x)), "uses "),
    "softmax": (nn.Softmax(1), "uses _softmax"),
    "gate": (nn.GLU(1), r"\(GLU\) uses glu"),
    "product": (Functional(lambda x: x * x), "uses mul, which multiplies or divides by something that depends"),
    "sign": (Functional(torch.sign), "uses sign"),
    "control flow": (Functional(lambda x: x if x.sum() > 0 else -x), "its path depends on its data"),
    "item": (Functional(lambda x: x * x.mean().item()), "its path depends on its data"),
    "where": (Functional(lambda x: torch.where(x > 0, x, 2 * x)), "uses (gt|where)"),
    "rows mixed": (Functional(lambda x: x - x.mean(0)), "uses mean, which works along the rows"),
    "rows mixed by view": (Functional(lambda x: x.transpose(0, 1).reshape(x.shape)), "works along the rows"),
    "integers": (Functional(lambda x: x.int().double()), "converts to a type that holds no fractions"),
    "numpy": (
        Functional(lambda x: x + torch.as_tensor(np.tanh(x.numpy()))),
        "(cannot be traced|differ from row to row)",
    ),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), r"layer 'mean.0' \(Conv2d\) uses"),
    "noise": (Functional(lambda x: x + torch.randn_like(x)), "uses randn_like"),
    "training": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)), r"BatchNorm2d\) is in training mode"),
    "dropout": (nn.Dropout(), r"Dropout\) is in training mode"),
}


@pytest.mark.parametrize(("layer", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_layer_without_a_bound_is_named_before_any_sampling(layer, message):
    class Silent(Encoder):
        def decode(self, z):
            raise AssertionError("sampled")

    model = Silent(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)))
    with torch.no_grad():
        model.encode(noise(3, PIXELS))
    if "training" in message:
        layer.train()
    for call in (certified_margin, certified_r):
        with pytest.raises(TypeError, match=message):
            call(model, noise(2, PIXELS), 1.0 if call is certified_margin else [1.0])


def test_what_does_not_lead_to_the_mean_need_not_be_supported():
    class Branches(nn.Module):
        def encode(self, x):
            spread = torch.softmax(x * torch.randn_like(x).abs(), 1)[:, :3]
            return torch.relu(x[:, :3]) * 2, spread + 0.1

        def decode(self, z):
            return z

    assert len(network(Branches()).steps) <= 4


# layers that are not the encoder's


def test_wrong_layers_yield_no_certificate():
    vae, x = VAE(12, 8, 3).double(), noise(40, 12)

    class Wrong(VAE):
        def mean_layers(self):
            first, *others = super().mean_layers()
            return [(first[0], first[1] + 0.01), *others]

    wrong = Wrong(12, 8, 3).double()
    with pytest.raises(ValueError, match="layers"):
        certified_margin(wrong, x, 1.0, samples=10)
    mean = encoder_mean(vae, x)
    with pytest.raises(ValueError, match="differ from it by .* sigma at point 0"):
        compare([(weight * 1.01, bias) for weight, bias in mean], vae, x)


def test_layers_that_are_wrong_at_one_point_only_are_found():
    class Patched(nn.Module):
        def encode(self, x):
            mu = x[:, :3] + 1e-2 * (x[:, :1] > 5).to(x)
            return mu, torch.ones_like(mu)

        def mean_layers(self):
            return [(torch.eye(3, 4).double(), torch.zeros(3).double())]

    x = torch.zeros(60, 4).double()
    encoder_mean(Patched(), x)
    x[37, 0] = 6.0
    with pytest.raises(ValueError, match="at point 37"):
        encoder_mean(Patched(), x)


def test_a_mean_that_changes_within_the_ball_is_found():
    class Patched(nn.Module):
        def encode(self, x):
            mu = x[:, :3] + 0.5 * (x.norm(dim=1, keepdim=True) > 1).to(x)
            return mu, torch.ones_like(mu)

    layers = [(torch.eye(3, 4).double(), torch.zeros(3).double())]
    x = torch.zeros(2, 4).double()
    compare_within(layers, Patched(), x, torch.tensor([0.5, 0.9]))
    with pytest.raises(ValueError, match="at point 1"):
        compare_within(layers, Patched(), x, torch.tensor([0.5, 1.5]))


def test_a_nan_mean_is_no_agreement():
    class Broken(nn.Module):
        def encode(self, x):
            return x[:, :3] * torch.nan, torch.ones_like(x[:, :3])

    with pytest.raises(ValueError, match="must compute the mean"):
        compare([(torch.eye(3, 4).double(), torch.zeros(3).double())], Broken(), torch.zeros(2, 4).double())


# kinks, and whole certificates


def test_points_at_kinks_have_a_finite_metric_and_do_not_disturb_a_batch():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3, bias=False)]
    model = Encoder(nn.Sequential(*layers))
    x = noise(3, PIXELS)
    x[1] = 0.0
    metric = shift_metric(network(model), torch.ones(3, 3), x, 0.0)
    assert torch.isfinite(metric).all()
    found = certified_margin(model, x, 12.0, samples=5000)
    assert (found.radius >= 0).all() and torch.isfinite(found.radius).all()
    d, u = furthest(model, x[1:2], 1.0, torch.ones(3).double())
    assert (u.square().sum(1) <= d.square().sum(1) * torch.linalg.eigvalsh(metric[1])[-1] * (1 + 1e-9)).all()


def test_a_convolutional_model_is_certified_below_where_an_attack_on_its_mean_breaks_it():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, 2, 1), batch_norm(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.SiLU(), nn.Flatten()]
    model = Encoder(nn.Sequential(*layers, nn.Linear(32, 3))).float()
    x = noise(3, PIXELS).float()
    found = certified_margin(model, x, 9.0, samples=20_000)
    assert (found.radius > 0.01).all() and (found.half_space <= found.radius).all()
    curve = certified_r(model, x, [0.0, 0.05], samples=5000)
    assert (curve[1] >= curve[0]).all() and torch.isfinite(curve).all()
    decode = noise(3, 8, seed=5)
    wide = model.double()
    for i, radius in enumerate(found.radius.double()):
        d, _ = furthest(wide, x[i : i + 1].double(), float(radius), torch.full((3,), 0.5).double())
        mu = wide.encode(x[i : i + 1].double() + d)[0].detach() - wide.encode(x[i : i + 1].double())[0].detach()
        far = mu[mu.norm(dim=1).topk(3).indices]
        distance = ((far[:, None] + 0.5 * noise(4000, 3, seed=9)) @ decode).norm(dim=2)
        assert ((distance <= 9.0).double().mean(1) > 0.5).all()
