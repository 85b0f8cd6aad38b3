"""``python -m vaerobust``. The commands live in a module of their own, which training processes can import."""

from vaerobust.commands import main

main()
