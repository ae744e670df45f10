"""Bad input to the real commands. Each command ends with exit status 2 and one line on
standard error. It prints nothing on standard output and leaves no file.

A case is a command line and its message. `…` in a message matches any text, for example a
message of a library.
"""

import dataclasses
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from refusals import METHODS, NER, TAGS, TASKS, TEXT, cases, forbid_loading, refused, run
from waiting import HANG

from neo_peft.corpora import lines
from neo_peft.settings import Settings, class_weights, columns, flag_name, names, owners

ROOT = Path(__file__).parents[2]


# ---- The flags

MOST = 2**31 - 1
WHOLE = {  # the smallest and the largest value
    "--train-limit": (1, MOST),
    "--eval-limit": (1, MOST),
    "--max-length": (1, MOST),
    "--stride": (0, MOST),
    "--eval-every": (1, MOST),
    "--patience": (1, MOST),
    "--threads": (1, 1024),
    "--rank": (1, 16_384),
    "--prompt-length": (1, 16_384),
    "--epochs": (1, MOST),
    "--max-steps": (1, MOST),
    "--batch-size": (1, MOST),
    "--gradient-accumulation": (1, MOST),
    "--seed": (0, MOST),
    "--checkpoint-every": (1, MOST),
}
FRACTION = "of at least 0 and below 1"
REAL = {  # what is allowed, and values below and above it
    "--alpha": ("above 0", "0", "-1"),
    "--dropout": (FRACTION, "-0.1", "1"),
    "--head-dropout": (FRACTION, "-0.1", "1"),
    "--learning-rate": ("above 0 and below 1e+34", "0", "1e34"),
    "--warmup-ratio": (FRACTION, "-0.1", "1"),
    "--weight-decay": ("of at least 0 and below 10000", "-0.1", "10000"),
    "--clip-norm": ("of at least 0", "-0.1"),
}
CHOICES = {
    "--task": TASKS,
    "--method": METHODS,
    "--protocol": "clean, paper",
    "--wording": "own, source",
    "--read": "first, last",
    "--tag-decoding": "viterbi, greedy",
    "--truncate": "middle, end, start",
    "--readout": "words, head",
    "--precision": "auto, fp32, bf16, fp16",
    "--quantize": "none, int8, nf4",
    "--device": "auto, cuda, mps, cpu",
    "--bias": "none, all, lora_only",
    "--lora-init": "kaiming, gaussian",
    "--preset": "paper, best",
    "--keep": "best, last",
    "--metric": "accuracy, macro_f1, f1, span_f1, matthews, loss",
    "--prompt-init": "text, vocab, labels, random, zeros",
}
TEXTS = (
    "--data",
    "--model",
    "--out",
    "--labels",
    "--label-words",
    "--columns",
    "--class-weights",
    "--adapter",
    "--prompt-text",
    "--target-modules",
    "--resume",
)
OF_LORA = (
    "--rank 4",
    "--alpha 2",
    "--dropout 0.5",
    "--target-modules k_proj",
    "--bias all",
    "--rslora",
    "--lora-init gaussian",
)
OF_PROMPT = ("--prompt-length 4", "--prompt-init vocab", "--prompt-text x")


