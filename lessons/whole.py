"""LoRA and soft prompt tuning on GPT-Neo: everything in one file.

    python lessons/whole.py ner lora            tags names (`ner head`: the head alone)
    python lessons/whole.py sentiment prompt    classifies financial news (`sentiment lora` too)

Read it from top to bottom: it is in the order in which it runs. It uses no part of the package
`neo_peft`; each section names the package's file. Its test holds logits, losses and gradients equal
to the package's. `--model FOLDER` needs a GPT-Neo with model.safetensors and tokenizer.json.

Shapes: B texts, T tokens in the longest text, P prompt embeddings, H hidden size, V vocabulary, K
classes, M target positions. A hidden state is a row of H numbers for one token.
"""

import argparse
import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

ASSETS = Path(__file__).parents[1] / "neo_peft" / "assets"
TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
TAGS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
RECIPES = {"lora": (5, 0.005, 0.0), "prompt": (10, 0.1, 0.1), "head": (5, 0.01, 0.0)}  # see `train`
LABELS = ["negative", "neutral", "positive"]
INSTRUCTIONS = {
    "ner": "Label each word as part of the name of a DNA, protein, cell type, cell line or RNA:\n",
    "sentiment": "Classify if the sentence is neutral, negative, positive:\n",
}


# ---- 1. The data: rows of text with labels (neo_peft/tasks.py, corpora/sample.py)
def read_tagged(line: str) -> tuple[list[str], list[str]]:
    """Return the words and tags of a line such as `[protein NF-kappa B] binds the [DNA gene] .`:
    B- at the first word of an entity, I- at its other words, O at words outside of entities."""
    words, tags = [], []
    for kind, entity, word in re.findall(r"\[(\w+) ([^][]+)\]|([^][ ]+)", line):
        parts = entity.split() or [word]
        words += parts
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)] if kind else ["O"]
    return words, tags


def read(task: str, split: str) -> list[tuple]:
    """Return (words, tags) of each line, or (sentence, label) of `label<tab>sentence`."""
    lines = (ASSETS / "sample" / task / f"{split}.txt").read_text("utf-8").splitlines()
    return [read_tagged(line) if task == "ner" else line.split("\t")[::-1] for line in lines]


# ---- 2. From a row to tokens, target positions and targets (neo_peft/encoding.py)
def encode(task: str, row: tuple, tokenize, end: int) -> tuple[list, list, list]:
    """Return a row's tokens, the indices of the tokens where something is predicted, and what.

    ner: a word's tag at its first token (its last token, which sees the whole word, is possible).
    sentiment: the text is `Sentence : … Label : positive`. At its last colon the target is
    ` positive`, and at ` positive` the end token: a loss is the mean of both.
    """
    if task == "ner":
        ids, indices = [], []
        for word in row[0]:
            indices.append(len(ids))
            ids += tokenize(" " + word)
        return ids, indices, [TAGS.index(tag) for tag in row[1]]
    sentence, label = row
    ids = tokenize("Sentence :") + tokenize(" " + sentence) + tokenize(" Label :")
    answer = [*tokenize(" " + label), end]
    return ids + answer[:-1], [len(ids) - 1 + i for i in range(len(answer))], answer


