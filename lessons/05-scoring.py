# %% [markdown]
# # Lesson 5: scoring honestly
# You will be able to compute entity F1 by hand, decode valid tags, and tell a real difference from
# chance and from a leak. Tags: Ramshaw and Marcus (1995); hits: CoNLL-2000; paired bootstrap: Koehn
# (2004); leaks: Brown et al. 2020, section 4. The code is `neo_peft/metrics.py` and `viterbi.py`.

# %%
import dataclasses
import sys

sys.path[:0] = [".", "..", "lessons"]  # so that it runs from the clone's root and from lessons/
import torch
from check import check

import neo_peft
from neo_peft.corpora.sample import parse_tagged
from neo_peft.decoding import score
from neo_peft.metrics import entities
from neo_peft.runs import baselines, bootstrap
from neo_peft.viterbi import best_sequences

torch.set_num_threads(1)
splits = neo_peft.load_splits(task := neo_peft.get_task("ner"), "sample")

# %% [markdown]
# ## Entities, and F1
# B- is the first word of an entity (█), I- each further word (▓), O a word outside of entities. A
# predicted entity is a hit if its type, first word and last word are right. Precision is the share
# of hits in the predicted entities, recall in the gold ones, and F1 = 2 P R / (P + R).

# %%
gold = "The [DNA IL-2 gene] and [protein NF-kappa B] act in [cell_type human T cells] ."
predicted = "The [DNA IL-2 gene] and NF-kappa B act in human [cell_type T cells] ."
gold, predicted = (parse_tagged(line, task.labels) for line in (gold, predicted))
print("          ", *gold["tokens"])
for name, (words, tags) in (("gold", gold.values()), ("predicted", predicted.values())):
    print(f"{name:10}", *(".█▓"["OBI".index(t[0])] * len(w) for w, t in zip(words, tags)))
right, found = (set(entities(row["tags"])) for row in (gold, predicted))
P, R = len(found & right) / len(found), len(found & right) / len(right)
print(f"precision {P:.3f}, recall {R:.3f}, F1 {2 * P * R / (P + R):.3f}", end="; neo_peft: ")
print("F1 {f1:.3f}, accuracy {accuracy:.3f}".format(**score(task, [gold], [predicted["tags"]])))
# >            The IL-2 gene and NF-kappa B act in human T cells .
# > gold       ... ████ ▓▓▓▓ ... ████████ ▓ ... .. █████ ▓ ▓▓▓▓▓ .
# > predicted  ... ████ ▓▓▓▓ ... ........ . ... .. ..... █ ▓▓▓▓▓ .
# > precision 0.500, recall 0.333, F1 0.400; neo_peft: F1 0.400, accuracy 0.667

# %% [markdown]
# ## Why accuracy lies, and baselines
# Most words are O. So what does a program reach that always predicts O? And one that looks up each
# word's most frequent tag in the training data? A model must beat these to be worth its cost.

# %%
always_o = [["O"] * len(row["tags"]) for row in splits.test]
looked_up = baselines.most_frequent_tags(splits.train, splits.test)
for name, answers in (("always O", always_o), ("most frequent tag", looked_up)):
    scores = score(task, splits.test, answers)
    print(f"{name:17} accuracy {scores['accuracy']:.2f}, F1 {scores['f1']:.2f}")
# > always O          accuracy 0.75, F1 0.00
# > most frequent tag accuracy 0.85, F1 0.32

# %% [markdown]
# ## Viterbi
# A head gives each tag of a word a probability. Is each word's best tag (*greedy*) a good answer?
# It can be invalid: I-DNA must follow B-DNA or I-DNA. We want the valid sequence with the largest
# product. Of K^T sequences, Viterbi's algorithm keeps only the best one up to each word and tag.

# %%
labels = ("O", "B-DNA", "I-DNA")
p = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.1, 0.6], [0.8, 0.1, 0.1]])  # (words, tags)
for name, tags in (("greedy", p.argmax(1)), ("Viterbi", best_sequences(p.log(), [3], labels))):
    print(f"{name:7}", *(labels[tag] for tag in tags), f"{p[range(3), tags].prod():.3f}")
