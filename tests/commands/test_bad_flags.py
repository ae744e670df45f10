"""Bad input of train.py and evaluate.py: one line, and exit status 2."""

from pathlib import Path

import pytest
from refusals import METHODS as METHOD_NAMES
from refusals import refused
from short_runs import main, short_run

import evaluate
import train

BAD = {
    "--seed 99999999999999999999 is too large": [
        "--task",
        "ner",
        "--method",
        "head",
        "--seed",
        "99999999999999999999",
    ],
    "--rank 100000 is too large: the maximum is 16384": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--rank",
        "100000",
    ],
    "--threads 1000000 is too large: the maximum is 1024": [
        "--task",
        "ner",
        "--method",
        "head",
        "--threads",
        "1000000",
    ],
    "--task is missing; the tasks are ner, sentiment, similarity": ["--method", "lora"],
    f"--method is missing; the methods are {METHOD_NAMES}": ["--task", "ner"],
    "--task 'nre' is none of ner, sentiment, similarity": ["--task", "nre", "--method", "lora"],
    "--rank 0 is not a whole number of at least 1": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--rank",
        "0",
    ],
    "--alpha 0 is not a number above 0": ["--task", "ner", "--method", "lora", "--alpha", "0"],
    "--dropout 1 is not a number of at least 0 and below 1": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--dropout",
        "1",
    ],
    "--learning-rate nan is not a number above 0": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--learning-rate",
        "nan",
    ],
    "--rank belongs to the method lora; the method here is prompt": [
        "--task",
        "ner",
        "--method",
        "prompt",
        "--rank",
        "4",
    ],
    "--read belongs to tagging tasks, such as ner": [
        "--task",
        "sentiment",
        "--method",
        "lora",
        "--read",
        "last",
    ],
    "--readout belongs to classification tasks; ner is a tagging task": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--readout",
        "head",
    ],
    "--echo belongs to tagging tasks": ["--task", "sentiment", "--method", "lora", "--echo"],
    "--tag-decoding belongs to tagging tasks": [
        "--task",
        "sentiment",
        "--method",
        "lora",
        "--tag-decoding",
        "greedy",
    ],
    "--prompt-text needs --prompt-init text": [
        "--task",
        "ner",
        "--method",
        "prompt",
        "--prompt-text",
        "x",
        "--prompt-init",
        "vocab",
    ],
    "unrecognized arguments: --ranks 4; see --help": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--ranks",
        "4",
    ],
    "--model ./nowhere is not a folder": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--model",
        "./nowhere",
    ],
    "nowhere": ["--task", "ner", "--method", "lora", "--data", "nowhere"],
    "no linear layer matches 'q_prj'": [
        "--task",
        "ner",
        "--method",
        "lora",
        "--target-modules",
        "q_prj,v_proj",
    ],
    "--max-length 300 does not fit": ["--task", "ner", "--method", "lora", "--max-length", "300"],
    "the prefix (a prompt of 250 embeddings, or an instruction), the template and the longest": [
        "--task",
        "sentiment",
        "--method",
        "prompt",
        "--prompt-length",
        "250",
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gives_one_line_and_status_2(capsys, message):
    assert main(train, BAD[message]) == 2
    out, err = capsys.readouterr()
    assert message in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err
    assert not Path("runs").exists()


def test_bad_input_of_evaluate_gives_one_line_and_status_2(tiny_folder, capsys):
    main(train, ["--task", "ner", "--method", "head", *short_run(tiny_folder)])
    for message, argv in {
        "there is no run folder nowhere": ["nowhere"],
        "--decode labels: this model predicts with a head; leave out --decode": [
            "--decode",
            "rank",  # the old name of labels
        ],
        "--zero-shot scores an untuned model": ["runs/ner-head", "--zero-shot"],
        "an untuned base model needs both --task and --model": ["--zero-shot", "--task", "ner"],
        "runs/ner-head was trained for ner, not for sentiment": [
            "runs/ner-head",
            "--task",
            "sentiment",
        ],
        "was trained on another base than neo-mini": ["runs/ner-head", "--model", "neo-mini"],
        "--split dev: the data has only train, validation, test": ["--split", "dev"],
    }.items():
        capsys.readouterr()
        assert main(evaluate, argv) == 2, argv
        assert message in capsys.readouterr().err
    Path("runs/ner-head/run.json").unlink()
    assert main(evaluate, []) == 2
    assert "there is no finished run in runs/" in capsys.readouterr().err


def test_without_flags_train_prints_two_examples(capsys):
    assert main(train, []) == 2
    assert "python train.py --task ner --method lora" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--local-rank=0", "--local_rank=1", "--local-rank 0"])
@pytest.mark.parametrize("command", ["train --task ner --method lora", "evaluate"])
def test_the_flag_of_the_old_launcher_names_torchrun(capfd, command, flag):
    refused(
        capfd,
        f"{command} {flag}",
        "--local-rank is set by python -m torch.distributed.launch; start with torchrun in place "
        "of it, which needs no such flag; see --help",
    )
