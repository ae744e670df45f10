"""What is compared: each job here returns a line of the table, with its goals beside what was
measured."""

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

from benchmarks.lengths import END
from benchmarks.measure import Comparison, alternate, block_parameters, matmul_rate
from benchmarks.sides import Job, Ours, Peer, as_batches, shape, tokens_of

# of both sides' losses on a right-padded pass without dropout
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def step(task: str, careful: bool, goal: dict[str, float], at: dict) -> list[dict]:
    """Compare a training step with a peer's; in bf16 also with a peer that was loaded in it, which
    has no goal."""
    job = Job(task, at["shape"], at["precision"], at["device"], grouped=careful)
    line = against(job, Peer(job, careful), at) | {"goal": goal.get(at["precision"])}
    if at["precision"] != "bf16":
        return [line]
    return [line, {"measure": "loaded in bf16", **against(job, Peer(job, careful, job.dtype), at)}]


def against(job: Job, peer: Peer, at: dict) -> dict:
    """Run our step and a peer's in turn. The ratio counts where both losses of a batch agree,
    without dropout."""
    ours, batch = Ours(job), job.order(1)[0]
    for side in (ours, peer):
        stir(side.model)
    losses = [side.plain_loss(batch) for side in (ours, peer)]
    sides = (as_batches(job, side, at["pairs"]) for side in (ours, peer))
    found = alternate(*sides, at["pairs"], 2, job.device)
    line = compared(found, None) | {"loss": losses[0], "peers_loss": losses[1]}
    line["agrees"] = abs(losses[0] - losses[1]) <= TOLERANCE[job.precision] * max(1, abs(losses[1]))
    return line | share(job, found, at)


def stir(model: nn.Module) -> None:
    """Give LoRA's A and B, the latter of which starts at zero, the same numbers on both sides: so
    its loss shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.linspace(-0.05, 0.05, parameter.numel()).view_as(parameter))


def compared(found: Comparison, goal: float | None) -> dict:
    return {
        "goal": goal,
        **found.summary(),
        "seconds": median(found.ours),
        "peers_seconds": median(found.theirs),
    }


def share(job: Job, found: Comparison, at: dict) -> dict:
    """Say which share of the machine's own matrix products the step reaches: forward and the
    inputs' gradients are four operations a parameter and token."""
    config, tokens = shape(job.shape), tokens_of(job, at["pairs"])
    rate = matmul_rate(config, round(tokens), job.dtype, job.device)
    seconds = median(found.ours)
    return {
        "tokens_per_second": tokens / seconds,
        "share": 4 * block_parameters(config) * tokens / seconds / rate,
        "matmul_rate": rate,
    }


# ---- Evaluation


def evaluation(decode: str, careful: bool, goal: float, at: dict) -> dict:
    """Compare scoring with a tuned prompt, in chunks of 16 examples, with one-at-a-time or batched
    generation."""
    from neo_peft.decoding import evaluate

    job = Job("sentiment", at["shape"], at["precision"], at["device"])
    ours, peer = Ours(job), Peer(job, careful)
    encoder, examples = AnswersOf(job), job.examples
    chunks = [np.arange(start, start + 16) for start in range(0, 16 * at["pairs"], 16)]
    parts = [take(examples, chunk) for chunk in chunks]

    def theirs(number: int) -> None:
        texts = [text_of(examples, index) for index in chunks[number]]
        for group in [texts] if careful else [[text] for text in texts]:
            generate(peer, job, group)

    def own(number: int) -> None:
        evaluate(ours.model, encoder, parts[number], decode=decode, batch_size=16)

    return compared(alternate(own, theirs, at["pairs"], 1, job.device), goal)


class AnswersOf:
    """What `decoding.evaluate` asks an encoder for, where there is no tokenizer."""

    class Words:
        @staticmethod
        def decode(ids: list[int]) -> str:
            return " ".join(map(str, ids))

    def __init__(self, job: Job):
        from benchmarks.lengths import ANSWERS
        from neo_peft.tasks import get_task

        self.task, self.end_token, self.tokenizer = get_task(job.task), END, self.Words
        self.label_tokens = dict(zip(self.task.labels, ANSWERS[job.task], strict=True))


def take(examples, chosen: np.ndarray):
    """Take some of the examples as examples of their own."""
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
    begin = examples.starts[index]
    return examples.ids[begin : begin + examples.target_indices[examples.target_starts[index]] + 1]