# > greedy  O I-DNA O 0.240
# > Viterbi B-DNA I-DNA O 0.192

# %% [markdown]
# ## Seeds
# What is Viterbi worth in a model? A seed decides the head's first weights and the order of the
# sentences. So we train three heads on the frozen model, and decode each in both ways.

# %%
runs = {"greedy": [], "viterbi": []}  # the predictions of each head
for seed in range(3):
    given = {"epochs": 1, "batch_size": 4, "seed": seed, "threads": 1}
    settings = neo_peft.make_settings(task="ner", method="head", **given)
    tuned = neo_peft.load_untuned(settings, with_method=True)
    neo_peft.fit(tuned.model, tuned.encoder(splits.train[::4]), settings)
    for name, answers in runs.items():
        encoder = dataclasses.replace(tuned.encoder, viterbi=name == "viterbi")
        answers.append(neo_peft.evaluate(tuned.model, encoder, encoder(splits.test)).predicted)
for name in runs:
    f1 = [score(task, splits.test, answers)["f1"] for answers in runs[name]]
    print(f"{name:7} F1", *(f"{value:.2f}" for value in f1), f"mean {sum(f1) / 3:.2f}")
# > greedy  F1 0.38 0.40 0.37 mean 0.38
# > viterbi F1 0.49 0.48 0.50 mean 0.49

# %% [markdown]
# The best seed is partly luck. Choose epochs and rates on validation; report the mean on test.
# ## Intervals
# Other test sentences would give another score. How different? The bootstrap draws n of the n
# sentences, with replacement, again and again. To compare two systems, draw the *same* sentences
# for both (paired). If the difference's interval excludes zero, it is hardly due to their choice.

# %%
draws, f1 = torch.randint(n := len(splits.test), (2000, n)), {}
for name, (answers, *_) in runs.items():  # of the first seed
    counts = torch.tensor(bootstrap.example_counts(task, splits.test, answers))
    hits, found, right = counts[draws].sum(1).T[:3]
    f1[name] = 2 * hits / (found + right)  # of each resample
for name, values in (*f1.items(), ("viterbi - greedy", f1["viterbi"] - f1["greedy"])):
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    print(f"{name:16} 95 % interval {low:.2f} to {high:.2f}")
# > greedy           95 % interval 0.34 to 0.42
# > viterbi          95 % interval 0.45 to 0.53
# > viterbi - greedy 95 % interval 0.08 to 0.13

# %% [markdown]
# ## Leaks
# The study that this project repeats trained on nine tenths of a file of news, and tested on a
# second file, whose sentences are all in the first. We do so with the sample, by word counts.

# %%
splits = neo_peft.load_splits(task := neo_peft.get_task("sentiment"), "sample")
rows = sum(clean := (splits.train, splits.validation, splits.test), [])
first, second = ([row for i, row in enumerate(rows) if i % step] for step in (10, 8))
for name, parts in (("clean", clean), ("leaky", (first, rows[::10], second))):
    scores = score(task, parts[2], baselines.predict_baseline(task, *parts))
    shared = sum(row in parts[0] for row in parts[2]) / len(parts[2])
    print(f"{name}: {shared:.2f} of test is in train, accuracy {scores['accuracy']:.2f}")
# > clean: 0.00 of test is in train, accuracy 0.72
# > leaky: 0.91 of test is in train, accuracy 0.98

# %% [markdown]
# ## Exercises
# 1. F1 over all entities. gold and predicted have a set of (type, first, last) for each sentence.
# 2. The share of test sentences that are also in train. Compare lower-case letters and digits.


# %%
def f1(gold, predicted):
    return ...


def leaked(train, test):
    return ...


check(5, f1)
check(5, leaked)
# > f1: still open: replace the `...` and run it again
# > leaked: still open: replace the `...` and run it again
