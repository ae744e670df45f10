"""What the two scripts of a peft user share: flags, rows, tokens, the model, metrics, results.

The scripts do the job of train.py with transformers' Trainer and peft: `trainer_plain.py` as the
guides write it, `trainer_careful.py` without needless work. The settings and the rows are those of
train.py, read by neo_peft; tokens, model, training, decoding and metrics are not.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from neo_peft.corpora.sources import load_splits
from neo_peft.defaults import ASSETS, BUNDLED_MODEL, STUDY_METHODS
from neo_peft.settings import Settings, make_settings
from neo_peft.tasks import Task, get_task

TASKS = ("ner", "sentiment")  # those that are compared
SCORED = ("validation", "test")
NO_TARGET = -100  # the target of a token where nothing is predicted


def read_flags(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Return a script's flags. Sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", required=True, help="a folder for the adapter and results.json")
    parser.add_argument("--model", default=BUNDLED_MODEL, help="neo-mini or a folder")
    parser.add_argument("--epochs", type=int, help="default: as train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    return flags


class UserJob:
    """The settings, the rows and the tokenizer of a run."""

    def __init__(self, flags: argparse.Namespace):
        given = {"epochs": flags.epochs} if flags.epochs else {}
        self.task: Task = get_task(flags.task)
        method = STUDY_METHODS[self.task.is_tagging]
        self.settings: Settings = make_settings(
            task=flags.task, method=method, model=flags.model, seed=flags.seed, **given
        )
        self.rows: dict[str, list[dict]] = load_splits(self.task, self.settings.data).named()
        bundled = flags.model == BUNDLED_MODEL
        self.folder = str(ASSETS / BUNDLED_MODEL if bundled else flags.model)
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(self.folder)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.out = flags.out

    @property
    def answers(self) -> list[list[int]]:
        """The tokens of each label, and the end token."""
        texts = [self.task.label_text(label) for label in self.task.labels]
        return [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenizer(texts)["input_ids"]]

    def examples(self, split: str, instruction: str = "") -> list[dict]:
        """Return a split's examples: `input_ids`, and the target of each token in `labels`.

        An answer's targets are at the tokens that predict it: the last token of the text, and the
        answer's own. The end token is no input.
        """
        rows = self.rows[split]
        if self.task.is_tagging:
            return self.tagging_examples(rows)
        first, last = self.task.template
        texts = [f"{instruction}{first} {row['sentence'].strip()}{last}" for row in rows]
        answers = dict(zip(self.task.labels, self.answers, strict=True))
        examples = []
        for ids, row in zip(self.tokenizer(texts)["input_ids"], rows, strict=True):
            answer = answers[row["label"]]
            targets = [NO_TARGET] * (len(ids) - 1) + answer
            examples.append({"input_ids": ids + answer[:-1], "labels": targets})
        return examples

    def tagging_examples(self, rows: list[dict]) -> list[dict]:
        """Return examples whose targets are at each word's first sub-token."""
        words = [" " + word for row in rows for word in row["tokens"]]
        encoded, examples = iter(self.tokenizer(words)["input_ids"]), []
        index = {label: number for number, label in enumerate(self.task.labels)}
        for row in rows:
            ids, labels = [], []
            for tag in row["tags"]:
                word = next(encoded)
                ids += word
                labels += [index[tag]] + [NO_TARGET] * (len(word) - 1)
            examples.append({"input_ids": ids, "labels": labels})
        return examples

    def model(self) -> PeftModel:
        """Return the base with a new adapter."""
        settings, task = self.settings, self.task
        set_seed(settings.seed)
        if task.is_tagging:
            base = AutoModelForTokenClassification.from_pretrained(
                self.folder,
                dtype=torch.float32,
                num_labels=len(task.labels),
                classifier_dropout=settings.head_dropout,
            )
            config = LoraConfig(
                task_type="TOKEN_CLS",
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=list(settings.target_modules),
                bias=settings.bias,
            )
        else:
            base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            config = PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=settings.prompt_length,
                prompt_tuning_init="TEXT",
                prompt_tuning_init_text=task.instruction,
                tokenizer_name_or_path=self.folder,
            )
        set_seed(settings.seed)
        return get_peft_model(base, config)

    def arguments(self) -> dict:
        """Return the arguments of Trainer that follow from the settings."""
        settings = self.settings
        return {
            "num_train_epochs": settings.epochs,
            "per_device_train_batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of all steps
            "max_grad_norm": settings.clip_norm,
            "seed": settings.seed,
            "metric_for_best_model": self.task.metric,
            "load_best_model_at_end": True,
            "report_to": "none",
            "use_cpu": True,
        }


# ---- From logits to predictions and scores


class Decoder:
    """Trainer's `compute_metrics`: decodes predictions, and keeps them."""

    def __init__(self, job: UserJob):
        self.job = job
        self.predicted: list = []  # those of the last call: a label or tags for each row

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        labels = self.job.task.labels
        known = output.label_ids != NO_TARGET
        if not self.job.task.is_tagging:
            first = output.label_ids[np.arange(len(known)), known.argmax(1)]
            tokens = [answer[0] for answer in self.job.answers]
            gold = [labels[tokens.index(token)] for token in first]
            self.predicted = [labels[index] for index in output.predictions]
            return {"accuracy": float(np.mean([a == b for a, b in zip(gold, self.predicted)]))}
        gold = [[labels[i] for i in row[at]] for row, at in zip(output.label_ids, known)]
        logits = [row[at] for row, at in zip(output.predictions, known)]
        self.predicted = [best_tags(scores, labels) for scores in logits]
        values = precision_recall_fscore_support(
            gold, self.predicted, average="micro", zero_division=0
        )
        return dict(zip(("precision", "recall", "f1"), map(float, values)))


def best_tags(scores: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return the best tags that BIO allows, for the scores (T, K) of a sentence's words."""

    def follows(before: str, tag: str) -> bool:
        return tag[:2] != "I-" or before[2:] == tag[2:]

    allowed = np.array([[follows(before, tag) for tag in labels] for before in labels])
    cost = np.where(allowed, 0, -np.inf)
    best, previous = scores[0] + [0 if follows("O", tag) else -np.inf for tag in labels], []
    for word in scores[1:]:
        sums = best[:, None] + cost
        previous.append(sums.argmax(0))
        best = sums.max(0) + word
    path = [int(best.argmax())]
    for before in reversed(previous):
        path.append(int(before[path[-1]]))
    return [labels[index] for index in reversed(path)]


def predict(trainer: Trainer, datasets: dict[str, list], prefix: str) -> dict[str, list]:
    """Return the predictions for each scored split, in the order of the datasets."""
    predicted = {}
    for split in SCORED:
        trainer.predict(datasets[split], metric_key_prefix=f"{prefix}_{split}")
        predicted[split] = trainer.compute_metrics.predicted
    return predicted


def write_results(
    job: UserJob, trainer: Trainer, predicted: dict[str, dict[str, list]], tokens: int
) -> None:
    """Write what is compared: the steps, the tokens of all epochs without padding (`tokens` are
    those of one), the number of scored epochs, and the predictions."""
    history = trainer.state.log_history
    work = {
        "steps": trainer.state.global_step,
        "tokens": tokens * job.settings.epochs,
        "epochs_scored": sum("eval_loss" in line for line in history),
    }
    results = json.dumps({"work": work, "predicted": predicted})
    Path(job.out, "results.json").write_text(results)
