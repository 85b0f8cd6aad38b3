"""What the tests share: models with known answers, a small random network, small fake images, the site in a browser.

A statistical test compares with an exact law, and its limit is the quantile of that law beyond which chance goes with
probability ALARM. Seeds are set once; a test that fails has found something, or one of a million unlucky seeds.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import math
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from scipy import stats
from torch import Tensor

import vaerobust
from vaerobust.linear import LinearGaussianVAE
from vaerobust.model import VAE
from vaerobust.zoo.data import Images

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

ALARM = 1e-6
"""Probability with which a statistical test may fail by chance."""

DOUBLE = 1e-11
"""Relative error that a few thousand roundings in double precision may add up to, in the norms of these small models:
each is 1.1e-16, and sums of up to 1,000 terms in another order differ by less than 1,000 of them, a hundredfold."""

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "tests/smoke.yml"
FULL = ROOT / "_build/html"  # looked at too where `make book` has built it

# several threads cost these small tensors more than they give, and results should not depend on the machine
torch.set_num_threads(1)
# fixed examples and no clock: a test gives the same answer on every run and machine
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")


def modules() -> list[ModuleType]:
    """Import and return every module of the package that computes something.

    The modules of ``vaerobust.page`` only show results, and need the extra ``book``. ``__main__`` runs a command.
    """
    found = pkgutil.walk_packages(vaerobust.__path__, "vaerobust.")
    names = [module.name for module in found if not module.name.startswith("vaerobust.page")]
    return [vaerobust, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own for a test."""
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers in [0, 1) in double precision: pixels."""
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def most_misses(trials: int, probability: float) -> int:
    """Return the number of misses that chance exceeds with probability ALARM, when each has the given one at most."""
    return int(stats.binom.ppf(1 - ALARM, trials, probability))


def share_error(samples: int, tests: int) -> float:
    """Return how far the shares of samples in any of some tests may be from their probabilities (Hoeffding)."""
    return math.sqrt(math.log(2 * tests / ALARM) / (2 * samples))


def follows(samples: Tensor, cdf: Callable) -> bool:
    """Tell whether a Kolmogorov-Smirnov test accepts the distribution, at the level ALARM."""
    return bool(stats.kstest(samples.flatten().double().numpy(), cdf).pvalue > ALARM)


class SpreadingVAE(LinearGaussianVAE):
    """A linear VAE whose sigma depends on the input alone through its length: sigma(x) = s exp(||x||_2)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, sigma = super().encode(x)
        return mu, sigma * torch.exp(x.norm(dim=-1, keepdim=True))


def square_model(latents: int = 4, *, gain: float = 2.0, sigma: float = 0.1, kind: type = LinearGaussianVAE):
    """Return a linear VAE whose A is ``gain`` times a rotation: every direction is a worst one."""
    model = kind(latents, latents, sigma=sigma)
    model.weight = gain * torch.linalg.qr(model.weight).Q
    return model


def graded_model(pixels: int = 20, latents: int = 4, *, sigma: float = 0.1):
    """Return a linear VAE whose A has the singular values 1, 1/2, 1/4, ...: one direction is far the worst."""
    model = LinearGaussianVAE(pixels, latents, sigma=sigma)
    left, _, right = torch.linalg.svd(model.weight, full_matrices=False)
    model.weight = left @ torch.diag(0.5 ** torch.arange(latents, dtype=torch.float64)) @ right
    return model