def collate(examples: list[tuple]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch: tokens (B, T), padded with 0 on the right; then each target position's text,
    its index in that text and its target, (M,) each. Padding needs no mask: with a causal mask no
    token attends to the tokens on its right."""
    T = max(len(ids) for ids, _, _ in examples)
    padded = [ids + [0] * (T - len(ids)) for ids, _, _ in examples]
    texts = [text for text, (_, indices, _) in enumerate(examples) for _ in indices]
    indices = [index for _, indices, _ in examples for index in indices]
    targets = [target for _, _, targets in examples for target in targets]
    return tuple(map(torch.tensor, (padded, texts, indices, targets)))


# ---- 3. GPT-Neo (neo_peft/gptneo.py; Black et al. 2021). Names are those of the published weights.
class Attention(nn.Module):
    def __init__(self, H: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(H, H, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(H, H)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        layers = self.q_proj, self.k_proj, self.v_proj  # then q, k, v: (B, heads, T, H / heads)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers)
        # (B, heads, T, T). GPT-Neo does not divide by the root of the head's size: see lesson 1.
        scores = (q @ k.transpose(2, 3)).masked_fill(~mask, -math.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, H: int, inner: int, heads: int, epsilon: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(H, eps=epsilon)
        self.attn = nn.ModuleDict({"attention": Attention(H, heads)})
        self.ln_2 = nn.LayerNorm(H, eps=epsilon)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(H, inner), "c_proj": nn.Linear(inner, H)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn["attention"](self.ln_1(x), mask)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPTNeo(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        H, V = config["hidden_size"], config["vocab_size"]
        heads, epsilon = config["num_heads"], config["layer_norm_epsilon"]
        inner = config.get("intermediate_size") or 4 * H
        self.wte = nn.Embedding(V, H)  # a row for each token
        self.wpe = nn.Embedding(config["max_position_embeddings"], H)  # a row for each position
        self.window, self.kinds = config["window_size"], config["attention_layers"]
        self.end = config["eos_token_id"]  # the end-of-text token
        self.h = nn.ModuleList(Block(H, inner, heads, epsilon) for _ in self.kinds)
        self.ln_f = nn.LayerNorm(H, eps=epsilon)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the last hidden states (B, T, H) of embedded texts (B, T, H)."""
        positions = torch.arange(embeddings.shape[1])
        distance = positions[:, None] - positions  # (T, T), from a token back to another one
        causal = distance >= 0  # a token attends to itself and to the tokens before it
        masks = {"global": causal, "local": causal & (distance < self.window)}
        # So in a local layer a token far from the start does not attend to the prompt.
        x = embeddings + self.wpe(positions)
        for block, kind in zip(self.h, self.kinds):
            x = block(x, masks[kind])
        return self.ln_f(x)


def load_trunk(folder: Path) -> GPTNeo:
    """Return the frozen GPT-Neo of a folder with config.json and model.safetensors."""
    trunk = GPTNeo(json.loads((folder / "config.json").read_text("utf-8")))
    tensors = load_file(folder / "model.safetensors")  # published ones have masks and wte again
    for name, parameter in trunk.named_parameters():
        name = name if name in tensors else "transformer." + name
        parameter.data.copy_(tensors[name])
    return trunk.requires_grad_(False)


# ---- 4. LoRA (neo_peft/lora.py; Hu et al. 2021, section 4.1)
class LoRA(nn.Module):
    """A frozen linear layer W with a trained correction: h = W x + (alpha / r) · B A x."""

    def __init__(self, frozen: nn.Linear, r: int = 8, alpha: float = 16):
        super().__init__()
        # You choose alpha: alpha / r sets how much the correction counts. peft's default is 8.
        self.frozen, self.scaling = frozen, alpha / r
        self.A = nn.Linear(frozen.in_features, r, bias=False)  # (r, in), random, trained
        self.B = nn.Linear(r, frozen.out_features, bias=False)  # (out, r), trained
        nn.init.zeros_(self.B.weight)  # so that training starts from the unchanged model

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scaling * self.B(self.A(x))


def add_lora(trunk: GPTNeo) -> None:
    for block in trunk.h:
        attention = block.attn["attention"]
        attention.q_proj, attention.v_proj = LoRA(attention.q_proj), LoRA(attention.v_proj)


# ---- 5. The model: trunk, soft prompt, head (neo_peft/prompt.py, model.py; Lester et al. 2021)
class Model(nn.Module):
    """GPT-Neo with an optional soft prompt (P, H), and a linear head (K, H) or wte transposed."""

    def __init__(self, trunk: GPTNeo, classes: int | None, prompt_ids: list[int] | None):
        super().__init__()
        self.trunk, self.head, self.prompt = trunk, None, None
        if prompt_ids:  # it starts as the embeddings of an instruction, repeated or cut to P tokens
            self.prompt = nn.Parameter(trunk.wte(torch.tensor(prompt_ids)).detach().clone())
        if classes:
            self.head = nn.Linear(trunk.wte.embedding_dim, classes)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, texts: Tensor, indices: Tensor) -> Tensor:
        """Return the logits (M, K or V) at the target positions of a batch of tokens (B, T)."""
        x = self.trunk.wte(ids)
        if self.prompt is not None:  # the same P trained embeddings in front of each text
            x = torch.cat([self.prompt.expand(len(x), -1, -1), x], dim=1)
            indices = indices + len(self.prompt)
        hidden = self.trunk(x)[texts, indices]  # (M, H): only where something is predicted
        return hidden @ self.trunk.wte.weight.T if self.head is None else self.head(hidden)


