"""Write a finished run of any method, on the tiny model."""

import dataclasses
from pathlib import Path

import torch

from neo_peft.formats.adapter import save_adapter
from neo_peft.progress import no_progress
from neo_peft.runs.folder import write_record
from neo_peft.runs.job import Job, Output, prepare
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.tasks import TASKS


def make_job(folder: Path, model: Path, **given) -> Job:
    """Return the job of a small run of LoRA, which prints nothing."""
    values = {"method": "lora", "model": str(model), "threads": 1, "train_limit": 9}
    settings = make_settings(**(values | {"eval_limit": 9} | given))
    return prepare(settings, Output(folder, lambda line: None, no_progress, 0.0))


def make_run(folder, model, task, method, **flags):
    """Write a finished run whose trainable parameters have random changes; return its folder."""
    settings = make_settings(task=task, method=method, model=str(model), threads=1, **flags)
    tuned = load_untuned(settings, with_method=True)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(folder, tuned.model, settings, tuned.base.tokenizer)
    recorded = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("out", "json")
    }
    base, labels = tuned.base.record(), list(TASKS[task].labels)
    write_record(
        folder, {"task": task, "labels": labels, "flags": recorded, "base": base, "files": {}}
    )
    return folder
