"""Train to the end, with callbacks after each step and epoch."""

from collections.abc import Callable

from neo_peft.encoding import Examples
from neo_peft.loop import EpochEnd, State, Step, make_state, steps
from neo_peft.model import TunedModel
from neo_peft.progress import no_progress
from neo_peft.settings import Settings


def train(
    model: TunedModel,
    examples: Examples,
    settings: Settings,
    after_step: Callable[[Step], None] = lambda step: None,
    after_epoch: Callable[[EpochEnd], None] = lambda end: None,
    state: State | None = None,
) -> list[Step]:
    """Train to the end and return all steps."""
    state, taken = state or make_state(model, settings), []
    for event in steps(model, examples, settings, state, no_progress):
        if isinstance(event, EpochEnd):
            after_epoch(event)
            state.next_epoch()
        else:
            taken.append(event)
            after_step(event)
    return taken
