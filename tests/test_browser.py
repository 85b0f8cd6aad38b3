"""A browser is found where one starts, and installed where none does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import browser
import pytest


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """Return a folder that alone is searched for programs, on a machine without any browser."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(browser, "PLACES", ())
    monkeypatch.setattr(browser, "UNPACKED", tmp_path / "unpacked")
    return tmp_path


def test_a_command_that_does_not_start_a_browser_is_passed_over(bare):
    """Ubuntu's chromium-browser only says that a snap is needed."""
    empty = script(bare, "chromium-browser", "echo a snap is needed >&2; exit 1")
    assert list(browser.candidates()) == [empty]
    with ThreadPoolExecutor(1) as apart:  # Playwright refuses a second start in a thread where a test's browser runs
        assert apart.submit(browser.version).result() == ""


def test_candidates_are_the_systems_then_playwrights_then_the_unpacked_one(bare):
    system = script(bare, "google-chrome", "exit 1")
    (bare / "none").mkdir()
    (bare / "unpacked").mkdir()
    own = script(bare / "unpacked", "run", "exit 1")
    assert list(browser.candidates()) == [system, None, own]


def test_the_first_installer_that_helps_is_the_last_that_is_tried(bare, monkeypatch, capsys):
    here: list[str] = []
    steps = (("one", lambda: False), ("two", lambda: here.append("it") is None), ("three", pytest.fail))
    monkeypatch.setattr(browser, "INSTALLERS", steps)
    monkeypatch.setattr(browser, "version", lambda: "chromium 1" if here else "")
    assert browser.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "No browser that starts: one",
        "No browser that starts: two",
        "Browser: chromium 1",
    ]


def test_where_nothing_helps_one_line_says_what_to_install(bare, monkeypatch, capsys):
    monkeypatch.setattr(browser, "INSTALLERS", (("one", lambda: False),))
    monkeypatch.setattr(browser, "version", lambda: "")
    assert browser.main() == 1
    said = capsys.readouterr()
    assert said.err == f"{browser.NONE}\n"


def test_without_apt_nothing_is_installed_by_it(bare):
    assert not browser.install_by_apt()
    assert not browser.unpack_by_apt()
    assert not browser.UNPACKED.exists()


@pytest.mark.parametrize("fonts", [True, False])
def test_packages_are_unpacked_with_a_script_that_starts_the_browser(bare, monkeypatch, fonts):
    """Stand-ins for apt-get and dpkg do what these do: list, download and unpack."""
    monkeypatch.setattr(browser, "SYSTEM_FONTS", bare if fonts else bare / "none")
    call = 'case "$*" in *--simulate*) echo "Inst chromium (1)"; echo "Inst libx (2)";; *download*) : > a.deb;; esac'
    script(bare, "apt-get", call)
    unpacked = 'd="$3/usr/lib"; /bin/mkdir -p "$d/chromium"; : > "$d/libx.so.1"'
    script(bare, "dpkg", f'{unpacked}; echo "echo \\$LD_LIBRARY_PATH" > "$d/chromium/chromium"')
    assert browser.unpack_by_apt()
    assert sorted(path.name for path in browser.UNPACKED.iterdir()) == [
        *([] if fonts else ["fonts.conf"]),
        "root",
        "run",
    ]
    starter = (browser.UNPACKED / "run").read_text()
    assert str(browser.UNPACKED / "root/usr/lib") in starter
    assert ("FONTCONFIG_FILE" in starter) is not fonts
    assert list(browser.candidates()) == [str(browser.UNPACKED / "run")]
