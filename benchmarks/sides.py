"""Both sides of a training step, on the same weights and the same batches: ours, and what users
would take instead.

Ours is the step of train.py itself: `collate` and `loop.take_step`, with its optimizer. Two peers:
the source's pipeline (peft as the study used it: padded, logits everywhere) and a careful user's
(right-padded, no cache, logits only at the labels; its batches are grouped by length, for both
sides).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler

from benchmarks.lengths import END, LABELS, load_examples
from neo_peft.encoding import Examples, batches, collate
from neo_peft.gptneo import Config, GPTNeo
from neo_peft.loop import make_optimizer, take_step
from neo_peft.lora import add_lora
from neo_peft.methods import LORA, PROMPT, base_dtype
from neo_peft.model import HeadKind, TunedModel
from neo_peft.prompt import SoftPrompt
from neo_peft.settings import Settings, make_settings
from neo_peft.system.hardware import DTYPES

SHAPES = {"125m": (768, 12, 12), "1.3b": (2048, 24, 16)}  # hidden size, layers, heads
SETTINGS = {
    "ner": {"task": "ner", "method": "lora", "rank": 16, "dropout": 0.1, "batch_size": 16},
    "sentiment": {"task": "sentiment", "method": "prompt", "prompt_length": 8, "batch_size": 8},
    "similarity": {"task": "similarity", "method": "prompt", "prompt_length": 8, "batch_size": 8},
}
PADDED_TO = {"sentiment": 64, "similarity": 128}  # the source's lengths


def shape(name: str) -> Config:
    size, layers, heads = SHAPES[name]
    kinds = ("global", "local") * (layers // 2)
    return Config(50257, size, heads, 2048, 256, 4 * size, kinds, 1e-5, 0.02, END)


@dataclass(frozen=True)
class Job:
    """A task's step at a model's shape. `settings` are those of train.py; `precision` is the frozen
    matrices'."""

    task: str
    shape: str = "125m"
    precision: str = "fp32"
    device: str = "cpu"
    grouped: bool = False  # batches of like lengths, as a careful user makes them
    method: str | None = None
    checkpoint: bool = False  # --checkpoint-activations

    @cached_property
    def settings(self) -> Settings:
        given = SETTINGS[self.task] | ({"method": self.method} if self.method else {})
        given = (
            given
            if "lora" in given["method"]
            else {k: v for k, v in given.items() if k not in ("rank", "dropout")}
        )
        return make_settings(model="EleutherAI/gpt-neo-125m", precision=self.precision, **given)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @cached_property
    def examples(self) -> Examples:
        return load_examples(self.task)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Random weights under the published names: normal matrices, norms and biases a little off
        1 and 0."""
        with torch.device("meta"):
            trunk = GPTNeo(shape(self.shape))
        draw = torch.Generator().manual_seed(0)
        made = {}
        for name, parameter in trunk.named_parameters():
            start = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            made[name] = start + 0.02 * torch.randn(parameter.shape, generator=draw)
        return made

    @cached_property
    def head(self) -> Tensor:
        return 0.02 * torch.randn(
            LABELS, shape(self.shape).hidden_size, generator=torch.Generator().manual_seed(1)
        )

    @cached_property
    def prompt(self) -> Tensor:
        return self.weights["wte.weight"][: self.settings.prompt_length].clone()

    def order(self, count: int) -> list[np.ndarray]:
        """Choose `count` batches: shuffled, or grouped by length and then shuffled, as a Trainer
        groups them."""
        shuffled = np.random.default_rng(0).permutation(len(self.examples))
        if self.grouped:
            lengths = np.diff(self.examples.starts)
            shuffled = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        cut = list(batches(shuffled, self.settings.batch_size))
        if self.grouped:
            cut = [cut[i] for i in np.random.default_rng(1).permutation(len(cut))]
        return cut[:count]


# ---- Our side


def our_model(job: Job) -> TunedModel:
    """Put the method onto a trunk of our own, held as train.py holds it, its start that of
    `job`."""
    config, settings = shape(job.shape), job.settings
    with torch.device("meta"):
        trunk = GPTNeo(config)
    held = base_dtype(settings, job.dtype)
    for name, tensor in job.weights.items():
        parent, _, leaf = name.rpartition(".")
        kept = tensor.to(job.device, held if tensor.dim() > 1 else torch.float32, copy=True)
        setattr(
            trunk.get_submodule(parent),
            leaf,
            nn.Parameter(kept, requires_grad=settings.trains_base),
        )
    head = prompt = None
    if job.task == "ner":
        head = nn.Linear(config.hidden_size, LABELS, device=job.device)
        head.weight.data.copy_(job.head)
        head.bias.data.zero_()
    trunk.checkpoint_activations = job.checkpoint
    torch.manual_seed(0)
    if LORA in settings.parts:
        add_lora(
            trunk,
            settings.target_modules,
            settings.rank,
            settings.alpha,
            settings.dropout,
            settings.bias,
        )
    if PROMPT in settings.parts:
        prompt = SoftPrompt(job.prompt.to(job.device))
    kind = HeadKind.LM_HEAD if head is None else HeadKind.CLASSIFIER
    return TunedModel(trunk, kind, head, prompt, settings.head_dropout, job.dtype)


class Ours:
    """Our training step: called with the examples of a batch."""

    def __init__(self, job: Job):
        self.job, self.model = job, our_model(job)
        self.optimizer = make_optimizer(self.model, job.settings)
        self.scaler = GradScaler(job.device, enabled=job.dtype == torch.float16)

    def __call__(self, chosen: np.ndarray) -> float:
        self.model.train()
        batch, settings = collate(self.job.examples, chosen), self.job.settings
        taken = take_step(
            self.model, self.optimizer, self.scaler, [batch], batch.labelled, settings.clip_norm
        )
        return taken.loss

    @torch.no_grad()
    def plain_loss(self, chosen: np.ndarray) -> float:
        self.model.eval()
        batch = collate(self.job.examples, chosen).to(self.model.device)
        return float(self.model.loss(batch)) / len(batch.targets)


# ---- The peers


def published(job: Job, tags: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Make transformers' GPT-Neo of the same shape and weights."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, GPTNeoForTokenClassification

    config = shape(job.shape)
    theirs = GPTNeoConfig(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        attention_types=[[["global", "local"], config.num_layers // 2]],
        num_labels=LABELS,
        classifier_dropout=0.1,
        pad_token_id=END,
    )
    model = (GPTNeoForTokenClassification if tags else GPTNeoForCausalLM)(theirs).to(job.device)
    weights = {f"transformer.{name}": tensor for name, tensor in job.weights.items()}
    heads = {"classifier.weight": job.head, "classifier.bias": torch.zeros(LABELS)} if tags else {}
    heads |= {} if tags else {"lm_head.weight": job.weights["wte.weight"]}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((weights | heads)[name])
    return model.to(dtype) if dtype != torch.float32 else model


class Peer:
    """peft's training step. `careful` chooses which of the two users it belongs to."""

    def __init__(self, job: Job, careful: bool, dtype: torch.dtype = torch.float32):
        from peft import LoraConfig, PromptTuningConfig, get_peft_model

        self.job, self.careful, self.tags = job, careful, job.task == "ner"
        base, settings = published(job, self.tags, dtype), job.settings
        if self.tags:
            config = LoraConfig(
                task_type="TOKEN_CLS",
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=["q_proj", "v_proj"],
                bias="none",
            )
        else:
            config = PromptTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=settings.prompt_length
            )
        self.model = get_peft_model(base, config).to(job.device)
        if not self.tags:
            self.model.prompt_encoder["default"].embedding.weight.data.copy_(job.prompt)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.trainable = trainable

    def __call__(self, chosen: np.ndarray) -> float:
        self.model.train()
        with torch.autocast(self.job.device, self.job.dtype, enabled=self.job.precision != "fp32"):
            loss = self.loss(chosen, left=not self.careful and not self.tags)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def plain_loss(self, chosen: np.ndarray) -> float:
        self.model.eval()
        with torch.autocast(self.job.device, self.job.dtype, enabled=self.job.precision != "fp32"):
            return float(self.loss(chosen, left=False))

    def loss(self, chosen: np.ndarray, left: bool) -> Tensor:
        """The mean cross-entropy of a batch's labels; `left` pads as the source does, to its fixed
        length."""
        length = PADDED_TO[self.job.task] if left else None
        ids, mask, labels = padded(self.job, chosen, length)
        ids, mask, labels = (tensor.to(self.job.device) for tensor in (ids, mask, labels))
        if not self.careful:
            return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        if self.tags:
            return self.model(
                input_ids=ids, attention_mask=mask, labels=labels, use_cache=False
            ).loss
        prompt = self.model.get_prompt(len(ids))
        trunk, texts = self.model.base_model.transformer, self.model.base_model.transformer.wte(ids)
        inputs = torch.cat([prompt.to(texts.dtype), texts], dim=1)
        seen = torch.cat([mask.new_ones(len(ids), prompt.shape[1]), mask], dim=1)
        hidden = trunk(inputs_embeds=inputs, attention_mask=seen, use_cache=False).last_hidden_state
        hidden, targets = hidden[:, prompt.shape[1] :][:, :-1], labels[:, 1:]
        read = targets != -100
        return F.cross_entropy(self.model.base_model.lm_head(hidden[read]).float(), targets[read])


