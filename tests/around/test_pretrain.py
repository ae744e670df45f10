"""scripts/pretrain.py: its documents, optimizer, resuming, processes, and bits per byte."""

import importlib.util
import math
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from neo_peft.formats.base import load_base
from neo_peft.system.exit_status import exit_status

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "pretrain.py"


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
    flags = ("--model", str(tiny_folder), "--steps", "7")
    assert run("finished", *flags) == 0
    optimizer_step = pretrain.optimizer_step

    def stop_at_step_6(trunk, averages, step, rate):
        if step == 6:
            raise KeyboardInterrupt
        optimizer_step(trunk, averages, step, rate)

    monkeypatch.setattr(pretrain, "optimizer_step", stop_at_step_6)
    assert run("stopped", *flags) == 130
    assert int(load_file("stopped/checkpoint.safetensors")["step"]) == 4
    assert not Path("stopped/model.safetensors").exists()
    monkeypatch.setattr(pretrain, "optimizer_step", optimizer_step)
    assert run("stopped", *flags) == 0
    finished, resumed = (load_file(f"{name}/model.safetensors") for name in ("finished", "stopped"))
    before = load_file(tiny_folder / "model.safetensors")
    assert finished.keys() == resumed.keys() == before.keys()
    assert all(torch.equal(finished[name], resumed[name]) for name in finished)
    assert all(not torch.equal(finished[name].float(), before[name]) for name in finished)


def test_a_model_from_random_weights_learns_and_loads_in_transformers(run, capsys):
    from transformers import AutoTokenizer, GPTNeoForCausalLM

    assert run("made", "--steps", "6", "--seed", "3") == 0
    bits_per_byte = [
        float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()
    ]
    # after 2, 4, 6 steps, and of the saved model
    assert len(bits_per_byte) == 4 and bits_per_byte == sorted(bits_per_byte, reverse=True)
    tokenizer = AutoTokenizer.from_pretrained("made")
    assert tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer(" IL-2 (α)")["input_ids"]) == " IL-2 (α)"
    base = load_base("neo-mini")
    assert tokenizer.get_vocab() != base.tokenizer.get_vocab()
    model = GPTNeoForCausalLM.from_pretrained("made", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == base.parameters
    ids = torch.tensor([[0, 5, 6, 7]])
    assert float(model(ids, labels=ids).loss.detach()) < math.log(8192)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_the_optimizer_is_torchs_muon_and_adam(pretrain, tiny_folder):
    trunk = load_base(str(tiny_folder)).trunk.requires_grad_(True)
    parameters = dict(trunk.named_parameters())
    mlp = "h.0.mlp."
    names = {
        "wide": mlp + "c_proj.weight",
        "tall": mlp + "c_fc.weight",
        "bias": mlp + "c_fc.bias",
        "wpe": "wpe.weight",
    }
    ours = {key: parameters[name] for key, name in names.items()}
    theirs = {key: torch.nn.Parameter(p.detach().clone()) for key, p in ours.items()}
    muon = torch.optim.Muon([theirs["wide"], theirs["tall"]], lr=0.02, weight_decay=0.0)
    adam = torch.optim.AdamW(
        [theirs["bias"], theirs["wpe"]], lr=0.003, betas=(0.9, 0.95), weight_decay=0.0
    )
    averages = {
        f"{which} {name}": 0 * p.detach()
        for name, p in parameters.items()
        for which in ("first", "second")
    }
    first = {key: p.detach().clone() for key, p in ours.items()}
    for step in range(1, 4):
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        for key, p in ours.items():
            # With similar singular values, Newton-Schulz gives the same in bf16 and in fp32.
            p.grad = (
                torch.nn.init.orthogonal_(torch.empty_like(p))
                if p.dim() > 1
                else torch.randn_like(p)
            )
            theirs[key].grad = p.grad.clone()
        pretrain.optimizer_step(trunk, averages, step, 0.02)
        muon.step()
        adam.step()
    for key, p in ours.items():
        change, expected = p.detach() - first[key], theirs[key].detach() - first[key]
        tolerance = 1e-5 if key in ("bias", "wpe") else 0.02
        assert float((change - expected).norm()) < tolerance * float(expected.norm()), key


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
    assert pretrain.bits_per_byte(base, documents[1:]) == pytest.approx(
        float(
            F.cross_entropy(
                oracle(torch.tensor([ids])).logits[0, :-1].detach(),
                torch.tensor(ids[1:]),
                reduction="sum",
            )
        )
        / math.log(2)
        / len(b"Profit rose ."),
        rel=1e-4,
    )
    assert pretrain.bits_per_byte(base, documents) == pytest.approx(
        nats / math.log(2) / count, rel=1e-4
    )


def test_the_learning_rate_rises_stays_and_falls(pretrain, run, monkeypatch, tiny_folder):
    rates = []
    monkeypatch.setattr(
        pretrain, "optimizer_step", lambda trunk, averages, step, rate: rates.append(rate)
    )
    monkeypatch.setattr(pretrain, "WARMUP", 4)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 100)
    assert run("out", "--model", str(tiny_folder), "--steps", "16", "--learning-rate", "0.8") == 0
    assert rates == pytest.approx([0.2, 0.4, 0.6] + [0.8] * 6 + [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_documents_are_drawn_by_weight_and_some_are_spaced(pretrain, tmp_path):
    (tmp_path / "a.txt").write_text(
        "\n".join(f"a{i}, (x) 1,000 of IL-2's 0.5 ml." for i in range(200))
    )
    (tmp_path / "b.txt").write_text("\n".join(f"b{i}" for i in range(10)) + "\n\n")
    half, twice = f"{tmp_path}/a.txt:0.5", f"{tmp_path}/b.txt:2"
    plain = pretrain.choose_documents([half, twice], 0.0, 1)
    assert len(plain) == 120 and len(set(plain)) == 110
    assert sorted(d for d in plain if d[0] == "b") == sorted(2 * [f"b{i}" for i in range(10)])
    assert (
        plain
        == pretrain.choose_documents([half, twice], 0.0, 1)
        != pretrain.choose_documents([half, twice], 0.0, 2)
    )
    spaced = [d for d in pretrain.choose_documents([half], 0.5, 1) if d.endswith(" .")]
    assert 30 < len(spaced) < 70
    assert spaced[0].partition(" ")[2] == ", ( x ) 1,000 of IL-2 's 0.5 ml ."


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
        # The sum in another order changes only the rounding. Half of the batch would change a
        # tensor much more.
        assert (one[name].float() - two[name].float()).norm() < 0.05 * change, name


def test_the_script_stays_short():
    """Counted in tokens, since a formatter changes the number of lines."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    layout |= {tokenize.ENCODING, tokenize.ENDMARKER}
    with open(SCRIPT, "rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in layout]
    assert len(tokens) <= 1_900


def test_every_text_is_used_once_per_epoch(pretrain, run, monkeypatch, tiny_folder):
    used = []
    losses = pretrain.losses

    def record_texts(trunk, texts):
        if torch.is_grad_enabled():
            used.append(texts[:, :-1].clone())
        return losses(trunk, texts)

    monkeypatch.setattr(pretrain, "losses", record_texts)
    monkeypatch.setattr(pretrain, "optimizer_step", lambda *_: None)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 100)
    assert run("out", "--model", str(tiny_folder), "--steps", "30") == 0
    counts = np.unique(torch.cat(used).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) > 20 and counts.max() - counts.min() <= math.ceil(4 * 30 / len(counts))
