"""Settings and fixtures of all tests: no network, one thread, no learning curves, and a tiny random
GPT-Neo."""

import os
import pty
import shutil
import sys
import termios
import tty
from contextlib import suppress
from pathlib import Path

from neo_peft.system.openmp import wait_passively

wait_passively()
# The libraries read these variables at import, so they are set before the imports below.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["OMP_NUM_THREADS"] = "1"  # `--threads auto` respects it
for name in ("TQDM_DISABLE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from neo_peft.formats.base import load_base  # noqa: E402
from neo_peft.formats.base_folder import BUNDLED  # noqa: E402
from neo_peft.runs import curves, estimate, record, training  # noqa: E402

torch.set_num_threads(1)
# tqdm has its lock from here on. Otherwise a subclass whose bar comes first would make its own,
# which `killing.start` could not replace: a process that is killed never releases it.
tqdm.get_lock()

# No two sizes are equal by accident: equal sizes could hide a mistake.
TINY = {
    "vocab_size": 8192,
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "window_size": 11,
    "attention_types": [[["global", "local"], 2]],
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def one_thread_and_no_cwd(monkeypatch, tmp_path):
    """Run each test in its own empty folder, on one thread, with a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def no_estimates():
    """Runs do not measure what they will cost, which takes a sixth of a small run. Tests of the
    estimates use the fixture `estimates`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "describe_cost", lambda job: None)
        yield


@pytest.fixture
def estimates(monkeypatch):
    """Runs measure what they will cost, as they do for users."""
    monkeypatch.setattr(training, "describe_cost", estimate.describe_cost)


@pytest.fixture(scope="session", autouse=True)
def no_curves():
    """Let runs write a plot that is only the signature of a PNG: drawing would take a third of the
    time of a tiny run. A test that needs the plot uses `drawn_curves`."""

    def write_signature(metrics: Path, plot: Path, task) -> None:
        curves.read_metrics(metrics)
        plot.write_bytes(b"\x89PNG\r\n\x1a\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "learning_curves", write_signature)
        yield


@pytest.fixture(scope="module")
def drawn_curves():
    """Let the runs of a test draw their learning curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "learning_curves", curves.learning_curves)
        yield


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes standard error and output a terminal of this width, and one that
    returns what was written there."""
    master, slave = pty.openpty()
    tty.setraw(slave)  # else each newline gets a carriage return
    stream = open(slave, "w", buffering=1)  # noqa: SIM115

    def of_width(width: int) -> None:
        termios.tcsetwinsize(slave, (24 if width else 0, width))
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)

    def written() -> str:
        stream.flush()
        os.set_blocking(master, False)
        parts = []
        with suppress(BlockingIOError):
            while True:
                parts.append(os.read(master, 2**16))
        return b"".join(parts).decode()

    yield of_width, written
    stream.close()
    os.close(master)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Return the folder of a tiny random GPT-Neo with neo-mini's tokenizer.

    The weights have the standard deviation 0.3 and were saved by transformers.
    """
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(1)
    model = GPTNeoForCausalLM(GPTNeoConfig(**TINY))
    # Change biases and norms from 0 and 1: a forgotten one must change the result.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["neo-mini"] / name, folder)
    return folder


@pytest.fixture(scope="module")
def base(tiny_folder):
    """Return the tiny model, loaded by neo_peft."""
    return load_base(str(tiny_folder))


@pytest.fixture(scope="module")
def oracle(tiny_folder):
    """Return the tiny model, loaded by transformers."""
    from transformers import GPTNeoForCausalLM

    return GPTNeoForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of the real data sets, in their original files."""
    if not os.environ.get("NEO_PEFT_DATA"):
        pytest.skip("NEO_PEFT_DATA is not set to the folder of the real data sets")
    return Path(os.environ["NEO_PEFT_DATA"])
