"""train.py's job as a careful peft user writes it with transformers' Trainer.

python -m benchmarks.trainer_careful --task ner --out FOLDER

Without needless work: texts of similar length share a batch, in training and in scoring; no cache;
the language model computes logits only where it predicts; only the best adapter is saved, without
the optimizer; no bars.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from benchmarks.trainer_job import (
    NO_TARGET,
    SCORED,
    Decoder,
    UserJob,
    predict,
    read_flags,
    write_results,
)

# The fastest one on one CPU core: larger batches take longer to score.
EVAL_BATCH = 16


def main(argv: list[str] | None = None) -> None:
    job = UserJob(read_flags(__doc__.split("\n")[0], argv))
    data = {split: job.examples(split) for split in ("train", *SCORED)}
    orders = {split: by_length(data[split]) for split in SCORED}
    data |= {split: [data[split][index] for index in orders[split]] for split in SCORED}
    model = job.model()
    model.config.use_cache = False
    trainer = CarefulTrainer(
        model,
        TrainingArguments(
            output_dir=job.out,
            per_device_eval_batch_size=EVAL_BATCH,
            train_sampling_strategy="group_by_length",
            eval_strategy="epoch",
            save_strategy="best",
            save_total_limit=1,
            save_only_model=True,
            logging_strategy="epoch",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            **job.arguments(),
        ),
        data_collator=Collator(job.tokenizer.pad_token_id),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=Decoder(job),
    )
    trainer.answers = torch.tensor([answer[0] for answer in job.answers])
    before = data
    if not job.task.is_tagging:  # the untuned model needs an instruction, not a prompt
        texts = {split: job.examples(split, job.task.instruction) for split in SCORED}
        before = {split: [texts[split][index] for index in orders[split]] for split in SCORED}
        trainer.with_prompt = False
    predicted = {"before": predict(trainer, before, "before")}
    trainer.with_prompt = True
    trainer.train()
    trainer.save_model()
    predicted["after"] = predict(trainer, data, "after")
    for by_split in predicted.values():
        for split, order in orders.items():
            answers = dict(zip(order, by_split[split], strict=True))
            by_split[split] = [answers[index] for index in range(len(order))]
    tokens = sum(len(example["input_ids"]) for example in data["train"])
    write_results(job, trainer, predicted, tokens)


def by_length(examples: list[dict]) -> list[int]:
    return sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))


class Collator:
    """Pads a batch to its longest text. `labels` are the targets at their own tokens."""

    def __init__(self, pad_token: int):
        self.fill = {"input_ids": pad_token, "labels": NO_TARGET}

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        longest = int(lengths.max())
        batch = {
            name: torch.tensor(
                [row[name] + [fill] * (longest - len(row[name])) for row in examples]
            )
            for name, fill in self.fill.items()
        }
        mask = torch.arange(longest) < lengths[:, None]
        return batch | {"attention_mask": mask.long()}


class CarefulTrainer(Trainer):
    """Trainer with a language model that computes logits only where it predicts."""

    with_prompt = True

    def _get_eval_sampler(self, eval_dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)  # sorted by length before

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.peft_config["default"].task_type == "TOKEN_CLS":
            output = model(**inputs)
            return (output.loss, output) if return_outputs else output.loss
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        trunk, x, start = model.base_model.transformer, model.word_embeddings(ids), 0
        if self.with_prompt:
            prompt = model.get_prompt(len(ids))
            start = prompt.shape[1]
            x = torch.cat([prompt, x], dim=1)
            mask = torch.cat([mask.new_ones(len(ids), start), mask], dim=1)
        hidden = trunk(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, start:]
        known = labels != NO_TARGET
        loss = F.cross_entropy(model.base_model.lm_head(hidden[known]), labels[known])
        if not return_outputs:
            return loss
        last = hidden[torch.arange(len(ids)), known.int().argmax(1)]  # (B, H), the text's end
        scores = last @ model.base_model.lm_head.weight[self.answers].T  # (B, labels)
        return loss, {"logits": scores.argmax(1)}


if __name__ == "__main__":
    main()