def random_vae(
    pixels: int = 12, hidden: int = 16, latents: int = 3, *, gain: float = 3.0, seed: int = 0, **options: object
) -> VAE:
    """Return a ReLU network with random weights in double precision, ``gain`` times torch's default ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(pixels, hidden, latents, **options).double()
    for weight in vae.parameters():
        weight.data.mul_(gain)
    return vae.requires_grad_(False)


def shifted(model: LinearGaussianVAE, x: Tensor, shift: float) -> Tensor:
    """Return perturbations, each in a direction of its own, with ||A delta||_2 = shift."""
    delta = torch.randn(x.shape, generator=seeded(5), dtype=x.dtype)
    return delta * shift / (delta @ model.weight.T).norm(dim=1, keepdim=True)


@pytest.fixture(params=[(50, 5, 0.1), (7, 7, 2.0), (3, 1, 0.5)], ids=["50-5", "7-7", "3-1"])
def linear(request: pytest.FixtureRequest) -> LinearGaussianVAE:
    """Linear VAEs of several shapes."""
    pixels, latents, sigma = request.param
    return LinearGaussianVAE(pixels, latents, sigma=sigma)


@pytest.fixture
def square() -> LinearGaussianVAE:
    return square_model()


@pytest.fixture
def graded() -> LinearGaussianVAE:
    return graded_model()


@pytest.fixture
def vae() -> VAE:
    return random_vae()


@pytest.fixture
def fake_images() -> Callable[..., Images]:
    """Make images that an autoencoder can learn: a bright square whose place and brightness vary."""

    def make(n: int = 300, split: str = "train", dataset: str = "mnist") -> Images:
        generator = seeded({"train": 1, "test": 2}[split])
        pixels = 0.1 * torch.rand(n, 28, 28, generator=generator)
        labels = torch.randint(10, (n,), generator=generator)
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label : 2 * label + 8, 10:18] += 0.9 * torch.rand(1, generator=generator)
        return Images(pixels.flatten(1), labels, dataset, split, "made for a test")

    return make


def run_build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the build of the book; tests that run side by side in several processes wait for each other here."""
    command = [sys.executable, str(ROOT / "book/build.py"), *arguments]
    lock = ROOT / "_build/tests.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def smoke() -> Path:
    """Build the book at smoke scale, once; what is up to date from an earlier run is kept."""
    done = run_build("--parameters", str(SMOKE), "--out", "_build/smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_build/smoke"


@pytest.fixture(scope="session", params=["smoke", *(["full"] if (FULL / "index.html").exists() else [])])
def site(request: pytest.FixtureRequest) -> Path:
    return FULL if request.param == "full" else request.getfixturevalue("smoke") / "html"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """Serve the site on the loopback interface: its address, with a slash at the end."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the browser that ``make browser`` provides. Without one the test fails, since a skip would go unseen."""
    # imported here, so that the tests of the core run where Playwright is not installed
    from browser import NoBrowserError, launch
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            started = launch(playwright)
        except NoBrowserError as error:
            pytest.fail(str(error), pytrace=False)
        yield started
        started.close()


class Visitor:
    """Opens pages of the served site as a reader would, with no other network, and notes what goes wrong on them.

    Attributes
    ----------
    problems : list of str
        Console errors, exceptions, failed requests, and requests to anywhere else, which are aborted. A test that
        provokes some looks at them and clears the list; what is left at its end fails it.
    """

    def __init__(self, browser: Browser, base: str) -> None:
        self.browser, self.base = browser, base
        self.problems: list[str] = []
        self.contexts: list[BrowserContext] = []

    def __call__(
        self, path: str, *, width: int = 1400, height: int = 1000, theme: str = "light", javascript: bool = True
    ) -> Page:
        """Open a page, by its path in the site, in a browser profile of its own.

        Parameters
        ----------
        path : str
        width, height : int
            Of the window, in pixels; a phone has 390 x 844.
        theme : {'light', 'dark'}
            What the reader's system prefers, which the site follows.
        javascript : bool

        Returns
        -------
        Page
            Loaded, and with its formulas set.
        """
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, java_script_enabled=javascript,
            service_workers="block",
        )  # fmt: skip
        self.contexts.append(context)
        context.set_default_timeout(60_000)  # a busy machine is no fault of the page
        context.route("**/*", self.guard)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and self.problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on(
            "requestfailed",
            # without scripting, a browser drops what the page would preload for it
            lambda request: (
                (javascript or request.resource_type != "script")
                and self.problems.append(f"failed: {request.url} {request.failure}")
            ),
        )
        page.on(
            "response",
            lambda answer: answer.status >= 400 and self.problems.append(f"{answer.status}: {answer.url}"),
        )
        page.goto(self.base + path, wait_until="load")
        if javascript and page.locator("script[src*=mathjax]").count():
            assert page.evaluate("!!(window.MathJax && MathJax.startup)"), f"MathJax did not load: {self.problems}"
            page.evaluate("() => MathJax.startup.promise.then(() => true)")
        return page

    def guard(self, route: Route) -> None:
        """Let nothing out but what goes to the server of the site."""
        if urlsplit(route.request.url).netloc == urlsplit(self.base).netloc:
            route.continue_()
        else:
            self.problems.append(f"asked for {route.request.url}")
            route.abort()

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture
def open_page(browser: Browser, served: str) -> Iterator[Visitor]:
    """Open pages of the site in Chromium: ``open_page("book/claims.html", width=390, theme="dark")``."""
    visitor = Visitor(browser, served)
    yield visitor
    visitor.close()
    assert visitor.problems == [], "\n".join(visitor.problems)
