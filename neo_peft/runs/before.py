"""Score what a tuned model has to beat: two baselines, a linear head alone, the untuned base."""

from neo_peft.decoding import Evaluation
from neo_peft.runs.baselines import predict_baseline, predict_majority
from neo_peft.runs.head_alone import is_scored, predict_with_head_alone
from neo_peft.runs.job import Job, Scores, keep_predictions, score_model, untuned_base
from neo_peft.runs.predictions import PredictionKind

# The order of their columns in tables. The untuned base is scored first: it shows examples.
ORDER = ("majority", "baseline", "head_alone", "before")


def score_before(job: Job) -> Scores:
    """Score the untuned base, the baselines and the head alone, and write their predictions.

    All of them get the training rows that the run gets. What the run has computed before it was
    killed, or another run of its study, is not computed again (see `Shared`).
    """
    scores: Scores = {"scores": {}, "generated": {}}
    if not job.settings.no_before:
        score_model(job, untuned_base(job), "before", scores)
    train, validation = job.rows["train"], job.rows["validation"]
    all_rows = [row for split in job.scored_splits for row in job.rows[split]]
    predicted = predict_majority(job.task, train, all_rows)
    keep_all(job, "majority", by_split(job, predicted), scores)
    depends_on = {
        "kind": "baseline",
        "task": [job.task.fields, job.task.labels, job.task.metric],
        "rows": [train, validation, all_rows],
    }
    predicted = job.shared.once(
        depends_on, lambda: predict_baseline(job.task, train, validation, all_rows)
    )
    keep_all(job, "baseline", by_split(job, predicted), scores)
    if is_scored(job):
        keep_all(job, "head_alone", predict_with_head_alone(job), scores)
    found = scores["scores"]
    return scores | {"scores": {when: found[when] for when in ORDER if when in found}}


def by_split(job: Job, predicted: list) -> dict[str, list]:
    """Return the predictions of each split, from those of all splits in their order."""
    remaining = iter(predicted)
    return {split: [next(remaining) for _ in job.rows[split]] for split in job.scored_splits}


def keep_all(job: Job, when: str, predicted: dict[str, list], scores: Scores) -> None:
    """Score and write the predictions of each split."""
    for split, predictions in predicted.items():
        kind = PredictionKind(when)
        keep_predictions(job, kind, split, Evaluation(predictions), scores)
