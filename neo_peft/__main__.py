"""The command line, for example `python -m neo_peft train --task ner --method lora`."""

import sys
from importlib import import_module

from neo_peft.commands import COMMANDS
from neo_peft.system import openmp, signals
from neo_peft.system.exit_status import exit_status
from neo_peft.system.torchrun import run_together

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
    openmp.wait_passively()
    signals.listen()
    sys.exit(main())
