"""The jobs of benchmarks.peers. Each returns one line of the table, or several: the goal and the
measured values. `at` has the command's flags."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lengths import answers
from benchmarks.measure import Comparison, alternate, block_parameters, matmul_rate
from benchmarks.sides import Job, Ours, Peer, as_batches, shape, tokens_of

# largest relative difference of the two sides' losses, right-padded and without dropout
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def step(task: str, careful: bool, goal: dict[str, float], at: dict) -> list[dict]:
    """Compare our training step with a peer's. In bf16, also with a peer whose model was loaded in
    bf16; that line has no goal. `goal`: for a precision, or for a shape."""
    job = Job(task, at["shape"], at["precision"], at["device"], grouped=careful)
    line = against(job, Peer(job, careful), at) | {
        "goal": goal.get(at["shape"], goal.get(at["precision"]))
    }
    if at["precision"] != "bf16":
        return [line]
    return [line, {"measure": "loaded in bf16", **against(job, Peer(job, careful, job.dtype), at)}]


def against(job: Job, peer: Peer, at: dict) -> dict:
    """Time our step and a peer's in turn. `agrees` is whether both have the same loss on a batch,
    without dropout."""
    ours, batch = Ours(job), job.order(1)[0]
    for side in (ours, peer):
        set_lora(side.model)
    losses = [side.plain_loss(batch) for side in (ours, peer)]
    sides = (as_batches(job, side, at["pairs"]) for side in (ours, peer))
    times = alternate(*sides, at["pairs"], 2, job.device)
    line = compared(times, None) | {"loss": losses[0], "peers_loss": losses[1]}
    line["agrees"] = abs(losses[0] - losses[1]) <= TOLERANCE[job.precision] * max(1, abs(losses[1]))
    return line | share(job, times, at)


def set_lora(model: nn.Module) -> None:
    """Set LoRA's A and B to fixed values. B starts at zero, so otherwise the compared losses would
    not depend on LoRA."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.linspace(-0.05, 0.05, parameter.numel()).view_as(parameter))


def compared(times: Comparison, goal: float | None) -> dict:
    """Return a line with a goal, the ratio and the seconds."""
    return {
        "goal": goal,
        **times.summary(),
        "seconds": median(times.ours),
        "peers_seconds": median(times.theirs),
    }


def share(job: Job, times: Comparison, at: dict) -> dict:
    """Return our step's tokens per second, and its share of the machine's rate of matrix products.

    A step has four operations for each parameter and token: two for the forward pass, and two for
    the gradients of the inputs.
    """
    config, tokens = shape(job.shape), tokens_of(job, at["pairs"])
    rate = matmul_rate(config, round(tokens), job.dtype, job.device)
    seconds = median(times.ours)
    return {
        "tokens_per_second": tokens / seconds,
        "share": 4 * block_parameters(config) * tokens / seconds / rate,
        "matmul_rate": rate,
    }


# ---- Evaluation


def evaluation(decode: str, careful: bool, goal: float, at: dict) -> dict:
    """Compare our predictions with a tuned prompt, for 16 examples, with a peer that generates.

    `decode` is "labels" or "generate", as in evaluate.py. The careful peer generates for all 16 in
    one batch, the source for one example at a time.
    """
    from neo_peft.decoding import evaluate
    from neo_peft.runs.generation import evaluate_generated

    predict = {"labels": evaluate, "generate": evaluate_generated}[decode]
    job = Job("sentiment", at["shape"], at["precision"], at["device"])
    ours, peer = Ours(job), Peer(job, careful)
    encoder, examples = FakeEncoder(job), job.examples
    chunks = [np.arange(start, start + 16) for start in range(0, 16 * at["pairs"], 16)]
    parts = [take(examples, chunk) for chunk in chunks]

    def peer_side(number: int) -> None:
        texts = [text_of(examples, index) for index in chunks[number]]
        for group in [texts] if careful else [[text] for text in texts]:
            generate(peer, job, group)

    def our_side(number: int) -> None:
        predict(ours.model, encoder, parts[number], batch_size=16)

    return compared(alternate(our_side, peer_side, at["pairs"], 1, job.device), goal)


class FakeEncoder:
    """The part of an `Encoder` that predicting needs, without a tokenizer."""

    class FakeTokenizer:
        @staticmethod
        def decode(ids: list[int]) -> str:
            return " ".join(map(str, ids))

    def __init__(self, job: Job):
        from neo_peft.tasks import get_task

        config = shape(job.shape)
        self.task, self.tokenizer = get_task(job.task), self.FakeTokenizer
        self.end_token = config.eos_token_id
        words = answers(job.task, config.vocab_size)
        self.label_tokens = dict(zip(self.task.labels, words, strict=True))