# ---- 6. Training (neo_peft/loop.py): AdamW on all that requires a gradient
def epoch_order(count: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()


def train(model: Model, examples: list, epochs: int, peak: float, warmup: float):
    """Train a model in place, 16 examples a step. Yield each step's loss in nats per target."""
    trained, size = [p for p in model.parameters() if p.requires_grad], 16
    groups = [{"params": [p], "weight_decay": 0.01 * (p.dim() > 1)} for p in trained]
    optimizer = torch.optim.AdamW(groups)
    per_epoch = math.ceil(len(examples) / size)
    last, warm = epochs * per_epoch, math.ceil(warmup * epochs * per_epoch)
    for step in range(last):
        order = epoch_order(len(examples), epoch=1 + step // per_epoch)
        chosen = order[step % per_epoch * size :][:size]
        ids, texts, indices, targets = collate([examples[i] for i in chosen])
        loss = F.cross_entropy(model(ids, texts, indices), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            # On straight lines: up from zero in the warm-up, then down to zero.
            group["lr"] = peak * (step / warm if step < warm else (last - step) / (last - warm))
        optimizer.step()
        yield loss.item()


# ---- 7. Predictions and scores (neo_peft/decoding.py, metrics.py): greedy tags here. The package
# has a much higher F1 with Viterbi (lesson 5), which also shows more of what LoRA adds to a head.
def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Return a sentence's entities: (type, first word, last word). An I-x that does not continue an
    entity x starts one, as in conlleval."""
    found, kind, first = set(), "", 0
    for i, tag in enumerate([*tags, "O"]):
        if tag != f"I-{kind}":  # the entity so far, if there is one, ends before this word
            if kind:
                found.add((kind, first, i - 1))
            kind, first = tag[2:], i  # the kind of "O" is empty
    return found


def score(gold: list, predicted: list) -> str:
    """Return the accuracy of labels, or F1 = 2 hits / (gold + predicted entities)."""
    if isinstance(gold[0], str):
        return f"accuracy {sum(a == b for a, b in zip(gold, predicted)) / len(gold):.3f}"
    pairs = [(entities(right), entities(guess)) for right, guess in zip(gold, predicted)]
    hits = sum(len(right & guess) for right, guess in pairs)  # equal type, first and last word
    return f"F1 {2 * hits / max(1, sum(len(right) + len(guess) for right, guess in pairs)):.3f}"


@torch.no_grad()
def predict(model: Model, examples: list[tuple], label_tokens: list[int] | None) -> list:
    """Return each sentence's tags, or each text's label: the one whose first token is the most
    probable after `Label :`. The right label is in the text, but behind it: not seen."""
    predicted = []
    for first in range(0, len(examples), 32):
        ids, texts, indices, _ = collate(examples[first : first + 32])
        for logits in model(ids, texts, indices).split(torch.bincount(texts).tolist()):
            if label_tokens:
                predicted.append(LABELS[logits[0, label_tokens].argmax()])
            else:
                predicted.append([TAGS[i] for i in logits.argmax(1)])
    return predicted


# ---- 8. All of it
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=["ner", "sentiment"])
    parser.add_argument("method", choices=RECIPES)
    parser.add_argument("--model", type=Path, default=ASSETS / "neo-mini", help="a folder")
    flags = parser.parse_args()
    if flags.task == "sentiment" and flags.method == "head":
        parser.error("sentiment has no linear head")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(flags.model / "tokenizer.json"))

    def tokenize(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    trunk = load_trunk(flags.model)
    both = [read(flags.task, split) for split in ("train", "test")]
    examples, test = ([encode(flags.task, r, tokenize, trunk.end) for r in rows] for rows in both)
    gold = [row[1] for row in both[1]]
    is_ner = flags.task == "ner"
    label_tokens = None if is_ner else [tokenize(" " + label)[0] for label in LABELS]
    start = (tokenize(INSTRUCTIONS[flags.task]) * 20)[:20] if flags.method == "prompt" else None
    model = Model(trunk, len(TAGS) if is_ner else None, start)
    if flags.method == "lora":
        add_lora(trunk)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{count:,} parameters are trained" + (", head included" if is_ner else ""))
    always = [["O"] * len(row) if is_ner else "neutral" for row in gold]
    print(f"always {'O' if is_ner else 'neutral'}: {score(gold, always)} on test")
    print(f"before: {score(gold, predict(model, test, label_tokens))} on test")
    for step, loss in enumerate(train(model, examples, *RECIPES[flags.method]), 1):
        if step % 25 == 0:
            print(f"step {step}: loss {loss:.3f} in this batch")
    print(f"after: {score(gold, predict(model, test, label_tokens))} on test")


if __name__ == "__main__":
    main()