def flags_of_train() -> Iterator[tuple[str, str]]:
    """Yield commands with a bad flag of train, each with its message."""
    for flag, (least, most) in WHOLE.items():
        word = {"--threads": "; or use auto", "--eval-limit": "; or use all"}.get(flag, "")
        for value in (least - 1, "1.5", "x", "nan", "inf"):
            yield (
                f"{NER} {flag} {value}",
                f"{flag} {value} is not a whole number of at least {least}{word}",
            )
        yield (
            f"{NER} {flag} {most + 1}",
            f"{flag} {most + 1} is too large: the maximum is {most}{word}",
        )
    for flag, (allowed, *bad) in REAL.items():
        for value in (*bad, "x", "nan", "inf"):
            finite = "finite " if value == "inf" else ""
            yield f"{NER} {flag} {value}", f"{flag} {value} is not a {finite}number {allowed}"
    for flag, choices in CHOICES.items():
        yield f"{NER} {flag} X", f"{flag} 'X' is none of {choices}"
    for flag in (*WHOLE, *REAL, *CHOICES, *TEXTS):
        yield f"{NER} {flag} ' '", f"{flag} is empty"
    yield (
        "train --resume x --json --epochs 3",
        "--epochs cannot be used with --resume x, which keeps all settings of the run; leave it "
        "out",
    )
    yield (
        "train --resume x",
        "--resume x: there is no such folder; give the folder of the stopped run",
    )
    yield "train --resume .", "--resume . holds no settings.json: no run was started there"
    in_front = "prompt or prefix"
    for flags, method, other in ((OF_LORA, "lora", "prompt"), (OF_PROMPT, in_front, "lora")):
        for flag in flags:
            message = (
                f"{flag.split()[0]} belongs to the method {method}; the method here is {other}"
            )
            yield f"train --task ner --method {other} {flag}", message
    yield (
        "train --task ner --method prompt --prompt-init zeros",
        "--prompt-init is zeros; the method prompt has text, vocab, labels, random",
    )


def flags_of_other_commands() -> Iterator[tuple[str, str]]:
    """Yield commands with a bad flag of another command, each with its message."""
    choices = CHOICES | {"--decode": "labels, generate"}
    for script, flags in {
        "evaluate": "--task --precision --device --protocol --decode",
        "predict": "--task --precision --device",
        "export": "--task",
    }.items():
        for flag in flags.split():
            yield (
                f"{script} {flag} X",
                f"argument {flag}: 'X' is none of {choices[flag]}; see --help",
            )
    for script, flags in {
        "evaluate": "--model --labels --label-words --data --split --out --show",
        "export": "--model --labels",
        "predict": "--model --labels --run --file --threads",
    }.items():
        for flag in flags.split():
            yield f"{script} {flag} ' '", f"argument {flag}: is empty; see --help"
    for flag in ("--batch-size", "--eval-limit", "--show"):
        yield (
            f"evaluate {flag} 0",
            f"argument {flag}: 0 is not a whole number of at least 1"
            f"{'; or use all' * (flag == '--eval-limit')}; see --help",
        )


NO_RUN = (
    "there is no finished run in runs/: name the folder of a run, or train one: python -m neo_peft "
    "train --task ner --method lora"
)
FLAGS = [
    *flags_of_train(),
    *flags_of_other_commands(),
    (f"{NER} --labels ,", "--labels is empty"),
    (
        f"{TEXT} --read last",
        "--read belongs to tagging tasks, such as ner; the task here is sentiment",
    ),
    (f"{NER} --wording source", "--wording belongs to classification tasks; ner is a tagging task"),
    (
        f"{TEXT} --prompt-text x --prompt-init vocab",
        "--prompt-text needs --prompt-init text; it is vocab",
    ),
    ("train --method lora", f"--task is missing; the tasks are {TASKS}"),
    ("train --task ner", f"--method is missing; the methods are {METHODS} (a --preset sets one)"),
    (
        "train --task pairs --preset paper",
        "--preset paper has no recipe for pairs; it has recipes for ner, sentiment, similarity",
    ),
    (f"{NER} --ranks 4", "unrecognized arguments: --ranks 4; see --help"),
    (f"{NER} --rank", "argument --rank: expected one argument; see --help"),
    (
        "train --task ner --adapter no",
        "--adapter no: there is no such folder; give that of a run or a peft adapter",
    ),
    ("evaluate", NO_RUN),
    ("predict text", NO_RUN),
    ("export out", NO_RUN),
    ("evaluate ''", "argument RUN: is empty; see --help"),
    (
        "evaluate --threads 0",
        "argument --threads: 0 is not a whole number of at least 1; or use auto; see --help",
    ),
    ("evaluate --out no/x", "--out no/x: no is not a folder; make it first, or name another"),
    ("evaluate --out .", "--out . is not a plain file, so it is not replaced; name a file"),
    ("evaluate one two", "unrecognized arguments: two; see --help"),
    (
        "predict --file no",
        "--file no: there is no such file; name one with one example per line; see --help",
    ),
    (
        "predict --file no text",
        "TEXT and --file both give examples: use only one of them; see --help",
    ),
    (
        "predict runs/x text",
        "runs/x looks like a path, but there is no run and no file there; see --help",
    ),
    (
        "predict --run a --run b text",
        "several runs need --jsonl, and each row must name its run: "
        '{"run": "ner-lora", "tokens": ["IL-2"]}; see --help',
    ),
    ("export", "the following arguments are required: DIR; see --help"),
    ("export run ''", "argument DIR: is empty; see --help"),
]