def take(examples, chosen: np.ndarray):
    """Return the chosen examples as new `Examples`."""
    from neo_peft.encoding import Examples

    parts = [(examples.ids, examples.starts), (examples.target_indices, examples.target_starts)]
    flat = [np.concatenate([values[s[i] : s[i + 1]] for i in chosen]) for values, s in parts]
    targets = np.concatenate(
        [
            examples.targets[examples.target_starts[i] : examples.target_starts[i + 1]]
            for i in chosen
        ]
    )
    bounds = [np.cumsum([0, *(s[i + 1] - s[i] for i in chosen)]) for _, s in parts]
    return Examples(flat[0], bounds[0], flat[1], targets, bounds[1])


def text_of(examples, index: int) -> np.ndarray:
    """Return an example's tokens, without its label text."""
    start = examples.starts[index]
    return examples.ids[start : start + examples.target_indices[examples.target_starts[index]] + 1]


@torch.no_grad()
def generate(peer: Peer, job: Job, texts: list[np.ndarray]) -> None:
    """Generate ten tokens for each text with peft, which needs left padding."""
    longest, end = max(map(len, texts)), shape(job.shape).eos_token_id
    ids = torch.full((len(texts), longest), end)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.from_numpy(text.astype(np.int64))
        mask[row, longest - len(text) :] = 1
    peer.model.eval()
    peer.model.generate(
        input_ids=ids.to(job.device),
        attention_mask=mask.to(job.device),
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=end,
        eos_token_id=end,
    )


# ---- Memory. Each side is measured in a separate process.


def memory(task: str, careful: bool, goal: float, at: dict) -> dict:
    """Compare the peak memory of a training step, in addition to the loaded model."""
    job = Job(task, at["shape"], at["precision"], at["device"], grouped=careful)
    ours, theirs = (peak_of(side, job) for side in ("ours", "careful" if careful else "source"))
    return {
        "goal": goal,
        "at_most": True,
        "ratio": ours / theirs,
        "bytes": ours,
        "peers_bytes": theirs,
    }


