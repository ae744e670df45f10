"""scripts/pretrain.py: added layers, resuming, processes, bad input, and what it measures."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretrain_model import grow
from pretrain_scores import losses
from safetensors.torch import load_file, save_file

from neo_peft.errors import InputError
from neo_peft.formats.base import load_base
from neo_peft.system.exit_status import exit_status

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "pretrain.py"

if not hasattr(torch.optim, "Muon"):
    pytest.skip("torch before 2.9 has no Muon", allow_module_level=True)


@pytest.fixture
def pretrain(monkeypatch):
    spec = importlib.util.spec_from_file_location("pretrain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    return module


@pytest.fixture
def text(tmp_path) -> Path:
    """Return a file with sentences of the bundled sample, four per document: about 6,500 tokens."""
    lines = (ROOT / "neo_peft/assets/sample/ner/train.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip()]
    documents = [" ".join(lines[i : i + 4]) for i in range(0, len(lines), 4)][:60]
    (tmp_path / "heldout.txt").write_text("\n".join(documents[:6]), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n".join(documents), encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def run(pretrain, monkeypatch, text):
    def run(out: str, *flags: str) -> int:
        arguments = [
            "--text",
            str(text),
            "--heldout",
            "heldout.txt",
            "--out",
            out,
            "--batch-size",
            "4",
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
        return exit_status(pretrain.main)

    return run


def test_a_resumed_run_has_the_same_weights(pretrain, run, monkeypatch, tiny_folder):
    flags = ("--model", str(tiny_folder), "--steps", "7", "--copies", "0.3")
    assert run("finished", *flags) == 0
    batch = pretrain.Windows.batch

    def stop_at_step_6(windows, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return batch(windows, step, *rest)

    monkeypatch.setattr(pretrain.Windows, "batch", stop_at_step_6)
    assert run("stopped", *flags) == 130
    assert load_file("stopped/checkpoint.safetensors")["number of steps"] == 4
    assert not Path("stopped/model.safetensors").exists()
    monkeypatch.setattr(pretrain.Windows, "batch", batch)
    assert run("stopped", *flags) == 0
    finished, resumed = (load_file(f"{name}/model.safetensors") for name in ("finished", "stopped"))
    before = load_file(tiny_folder / "model.safetensors")
    assert finished.keys() == resumed.keys() == before.keys()
    assert all(torch.equal(finished[name], resumed[name]) for name in finished)
    assert all(not torch.equal(finished[name].float(), before[name]) for name in finished)


OTHER_CHECKPOINTS = {  # the changes of a checkpoint's tensors, and the message
    "it has no h.1.ln_1.bias;": lambda tensors: tensors.pop("h.1.ln_1.bias"),
    "it has no h.1.ln_1.bias exp_avg;": lambda tensors: tensors.pop("h.1.ln_1.bias exp_avg"),
    "it has no number of steps;": lambda tensors: tensors.pop("number of steps"),
    "it has an unknown h.4.ln_1.bias;": lambda tensors: tensors.update(
        {"h.4.ln_1.bias": torch.zeros(24)}
    ),
    "h.1.ln_1.bias has the shape (25,), here (24,);": lambda tensors: tensors.update(
        {"h.1.ln_1.bias": torch.zeros(25)}
    ),
    "wte.weight exp_avg has the shape (24,), here (8192, 24);": lambda tensors: tensors.update(
        {"wte.weight exp_avg": torch.zeros(24)}
    ),
}


def test_a_checkpoint_of_another_model_is_refused(run, capsys, tiny_folder):
    flags = ("--model", str(tiny_folder), "--steps", "2")
    assert run("out", *flags) == 0
    path = Path("out/checkpoint.safetensors")
    stored = load_file(path)
    for message, change in OTHER_CHECKPOINTS.items():
        tensors = dict(stored)
        change(tensors)
        save_file(tensors, path)
        capsys.readouterr()
        assert run("out", *flags) == 2
        error = capsys.readouterr().err
        assert f"error: {path} is a checkpoint of another model: {message} name its" in error
        assert error.count("\n") == 1
    save_file(stored, path)
    assert run("out", "--model", "neo-mini", "--steps", "2") == 2
    assert f"{path} is a checkpoint of another model: " in capsys.readouterr().err
    assert run("out", "--layers", "6", *flags) == 2
    assert "is a checkpoint of another model: it has no h.4." in capsys.readouterr().err
    path.write_bytes(b"{}")
    assert run("out", *flags) == 2
    assert f"error: {path} is not a readable safetensors file" in capsys.readouterr().err


def test_a_run_with_no_step_left_only_saves_its_model(run, capsys, tiny_folder):
    flags = ("--model", str(tiny_folder), "--steps")
    assert run("out", *flags, "4") == 0
    trained = load_file("out/model.safetensors")
    assert "no step is left" not in capsys.readouterr().out
    Path("out/model.safetensors").unlink()
    assert run("out", *flags, "3") == 0
    assert "no step is left: 4 are done, and --steps is 3\nsaved" in capsys.readouterr().out
    saved = load_file("out/model.safetensors")
    assert all(torch.equal(saved[name], trained[name]) for name in trained)


def test_a_model_from_random_weights_learns_and_loads_in_transformers(run, capsys):
    from transformers import AutoTokenizer, GPTNeoForCausalLM

    assert run("made", "--steps", "6", "--seed", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    bits_per_byte = [float(line.split(": ")[1].split()[0]) for line in lines]
    # after 2, 4, 6 steps, and of the saved model
    assert len(bits_per_byte) == 4 and bits_per_byte == sorted(bits_per_byte, reverse=True)
    assert run("made", "--model", "made", "--text") == 0  # without text it measures
    assert capsys.readouterr().out.strip() == lines[-1].removeprefix("saved in fp16: ")
    tokenizer = AutoTokenizer.from_pretrained("made")
    assert tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer(" IL-2 (α)")["input_ids"]) == " IL-2 (α)"
    base = load_base("neo-mini")
    assert tokenizer.get_vocab() != base.tokenizer.get_vocab()
    model = GPTNeoForCausalLM.from_pretrained("made", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == base.parameters
    ids = torch.tensor([[0, 5, 6, 7]])
    assert float(model(ids, labels=ids).loss.detach()) < math.log(8192)


def test_added_layers_change_nothing_at_first(base):
    texts = torch.arange(1, 60).view(1, -1)
    before = losses(base.trunk, texts)
    layers = len(base.trunk.h)
    added = layers // 2 // 2 * 2
    grow(base.trunk, added)
    assert len(base.trunk.h) == base.trunk.config.num_layers == layers + added > layers
    assert base.trunk.config.attention_layers == ("global", "local") * ((layers + added) // 2)
    assert [block.window_size is None for block in base.trunk.h] == [
        kind == "global" for kind in base.trunk.config.attention_layers
    ]
    assert torch.equal(losses(base.trunk, texts), before)
    with pytest.raises(InputError, match="--layers adds an even number"):
        grow(base.trunk, 1)


def test_a_model_with_added_layers_loads_in_transformers(run, tiny_folder):
    from transformers import GPTNeoForCausalLM

    layers = len(load_base(str(tiny_folder)).trunk.h)
    assert run("out", "--model", "neo-mini", "--layers", "6", "--steps", "1") == 0
    assert layers < 6 == len(GPTNeoForCausalLM.from_pretrained("out").transformer.h)
    assert load_base("out").trunk.config.attention_layers == ("global", "local") * 3


def test_bits_per_byte_are_those_of_transformers(pretrain, base, oracle):
    documents = ["The IL-2 gene — 2 µg/ml — is active in T cells . " * 12, "Profit rose ."]
    nats = count = 0
    for document in documents:
        ids = [0, *base.tokenizer(document)["input_ids"]]
        for i in range(0, len(ids), 128):
            window = torch.tensor([ids[i : i + 128]])
            logits = oracle(window).logits[0, :-1].detach()
            nats += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
            count += sum(
                len(base.tokenizer.backend_tokenizer.id_to_token(i)) for i in window[0, 1:].tolist()
            )
    assert len(ids) < 128 < len(base.tokenizer(documents[0])["input_ids"])
    short = F.cross_entropy(oracle(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]))
    short = float(short.detach()) * (len(ids) - 1) / math.log(2) / len(b"Profit rose .")
    assert float(pretrain.measure(base, documents[1:]).split()[0]) == pytest.approx(short, rel=1e-4)
    assert pretrain.measure(base, documents[1:]).endswith("bits per byte")  # no text of 60 tokens
    line = pretrain.measure(base, documents)
    assert float(line.split()[0]) == pytest.approx(nats / math.log(2) / count, rel=1e-4)


def test_the_values_of_a_repetition_are_those_of_transformers(pretrain, base, oracle):
    documents = [f"The IL-{i} gene — {i} µg/ml — is active in T cells . " * 9 for i in range(3)]
    first, second = [], []
    for document in documents:
        ids = base.tokenizer(document)["input_ids"][:60]
        window = torch.tensor([[0, *ids, *ids]])
        nats = F.cross_entropy(
            oracle(window).logits[0, :-1].detach(), window[0, 1:], reduction="none"
        )
        first.append(nats[:60].mean())
        second.append(nats[65:].mean())
    line = pretrain.measure(base, documents)
    one, two = sum(first) / 3, sum(second) / 3
    assert line.split("; ")[1] == (
        f"{one:.3f} nats per token on 60 tokens of 3 documents, {two:.3f} on their repetition"
    )


def test_the_learning_rate_rises_then_falls(pretrain, run, monkeypatch, tiny_folder):
    rates = []
    for optimizer, share in ((torch.optim.Muon, 1), (torch.optim.AdamW, 0.15)):
        monkeypatch.setattr(
            optimizer,
            "step",
            lambda self, share=share: rates.append(self.param_groups[0]["lr"] / share),
        )
    monkeypatch.setattr(pretrain, "WARMUP", 4)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 100)
    assert run("out", "--model", str(tiny_folder), "--steps", "16", "--learning-rate", "0.8") == 0
    expected = [0.2, 0.4, 0.6, 0.8, *(0.8 * (16 - step) / 12 for step in range(4, 16))]
    assert rates[0::2] == pytest.approx(expected) == rates[1::2]


def test_bad_input_is_one_line(run, capsys, tiny_folder, tmp_path):
    (tmp_path / "bad.txt.xz").write_bytes(b"no xz")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for file in ("none.txt", "bad.txt.xz", "latin.txt", "text.txt:much"):
        assert run("out", "--model", str(tiny_folder), "--text", file) == 2
        error = capsys.readouterr().err
        assert (
            error.startswith(f"error: {file} is not FILE or FILE:WEIGHT") and error.count("\n") == 1
        )
    (tmp_path / "short.txt").write_text("Too short .")
    assert run("out", "--model", str(tiny_folder), "--text", "short.txt") == 2
    assert "has 5 tokens; a batch of 4 needs more" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(run, text, tiny_folder):
    flags = ["--model", str(tiny_folder), "--steps", "3"]
    assert run("one", *flags) == 0
    arguments = [
        "--text",
        str(text),
        "--heldout",
        "heldout.txt",
        "--out",
        "two",
        "--batch-size",
        "4",
        *flags,
    ]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(SCRIPT),
    ]
    subprocess.run([*launch, *arguments], check=True)
    one, two = load_file("one/model.safetensors"), load_file("two/model.safetensors")
    before = load_file(tiny_folder / "model.safetensors")
    for name in one:
        change = (one[name].float() - before[name]).norm()
        # The sum in another order changes only the rounding, which Muon does in bf16. Half of the
        # batch would change a tensor much more.
        assert (one[name].float() - two[name].float()).norm() < 0.2 * change, name


def test_the_script_stays_short():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 170


def test_every_text_is_used_once_per_epoch(pretrain, run, monkeypatch, tiny_folder):
    used = []

    def record_texts(trunk, texts, bf16):
        used.append(texts[:, :-1].clone())
        return losses(trunk, texts, bf16)

    monkeypatch.setattr(pretrain, "losses", record_texts)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 100)
    assert run("out", "--model", str(tiny_folder), "--steps", "30") == 0
    counts = np.unique(torch.cat(used).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) > 20 and counts.max() - counts.min() <= math.ceil(4 * 30 / len(counts))
