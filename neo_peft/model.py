"""Trunk, method and readout: what is trained and evaluated.

A tuned model is a frozen GPT-Neo, with LoRA inside or a soft prompt in front, that is read at
marked rows: by a linear head of its own, or by the language model's head, which is `wte` again.
Logits are computed for the rows that are read and for no others. The adapter is exactly the
parameters that require a gradient.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neo_peft.errors import InputError
from neo_peft.gptneo import GPTNeo, Past
from neo_peft.lora import LoRALinear, add_lora
from neo_peft.packing import Rows
from neo_peft.prompt import SoftPrompt, start_rows
from neo_peft.settings import Settings
from neo_peft.tasks import Task


@dataclass(frozen=True)
class Batch:
    """B examples, unpadded: `ids` (N,), `lengths` (B,), the rows that are read `reads` (M,), the
    classes or tokens they should say `targets` (M,), -1 where that is not known, and how many rows
    each example reads (B,)."""

    ids: Tensor
    lengths: Tensor  # stays on the CPU: the layout of the rows is made there
    reads: Tensor
    targets: Tensor
    read_counts: Tensor

    def to(self, device: torch.device) -> "Batch":
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids", "reads", "targets")
        }
        return dataclasses.replace(self, **moved)


class TunedModel(nn.Module):
    """A trunk, an optional head under its published name ("classifier" or "score"), an optional
    soft prompt."""

    def __init__(
        self,
        trunk: GPTNeo,
        head_name: str | None = None,
        head: nn.Linear | None = None,
        prompt: SoftPrompt | None = None,
        head_dropout: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.transformer = trunk
        self.head_name = head_name
        if head_name:
            self.add_module(head_name, head)
        self.prompt = prompt
        self.head_dropout = head_dropout
        self.compute_dtype = compute_dtype

    @property
    def head(self) -> nn.Linear | None:
        return getattr(self, self.head_name) if self.head_name else None

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    def autocast(self) -> torch.autocast:
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, self.compute_dtype if enabled else None, enabled)

    def prefix(self) -> Past | None:
        """Compute the prompt's keys and values, which evaluation needs once for all batches."""
        if self.prompt is None:
            return None
        with self.autocast():
            return self.transformer.prefix(self.prompt())

    def text_prefix(self, ids: list[int]) -> Past:
        """Compute the keys and values of a fixed text, such as an instruction, in front of every
        example."""
        with self.autocast():
            return self.transformer.prefix(
                self.transformer.embed(torch.tensor(ids, device=self.device))
            )

    def forward(self, batch: Batch, prefix: Past | None = None) -> Tensor:
        """Compute the hidden states (M, H) of the rows that are read, behind a prefix that was
        computed before.

        Without one the prompt's rows, where there is a prompt, go through the layers in front of
        the batch's, once for all examples. That is how a prompt is trained.
        """
        led = prefix is None and self.prompt is not None
        length = prefix.length if prefix else len(self.prompt) if led else 0
        rows = Rows.of_texts(batch.lengths, length, self.device.type != "cpu", led).to(self.device)
        with self.autocast():
            embedded, reads = self.transformer.embed(batch.ids), batch.reads
            if led:
                embedded, reads = torch.cat([self.prompt(), embedded]), reads + length
            return self.transformer(embedded, rows, prefix, reads)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits that are trained on, from hidden states (M, H): (M, K) of a head, else
        (M, V)."""
        with self.autocast():
            if self.head is None:
                return F.linear(hidden, self.transformer.wte.weight)
            return self.head(F.dropout(hidden, self.head_dropout, self.training))

    def loss(self, batch: Batch, prefix: Past | None = None) -> Tensor:
        """Sum the cross-entropy over the batch's targets, in fp32."""
        logits = self.logits(self(batch, prefix)).float()
        return F.cross_entropy(logits, batch.targets, ignore_index=-1, reduction="sum")

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter: exactly the parameters that require a gradient, head included."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


