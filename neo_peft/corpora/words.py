"""Split a text into words, for `predict` and for texts with spans."""

import re


def split_words(text: str) -> list[tuple[int, str]]:
    """Return (start, word) for each word; `start` is the index of its first character.

    Punctuation is a word of its own: "(T cells)." is five words, as in JNLPBA. Two exceptions: a
    closing bracket stays in a word that also has the opening one, and a full stop stays in a word
    that has another one. So "NF(kappa)" and "i.e." are one word each.
    """
    words = []
    for chunk in re.finditer(r"\S+", text):
        start, end = chunk.span()
        while end - start > 1 and text[start] in '([{"“':
            words.append((start, text[start]))
            start += 1
        after = []  # the punctuation after the word, last character first
        while end - start > 1 and _ends_in_punctuation(text[start:end]):
            end -= 1
            after.append((end, text[end]))
        words += [(start, text[start:end]), *reversed(after)]
    return words


def _ends_in_punctuation(word: str) -> bool:
    """Return whether the last character is a word of its own."""
    last = word[-1]
    opening = {")": "(", "]": "[", "}": "{"}.get(last)
    if opening:
        return opening not in word
    return last in ',;:?!"”' or (last == "." and "." not in word[:-1])