def padded(job: Job, chosen: np.ndarray, left_to: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a batch on the right to its longest, or on the left to a length, its texts shortened so
    that the answer fits; labels stand at the words' first sub-tokens, or at the answer's tokens."""
    examples, rows = job.examples, []
    for index in chosen:
        ids = examples.ids[examples.starts[index] : examples.starts[index + 1]]
        part = slice(examples.target_starts[index], examples.target_starts[index + 1])
        indices, targets = examples.target_indices[part], examples.targets[part]
        if job.task == "ner":
            labels = np.full(len(ids), -100)
            labels[indices] = targets
        else:
            text = ids[: indices[0] + 1]
            text = text[: left_to - len(targets)] if left_to else text
            ids = np.concatenate([text, targets])  # with the end token, which the source feeds too
            labels = np.concatenate([np.full(len(text), -100), targets])
        rows.append((ids, labels))
    longest = left_to or max(len(ids) for ids, _ in rows)
    made = np.full((3, len(rows), longest), 0)
    made[0], made[2] = END, -100
    for i, (ids, labels) in enumerate(rows):
        place = slice(longest - len(ids), longest) if left_to else slice(0, len(ids))
        made[0, i, place], made[1, i, place], made[2, i, place] = ids, 1, labels
    return tuple(torch.from_numpy(part) for part in made)


def as_batches(job: Job, side: Callable, count: int) -> Callable[[int], float]:
    """Make a side that is called with a batch's number."""
    order = job.order(count)
    return lambda number: side(order[number])


def tokens_of(job: Job, count: int) -> float:
    """Count the real tokens of a step, on average: what the text holds, with its answer but for the
    last token."""
    lengths = np.diff(job.examples.starts)
    return float(np.mean([lengths[chosen].sum() for chosen in job.order(count)]))
