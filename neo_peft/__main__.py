"""The commands: python -m neo_peft train --task ner --method lora, and those below."""

import sys
from importlib import import_module

from neo_peft.system import signals
from neo_peft.system.exit_status import exit_status
from neo_peft.system.torchrun import run_together

COMMANDS = {
    "train": "tune a GPT-Neo for a task, and score it before and after",
    "evaluate": "score a finished run again, or an untuned base model",
    "predict": "answer new text with a finished run",
    "export": "write a finished run for peft, or for transformers alone",
    "study": "repeat a task's experiment over seeds and epochs, or a sweep, and lay the scores out",
    "report": "show finished runs as a page: scores, curves, errors to browse",
    "compare": "say which of two finished runs is better, or that chance alone could do it",
    "sizes": "show what each method trains and stores, for the published sizes of GPT-Neo",
}

USAGE = "usage: python -m neo_peft COMMAND …\n\n" + "\n".join(
    f"  {name:10}{what}" for name, what in COMMANDS.items()
)


def main() -> int:
    """Run the command that the first argument names; return its exit status."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        # the other commands are one process each
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
