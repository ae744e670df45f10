"""A folder that holds no run and no adapter, but has one a folder below, and the reverse."""

from pathlib import Path

from peft_folders import write_adapter
from refusals import refused, run
from transformers import GPTNeoForCausalLM


def test_an_adapter_one_folder_down_is_named(capfd, tiny_folder):
    write_adapter(
        Path("a"),
        GPTNeoForCausalLM.from_pretrained(tiny_folder),
        task_type="CAUSAL_LM",
        name="mine",
    )
    assert not Path("a/adapter_config.json").exists()  # peft has written a/mine/
    given = f"--task sentiment --model {tiny_folder}"
    message = (
        "a holds neither run.json nor adapter_config.json: it is no finished run and no adapter; "
        "one folder down there is a/mine: name that folder"
    )
    for command in ("evaluate a", "predict --run a x", "export a out"):
        refused(capfd, f"{command} {given}", message)
    refused(capfd, f"train --adapter a {given}", f"--adapter {message}")
    assert run(f"evaluate a/mine {given} --eval-limit 2 --threads 1") == 0


def test_of_many_checkpoints_the_last_ones_are_named(capfd):
    for step in (500, 1000, 1500, 2000):
        Path(f"a/checkpoint-{step}").mkdir(parents=True)
        Path(f"a/checkpoint-{step}/adapter_config.json").write_text("{}")
    Path("a/other").mkdir()
    refused(
        capfd,
        "evaluate a --task ner --model neo-mini",
        "a holds neither …; one folder down there is a/checkpoint-2000, a/checkpoint-1500, "
        "a/checkpoint-1000: name that folder",
    )


def test_the_folder_of_an_adapter_is_no_base_and_its_base_is_named(capfd, tiny_folder):
    write_adapter(Path("a"), GPTNeoForCausalLM.from_pretrained(tiny_folder), task_type="CAUSAL_LM")
    for command in ("train --task ner --method lora --out run", "evaluate --task ner"):
        refused(
            capfd,
            f"{command} --model a",
            "--model {here}/a is an adapter, not a base model: train it further with train.py "
            "--adapter {here}/a, or score it with evaluate.py {here}/a; its base is "
            f"{tiny_folder}, which --model can name",
        )
    for file in tiny_folder.iterdir():
        Path("a", file.name).write_bytes(file.read_bytes())
    refused(
        capfd,
        "evaluate --task ner --model a",
        "--model {here}/a holds a base model and an adapter, adapter_config.json: move the adapter "
        "to a folder of its own",
    )
