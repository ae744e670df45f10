"""Examples with the real lengths of the three data sets, and random tokens.

lengths.json describes 512 evenly spaced training rows of each data set, tokenized by GPT-2's
tokenizer. For JNLPBA it has the number of tokens of each word. For PhraseBank and MRPC it has the
number of tokens of the text in its template, and the label's index. The token ids are drawn at
random, since the cost of a step does not depend on them. The last token of a vocabulary is the end
token, as in GPT-2's.
"""

import json
from pathlib import Path

import numpy as np

from neo_peft.encoding import Examples

VOCABULARY = 50257  # GPT-2's
ANSWERS = {  # for each label, GPT-2's tokens of its words
    "sentiment": [[4633], [8500], [3967]],
    "similarity": [[407, 7548], [7548]],
}
LABELS = 11  # number of labels of ner


def answers(task: str, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Return each label's tokens and the end token."""
    end = vocabulary - 1
    return [[token % end for token in words] + [end] for words in ANSWERS[task]]


def load_examples(task: str, rows: int = 512, vocabulary: int = VOCABULARY) -> Examples:
    """Return encoded examples with a task's real lengths and random token ids."""
    lengths = json.loads(Path(__file__).with_name("lengths.json").read_text())[task][:rows]
    rng = np.random.default_rng(0)
    ids, indices, targets = [], [], []
    for row in lengths:
        if task == "ner":
            words = [int(count) for count in row.split()]
            ids.append(rng.integers(0, vocabulary - 1, sum(words)))
            indices.append(np.cumsum([0, *words[:-1]]))  # a word's first sub-token
            targets.append(rng.integers(0, LABELS, len(words)))
        else:
            tokens, label = row
            answer = answers(task, vocabulary)[label]
            ids.append(np.concatenate([rng.integers(0, vocabulary - 1, tokens), answer[:-1]]))
            indices.append(tokens - 1 + np.arange(len(answer)))
            targets.append(np.array(answer))
    flat = [np.concatenate(parts).astype(np.int32) for parts in (ids, indices, targets)]
    return Examples(flat[0], _starts(ids), flat[1], flat[2], _starts(indices))


def _starts(parts: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)])
