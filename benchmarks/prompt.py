"""Compare two ways to train a soft prompt: python -m benchmarks.prompt

together   The prompt embeddings go through the layers together with the batch's tokens, as in
           `TunedModel.forward`.
past       They go through in a pass of their own (`SoftPrompt.past`), and the texts attend to its
           keys and values.

Each step is computed both ways, in turn. Prints the median and the range of the ratio of CPU
seconds on one thread, past over together. Losses and gradients must be equal to the bit.
"""

import argparse
import statistics
import sys
import time

import torch

from benchmarks.sides import shape
from neo_peft.commands.flags import OneLineParser, argument
from neo_peft.gptneo import GPTNeo
from neo_peft.model import Batch, TunedModel
from neo_peft.prompt import SoftPrompt
from neo_peft.runs.tables import table
from neo_peft.settings import whole
from neo_peft.system.exit_status import exit_status


def parse_flags() -> argparse.Namespace:
    parser = OneLineParser(prog="python -m benchmarks.prompt", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="125m", help="as in benchmarks.peers (default: 125m)")
    parser.add_argument(
        "--pairs", default=8, type=argument(whole(1)), help="number of steps each way"
    )
    return parser.parse_args()


def random_trunk(name: str) -> GPTNeo:
    """Return a frozen trunk of a published shape with random weights."""
    torch.manual_seed(0)
    trunk = GPTNeo(shape(name)).requires_grad_(False)
    for parameter in trunk.parameters():
        parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    return trunk


def random_batch(size: int, vocabulary: int) -> Batch:
    """Return `size` texts of 15 to 59 tokens. The target positions are the last two of each."""
    lengths = torch.randint(15, 60, (size,))
    ends, ids = lengths.cumsum(0), torch.randint(1, vocabulary, (int(lengths.sum()),))
    indices = torch.stack([ends - 2, ends - 1], 1).flatten()
    targets = torch.randint(1, vocabulary, (2 * size,))
    return Batch(ids, lengths, indices, targets, torch.full((size,), 2))


def step(model: TunedModel, batch: Batch, by_past: bool) -> tuple[float, float, torch.Tensor]:
    """Compute a step. Return its CPU seconds, its loss, and the gradient of the prompt."""
    model.zero_grad()
    started = time.process_time()
    loss = model.loss(batch, model.prompt_past() if by_past else None)
    loss.backward()
    return time.process_time() - started, float(loss.detach()), model.prompt.embeddings.grad.clone()


def compare(trunk: GPTNeo, prompt_length: int, size: int, pairs: int) -> list[float]:
    """Return the ratio of each pair of steps. The first pair is a warm-up and is not counted."""
    hidden, vocabulary = trunk.config.hidden_size, trunk.config.vocab_size
    model = TunedModel(trunk, prompt=SoftPrompt(0.02 * torch.randn(prompt_length, hidden))).train()
    ratios = []
    for number in range(pairs + 1):
        batch = random_batch(size, vocabulary)
        order = (False, True) if number % 2 else (True, False)
        steps = {by_past: step(model, batch, by_past) for by_past in order}
        (together, loss, gradient), (past, past_loss, past_gradient) = steps[False], steps[True]
        assert loss == past_loss and torch.equal(gradient, past_gradient)
        ratios += [past / together] if number else []
    return ratios


def main() -> None:
    flags = parse_flags()
    torch.set_num_threads(1)
    trunk, lines = random_trunk(flags.shape), []
    for prompt_length in (8, 20):
        for size in (8, 16):
            for recomputes in (False, True):
                trunk.checkpoint_activations = recomputes
                ratios = compare(trunk, prompt_length, size, flags.pairs)
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                how = "recomputed" if recomputes else "kept"
                lines.append(
                    [
                        f"prompt {prompt_length}, batch {size}",
                        how,
                        statistics.median(ratios),
                        spread,
                    ]
                )
    header = [flags.shape, "activations", "past / together", "range"]
    print(table(header, [[*line[:2], f"{line[2]:.3f}", line[3]] for line in lines]))


if __name__ == "__main__":
    sys.exit(exit_status(main))