@cases(FLAGS)
def test_a_bad_flag_is_refused_before_anything_is_loaded(capfd, monkeypatch, case):
    forbid_loading(monkeypatch)
    monkeypatch.setattr(lines, "read_lines", lambda *_: pytest.fail("rows were read"))
    refused(capfd, *case)


def test_no_bad_flag_waits_for_torch(tmp_path):
    """All of them run in one new process, since this one has imported torch."""
    code = (
        "import json, sys; sys.path[:0] = sys.argv[1:]; import train, evaluate\n"
        "from neo_peft.commands import export, predict\n"
        "from neo_peft.system.exit_status import exit_status\n"
        "for script, *argv in json.load(sys.stdin):\n"
        "    try: assert exit_status(lambda: globals()[script].main(argv)) == 2\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
        "    assert not {'torch', 'transformers'} & sys.modules.keys(), argv"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT],
        input=json.dumps([shlex.split(command) for command, _ in FLAGS]),
        text=True,
        cwd=tmp_path,
        capture_output=True,
        timeout=HANG,
    )
    assert done.stderr.splitlines() == [f"error: {message}" for _, message in FLAGS]
    assert done.returncode == 0 and done.stdout == ""


def test_every_flag_has_cases():
    fields = {flag_name(field.name): field for field in dataclasses.fields(Settings)}
    parsers = {flag: field.metadata["parse"] for flag, field in fields.items()}
    with_choices = {flag for flag, field in fields.items() if field.metadata["choices"]}
    text = {
        flag for flag, parse in parsers.items() if parse in (str, names, columns, class_weights)
    } - with_choices
    assert with_choices == {*CHOICES} and text == {*TEXTS}
    assert {flag for flag, parse in parsers.items() if parse is not bool} == {
        *WHOLE,
        *REAL,
        *CHOICES,
        *TEXTS,
    }
    for flags, methods in ((OF_LORA, ["lora"]), (OF_PROMPT, ["prompt", "prefix"])):
        method_flags = {flag for flag, field in fields.items() if owners(field.name) == methods}
        assert {flag.split()[0] for flag in flags} == method_flags


def test_without_flags_train_prints_two_examples(capfd):
    assert run("train") == 2
    out, err = capfd.readouterr()
    assert (
        out == ""
        and [line[:25] for line in err.splitlines()[1:3]] == ["  python train.py --task "] * 2
    )


# ---- Values that do not fit the model, the data or the run

