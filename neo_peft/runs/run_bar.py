"""The bar over a whole run: it shows when the run ends.

It counts the tokens that go through the model, in all of the run's scoring and training. A training
step also goes backward, and generated text is computed token by token, so their tokens count more.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from neo_peft import loop
from neo_peft.progress import Progress
from neo_peft.runs import selection
from neo_peft.runs.head_alone import is_scored
from neo_peft.runs.job import GENERATED, Job

# The cost of a token in training, compared with one that is scored; measured on neo-mini. Where a
# head alone is trained, nothing goes backward through the base.
HEAD_TRAINED, ADAPTER_TRAINED, BASE_TRAINED = 1.1, 2.3, 3.8
FORM = "{l_bar}{bar}| {remaining} left"


class RunBar:
    """An open bar. Close it before the run's last lines are printed."""

    def __init__(self, job: Job):
        self.examples, self.settings = job.examples, job.settings
        self.training_cost = training_cost(job)
        self.tokens = {split: int(part.lengths.sum()) for split, part in job.examples.items()}
        scored = sum(self.tokens[split] for split in job.scored_splits)
        generates, self.before = job.settings.generate, 0.0
        if not job.settings.no_before:
            self.before += scored * (1 + GENERATED["before"] * generates)
        after = scored * (1 + GENERATED["after"] * generates)
        after -= self.tokens["validation"]  # the kept epoch has scored it
        if is_scored(job):
            self.before += sum(self.tokens.values())
        steps = selection.total_steps(self.examples["train"], self.settings)
        self.training = self.work_of(steps, math.ceil(steps / self.steps_per_scoring))
        total = self.before + self.training + after
        self.bar: tqdm = job.output.progress((), "run", total, None, FORM)

    @property
    def steps_per_epoch(self) -> int:
        return selection.steps_per_epoch(self.examples["train"], self.settings)

    @property
    def steps_per_scoring(self) -> int:
        return self.settings.eval_every or self.steps_per_epoch

    def work_of(self, steps: int, scorings: int) -> float:
        """Return the work of the first `steps` steps and of `scorings` scorings of validation."""
        examples, settings = self.examples["train"], self.settings
        whole, rest = divmod(steps, self.steps_per_epoch)
        order = loop.epoch_order(len(examples), settings.seed, whole + 1)
        parts = loop.split_into_steps(order, settings)[:rest]
        trained = whole * self.tokens["train"]
        trained += sum(int(examples.lengths[part.all].sum()) for part in parts)
        return self.training_cost * trained + scorings * self.tokens["validation"]

    def reach_training(self, step: int, scored_step: int) -> None:
        """Move to where training begins, or where a resumed run goes on."""
        scorings = math.ceil(scored_step / self.steps_per_scoring)
        self._reach(self.before + self.work_of(step, scorings))

    def reach_end(self, knows_validation: bool) -> None:
        """Move to where training has ended. Unless validation's predictions are known, it is scored
        again: a resumed run does not know those of an epoch before the stop."""
        if not knows_validation:
            self.bar.total += self.tokens["validation"]
        self._reach(self.before + self.training)

    def _reach(self, work: float) -> None:
        """Move the bar. The time left is then that of the speed from here on: scoring, training and
        generating text do not have exactly the costs that are assumed here."""
        if not self.bar.disable:
            self.bar.jump(work)

    def counting(self, progress: Progress, cost: float) -> Progress:
        """Return a progress bar whose items count in this bar too, with `cost` for each token."""

        def counted(items: Iterable, sizes: Sequence[int]) -> Iterator:
            for item, size in zip(items, sizes, strict=True):
                yield item
                # A sum of floats can exceed the total by a rounding error, of which tqdm warns.
                self.bar.update(min(cost * size, max(0, self.bar.total - self.bar.n)))

        return lambda items, what, total, sizes: progress(counted(items, sizes), what, total, sizes)

    def close(self) -> None:
        self.bar.close()


def training_cost(job: Job) -> float:
    """Return the cost of a token in training, compared with one that is scored."""
    if job.settings.trains_base:
        return BASE_TRAINED
    model = job.tuned.model
    only_head = all(name.startswith(f"{model.head_kind}.") for name in model.trainable())
    return HEAD_TRAINED if only_head else ADAPTER_TRAINED
