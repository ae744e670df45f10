"""Operations in the form in which a CPU computes them fastest. A GPU uses torch's own.

A first reader can take each for the operation of torch that it is compared with in tests/kernels/.

linear.py   a linear layer: large frozen weights are multiplied by oneDNN
gelu.py     GPT-Neo's activation, written over its input
dropout.py  random elements set to zero, from 16 random bits each
"""
