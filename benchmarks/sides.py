"""The two sides of a comparison, with the same weights and the same batches.

Our side is the training step of train.py: `collate`, `loop.take_step`, and its optimizer. There are
two peers, both with peft:

the source   the pipeline of the study: padded, logits at all positions
careful      a careful user's: right-padded, no cache, logits only at the labels. Then the batches
             of both sides are grouped by length.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler

from benchmarks.lengths import LABELS, VOCABULARY, load_examples
from neo_peft.defaults import BUNDLED_MODEL
from neo_peft.encoding import Examples, batches, collate
from neo_peft.formats.base_config import read_config
from neo_peft.formats.base_folder import BUNDLED
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
PADDED_TO = {"sentiment": 64, "similarity": 128}  # the source's lengths, in tokens


def shape(name: str) -> Config:
    """Return the config of neo-mini, or of a published GPT-Neo's shape. The end token is the last
    one of the vocabulary."""
    if name == BUNDLED_MODEL:
        config = read_config(BUNDLED[name])
        return replace(config, eos_token_id=config.vocab_size - 1)
    size, layers, heads = SHAPES[name]
    kinds = ("global", "local") * (layers // 2)
    end = VOCABULARY - 1
    return Config(VOCABULARY, size, heads, 2048, 256, 4 * size, kinds, 1e-5, 0.02, end)


@dataclass(frozen=True)
class Job:
    """What is measured: the training step of a task, for a model of some shape."""

    task: str  # ner, sentiment or similarity
    shape: str = "125m"  # neo-mini, or a key of SHAPES
    precision: str = "fp32"  # the dtype of the frozen matrices
    device: str = "cpu"  # where both sides compute
    grouped: bool = False  # batches of texts of similar length, as for the careful peer
    method: str | None = None  # None for the task's method in SETTINGS
    checkpoint: bool = False  # --checkpoint-activations

    @cached_property
    def settings(self) -> Settings:
        flags = SETTINGS[self.task] | ({"method": self.method} if self.method else {})
        if "lora" not in flags["method"]:
            flags = {k: v for k, v in flags.items() if k not in ("rank", "dropout")}
        return make_settings(model="EleutherAI/gpt-neo-125m", precision=self.precision, **flags)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @cached_property
    def examples(self) -> Examples:
        return load_examples(self.task, vocabulary=shape(self.shape).vocab_size)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Random weights with the published names. Norm weights are near 1, all others near 0."""
        with torch.device("meta"):
            trunk = GPTNeo(shape(self.shape))
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for name, parameter in trunk.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            weights[name] = mean + 0.02 * torch.randn(parameter.shape, generator=generator)
        return weights

    @cached_property
    def head(self) -> Tensor:
        return 0.02 * torch.randn(
            LABELS, shape(self.shape).hidden_size, generator=torch.Generator().manual_seed(1)
        )

    @cached_property
    def prompt(self) -> Tensor:
        return self.weights["wte.weight"][: self.settings.prompt_length].clone()

    def order(self, count: int) -> list[np.ndarray]:
        """Return the example indices of `count` batches: shuffled; if `grouped`, sorted by length,
        with shuffled batches."""
        shuffled = np.random.default_rng(0).permutation(len(self.examples))
        if self.grouped:
            lengths = np.diff(self.examples.starts)
            shuffled = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        chosen = list(batches(shuffled, self.settings.batch_size))
        if self.grouped:
            chosen = [chosen[i] for i in np.random.default_rng(1).permutation(len(chosen))]
        return chosen[:count]


# ---- Our side


def our_model(job: Job) -> TunedModel:
    """Return our model with the method, in the dtypes of train.py, with the weights of `job`."""
    config, settings = shape(job.shape), job.settings
    with torch.device("meta"):
        trunk = GPTNeo(config)
    matrix_dtype = base_dtype(settings, job.dtype)
    for name, tensor in job.weights.items():
        parent, _, leaf = name.rpartition(".")
        dtype = matrix_dtype if tensor.dim() > 1 else torch.float32
        parameter = nn.Parameter(tensor.to(job.device, dtype, copy=True), settings.trains_base)
        setattr(trunk.get_submodule(parent), leaf, parameter)
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
    """Our training step. A call takes the example indices of a batch, and returns the loss."""

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
        """Return the loss without dropout."""
        self.model.eval()
        batch = collate(self.job.examples, chosen).to(self.model.device)
        return float(self.model.loss(batch)) / len(batch.targets)


# ---- The peers


def published(job: Job, tags: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return transformers' GPT-Neo with the same shape and weights."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, GPTNeoForTokenClassification

    config = shape(job.shape)
    theirs = GPTNeoConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        window_size=config.window_size,
        intermediate_size=config.intermediate_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        attention_types=[[list(config.attention_layers), 1]],
        num_labels=LABELS,
        classifier_dropout=0.1,
        pad_token_id=config.eos_token_id,
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
    """A peer's training step with peft: that of the careful user, or that of the source.

    A call takes the example indices of a batch, and returns the loss.
    """

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
        """Return the loss without dropout, padded on the right."""
        self.model.eval()
        with torch.autocast(self.job.device, self.job.dtype, enabled=self.job.precision != "fp32"):
            return float(self.loss(chosen, left=False))

    def loss(self, chosen: np.ndarray, left: bool) -> Tensor:
        """Return the mean cross-entropy of a batch. `left` pads on the left, to the source's fixed
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
        labelled = targets != -100
        logits = self.model.base_model.lm_head(hidden[labelled])
        return F.cross_entropy(logits.float(), targets[labelled])


def padded(job: Job, chosen: np.ndarray, left_to: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return a padded batch: token ids, attention mask and labels, each (B, T).

    It is padded on the right to its longest example, or on the left to the length `left_to`, to
    which texts are cut. Labels are at the words' first sub-tokens, or at the tokens of the label
    text; elsewhere they are -100.
    """
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
            ids = np.concatenate([text, targets])  # with the end token, as the source has it
            labels = np.concatenate([np.full(len(text), -100), targets])
        rows.append((ids, labels))
    longest = left_to or max(len(ids) for ids, _ in rows)
    padded_rows = np.zeros((3, len(rows), longest), dtype=np.int64)
    padded_rows[0], padded_rows[2] = shape(job.shape).eos_token_id, -100
    for i, (ids, labels) in enumerate(rows):
        place = slice(longest - len(ids), longest) if left_to else slice(0, len(ids))
        padded_rows[:, i, place] = ids, np.ones_like(ids), labels
    return tuple(torch.from_numpy(part) for part in padded_rows)


def as_batches(job: Job, side: Callable, count: int) -> Callable[[int], float]:
    """Return a function that calls a side with batch number i of `count`."""
    order = job.order(count)
    return lambda number: side(order[number])


def tokens_of(job: Job, count: int) -> float:
    """Return the mean number of tokens of a step, without padding: those of the texts and their
    label texts, except the last one, which is only predicted."""
    lengths = np.diff(job.examples.starts)
    return float(np.mean([lengths[chosen].sum() for chosen in job.order(count)]))
