"""Score a finished run again, or an untuned base model.

python evaluate.py runs/ner-lora --split test
"""

import sys
from functools import partial

from neo_peft.commands import evaluate
from neo_peft.system import openmp, torchrun

main = partial(evaluate.main, prog="python evaluate.py")

if __name__ == "__main__":
    openmp.wait_passively()
    sys.exit(torchrun.run_together(partial(main, sys.argv[1:])))
