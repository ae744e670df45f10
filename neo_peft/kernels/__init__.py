"""Operations in a fast or a small form. A first reader can take each for the plain form that it is
compared with in tests/kernels/.

For a CPU, while a GPU uses torch's own:

linear.py   a linear layer: large frozen weights are multiplied by oneDNN
gelu.py     GPT-Neo's activation, written over its input
dropout.py  random elements set to zero, from 16 random bits each

For every device:

adamw.py       the optimizer AdamW, which does not import torch's compiler
label_tree.py  the probabilities of labels that share their first token
quantized.py   frozen linear layers in 8 or 4 bits
"""
