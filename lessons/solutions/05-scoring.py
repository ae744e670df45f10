"""Solutions of lesson 5, and what is wrong in each of some likely answers."""

from check import Exercise


# 1. Count first, over all sentences, and divide once. 2 P R / (P + R) is 2 hits / (found + gold).
def f1(gold, predicted):
    hits = sum(len(right & found) for right, found in zip(gold, predicted, strict=True))
    total = sum(map(len, gold)) + sum(map(len, predicted))
    return 2 * hits / total if total else 0.0


# 2. Other spaces, punctuation or capitals do not make another sentence.
def leaked(train, test):
    known = {folded(sentence) for sentence in train}
    return sum(folded(sentence) in known for sentence in test) / len(test)


def folded(sentence):
    return "".join(char for char in sentence.lower() if char.isalnum())


# ---- For `check`
def mean_of_sentences(gold, predicted):
    scores = [f1([right], [found]) for right, found in zip(gold, predicted, strict=True)]
    return sum(scores) / len(scores)


def without(part):
    """Return f1 of entities without one part: 0 is the type, 2 the last word."""

    def wrong(gold, predicted):
        both = ([{e[:part] + e[part + 1 :] for e in each} for each in s] for s in (gold, predicted))
        return f1(*both)

    return wrong


def of_one_set(gold, predicted):
    return f1([set().union(*gold)], [set().union(*predicted)])


def rate(of):
    """Return precision (of the predicted entities) or recall (of gold) as a function."""

    def wrong(gold, predicted):
        hits = sum(len(right & found) for right, found in zip(gold, predicted, strict=True))
        return hits / sum(map(len, (gold, predicted)[of]))

    return wrong


GOLD = [
    {("DNA", 1, 2), ("protein", 4, 5), ("RNA", 7, 7)},
    {("DNA", 0, 0)},
    {("protein", 2, 3), ("RNA", 9, 9)},
    {("RNA", 5, 6)},
]
FOUND = [
    {("DNA", 1, 2), ("RNA", 4, 5), ("RNA", 7, 7)},
    {("DNA", 0, 0), ("RNA", 1, 1)},
    {("protein", 2, 4), ("DNA", 6, 6)},
    {("DNA", 1, 2), ("protein", 8, 9), ("RNA", 5, 9)},
]
F1 = Exercise(
    f1,
    [(GOLD, FOUND)],
    {
        "count over all sentences, then divide: this is the mean of the sentences' F1": (
            mean_of_sentences
        ),
        "this is precision": rate(1),
        "this is recall": rate(0),
        "a hit needs the right type too": without(0),
        "a hit needs the right last word too": without(2),
        "the sentences must stay apart: equal entities of two sentences are two": of_one_set,
    },
)
TRAIN = ["Sales rose .", "Profit fell by 5 % .", "It hired 20 people ."]
TEST = [
    *("sales rose.", "Profit fell by 6 % .", "It hired 20 people .", "Sales fell ."),
    *("SALES ROSE !", "Sales rose", "It hired 20 people"),
]
LEAKED = Exercise(
    leaked,
    [(TRAIN, TEST)],
    {
        "compare letters and digits only, in lower case": lambda train, test: (
            sum(sentence in train for sentence in test) / len(test)
        ),
        "capitals are no difference": lambda train, test: (
            sum(any(letters(sentence) == letters(other) for other in train) for sentence in test)
            / len(test)
        ),
        "digits count too: 5 % is not 6 %": lambda train, test: leaked(
            *([without_digits(sentence) for sentence in part] for part in (train, test))
        ),
        "this is the share of train's sentences: divide by the number of test's": (
            lambda train, test: leaked(train, test) * len(test) / len(train)
        ),
        "this is a number of sentences, not a share": lambda train, test: (
            leaked(train, test) * len(test)
        ),
        "this is the share that is not in train": lambda train, test: 1 - leaked(train, test),
    },
)


def letters(sentence):
    return "".join(char for char in sentence if char.isalnum())


def without_digits(sentence):
    return "".join(char for char in sentence if not char.isdigit())


EXERCISES = [F1, LEAKED]