@torch.no_grad()
def generate(peer: Peer, job: Job, texts: list[np.ndarray]) -> None:
    """Let peft generate ten tokens behind texts, padded on the left as its generation wants
    them."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), END)
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
        pad_token_id=END,
        eos_token_id=END,
    )


# ---- Memory, each side in a process of its own


def memory(task: str, careful: bool, goal: float, at: dict) -> dict:
    """Compare the peak memory of a training step beyond the loaded model's."""
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
    command = [sys.executable, "-m", "benchmarks.memory", side, json.dumps(dataclasses.asdict(job))]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])["bytes"]


# ---- Our own methods


def methods(method: str, goals: tuple[float, float, float], at: dict) -> list[dict]:
    """Compare LoRA or a prompt with our own full tuning: seconds, peak memory, bytes that are
    saved."""
    task = "ner" if method == "lora" else "sentiment"
    part, whole = (
        Job(task, at["shape"], at["precision"], at["device"], method=name)
        for name in (method, "full")
    )
    ours, full = Ours(part), Ours(whole)
    sides = (as_batches(part, side, at["pairs"]) for side in (full, ours))
    # the ratio is that of the second over the first
    found = alternate(*sides, at["pairs"], 2, part.device)
    saved = [sum(p.numel() * 4 for p in side.model.trainable().values()) for side in (ours, full)]
    del ours, full
    peaks = [peak_of("ours", job) for job in (part, whole)]
    return [
        {"measure": "seconds", "at_most": True, **compared(found, goals[0])},
        {"measure": "memory", "at_most": True, "goal": goals[1], "ratio": peaks[0] / peaks[1]},
        {"measure": "saved bytes", "at_most": True, "goal": goals[2], "ratio": saved[0] / saved[1]},
    ]


def checkpointing(task: str, at: dict) -> list[dict]:
    """Say what `--checkpoint-activations` costs in seconds, and what is left of a step's memory."""
    plain = Job(task, at["shape"], at["precision"], at["device"])
    again = dataclasses.replace(plain, checkpoint=True)
    sides = [as_batches(plain, Ours(job), at["pairs"]) for job in (plain, again)]
    # the ratio is that of the second over the first
    found = alternate(*sides, at["pairs"], 2, plain.device)
    peaks = [peak_of("ours", job) for job in (again, plain)]
    return [
        {"measure": "seconds", "goal": None, **found.summary()},
        {"measure": "memory", "goal": None, "ratio": peaks[0] / peaks[1]},
    ]


def inference(at: dict) -> list[dict]:
    """Compare merged LoRA with the bare model; unmerged LoRA and a prompt are shown beside it."""
    from neo_peft.encoding import collate
    from neo_peft.lora import merge_lora

    lines, job = [], Job("ner", at["shape"], at["precision"], at["device"])
    for name in ("merged", "unmerged", "prompt"):
        sides = []
        for tuned in (False, True):
            method = "prompt" if tuned and name == "prompt" else "lora" if tuned else "head"
            side = Ours(
                Job("ner", at["shape"], at["precision"], at["device"], method=method)
            ).model.eval()
            if tuned and name == "merged":
                merge_lora(side)
            sides.append(side)
        bare, tuned = (reader(job, side, side.prefix(), collate) for side in sides)
        found = alternate(tuned, bare, at["pairs"], 2, job.device)
        ratios = [own / other for own, other in zip(found.ours, found.theirs, strict=True)]
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


def reader(job: Job, model, prefix, collate: Callable) -> Callable[[int], None]:
    order = job.order(64)

    def read(number: int) -> None:
        with torch.inference_mode():
            model.logits(model(collate(job.examples, order[number]).to(model.device), prefix))

    return read


# ---- Around the step