def peak_of(side: str, job: Job) -> int:
    """Return the peak bytes of a side: "ours", "careful" or "source"."""
    command = [sys.executable, "-m", "benchmarks.memory", side, json.dumps(dataclasses.asdict(job))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["bytes"]


# ---- Our methods, compared with each other


def methods(method: str, goals: tuple[float, float, float], at: dict) -> list[dict]:
    """Compare LoRA or a prompt with our full fine-tuning: seconds, peak memory, saved bytes."""
    task = "ner" if method == "lora" else "sentiment"
    adapter_job, full_job = (
        Job(task, at["shape"], at["precision"], at["device"], method=name)
        for name in (method, "full")
    )
    ours, full = Ours(adapter_job), Ours(full_job)
    # The ratio is the second side's seconds over the first's.
    sides = (as_batches(adapter_job, side, at["pairs"]) for side in (full, ours))
    times = alternate(*sides, at["pairs"], 2, adapter_job.device)
    saved = [sum(p.numel() * 4 for p in side.model.trainable().values()) for side in (ours, full)]
    del ours, full
    peaks = [peak_of("ours", job) for job in (adapter_job, full_job)]
    return [
        {"measure": "seconds", "at_most": True, **compared(times, goals[0])},
        {"measure": "memory", "at_most": True, "goal": goals[1], "ratio": peaks[0] / peaks[1]},
        {"measure": "saved bytes", "at_most": True, "goal": goals[2], "ratio": saved[0] / saved[1]},
    ]


def checkpointing(task: str, at: dict) -> list[dict]:
    """Compare a step with and without `--checkpoint-activations`: seconds and peak memory."""
    without = Job(task, at["shape"], at["precision"], at["device"])
    with_it = dataclasses.replace(without, checkpoint=True)
    # The ratio is the second side's seconds over the first's.
    sides = [as_batches(without, Ours(job), at["pairs"]) for job in (without, with_it)]
    times = alternate(*sides, at["pairs"], 2, without.device)
    peaks = [peak_of("ours", job) for job in (with_it, without)]
    return [
        {"measure": "seconds", "goal": None, **times.summary()},
        {"measure": "memory", "goal": None, "ratio": peaks[0] / peaks[1]},
    ]


def inference(at: dict) -> list[dict]:
    """Compare the seconds of merged LoRA, unmerged LoRA and a prompt with the untuned base's."""
    from neo_peft.encoding import collate
    from neo_peft.lora import merge_lora

    lines, job = [], Job("ner", at["shape"], at["precision"], at["device"])
    for name in ("merged", "unmerged", "prompt"):
        models = []
        for method in ("head", "prompt" if name == "prompt" else "lora"):
            method_job = Job("ner", at["shape"], at["precision"], at["device"], method=method)
            model = Ours(method_job).model.eval()
            if method == "lora" and name == "merged":
                merge_lora(model)
            models.append(model)
        untuned, tuned = (predictor(job, model, model.prompt_past(), collate) for model in models)
        times = alternate(tuned, untuned, at["pairs"], 2, job.device)
        ratios = [ours / theirs for ours, theirs in zip(times.ours, times.theirs, strict=True)]
        lines.append(
            {
                "measure": name,
                "goal": 1.0 if name == "merged" else None,
                "within": 0.02,
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return lines


def predictor(job: Job, model, prefix, collate: Callable) -> Callable[[int], None]:
    """Return a function that computes the logits of a batch by its number."""
    order = job.order(64)

    def predict(number: int) -> None:
        with torch.inference_mode():
            model.logits(model(collate(job.examples, order[number]).to(model.device), prefix))

    return predict


# ---- Loading, encoding, metrics, one layer


def load(at: dict) -> list[dict]:
    """Compare loading a checkpoint with `from_pretrained`: seconds, and private memory divided by
    the bytes of the weights."""
    from benchmarks.sides import published

    job = Job("sentiment", at["shape"])
    with tempfile.TemporaryDirectory() as folder:
        published(job, tags=False).save_pretrained(folder)
        tokenizer = Path(__file__).parents[1] / "neo_peft/assets/neo-mini"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(folder) / name).write_bytes((tokenizer / name).read_bytes())
        runs = {side: [] for side in ("ours", "transformers")}
        for _ in range(max(3, at["pairs"] // 3)):
            for side, results in runs.items():
                command = [sys.executable, "-m", "benchmarks.memory", f"load-{side}", folder]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append(json.loads(output.splitlines()[-1]))
    lines = []
    # A side can map the weights and read them later. So the goal is for the seconds until every
    # weight has been used.
    for measure, name, goal in (
        ("seconds to the last weight", "touched", 0.6),
        ("the call alone", "seconds", None),
    ):
        ratios = [ours[name] / theirs[name] for ours, theirs in zip(*runs.values(), strict=True)]
        seconds = [median(result[name] for result in results) for results in runs.values()]
        lines.append(
            {
                "measure": measure,
                "at_most": True,
                "goal": goal,
                "ratio": median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "seconds": seconds[0],
                "peers_seconds": seconds[1],
            }
        )
    ours, theirs = (
        [result["bytes"] / result["weights"] for result in results] for results in runs.values()
    )
    return [
        *lines,
        {
            "measure": "memory over weights",
            "at_most": True,
            "goal": 1.05,
            "ratio": median(ours),
            "peers_ratio": median(theirs),
        },
    ]


def encode(at: dict) -> list[dict]:
    """Compare encoding the sample's rows with the source's code, which encodes row by row: words to
    tag, and sentences to classify. Both sides must have the same tokens and labels."""
    from neo_peft.corpora.sources import load_splits
    from neo_peft.formats.base_config import read_config
    from neo_peft.formats.base_folder import BUNDLED
    from neo_peft.formats.tokenizer import load_tokenizer
    from neo_peft.runs.loading import make_encoder
    from neo_peft.settings import make_settings
    from neo_peft.tasks import get_task

    folder, lines = BUNDLED["neo-mini"], []
    # The tagged sentences are taken four times, since in JNLPBA a word is repeated far more often
    # than in the sample.
    for name, encode_by_row, times, goal in (
        ("ner", encode_tagging, 4, 5),
        ("sentiment", encode_classification, 1, None),
    ):
        task, settings = get_task(name), make_settings(task=name, method="lora")
        rows = load_splits(task, "sample").train * times
        encoder = make_encoder(
            task, load_tokenizer(folder), read_config(folder), settings, with_head=name == "ner"
        )
        theirs = encode_by_row(load_tokenizer(folder), task)
        encode_both = (lambda _: encoder(rows), lambda _: theirs(rows))  # noqa: B023
        pair = alternate(*encode_both, at["pairs"], 1)
        line = compared(pair, goal)
        lines.append(
            {"measure": name, **line, "agrees": same_examples(encoder(rows), theirs(rows))}
        )
    return lines


def encode_tagging(tokenizer, task) -> Callable[[list[dict]], list]:
    """Return a function that encodes row by row, as transformers' token classification example: it
    tokenises the words, and loops over the sub-tokens to find the first one of each word."""
    before_words = tokenizer.backend_tokenizer.pre_tokenizer
    before_words.add_prefix_space = tokenizer.add_prefix_space = True
    tokenizer.backend_tokenizer.pre_tokenizer = before_words

    def encode_rows(rows: list[dict]) -> list:
        encoded_rows = []
        for row in rows:
            encoded = tokenizer(
                row["tokens"], is_split_into_words=True, truncation=True, max_length=256
            )
            labels, before = [], None
            for word in encoded.word_ids():
                labels.append(
                    -100 if word is None or word == before else task.labels.index(row["tags"][word])
                )
                before = word
            encoded["labels"] = labels
            encoded_rows.append(encoded)
        return encoded_rows

    return encode_rows


def encode_classification(tokenizer, task) -> Callable[[list[dict]], list]:
    """Return a function that encodes row by row, as peft's prompt tuning example: it tokenises the
    text in its template and the label, and concatenates them."""

    def encode_rows(rows: list[dict]) -> list:
        encoded_rows = []
        for row in rows:
            encoded = tokenizer(f"Sentence : {row['sentence']} Label :")
            label = tokenizer(f" {row['label']}")["input_ids"] + [tokenizer.eos_token_id]
            text = encoded["input_ids"]
            encoded["input_ids"], encoded["labels"] = text + label, [-100] * len(text) + label
            encoded["attention_mask"] = [1] * len(encoded["input_ids"])
            encoded_rows.append(encoded)
        return encoded_rows

    return encode_rows


def same_examples(ours, theirs: list) -> bool:
    """Return whether both sides have the same tokens and labels. Theirs can have the end token in
    addition, which is predicted and never an input."""
    for index, encoded in enumerate(theirs):
        ids = ours.ids[ours.starts[index] : ours.starts[index + 1]].tolist()
        targets = ours.targets[ours.target_starts[index] : ours.target_starts[index + 1]].tolist()
        if ids != encoded["input_ids"][: len(ids)] or targets != [
            label for label in encoded["labels"] if label >= 0
        ]:
            return False
    return len(ours) == len(theirs)


def metrics(at: dict) -> dict:
    """Compare scoring with seqeval, on as many sentences as JNLPBA's test split has."""
    from seqeval.metrics import classification_report

    from neo_peft.metrics import entity_scores

    rng = np.random.default_rng(0)
    kinds = ("DNA", "protein", "cell_type", "cell_line", "RNA")

    def random_tags(length: int) -> list[str]:
        tags = []
        while len(tags) < length:
            if rng.random() < 0.8:
                tags.append("O")
            else:
                kind = kinds[rng.integers(5)]
                tags += [f"B-{kind}", *[f"I-{kind}"] * int(rng.integers(4))]
        return tags[:length]

    gold = [random_tags(26) for _ in range(3856)]
    predicted = [random_tags(26) if rng.random() < 0.5 else sentence for sentence in gold]

    def theirs(_: int) -> None:
        # it has all scores that ours has
        classification_report(gold, predicted, output_dict=True)

    return compared(alternate(lambda _: entity_scores(gold, predicted), theirs, at["pairs"], 1), 5)


def layer(at: dict) -> list[dict]:
    """Compare one layer with LoRA, forward and backward, with peft's and with loralib's formula."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    from neo_peft.lora import LoRALinear

    size, rank = shape(at["shape"]).hidden_size, 16
    base = nn.Linear(size, size, bias=False).requires_grad_(False)
    ours = LoRALinear(base, rank, 16, 0.1, False, "kaiming")
    config = LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.1)
    peft = PeftLinear(base, "default", config, r=rank, lora_alpha=16)
    a, b = (nn.Parameter(torch.randn(shape) * 0.02) for shape in ((rank, size), (size, rank)))

    def loralib(x: torch.Tensor) -> torch.Tensor:
        out = F.linear(x, base.weight)
        out += (F.dropout(x, 0.1) @ a.transpose(0, 1) @ b.transpose(0, 1)) * (16 / rank)
        return out

    x = torch.randn(600, size, requires_grad=True)
    gradient = torch.randn(600, size)

    def run(module: Callable) -> Callable[[int], None]:
        def call(_: int) -> None:
            module(x).backward(gradient)

        return call

    lines = []
    for name, module, goal in (("peft", peft, 1.2), ("loralib's form", loralib, 1.0)):
        lines.append(
            {"measure": name, **compared(alternate(run(ours), run(module), 10 * at["pairs"]), goal)}
        )
    return lines
