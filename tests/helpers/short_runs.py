"""Run train.py and evaluate.py in this process, for short runs."""

from pathlib import Path

from neo_peft.system.exit_status import exit_status


def main(script, argv):
    """Run the main function of a script. Return the exit status."""
    try:
        return exit_status(lambda: script.main([str(word) for word in argv]))
    except SystemExit as stop:
        return stop.code


def short_run(model: Path) -> list:
    """Return flags for a run of two short epochs."""
    sizes = ["--train-limit", 24, "--eval-limit", 12, "--epochs", 2]
    return ["--model", model, *sizes, "--threads", 1]
