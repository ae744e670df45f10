"""Solutions of lesson 8, and what is wrong in each of some likely answers."""

import torch
from check import Exercise


# 1. The gradient of B is (alpha / r) · gradient · Aᵀ. Its sign decides; A has no gradient yet.
def first_step(gradient, A, alpha, rate):
    B = -rate * (gradient @ A.T).sign()  # (out, r)
    return alpha / len(A) * B @ A


# 2. The mean over the seeds of validation decides; test is only reported.
def choose(scores):
    def mean(rate, which):
        return sum(pair[which] for pair in scores[rate]) / len(scores[rate])

    best = max(scores, key=lambda rate: mean(rate, 0))
    return best, mean(best, 1)


# ---- For `check`
torch.manual_seed(8)
STEP = Exercise(
    first_step,
    [
        (torch.randn(4, 6), torch.randn(2, 6), 6, 0.1),
        (torch.randn(3, 5), torch.randn(4, 5), 2, 0.5),
    ],
    {
        "a step goes against the gradient: minus": lambda g, A, alpha, rate: (
            -first_step(g, A, alpha, rate)
        ),
        "alpha / r is missing: the sign removes it from the gradient, not from ΔW": (
            lambda g, A, alpha, rate: first_step(g, A, len(A), rate)
        ),
        "alpha / r counts once: the sign removes it from the gradient": lambda g, A, alpha, rate: (
            first_step(g, A, alpha, rate) * alpha / len(A)
        ),
        "r is the number of rows of A": lambda g, A, alpha, rate: (
            first_step(g, A, alpha, rate) * len(A) / A.shape[1]
        ),
        "divide by r": lambda g, A, alpha, rate: first_step(g, A, alpha, rate) * len(A),
        "Adam moves each number by the rate: take the sign of the gradient": (
            lambda g, A, alpha, rate: -rate * alpha / len(A) * (g @ A.T) @ A,
            lambda g, A, alpha, rate: -rate * (alpha / len(A)) ** 2 * (g @ A.T) @ A,
        ),
        "the gradient of B is that of W, times A transposed": lambda g, A, alpha, rate: (
            -rate * alpha / len(A) * (g.sign() @ A.T) @ A
        ),
        "this is a step of full tuning: LoRA moves B only": lambda g, A, alpha, rate: (
            -rate * g.sign()
        ),
        "return the change of W, B A, not B": lambda g, A, alpha, rate: -rate * (g @ A.T).sign(),
    },
)
SCORES = {
    0.1: [(0.80, 0.66), (0.50, 0.79), (0.55, 0.72)],  # has the best seed and the largest sum
    0.3: [(0.58, 0.50), (0.74, 0.62)],  # has the best mean
    0.9: [(0.63, 0.75), (0.62, 0.68)],  # has the best worst seed
}


def by_mean(scores, which, reported):
    def mean(rate, index):
        return sum(pair[index] for pair in scores[rate]) / len(scores[rate])

    best = max(scores, key=lambda rate: mean(rate, which))
    return best, mean(best, reported)


def by_best_seed(scores, which):
    best = max(scores, key=lambda rate: max(pair[which] for pair in scores[rate]))
    return best, max(scores[best], key=lambda pair: pair[which])[1]


def test_mean(scores, rate):
    return sum(pair[1] for pair in scores[rate]) / len(scores[rate])


def by_worst_seed(scores):
    best = max(scores, key=lambda rate: min(pair[0] for pair in scores[rate]))
    return best, test_mean(scores, best)


def by_sum(scores):
    best = max(scores, key=lambda rate: sum(pair[0] for pair in scores[rate]))
    return best, test_mean(scores, best)


def by_best_seed_mean(scores):
    best = max(scores, key=lambda rate: max(pair[0] for pair in scores[rate]))
    return best, sum(pair[1] for pair in scores[best]) / len(scores[best])


CHOOSE = Exercise(
    choose,
    [(SCORES,), ({4: [(0.2, 0.8), (0.3, 0.9)], 2: [(0.4, 0.1), (0.5, 0.2)], 1: [(0.1, 0.3)] * 5},)],
    {
        "test must not choose: take the rate with the best validation": lambda scores: by_mean(
            scores, 1, 1
        ),
        "report test, not the validation score that has chosen": lambda scores: by_mean(
            scores, 0, 0
        ),
        "the mean over the seeds must choose, not the best seed, and not the sum": (
            lambda scores: by_best_seed(scores, 0),
            by_best_seed_mean,
            by_sum,
        ),
        "one unlucky seed must not choose: take the mean over the seeds": by_worst_seed,
        "test must not choose, and one seed must not either": lambda scores: by_best_seed(
            scores, 1
        ),
        "report the mean over the seeds, not the best one": (
            lambda scores: (choose(scores)[0], max(pair[1] for pair in scores[choose(scores)[0]])),
            lambda scores: (choose(scores)[0], max(scores[choose(scores)[0]])[1]),
        ),
        "return a pair: the rate and the test score": lambda scores: choose(scores)[0],
        "first the rate, then the score": lambda scores: choose(scores)[::-1],
        "a higher score is better": lambda scores: by_mean(
            {rate: [(-a, b) for a, b in pairs] for rate, pairs in scores.items()}, 0, 1
        ),
    },
)
EXERCISES = [STEP, CHOOSE]