NO_FOLDER = (
    "is not a folder; it can be neo-mini, a folder, or a hub id (owner/name, owner/name@revision)"
)
NO_ROOM = (
    "the prefix (a prompt of {} embeddings, or an instruction), the template and the longest label "
    "text do not fit into the 128 positions of the model; use a shorter prompt or shorter label "
    "words"
)
MISFITS = [
    (f"{NER} --model ./no", f"--model ./no {NO_FOLDER}"),
    (f"{NER} --model a/b/c", f"--model a/b/c {NO_FOLDER}"),
    (f"{NER} --model a/b@", f"--model a/b@ {NO_FOLDER}"),
    (
        f"{NER} --data no",
        "--data no: there is no such file or folder; --data can be sample, hub, a file or a folder",
    ),
    (
        "train --task pairs --method lora",
        "--data sample has no data for pairs; give a file with your own rows, or a folder with "
        "such a file called train (.jsonl, .json, .csv, .tsv, .parquet)",
    ),
    (
        "train --task glue/rte --method lora",
        "--data sample has no data for glue/rte; --data can be hub or GLUE's folder",
    ),
    (f"{NER} --labels O", "--labels is only for your own rows; the labels of ner are fixed"),
    (
        f"{TEXT} --label-words a,b",
        "--label-words a,b: one word for each of the 3 labels is needed, in the order of negative, "
        "neutral, positive",
    ),
    (f"{TEXT} --model {{tiny}} --prompt-length 200", NO_ROOM.format(200)),
    (f"{TEXT} --model {{tiny}} --label-words a,b,'{'c ' * 120}'", NO_ROOM.format(8)),
    (
        f"{TEXT} --model {{tiny}} --max-length 104",
        "--max-length 104 does not fit: this model and prompt allow 8 to 103",
    ),
    (
        f"{TEXT} --model {{tiny}} --max-length 7",
        "--max-length 7 does not fit: this model and prompt allow 8 to 103",
    ),
    (
        f"{NER} --model {{tiny}} --max-length 129",
        "--max-length 129 does not fit: this model and prompt allow 1 to 128",
    ),
    (
        f"{NER} --model {{tiny}} --target-modules q_prj,v_proj",
        "no linear layer matches 'q_prj'; give the end of a name (c_fc, c_proj, k_proj, out_proj, "
        "q_proj, v_proj), a full name such as h.0.attn.attention.k_proj, or all-linear",
    ),
    (
        f"{NER} --model {{tiny}} --target-modules [",
        "the target '[' is neither a module's name nor a regular expression: …",
    ),
    ("evaluate --zero-shot --task ner", "an untuned base model needs both --task and --model"),
    (
        "evaluate --task ner --model {tiny} --decode labels",
        "--decode labels: this model predicts with a head; leave out --decode",
    ),
    (
        "evaluate --task ner --model {tiny} --split dev",
        "--split dev: the data has only train, validation, test",
    ),
    (
        "evaluate --task ner --model {tiny} --data no",
        "--data no: there is no such file or folder; --data can be sample, hub, a file or a folder",
    ),
    (
        "evaluate --task tagging --model {tiny}",
        "tagging has no labels of its own: give your own rows with --data, or labels with --labels",
    ),
    (
        "evaluate --task tagging --model {tiny} --labels O,x",
        "the label 'x' is no BIO tag; give O, B-type and I-type, or types alone",
    ),
    ("evaluate no", "there is no run folder no"),
    (
        "evaluate no --zero-shot",
        "--zero-shot scores an untuned model: name --task and --model instead of a run",
    ),
    ("predict --run no text", "there is no run folder no"),
    ("export no out", "there is no run folder no"),
]


@cases(MISFITS)
def test_a_value_that_does_not_fit_is_refused(capfd, tiny_folder, case):
    command, message = case
    refused(capfd, command.replace("{tiny}", str(tiny_folder)), message)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder) -> Path:
    """Return a folder of finished runs, named by their methods. `lora` is for a tagging task, the
    others for a classification task."""
    folder = tmp_path_factory.mktemp("runs")
    for method, task in (("lora", "ner"), ("prompt", "sentiment"), ("full", "sentiment")):
        small = (
            f"--train-limit 6 --eval-limit 3 --epochs 1 --threads 1 --model {tiny_folder} "
            f"--out {folder / method}"
        )
        assert run(f"train --task {task} --method {method} {small}") == 0
    return folder


