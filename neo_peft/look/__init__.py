"""A look inside a run: what its score consists of, and what its adapter is.

look.py           look inside a run: what its score consists of, and what its adapter is
subject.py        the run, its untuned base, and the rows that are scored
score_parts.py    the steps that lead to a run's score, and the score without each part
ablations.py      a run's model with one part of its adapter switched off
spectra.py        the singular values of each weight change, and directions that two runs share
in_front.py       what a trained prompt or prefix has become
attention.py      the attention that each head pays to a prompt's positions
nearest.py        the words that a prompt's positions are most similar to
layer_readout.py  what the model would predict after each layer
as_text.py        what a look found, as text
page.py           what a look found, as an HTML page
"""