def load(at: dict) -> list[dict]:
    """Compare loading a checkpoint with `from_pretrained`: seconds, and private memory over the
    weights' bytes."""
    from benchmarks.sides import published

    job = Job("sentiment", at["shape"])
    with tempfile.TemporaryDirectory() as folder:
        published(job, tags=False).save_pretrained(folder)
        tokenizer = Path(__file__).parents[1] / "neo_peft/assets/neo-mini"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(folder) / name).write_bytes((tokenizer / name).read_bytes())
        runs = {side: [] for side in ("ours", "transformers")}
        for _ in range(max(3, at["pairs"] // 3)):
            for side, found in runs.items():
                command = [sys.executable, "-m", "benchmarks.memory", f"load-{side}", folder]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(said.splitlines()[-1]))
    lines = []
    # Either side may leave the weights in the mapped file, so that what it has only put off is on
    # its bill too.
    for measure, name, goal in (
        ("seconds to the last weight", "touched", 0.6),
        ("the call alone", "seconds", None),
    ):
        ratios = [own[name] / peer[name] for own, peer in zip(*runs.values(), strict=True)]
        seconds = [median(one[name] for one in found) for found in runs.values()]
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
    held, theirs = ([one["bytes"] / one["weights"] for one in found] for found in runs.values())
    return [
        *lines,
        {
            "measure": "memory over weights",
            "at_most": True,
            "goal": 1.05,
            "ratio": median(held),
            "peers_ratio": median(theirs),
        },
    ]


def encode(at: dict) -> list[dict]:
    """Compare encoding the sample's rows with the source's per-row Python: tagged words, and
    sentences that the language model answers. Both sides must come to the same tokens and
    labels."""
    from neo_peft.corpora.sources import load_splits
    from neo_peft.formats.base_config import read_config
    from neo_peft.formats.base_folder import BUNDLED
    from neo_peft.formats.tokenizer import load_tokenizer
    from neo_peft.runs.loading import make_encoder
    from neo_peft.settings import make_settings
    from neo_peft.tasks import get_task

    folder, lines = BUNDLED["neo-mini"], []
    # The sentences four times, since in all of JNLPBA a word comes again far more often than in the
    # sample.
    for name, by_hand, times, goal in (
        ("ner", tag_rows, 4, 5),
        ("sentiment", answer_rows, 1, None),
    ):
        task, settings = get_task(name), make_settings(task=name, method="lora")
        rows = load_splits(task, "sample").train * times
        encoder = make_encoder(
            task, load_tokenizer(folder), read_config(folder), settings, with_head=name == "ner"
        )
        theirs = by_hand(load_tokenizer(folder), task)
        pair = alternate(lambda _: encoder(rows), lambda _: theirs(rows), at["pairs"], 1)  # noqa: B023
        line = compared(pair, goal)
        lines.append(
            {"measure": name, **line, "agrees": same_examples(encoder(rows), theirs(rows))}
        )
    return lines


def tag_rows(tokenizer, task) -> Callable[[list[dict]], list]:
    """Encode as transformers' token classification example does, a row at a time: tokenise the
    words, and walk over the sub-tokens to find where each word begins."""
    before_words = tokenizer.backend_tokenizer.pre_tokenizer
    before_words.add_prefix_space = tokenizer.add_prefix_space = True
    tokenizer.backend_tokenizer.pre_tokenizer = before_words

    def encode_rows(rows: list[dict]) -> list:
        found = []
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
            found.append(encoded)
        return found

    return encode_rows


def answer_rows(tokenizer, task) -> Callable[[list[dict]], list]:
    """Encode as peft's prompt tuning example does, a row at a time: tokenise the text in its
    template and the label, and lay them one behind the other."""

    def encode_rows(rows: list[dict]) -> list:
        found = []
        for row in rows:
            encoded = tokenizer(f"Sentence : {row['sentence']} Label :")
            label = tokenizer(f" {row['label']}")["input_ids"] + [tokenizer.eos_token_id]
            text = encoded["input_ids"]
            encoded["input_ids"], encoded["labels"] = text + label, [-100] * len(text) + label
            encoded["attention_mask"] = [1] * len(encoded["input_ids"])
            found.append(encoded)
        return found

    return encode_rows


def same_examples(ours, theirs: list) -> bool:
    """Say whether both sides have the same tokens (theirs may end in one that is never read) and
    the same labels."""
    for index, encoded in enumerate(theirs):
        ids = ours.ids[ours.starts[index] : ours.starts[index + 1]].tolist()
        targets = ours.targets[ours.target_starts[index] : ours.target_starts[index + 1]].tolist()
        if ids != encoded["input_ids"][: len(ids)] or targets != [
            label for label in encoded["labels"] if label >= 0
        ]:
            return False
    return len(ours) == len(theirs)


def metrics(at: dict) -> dict:
    """Compare the scores of as many sentences as JNLPBA's test has with seqeval's."""
    from seqeval.metrics import classification_report

    from neo_peft.metrics import entity_scores

    rng = np.random.default_rng(0)
    kinds = ("DNA", "protein", "cell_type", "cell_line", "RNA")

    def tags(length: int) -> list[str]:
        found = []
        while len(found) < length:
            if rng.random() < 0.8:
                found.append("O")
            else:
                kind = kinds[rng.integers(5)]
                found += [f"B-{kind}", *[f"I-{kind}"] * int(rng.integers(4))]
        return found[:length]

    gold = [tags(26) for _ in range(3856)]
    predicted = [tags(26) if rng.random() < 0.5 else sentence for sentence in gold]

    def theirs(_: int) -> None:
        # which holds all that our scores hold
        classification_report(gold, predicted, output_dict=True)

    return compared(alternate(lambda _: entity_scores(gold, predicted), theirs, at["pairs"], 1), 5)


def layer(at: dict) -> list[dict]:
    """Compare one adapted projection, forward and backward, with peft's and with loralib's form
    written out."""
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
