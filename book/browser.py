"""Provide a browser of the Chromium family, which the tests and the PDF need.

``python book/browser.py`` looks for a browser that starts and, where there is none, installs one; it says in one line
what it does. The first of these that works is used:

1. a browser of the system: Chromium, Chrome or Edge;
2. Playwright's own build of Chromium, downloaded into the project's environment;
3. Debian's package of Chromium, installed by ``apt-get``, as root or by a ``sudo`` that asks for no password;
4. the same package and the libraries that it lacks, unpacked into the project's environment, for which no root is
   needed.

:func:`launch` starts the browser; it installs nothing. Start reading at :func:`provide`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "microsoft-edge", "microsoft-edge-stable", "msedge",
)  # fmt: skip
"""Commands under which the browsers are installed on Linux."""
PLACES = (
    "/snap/bin/chromium",
    "/opt/google/chrome/chrome",
    "/opt/microsoft/msedge/msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
"""Where browsers are installed outside the PATH. The last three are places on macOS."""
OPTIONS = [
    "--no-sandbox",  # the pages are our own, and root's Chromium does not start with a sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000
"""Milliseconds that a browser may take to start."""
OWN = Path(sys.prefix)
"""The project's environment, .venv."""
UNPACKED = OWN / "chromium"
"""The folder into which Debian's packages are unpacked. Its script ``run`` starts the browser."""
SYSTEM_FONTS = Path("/etc/fonts/fonts.conf")
"""The configuration of fonts. A system without this file has no fonts."""
NONE = "No browser could be installed here: install Chromium, Chrome or Edge, then start this again"
"""What is printed if no browser starts and none can be installed."""

# The folder in which Playwright looks for its own builds and installs them.
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(OWN / "browsers"))


class NoBrowserError(RuntimeError):
    """No browser of the Chromium family starts on this machine."""


def main() -> int:
    """Provide a browser, say which, and return the exit status."""
    try:
        print(f"Browser: {provide()}", flush=True)
    except NoBrowserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def provide() -> str:
    """Find a browser that starts, or install one, and return its name and version.

    Raises
    ------
    NoBrowserError
        If none starts and none could be installed.
    """
    if found := version():
        return found
    for title, install in INSTALLERS:
        print(f"No browser that starts: {title}", flush=True)
        if install() and (found := version()):
            return found
    raise NoBrowserError(NONE)


def version() -> str:
    """Return kind and version of the browser that starts; the empty string if none does."""
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except NoBrowserError:
            return ""
        name = f"{browser.browser_type.name} {browser.version}"
        browser.close()
        return name


def launch(playwright: Playwright) -> Browser:
    """Start a browser: the first of the :func:`candidates` that works.

    Parameters
    ----------
    playwright : Playwright

    Returns
    -------
    Browser
        Headless; the caller closes it.

    Raises
    ------
    NoBrowserError
        If there is none. A command may be there without a browser behind it: Ubuntu's ``chromium-browser`` only says
        that a snap is needed.
    """
    for path in candidates():
        try:
            return playwright.chromium.launch(executable_path=path, args=OPTIONS, timeout=PATIENCE)
        except Error:
            continue
    raise NoBrowserError("No browser starts on this machine: make test provides one")


def candidates() -> Iterator[str | None]:
    """Yield the paths where a browser may be; None stands for Playwright's own build."""
    for name in NAMES:
        if path := shutil.which(name):
            yield path
    yield from (place for place in PLACES if Path(place).is_file())
    if Path(os.environ["PLAYWRIGHT_BROWSERS_PATH"]).is_dir():
        yield None
    if (UNPACKED / "run").is_file():
        yield str(UNPACKED / "run")


def install_by_playwright() -> bool:
    """Download Playwright's Chromium, its headless part alone, and tell whether that went well."""
    # Playwright tries several times, and by default waits 30 seconds each time for an answer.
    wait = "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT=5000"
    return succeeds("env", wait, sys.executable, "-m", "playwright", "install", "--only-shell", "chromium")


def install_by_apt() -> bool:
    """Install Debian's package system-wide, and tell whether that went well."""
    root = os.geteuid() == 0
    if not shutil.which("apt-get") or not (root or (shutil.which("sudo") and succeeds("sudo", "-n", "true"))):
        return False
    apt = [*([] if root else ["sudo", "-n"]), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    succeeds(*apt, "update")  # an old list of packages may do
    return succeeds(*apt, "install", "--yes", "--no-install-recommends", "chromium")


def unpack_by_apt() -> bool:
    """Download Debian's package and missing libraries, unpack them without root, and tell whether that went well."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return False
    shutil.rmtree(UNPACKED, ignore_errors=True)
    lists, cache, packages, root = (UNPACKED / name for name in ("lists", "cache", "packages", "root"))
    for folder in (lists / "partial", cache / "archives/partial", packages, root):
        folder.mkdir(parents=True)
    settings = (f"Dir::State::Lists={lists}", f"Dir::Cache={cache}", "Debug::NoLocking=1")
    apt = ["apt-get", "-qq", *(word for setting in settings for word in ("-o", setting))]
    succeeds(*apt, "update")
    plan = subprocess.run(
        [*apt, "--simulate", "--no-install-recommends", "install", "chromium"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # one line per package that is not installed: "Inst NAME (VERSION ...)"
    wanted = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")]
    if not wanted or not succeeds(*apt, "download", *wanted, cwd=packages):
        return False
    if not all(succeeds("dpkg", "-x", str(package), str(root)) for package in packages.glob("*.deb")):
        return False
    for folder in (lists, cache, packages):
        shutil.rmtree(folder)
    write_starter(root)
    return True


def write_starter(root: Path) -> None:
    """Write the script that starts the unpacked browser with its own libraries, and its own fonts if there are none."""
    libraries = ":".join(sorted({str(path.parent) for path in root.rglob("*.so*")}))
    lines = ["#!/bin/sh", f"export LD_LIBRARY_PATH='{libraries}'"]
    if not SYSTEM_FONTS.exists():  # without any font, pages would have no text
        fonts = UNPACKED / "fonts.conf"
        fonts.write_text(
            f'<?xml version="1.0"?>\n<fontconfig><dir>{root}/usr/share/fonts</dir>'
            f"<cachedir>{UNPACKED}/fonts</cachedir></fontconfig>\n"
        )
        lines.append(f"export FONTCONFIG_FILE='{fonts}'")
    lines.append(f"exec '{root}/usr/lib/chromium/chromium' \"$@\"")
    script = UNPACKED / "run"
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)


def succeeds(*command: str, cwd: Path | None = None) -> bool:
    """Run a command silently and tell whether it ended well."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


INSTALLERS: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("downloading Playwright's Chromium into .venv (about 300 MB)", install_by_playwright),
    ("installing Debian's Chromium by apt-get (about 400 MB)", install_by_apt),
    ("unpacking Debian's Chromium into .venv (400 to 800 MB)", unpack_by_apt),
)
"""What is tried if no browser starts: the words for the progress line, and the function that does it."""


if __name__ == "__main__":
    raise SystemExit(main())