RUNS = [
    ("evaluate lora --task sentiment", "lora was trained for ner, not for sentiment"),
    ("evaluate lora --labels O,B-x,I-x", f"lora was trained for the labels {TAGS}"),
    ("predict --run prompt --label-words a,b,c x", "prompt was trained without --label-words"),
    (
        "evaluate lora --model neo-mini",
        "lora was trained on another base than neo-mini: the fingerprint of its base is …, that of "
        "neo-mini is …",
    ),
    (
        "evaluate lora --decode labels",
        "--decode labels: this model predicts with a head; leave out --decode",
    ),
    ("evaluate prompt --split dev", "--split dev: the data has only train, validation, test"),
    (
        "evaluate lora --zero-shot",
        "--zero-shot scores an untuned model: name --task and --model instead of a run",
    ),
    ("predict lora full --jsonl", "full was trained by full: it cannot share a base"),
    (
        "train --adapter lora --rank 4",
        "--rank is fixed by --adapter lora (8); leave out one of them",
    ),
    (
        "train --adapter lora --method full",
        "--method is fixed by --adapter lora (lora); leave out one of them",
    ),
    (
        "export prompt out --merge",
        "--merge: prompt has a prompt in front of every text, which a transformers model cannot "
        "hold; export it without --merge, for peft",
    ),
    (
        "export full out",
        "full: peft has no adapter for the method full; export the run with --merge, for "
        "transformers",
    ),
    ("evaluate d", "d is an adapter without a run.json: name its --task and its --model"),
    (
        "train --adapter d --task ner",
        "--adapter d: its base is not recorded or not found; name it with --model",
    ),
    (
        "evaluate d --task ner --model {tiny}",
        "d/adapter_model.safetensors is missing: this run or adapter is not complete",
    ),
]


@cases(RUNS)
def test_a_value_that_does_not_fit_the_run_is_refused(capfd, runs, tiny_folder, case):
    for name in ("lora", "prompt", "full"):
        shutil.copytree(runs / name, name)
    Path("d").mkdir()
    Path("d/adapter_config.json").write_text('{"peft_type": "LORA"}')
    command, message = case
    refused(capfd, command.replace("{tiny}", str(tiny_folder)), message)


# ---- The hub, the disk and the loss


ADVICE = (
    "without network use --model neo-mini and --data sample, or name local folders with "
    "--model and --data"
)


@pytest.mark.parametrize("state", ["offline", "unreachable", "private"])
def test_a_file_that_the_hub_does_not_give_is_named(capfd, monkeypatch, state):
    reason = {
        "offline": "HF_HUB_OFFLINE is set",
        "unreachable": "the hub at http://127.0.0.1:9 cannot be reached (…)",
        "private": "the hub has no such repository, or a private one that needs a token in "
        "HF_TOKEN",
    }[state]
    hub_url, real_endpoint = huggingface_hub.hf_hub_url, huggingface_hub.constants.ENDPOINT
    with HubServer() as server:
        endpoint = "http://127.0.0.1:9" if state == "unreachable" else server.endpoint
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", state == "offline")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            huggingface_hub,
            "hf_hub_url",
            lambda *a, **k: hub_url(*a, **k).replace(real_endpoint, endpoint),
        )
        for flags, repository, file in (
            ("--model owner/absent", "owner/absent", "config.json"),
            ("--data hub", "tner/bionlp2004", "dataset/label.json"),
        ):
            refused(
                capfd,
                f"{NER} {flags}",
                f"{repository}: {reason}, and {file} is not in the cache; {ADVICE}",
            )


def test_a_full_disk_ends_the_command_in_one_line(capfd, runs, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(
        capfd,
        f"export {runs / 'lora'} out",
        "No space left on device; free some space, and start again",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(capfd, tiny_folder, precision):
    flags = (
        f"--epochs 1 --learning-rate 1e30 --eval-limit 3 --model {tiny_folder} --precision "
        f"{precision}"
    )
    assert run(f"{NER} {flags}") == 2
    line = capfd.readouterr().err.rsplit("\r", 1)[-1]
    advice = r"at step 2 \(epoch 1\): try a smaller --learning-rate" + (
        ", or --precision fp32" if precision != "fp32" else ""
    )
    assert re.fullmatch(rf"error: the loss is \w+ {advice}\n", line), line
