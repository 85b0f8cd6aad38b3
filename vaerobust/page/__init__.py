"""What a notebook of the book puts on its page.

figures
    The look of the figures, grids of images, and pictures with alternative text.
numbers
    Measured numbers for the text, and the records by which the paper's claims are judged.
tables
    Tables with captions, which the text can refer to.
intervals
    Bootstrap intervals of what was measured over images.
words
    Names and counts that all chapters write in the same way.

Nothing here measures a model, and no other part of the package imports this one. It needs the packages of the book:
``pip install 'vaerobust[book]'``. Begin with :func:`~vaerobust.page.numbers.number` and
:func:`~vaerobust.page.figures.show`, which every chapter calls.
"""
