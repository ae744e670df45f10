"""Examples with the real lengths of the three data sets, and random tokens.

lengths.json describes 512 evenly spaced training rows of each data set, tokenized by GPT-2's
tokenizer. For JNLPBA it has the number of tokens of each word. For PhraseBank and MRPC it has the
number of tokens of the text in its template, and the label's index. The token ids are drawn at
random, since the cost of a step does not depend on them.
"""

import json
from pathlib import Path

import numpy as np

from neo_peft.encoding import Examples

END = 50256
ANSWERS = {  # for each label, GPT-2's tokens of its words, and the end token
    "sentiment": [[4633, END], [8500, END], [3967, END]],
    "similarity": [[407, 7548, END], [7548, END]],
}
LABELS = 11  # number of labels of ner


def load_examples(task: str, rows: int = 512) -> Examples:
    """Return encoded examples with a task's real lengths and random token ids."""
    lengths = json.loads(Path(__file__).with_name("lengths.json").read_text())[task][:rows]
    rng = np.random.default_rng(0)
    ids, indices, targets = [], [], []
    for row in lengths:
        if task == "ner":
            words = [int(count) for count in row.split()]
            ids.append(rng.integers(0, END, sum(words)))
            indices.append(np.cumsum([0, *words[:-1]]))  # a word's first sub-token
            targets.append(rng.integers(0, LABELS, len(words)))
        else:
            tokens, label = row
            answer = ANSWERS[task][label]
            ids.append(np.concatenate([rng.integers(0, END, tokens), answer[:-1]]))
            indices.append(tokens - 1 + np.arange(len(answer)))
            targets.append(np.array(answer))
    flat = [np.concatenate(parts).astype(np.int32) for parts in (ids, indices, targets)]
    return Examples(flat[0], _starts(ids), flat[1], flat[2], _starts(indices))


def _starts(parts: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)])
