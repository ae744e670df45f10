"""train.py's job as a peft user writes it, from the guides, with transformers' Trainer.

python -m benchmarks.trainer_plain --task ner --out FOLDER

Batches are shuffled and padded to their longest text. The language model computes logits at every
token. Each epoch is scored and saved, and the best one is loaded at the end.
"""

import contextlib

import torch
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

from benchmarks.trainer_job import NO_TARGET, Decoder, UserJob, predict, read_flags, write_results


def main(argv: list[str] | None = None) -> None:
    job = UserJob(read_flags(__doc__.split("\n")[0], argv))
    names = ("train", "validation", "test")
    data = {split: shifted(job, job.examples(split)) for split in names}
    model = job.model()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=job.out,
            per_device_eval_batch_size=job.settings.batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            **job.arguments(),
        ),
        data_collator=DataCollatorForTokenClassification(job.tokenizer),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=job.tokenizer,
        compute_metrics=Decoder(job),
        preprocess_logits_for_metrics=None if job.task.is_tagging else best_label(job),
    )
    before, untuned = data, contextlib.nullcontext()
    if not job.task.is_tagging:  # the untuned model needs an instruction, not a prompt
        instruction = job.task.instruction
        before = {split: shifted(job, job.examples(split, instruction)) for split in names[1:]}
        untuned = model.disable_adapter()
    with untuned:
        predicted = {"before": predict(trainer, before, "before")}
    trainer.train()
    trainer.save_model()
    predicted["after"] = predict(trainer, data, "after")
    tokens = sum(len(example["input_ids"]) for example in job.examples("train"))
    write_results(job, trainer, predicted, tokens)


def shifted(job: UserJob, examples: list[dict]) -> list[dict]:
    """Return examples as transformers' language models need them: the label of a token is the token
    itself, so the end token is an input too. Those of tags are unchanged."""
    if job.task.is_tagging:
        return examples
    end = job.tokenizer.eos_token_id
    return [
        {"input_ids": [*one["input_ids"], end], "labels": [NO_TARGET, *one["labels"]]}
        for one in examples
    ]


def best_label(job: UserJob):
    """Return Trainer's `preprocess_logits_for_metrics`: the label that is most probable by its
    first token."""
    tokens = torch.tensor([answer[0] for answer in job.answers])

    def reduce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        text = logits[:, -labels.shape[1] :]  # (B, T, V), without the prompt's
        position = (labels != NO_TARGET).int().argmax(1) - 1  # the text's last token
        return text[torch.arange(len(text)), position][:, tokens].argmax(1)

    return reduce


if __name__ == "__main__":
    main()
