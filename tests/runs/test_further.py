"""Adapters made by peft and our own runs are evaluated and trained further. Others are refused."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import padded, real_rows
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trained import make_run
from transformers import GPTNeoForCausalLM, GPTNeoForTokenClassification

import evaluate
import train
from neo_peft.commands import export
from neo_peft.commands.train import parse_flags as parse_train_flags
from neo_peft.corpora.sources import load_splits
from neo_peft.corpora.splits import limit_rows
from neo_peft.encoding import collate
from neo_peft.errors import InputError
from neo_peft.formats.base_folder import BUNDLED
from neo_peft.formats.peft_config import peft_settings
from neo_peft.runs import folder as runs
from neo_peft.runs import loading
from neo_peft.settings import make_settings
from neo_peft.system.exit_status import exit_status
from neo_peft.tasks import TASKS

LORA = {"r": 5, "lora_alpha": 7, "bias": "all"}
CASES = {  # adapters made by peft: the task, the peft config
    "LoRA with a head": ("ner", LoraConfig(task_type="TOKEN_CLS", **LORA)),
    "LoRA": (
        "sentiment",
        LoraConfig(task_type="CAUSAL_LM", target_modules=["c_fc", "k_proj"], use_rslora=True, r=3),
    ),
    "a prompt": ("similarity", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)),
}
ROWS = 4
FEW = (
    f"--train-limit {ROWS} --batch-size {ROWS} --epochs 2 --keep last --head-dropout 0 --threads 1"
).split()
FEW += ["--eval-limit", "3"]


def made_by_peft(base, folder, task, config):
    """Save an adapter of peft with random weights, and return peft's model."""
    kind = GPTNeoForTokenClassification if task == "ner" else GPTNeoForCausalLM
    extra = {"num_labels": 11} if task == "ner" else {}
    torch.manual_seed(3)
    model = get_peft_model(kind.from_pretrained(base, dtype=torch.float32, **extra), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def train_rows(task):
    return limit_rows(load_splits(TASKS[task], "sample").train, ROWS)


def loss_of(tuned):
    """Return the mean loss of a loaded model over the training rows."""
    examples = tuned.encoder(train_rows(tuned.encoder.task.name))
    batch = collate(examples, range(len(examples)))
    with torch.no_grad():
        return (tuned.model.loss(batch, tuned.model.prompt_past()) / len(batch.targets)).item()


def trained(folder, *flags, capsys):
    """Run train.py. Return its JSON summary, the losses of its steps, and its standard error."""
    assert exit_status(lambda: train.main([*flags, *FEW, "--out", str(folder), "--json"])) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return json.loads(out), [line["loss"] for line in lines if "loss" in line], err


@pytest.mark.parametrize("case", CASES)
def test_adapters_made_by_peft_are_scored_and_trained_further(tiny_folder, tmp_path, case, capsys):
    task, config = CASES[case]
    theirs = made_by_peft(tiny_folder, tmp_path / "peft", task, config)
    task_and_model = ["--task", task, "--model", str(tiny_folder)]
    tuned = loading.load(
        tmp_path / "peft", loading.settings_in(tmp_path / "peft", str(tiny_folder), task)
    )

    examples = tuned.encoder(train_rows(task))
    batch = collate(examples, range(ROWS))
    texts = batch.ids.split(batch.lengths.tolist())
    mask = padded([torch.ones_like(text) for text in texts])
    prompt = len(tuned.model.prompt) if tuned.model.prompt else 0
    with torch.no_grad():
        padded_logits = theirs(input_ids=padded(texts), attention_mask=mask).logits[:, prompt:]
        expected = real_rows(padded_logits, texts)[batch.target_indices]
        ours = tuned.model.logits(tuned.model(batch, tuned.model.prompt_past()))
    difference = (ours - expected).abs().max().item() / max(1, expected.abs().max().item())
    print(f"largest difference of logits: {difference:.2e}")
    assert difference <= 1e-5

    assert (
        exit_status(
            lambda: evaluate.main(
                [str(tmp_path / "peft"), *task_and_model, "--eval-limit", "3", "--json"]
            )
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["task"] == task

    summary, losses, err = trained(
        "further", "--adapter", str(tmp_path / "peft"), *task_and_model, capsys=capsys
    )
    assert losses[0] == pytest.approx(loss_of(tuned), rel=1e-5)
    expected_loss = torch.nn.functional.cross_entropy(expected, batch.targets).item()
    assert losses[0] == pytest.approx(expected_loss, rel=1e-4) and losses[1] < losses[0]
    assert f"has no fingerprint of its base: whether this is {tiny_folder} was not checked" in err
    method = summary["method"]
    fresh, fresh_losses, _ = trained("fresh", *task_and_model, "--method", method, capsys=capsys)
    assert summary["before"] == fresh["before"]
    assert fresh_losses[0] != pytest.approx(losses[0], rel=1e-3)
    shutil.rmtree(tmp_path / "peft")  # the new run does not need the adapter that it started from
    again = loading.load("further")
    assert again.settings.method == method and again.settings.adapter == str(tmp_path / "peft")


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix", "full", "head", "lora+prompt"])
def test_our_own_run_is_trained_further_on_its_recorded_base(tiny_folder, tmp_path, method, capsys):
    flags = {"alpha": 5} if "lora" in method else {"prompt_length": 6} if method == "prompt" else {}
    run = make_run(tmp_path / "run", tiny_folder, "sentiment", method, seed=3, **flags)
    tuned = loading.load(run)
    _, losses, err = trained("further", "--adapter", "run", capsys=capsys)
    assert losses[0] == pytest.approx(loss_of(tuned), rel=1e-5)
    assert losses[1] != losses[0] and "was not checked" not in err
    settings = loading.load("further").settings
    assert (settings.method, settings.model, settings.task) == (
        method,
        str(tiny_folder),
        "sentiment",
    )
    assert (
        all(getattr(settings, name) == value for name, value in flags.items())
        and settings.seed == 0
    )


def test_our_own_prompt_is_trained_further(tiny_folder, capsys):
    first = [
        "--task",
        "sentiment",
        "--model",
        str(tiny_folder),
        "--method",
        "prompt",
        "--prompt-length",
        "6",
    ]
    _, losses, _ = trained("one", *first, "--learning-rate", "0.01", capsys=capsys)
    _, more, _ = trained("two", "--adapter", "one", "--learning-rate", "0.01", capsys=capsys)
    assert more[0] == pytest.approx(loss_of(loading.load("one")), rel=1e-5)
    assert more[1] < more[0] < losses[0]


def test_settings_are_taken_from_the_adapter(tiny_folder, tmp_path):
    run = make_run(
        tmp_path / "run",
        tiny_folder,
        "ner",
        "lora",
        rank=3,
        tag_subtoken="last",
        head_dropout=0.3,
        bias="all",
        echo=True,
        tag_decoding="greedy",
    )
    settings = parse_train_flags(["--adapter", "run"])
    assert (settings.task, settings.rank, settings.bias, settings.tag_subtoken) == (
        "ner",
        3,
        "all",
        "last",
    )
    assert (settings.head_dropout, settings.adapter) == (0.3, str(run))
    assert (settings.echo, settings.tag_decoding) == (True, "greedy")
    settings = parse_train_flags(
        ["--adapter", "run", "--read", "first", "--head-dropout", "0", "--model", "neo-mini"]
    )
    assert (settings.tag_subtoken, settings.head_dropout, settings.model) == (
        "first",
        0.0,
        "neo-mini",
    )
    assert parse_train_flags(["--adapter", "run", "--task", "sentiment"]).tag_decoding == "viterbi"
    make_run(tmp_path / "worded", tiny_folder, "sentiment", "lora", wording="source")
    assert parse_train_flags(["--adapter", "worded"]).wording == "source"
    assert parse_train_flags(["--adapter", "worded", "--wording", "own"]).wording == "own"
    assert parse_train_flags(["--adapter", "worded", "--task", "similarity"]).wording == "own"
    recorded = {
        name: value for name, value in vars(settings).items() if name not in ("out", "json")
    }
    shutil.rmtree(run)
    assert make_settings(**recorded) == settings


def test_an_exported_run_is_scored_and_trained_further(tmp_path, capsys):
    """The export of LoRA and a prompt has a folder for each. The path of the bundled model in its
    config is read as the model's name."""
    make_run(tmp_path / "run", "neo-mini", "sentiment", "lora+prompt", prompt_length=5)
    export.main(["run", "out"])
    assert runs.is_run("out")
    settings = parse_train_flags(["--adapter", "out", "--task", "sentiment"])
    assert (settings.method, settings.model, settings.prompt_length) == (
        "lora+prompt",
        "neo-mini",
        5,
    )
    tuned = loading.load_to_train(settings)
    assert (
        torch.count_nonzero(
            tuned.model.get_submodule("transformer.h.0.attn.attention.q_proj").lora_B.weight
        )
        == 0
    )
    loading.start_from_adapter(tuned)
    assert loss_of(tuned) == pytest.approx(loss_of(loading.load("run")), rel=1e-6)
    again = loading.load(
        "out", loading.settings_in(Path("out"), str(BUNDLED["neo-mini"]), "sentiment")
    )
    assert loss_of(again) == pytest.approx(loss_of(tuned), rel=1e-6)


def test_an_adapter_without_a_head_gets_an_untrained_head(tiny_folder, tmp_path, capsys):
    made_by_peft(
        tiny_folder, tmp_path / "peft", "sentiment", LoraConfig(task_type="CAUSAL_LM", r=3)
    )
    settings = parse_train_flags(
        ["--adapter", "peft", "--task", "ner", "--model", str(tiny_folder), "--seed", "4"]
    )
    tuned, fresh = loading.load_to_train(settings), loading.load_untuned(settings, with_method=True)
    assert any(
        "peft has no head: the classifier starts untrained, from the seed 4" in note
        for note in tuned.notes
    )
    loading.start_from_adapter(tuned)
    assert torch.equal(tuned.model.head.weight, fresh.model.head.weight)
    assert torch.count_nonzero(
        tuned.model.get_submodule("transformer.h.0.attn.attention.q_proj").lora_B.weight
    )
    with pytest.raises(
        InputError, match="peft is an adapter for CAUSAL_LM, which predicts label words; ner predi"
    ):
        loading.load("peft", loading.settings_in(Path("peft"), str(tiny_folder), "ner"))


def test_the_base_is_taken_from_pefts_config(tiny_folder, tmp_path):
    made_by_peft(
        tiny_folder, tmp_path / "peft", "sentiment", LoraConfig(task_type="CAUSAL_LM", r=3)
    )
    path = tmp_path / "peft" / "adapter_config.json"
    flags = ["--adapter", "peft", "--task", "sentiment"]
    assert parse_train_flags(flags).model == str(tiny_folder)
    for name, model in (("owner/gpt-neo", "owner/gpt-neo"), (str(BUNDLED["neo-mini"]), "neo-mini")):
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name})
        )
        assert parse_train_flags(flags).model == model
    for name in ("/no/such/folder", None):
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name})
        )
        with pytest.raises(
            InputError,
            match="--adapter peft: its base is not recorded or not found; name it with --model",
        ):
            parse_train_flags(flags)
        assert parse_train_flags([*flags, "--model", "neo-mini"]).model == "neo-mini"


