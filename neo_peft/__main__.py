"""The command line, for example `python -m neo_peft train --task ner --method lora`."""

import sys
from importlib import import_module

from neo_peft.system import signals
from neo_peft.system.exit_status import exit_status
from neo_peft.system.torchrun import run_together

COMMANDS = {
    "train": "tune a GPT-Neo for a task, and score it before and after",
    "evaluate": "score a finished run again, or an untuned base model",
    "predict": "predict labels or tags of new text with a finished run",
    "export": "write a finished run as an adapter for peft, or as a model for transformers",
    "study": "train once for each seed and value of a flag, and write tables of the scores",
    "report": "write an HTML page about finished runs: scores, curves, wrong predictions",
    "compare": "compare two runs or studies: which is better, or can the difference be chance",
    "sizes": "count what each method trains and stores, for the published sizes of GPT-Neo",
}

USAGE = "usage: python -m neo_peft COMMAND …\n\n" + "\n".join(
    f"  {name:10}{what}" for name, what in COMMANDS.items()
)


def main() -> int:
    """Run the command named by the first argument. Return its exit status."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        # only these two commands can use several processes
        run = run_together if name in ("train", "evaluate") else exit_status
        return run(lambda: import_module(f"neo_peft.commands.{name}").main(argv))
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    print(
        f"error: there is no command {name}; the commands are {', '.join(COMMANDS)}",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    signals.listen()
    sys.exit(main())
