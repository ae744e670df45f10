"""Truncation: a text to classify that is longer than the model's input is cut.

Only the row's own sentences are cut, not the template. By default their middle is left out: the
start and the end together are better than either alone (Sun et al. 2019, "How to Fine-Tune BERT for
Text Classification?", section 5.3.1).
"""

PLACES = ("middle", "end", "start")  # where a long text is cut


def shorten(parts: list[list[int]], limit: int, place: str) -> list[list[int]]:
    """Return a text's parts (token ids) with at most `limit` tokens in all.

    The parts at odd indices are the row's sentences. Each is cut by itself, at the same place. The
    longer one is cut first, so that a short one stays whole.
    """
    lengths = [len(part) for part in parts]
    sentences = range(1, len(parts), 2)
    excess = sum(lengths) - limit
    for _ in range(min(excess, sum(lengths[index] for index in sentences))):
        lengths[max(sentences, key=lambda index: (lengths[index], index))] -= 1
    shortened = []
    for part, length in zip(parts, lengths):
        head, tail = kept_at_ends(length, place)
        shortened.append(part[:head] + part[len(part) - tail :])
    return shortened


def kept_at_ends(length: int, place: str) -> tuple[int, int]:
    """Return how many of `length` kept tokens are a sentence's first ones, and its last ones."""
    head = {"middle": (length + 1) // 2, "end": length, "start": 0}[place]
    return head, length - head