def test_pickled_tensors_are_refused_with_a_command_that_converts_them(tiny_folder, tmp_path):
    from safetensors.torch import load_file

    made_by_peft(tiny_folder, tmp_path / "peft", *CASES["LoRA"])
    tensors = load_file("peft/adapter_model.safetensors")
    Path("peft/adapter_model.safetensors").unlink()
    torch.save(tensors, "peft/adapter_model.bin")
    settings = loading.settings_in(Path("peft"), str(tiny_folder), "sentiment")
    with pytest.raises(
        InputError, match="adapter_model.bin is a pickle file, which is never loaded"
    ) as refused:
        loading.load("peft", settings)
    command = shlex.split(str(refused.value).split("convert it once: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert loading.load("peft", settings).model.trainable().keys()


def write_run_record(folder, flags):
    """Write the folder of a run that has only a run.json."""
    folder.mkdir(exist_ok=True)
    runs.write_record(folder, {"labels": [], "flags": flags, "base": {}, "files": {}})


# ---- Refusals

FIXED = {
    "--method lora": "--method is fixed by --adapter run \\(lora\\); leave out one of them",
    "--readout head": "--readout is fixed by --adapter run \\(words\\); ",
    "--rank 3": "--rank is fixed by --adapter run \\(8\\); ",
    "--alpha 3": "--alpha is fixed by --adapter run \\(16.0\\); ",
    "--dropout 0.1": "--dropout is fixed by",
    "--target-modules q_proj": "--target-modules is fixed by",
    "--bias all": "--bias is fixed by",
    "--rslora": "--rslora is fixed by",
    "--lora-init gaussian": "--lora-init is fixed by",
    "--prompt-length 3": "--prompt-length is fixed by --adapter run; leave out one of them",
    "--prompt-init vocab": "--prompt-init is fixed by",
    "--prompt-text x": "--prompt-text is fixed by",
}


@pytest.mark.parametrize("flags", FIXED)
def test_a_flag_that_the_adapter_fixes_is_refused(tmp_path, flags):
    write_run_record(tmp_path / "run", vars(make_settings(task="ner", method="lora")))
    assert parse_train_flags(["--adapter", "run"]).rank == 8
    with pytest.raises(InputError, match=FIXED[flags]):
        parse_train_flags(["--adapter", "run", *flags.split()])


def test_a_folder_without_a_valid_adapter_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(
        InputError,
        match="--adapter none: there is no such folder; give that of a run or a peft adapter",
    ):
        parse_train_flags(["--adapter", "none"])
    with pytest.raises(
        InputError, match="--adapter run holds neither run.json nor adapter_config.json"
    ):
        parse_train_flags(["--adapter", "run"])
    for flags, message in (
        (None, "run.json is not the record of a run: flags is missing or wrong"),
        ({}, "run.json holds no settings of a run: --task is missing"),
        ({"method": 3}, "run.json holds no settings of a run: --method 3 is none of lora"),
    ):
        write_run_record(tmp_path / "run", flags)
        with pytest.raises(InputError, match=message):
            parse_train_flags(["--adapter", "run"])
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"method": 3', '"method": "lora"'))
    with pytest.raises(InputError, match=r"run.json was changed since it was written, or cut"):
        parse_train_flags(["--adapter", "run"])


def test_another_base_and_another_tasks_head_are_refused(tiny_folder, tmp_path):
    run = make_run(tmp_path / "run", tiny_folder, "ner", "head")
    with pytest.raises(
        InputError,
        match="run was trained on another base than neo-mini: the fingerprint of its base is ",
    ):
        loading.load_to_train(parse_train_flags(["--adapter", "run", "--model", "neo-mini"]))
    record = runs.read_record(run)
    runs.write_record(run, record | {"labels": record["labels"][::-1]})
    with pytest.raises(InputError, match=r"run.json lists other labels than the task ner has"):
        loading.load_to_train(parse_train_flags(["--adapter", "run"]))
    # LoRA without a head can be used for another task
    make_run(tmp_path / "lora", tiny_folder, "sentiment", "lora")
    assert loading.load_to_train(
        parse_train_flags(["--adapter", "lora", "--task", "similarity"])
    ).start


def test_labels_and_label_words_are_kept_except_for_another_task(tmp_path):
    recorded = vars(
        make_settings(
            task="pairs", method="prompt", labels="0,1", label_words="no,yes", model="neo-mini"
        )
    )
    write_run_record(tmp_path / "run", recorded)
    settings = parse_train_flags(["--adapter", "run"])
    assert (settings.task, settings.labels, settings.label_words) == (
        "pairs",
        ("0", "1"),
        ("no", "yes"),
    )
    settings = parse_train_flags(["--adapter", "run", "--task", "sentiment"])
    assert (settings.task, settings.labels, settings.label_words) == ("sentiment", None, None)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target_modules": 5}, "target_modules is 5; expected a list of names"),
        ({"modules_to_save": 5}, "modules_to_save is 5; expected a list of names"),
        ({"modules_to_save": [5]}, r"modules_to_save is \[5\]; expected a list of names"),
        ({"modules_to_save": "wte"}, r"modules_to_save is \['wte'\]; only a head is supported"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]; expected LORA or PROMPT_TUNING"),
    ],
)
def test_a_config_with_wrong_values_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        peft_settings(
            {"peft_type": "LORA", "modules_to_save": "classifier"} | changed,
            Path("adapter_config.json"),
        )
    assert (
        peft_settings({"peft_type": "LORA", "modules_to_save": "classifier"}, Path("x"))["rank"]
        == 8
    )


def test_a_head_of_another_task_is_refused(tiny_folder, tmp_path):
    make_run(tmp_path / "run", tiny_folder, "sentiment", "lora", readout="head")
    assert parse_train_flags(["--adapter", "run"]).readout == "head"
    with pytest.raises(
        InputError, match="--adapter run has a head for sentiment, which cannot be used for sim"
    ):
        parse_train_flags(["--adapter", "run", "--task", "similarity"])
