"""``python -m vaerobust``, the same as the command ``vaerobust``.

The commands are in :mod:`vaerobust.commands`, a module that training processes can import without running them.
"""

from vaerobust.commands import main

main()
