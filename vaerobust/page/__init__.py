"""What a notebook of the book puts on its page.

- ``figures``: the look of the figures, grids of images, and pictures with alternative text;
- ``numbers``: measured numbers for the text, and the records from which the paper's claims are judged.

Nothing here measures anything, and no other room of the package imports this one. It needs the packages of the book:
``pip install 'vaerobust[book]'``. Start with :func:`~vaerobust.page.numbers.number` and
:func:`~vaerobust.page.figures.show`, which every chapter calls.
"""
