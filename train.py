"""Tune a GPT-Neo for a task, and score it before and after.

python train.py --task ner --method lora
"""

import sys
from functools import partial

from neo_peft.commands import train
from neo_peft.system import openmp, signals, torchrun

main = partial(train.main, prog="python train.py")

if __name__ == "__main__":
    openmp.wait_passively()
    signals.listen()
    sys.exit(torchrun.run_together(partial(main, sys.argv[1:])))