def head_name(task: Task, settings: Settings) -> str | None:
    """Name the head that a task is read by: the published name, or None for the language model's
    own."""
    if task.tags_words:
        return "classifier"
    return "score" if settings.with_head else None


def held_dtype(method: str, compute_dtype: torch.dtype) -> torch.dtype:
    """Say what the trunk's matrices are held in: the compute dtype while they are frozen, fp32
    where they train."""
    return torch.float32 if method == "full" else compute_dtype


def build_model(
    trunk: GPTNeo,
    tokenizer: Any,
    task: Task,
    settings: Settings,
    compute_dtype: torch.dtype = torch.float32,
) -> TunedModel:
    """Put the settings' method onto a trunk. The seed is set before the head is drawn, and again
    before the adapter."""

    def tokens(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if max(ids) >= trunk.config.vocab_size:
            raise InputError(
                f"the tokenizer says token {max(ids)}, but the model knows "
                f"{trunk.config.vocab_size}"
            )
        return ids

    labels = [tokens(task.answer(label, settings.source_text)) for label in task.labels]
    trunk.requires_grad_(False)
    trunk.checkpoint_activations = settings.checkpoint_activations

    torch.manual_seed(settings.seed)
    name = head_name(task, settings)
    head = None
    if name == "classifier":
        head = _drawn_head(trunk, len(task.labels))
    elif name == "score":
        head = _head_of_words(trunk, labels)

    torch.manual_seed(settings.seed)
    prompt = None
    if "lora" in settings.methods:
        add_lora(
            trunk,
            settings.target_modules,
            settings.rank,
            settings.alpha,
            settings.dropout,
            settings.bias,
            settings.rslora,
            settings.lora_init,
        )
    if "prompt" in settings.methods:
        text_ids = tokens(settings.prompt_text or task.instruction)
        label_ids = [token for label in labels for token in label]
        prompt = SoftPrompt(
            start_rows(
                trunk.wte.weight, settings.prompt_length, settings.prompt_init, text_ids, label_ids
            )
        )
    if "full" in settings.methods:
        trunk.requires_grad_(True)
    return TunedModel(trunk, name, head, prompt, settings.head_dropout, compute_dtype)


def bare_model(model: TunedModel) -> TunedModel:
    """Take the method off a model that is not trained yet, and whose LoRA therefore adds zero.

    What is left is the frozen trunk, read by the language model's head, or by the untrained head of
    a tagging task.
    """
    tags = model.head_name == "classifier"
    return TunedModel(
        model.transformer,
        model.head_name if tags else None,
        model.head if tags else None,
        compute_dtype=model.compute_dtype,
    )


def _drawn_head(trunk: GPTNeo, classes: int) -> nn.Linear:
    head = nn.Linear(trunk.config.hidden_size, classes, device="meta")
    # the CPU generator's draws
    weight = torch.empty(head.weight.shape).normal_(0, trunk.config.initializer_range)
    head.weight = nn.Parameter(weight.to(trunk.wte.weight.device))
    head.bias = nn.Parameter(torch.zeros(classes, device=trunk.wte.weight.device))
    return head


def _head_of_words(trunk: GPTNeo, labels: list[list[int]]) -> nn.Linear:
    """A row of `score` starts as the mean of its label's token rows of `wte`: what the language
    model would say."""
    wte = trunk.wte.weight
    head = nn.Linear(wte.shape[1], len(labels), bias=False, device="meta")
    rows = [wte[torch.tensor(ids, device=wte.device)].float().mean(0) for ids in labels]
    head.weight = nn.Parameter(torch.stack(rows).detach())
    return head


def adapted_modules(model: TunedModel) -> dict[str, list[str]]:
    """Group the layers that carry LoRA: {"q_proj (256 → 256), rank 8": their names}."""
    groups = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            kind = f"{name.split('.')[-1]} ({module.in_features} → {module.out_features})"
            groups.setdefault(f"{kind}, rank {module.lora_A.out_features}", []).append(name)
    return groups
