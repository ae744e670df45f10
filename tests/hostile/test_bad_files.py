"""Bad files given to train.py, evaluate.py and export. Bad flags: see test_bad_input.py.

A case has files, or a change to a good folder, and the error message.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from refusals import NER, TAGS, cases, forbid_loading, refused
from safetensors.torch import load_file, save_file

from neo_peft.formats.base_folder import INDEX, WEIGHTS
from neo_peft.system import hub

# ---- The data

EMPTY = ": the file has no rows; add rows, or use the original file"
ABSENT = ": there is no such file; put it next to the task's other files"
OWN, IOB2, FIFTY, TSV = "train.jsonl", "Genia4ERtask1.iob2", "Sentences_50Agree.txt", "train.tsv"
MSR, MSR_IDS, MSR_HEAD = (
    "msr_paraphrase_train.txt",
    "mrpc_dev_ids.tsv",
    "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
)
ONE, *MORE = ('{{"sentence": "{}", "label": "{}"}}\n'.format(*pair) for pair in ("ax", "by", "cy"))
ROWS = ONE + "".join(MORE)
TAGGED = '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["b"], "tags": ["B-x"]}\n'
A_SENTENCE = "expected a JSON object with '{}': \"a sentence\""

OWN_LABELS = ": the labels of train, or those that --labels names when a model is trained"

# The task and its flags, the files in the folder of --data, and the message. If the message starts
# with a comma or a colon, the path of the first file is before it.
DATA = [
    (
        "tagging",
        {},
        "--data {here}/d has no data for tagging; give a file with your own rows, or a folder with "
        "such a file called train (.jsonl, .json, .csv, .tsv, .parquet, .conll, .iob, .iob2, .bio, "
        ".txt)",
    ),
    (
        "ner",
        {},
        f"--data {{here}}/d: none of {IOB2}, Genia4EReval1.iob2, train/{IOB2}, "
        "test/Genia4EReval1.iob2 is in this folder or in its folder jnlpba/",
    ),
    (
        "glue/cola",
        {},
        "--data {here}/d: there is no CoLA/train.tsv and no train.tsv; give a folder with "
        "GLUE's files",
    ),
    ("classification", {OWN: ""}, EMPTY),
    (
        "classification",
        {OWN: ONE + "{"},
        ", line 2: not JSON: Expecting property name enclosed in double quotes at "
        "character 2; expected a JSON object",
    ),
    ("classification", {OWN: "{}"}, f", line 1: '{{}}'; {A_SENTENCE.format('sentence')}"),
    (
        "classification",
        {OWN: '{"sentence": "a"}'},
        """, line 1: '{"sentence": "a"}'; the field 'label' is missing""",
    ),
    (
        "classification",
        {OWN: '{"sentence": "a", "label": 1.5}'},
        ", line 1: the label is 1.5; expected in 'label' a text or a whole number; numbers as "
        "targets (regression) are not supported: make a few classes of them, such as low and high",
    ),
    ("classification", {OWN: b"\n\xff"}, ", line 2: not utf-8; save the file as utf-8"),
    ("classification", {OWN: ONE}, ": every label is x; expected at least two different labels"),
    (
        "classification",
        {OWN: ROWS, "validation.jsonl": ONE.replace("x", "z")},
        "{here}/d/validation.jsonl, line 1: unknown label 'z'; expected one of x, y" + OWN_LABELS,
    ),
    (
        "classification",
        {OWN: ONE + MORE[0]},
        "--data {here}/d: too few rows, none remain for validation; add more rows",
    ),
    (
        "classification --labels x,z",
        {OWN: ROWS},
        ", line 2: unknown label 'y'; expected one of x, z" + OWN_LABELS,
    ),
    (
        "classification --labels x,y,y",
        {OWN: ROWS},
        "the labels x, y, y contain a label twice; name each once",
    ),
    (
        "classification --label-words a",
        {OWN: ROWS},
        "--label-words a: one word for each of the 2 labels is needed, in the order of x, y",
    ),
    (
        "classification --label-words a,A",
        {OWN: ROWS},
        "the labels x and y have the same label words 'a'; give each its own with --label-words",
    ),
    (
        "classification",
        {OWN: ROWS, "dev.jsonl": ONE, "val.jsonl": ONE},
        "{here}/d has dev.jsonl and val.jsonl, and each is a name of the validation file; keep one "
        "of them",
    ),
    ("classification", {"test.jsonl": ONE}, "{here}/d/train.jsonl" + ABSENT),
    (
        "classification",
        {OWN: ONE.replace('"x"', "-100")},
        ", line 1: the label is -100, which marks a row without a label in other programs; leave "
        "the row out, or give it a label",
    ),
    (
        "tagging",
        {OWN: TAGGED.replace('"B-x"', "-100")},
        ", line 2: tag 1 is -100, which marks a word without a tag in other programs, such as the "
        "second token of a word; give one tag for each word",
    ),
    (
        "pairs",
        {OWN: '{"sentence1": 1}'},
        f""", line 1: '{{"sentence1": 1}}'; {A_SENTENCE.format("sentence1")}""",
    ),
    (
        "tagging",
        {OWN: "{}"},
        """, line 1: '{}'; expected a JSON object with 'tokens': ["a", "word", "each"]""",
    ),
    (
        "tagging",
        {OWN: '{"tokens": ["a"], "tags": []}'},
        """, line 1: '{"tokens": ["a"], "tags": []}'; expected in """
        "'tags' a list with one tag for each token",
    ),
    (
        "tagging",
        {OWN: TAGGED + TAGGED.replace("B-x", "x")},
        ", line 4: tag 1 is 'x'; expected 'O', 'B-type' or 'I-type'",
    ),
    (
        "tagging",
        {OWN: TAGGED + TAGGED.replace("B-x", "I-x")},
        ", line 4: tag 1 is 'I-x', but no entity of that type comes before it; the first word of "
        "an entity has B-x",
    ),
    (
        "tagging --labels O,B-x,y",
        {OWN: TAGGED},
        "the label 'y' is no BIO tag; give O, B-type and I-type, or types alone",
    ),
    (
        "tagging --label-words a,b,c",
        {OWN: TAGGED},
        "--label-words belongs to classification tasks; tagging is a tagging task",
    ),
    ("ner", {IOB2: ""}, EMPTY),
    ("ner", {IOB2: "a\tO\n"}, "{here}/d/Genia4EReval1.iob2" + ABSENT),
    ("ner", {IOB2: "a\tO\nb O\n"}, ", line 2: 'b O'; expected a token, a tab and its tag"),
    ("ner", {IOB2: "a\tB-x\n"}, f", line 1: unknown label 'B-x'; expected one of {TAGS}"),
    (
        "ner",
        {IOB2: "\tO\n"},
        ", line 1: a token or sentence is '', empty or not valid text; correct or remove it",
    ),
    ("sentiment", {FIFTY: "\n"}, EMPTY),
    ("sentiment", {FIFTY: "a@neutral\r\nb"}, ", line 2: 'b'; expected a sentence, @ and its label"),
    (
        "sentiment",
        {FIFTY: "a@x"},
        ", line 1: unknown label 'x'; expected one of negative, neutral, positive",
    ),
    (
        "sentiment",
        {f"{FIFTY}/x": ""},
        f"{{here}}/d/{FIFTY} is not a regular file; put the file itself there",
    ),
    (
        "sentiment --protocol paper",
        {FIFTY: "a@neutral"},
        "{here}/d/Sentences_66Agree.txt: there is no such file, which is the test set of "
        "--protocol paper; add it, or use --protocol clean",
    ),
    ("similarity", {MSR: MSR_HEAD}, EMPTY),
    (
        "similarity",
        {MSR: "1\t2"},
        ", line 1: 2 columns in '1\\t2'; expected five, separated by tabs: Quality, #1 ID, "
        "#2 ID, #1 String, #2 String",
    ),
    (
        "similarity",
        {MSR: MSR_HEAD + "2\t1\t2\ta\tb"},
        ", line 2: unknown label '2'; expected one of 0, 1",
    ),
    (
        "similarity",
        {MSR: "1\t1\t2\ta\tb", MSR_IDS: "3\t4"},
        f"{{here}}/d/{MSR_IDS}, line 1: '3\\t4' is not a pair of the train file; use the list that "
        "belongs to it",
    ),
    (
        "glue/sst2",
        {TSV: "text\tlabel\n"},
        ": its header has no column sentence; use GLUE's own file",
    ),
    ("glue/sst2", {TSV: "sentence\tlabel\n"}, EMPTY),
    (
        "glue/sst2",
        {TSV: "sentence\tlabel\na\t7"},
        ", line 2: unknown label '7'; expected one of 0, 1, negative, positive",
    ),
    ("glue/sst2", {TSV: "sentence\tlabel\na\t1"}, "{here}/d/dev.tsv" + ABSENT),
]


def fill(files: dict[str, str | bytes]) -> None:
    """Write files into the folder d."""
    for name, content in files.items():
        path = Path("d", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@cases(DATA)
def test_bad_data_is_refused(capfd, monkeypatch, case):
    forbid_loading(monkeypatch)
    flags, files, message = case
    Path("d").mkdir()
    fill(files)
    start = f"{{here}}/d/{next(iter(files))}" if message[0] in ",:" else ""
    refused(capfd, f"train --method lora --data d --task {flags}", start + message)


NUMBERS = json.dumps({tag: number for number, tag in enumerate(TAGS.split(", "))})
AGAIN = "delete it to download it again"
ZIP, PARQUET = "data/FinancialPhraseBank-v1.0.zip", "mrpc/train-00000-of-00001.parquet"
HUB_DATA = [
    (
        "ner",
        {"dataset/label.json": "{}"},
        f"d/dataset/label.json: expected a JSON object with a number for each of {TAGS}",
    ),
    (
        "ner",
        {"dataset/label.json": NUMBERS, "dataset/train.json": "{}"},
        "d/dataset/train.json, line 1: '{}'; expected "
        '{"tokens": ["..."], "tags": [0]} with one tag for each token, numbered as in label.json',
    ),
    ("sentiment", {ZIP: "x"}, f"d/{ZIP}: a broken zip file (File is not a zip file); {AGAIN}"),
    (
        "similarity",
        {PARQUET: "x"},
        f"d/{PARQUET}: …; expected a parquet file with the columns sentence1, sentence2, label; "
        + AGAIN,
    ),
]


@cases(HUB_DATA)
def test_bad_data_from_the_hub_is_refused(capfd, monkeypatch, case):
    forbid_loading(monkeypatch)
    task, files, message = case
    monkeypatch.setattr(hub, "hub_file", lambda repository, name, **_: Path("d", name))
    fill(files)
    refused(capfd, f"train --method lora --data hub --task {task}", message)


# ---- The model


def with_config(**entries) -> Callable[[Path], None]:
    """Return a function that changes entries of a folder's config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def with_tensors(**entries) -> Callable[[Path], None]:
    """Return a function that replaces tensors of a folder's weights. None removes a tensor."""

    def change(folder: Path) -> None:
        changed = {
            name: value
            for name, value in (load_file(folder / WEIGHTS) | entries).items()
            if value is not None
        }
        save_file(changed, folder / WEIGHTS, {"format": "pt"})

    return change


def with_files(**files: str | None) -> Callable[[Path], None]:
    """Return a function that writes files into a folder. None removes a file."""

    def change(folder: Path) -> None:
        for name, content in files.items():
            path = folder / FILE_NAMES[name]
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_text(content)

    return change


FILE_NAMES = {
    "config": "config.json",
    "weights": WEIGHTS,
    "index": INDEX,
    "pickled": "pytorch_model.bin",
    "tokenizer": "tokenizer.json",
    "vocab": "vocab.json",
}
PROPERTY = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
UNFIT = (
    "config.json: wrong sizes: vocab_size 8192, hidden_size 24, num_heads {}, "
    "max_position_embeddings 128, window_size 11, intermediate_size {}; "
    "each must be from 1 to 16777216, and hidden_size a multiple of num_heads"
)
END = "config.json: eos_token_id is {}; expected a token id below vocab_size, 8192"
MODELS = [
    (
        "no config",
        with_files(config=None),
        "config.json does not exist: m is not a model folder; give one with --model",
    ),
    ("broken config", with_files(config="{"), f"config.json is not a JSON file: {PROPERTY}"),
    ("list", with_files(config="[]"), "config.json is not a JSON object"),
    (
        "not GPT-Neo",
        with_config(model_type="llama"),
        "config.json: model_type is 'llama'; only gpt_neo is supported",
    ),
    (
        "untied",
        with_config(tie_word_embeddings=False),
        "config.json: tie_word_embeddings is False; only True is supported",
    ),
    (
        "relu",
        with_config(activation_function="relu"),
        "config.json: activation_function is 'relu'; only gelu_new is supported",
    ),
    (
        "dropout",
        with_config(resid_dropout=0.1),
        "config.json: resid_dropout is 0.1; only 0, as in GPT-Neo, is supported",
    ),
    (
        "layers",
        with_config(attention_layers=["far"]),
        "config.json: attention layers are ['far']; only global and local are supported",
    ),
    (
        "count",
        with_config(num_layers=7),
        "config.json: num_layers is 7, but 4 attention layers are listed",
    ),
    (
        "word",
        with_config(window_size="wide"),
        "config.json: window_size is 'wide'; expected a whole number",
    ),
    ("heads", with_config(num_heads=5), UNFIT.format(5, 40)),
    ("negative", with_config(intermediate_size=-1), UNFIT.format(3, -1)),
    ("no end", with_config(eos_token_id=[]), END.format("[]")),
    ("far end", with_config(eos_token_id=8192), END.format(8192)),
    (
        "width",
        with_config(intermediate_size=41),
        ": transformer.h.0.mlp.c_fc.weight has the shape (40, 24); expected (41, 24), by "
        "config.json",
    ),
    (
        "no weights",
        with_files(weights=None),
        f" has no weights: it needs {WEIGHTS}, or {INDEX} with its shards",
    ),
    (
        "pickled",
        with_files(weights=None, pickled="x"),
        " has only pickled weights, which are never loaded; convert "
        'them once: python -c "from transformers import AutoModelForCausalLM as M; '
        "M.from_pretrained('m').save_pretrained('m')\"",
    ),
    (
        "stub",
        with_files(weights="version https://git-lfs.github.com/spec/v1"),
        f"{WEIGHTS} is not a readable safetensors file: …; put the complete file there (git clone "
        "without git-lfs gives only a pointer file)",
    ),
    (
        "broken index",
        with_files(weights=None, index="{"),
        f"{INDEX} is not a JSON file: {PROPERTY}",
    ),
    ("empty index", with_files(weights=None, index="{}"), f"{INDEX} has no weight_map"),
    (
        "no shard",
        with_files(weights=None, index='{"weight_map": {"a": "b"}}'),
        f"b is missing; {INDEX} lists it",
    ),
    (
        "outside",
        with_files(weights=None, index='{"weight_map": {"a": "../b"}}'),
        f"{INDEX} lists ../b, which is not a file of its own folder",
    ),
    (
        "missing",
        with_tensors(**{"transformer.ln_f.bias": None}),
        ": missing tensors: 1, the first is transformer.ln_f.bias",
    ),
    (
        "more",
        with_tensors(extra=torch.ones(2)),
        ": unexpected tensors: 1, the first is transformer.extra",
    ),
    (
        "shape",
        with_tensors(**{"transformer.ln_f.bias": torch.ones(5)}),
        ": transformer.ln_f.bias has the shape (5,); expected (24,), by config.json",
    ),
    (
        "head",
        with_tensors(**{"lm_head.weight": torch.ones(5)}),
        ": lm_head.weight differs from wte: untied embeddings are not supported",
    ),
    (
        "no tokenizer",
        with_files(tokenizer=None),
        " has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt",
    ),
    (
        "no merges",
        with_files(tokenizer=None, vocab="{}"),
        "merges.txt is missing; vocab.json needs it",
    ),
    (
        "broken tokenizer",
        with_files(tokenizer="{"),
        ": the tokenizer cannot be loaded: …; put the model's own files there",
    ),
]


@cases(MODELS)
def test_a_bad_model_folder_is_refused(capfd, tiny_folder, case):
    _, change, message = case
    shutil.copytree(tiny_folder, "m")
    change(Path("m"))
    model = "{here}/m"  # settings have absolute paths
    message = message.replace("'m'", f"'{model}'").replace(": m is", f": {model} is")
    refused(capfd, f"{NER} --model m", model + ("" if message[0] in " :" else "/") + message)


# ---- Adapters made by peft

LORA, SOFT = {"peft_type": "LORA"}, {"peft_type": "PROMPT_TUNING"}
OTHER = ": this option is not supported, and can change the output; use peft"
COUNT = "expected a whole number from 1 to 16384"
OPTIONS = [
    ({}, "peft_type is None; expected LORA or PROMPT_TUNING or PREFIX_TUNING"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected LORA or PROMPT_TUNING or PREFIX_TUNING"),
    (
        LORA | {"task_type": "SEQ_2_SEQ_LM"},
        "task_type is 'SEQ_2_SEQ_LM'; expected TOKEN_CLS (tags), SEQ_CLS (labels by a head) "
        "or CAUSAL_LM (label words)",
    ),
    *(
        (LORA | {name: value}, f"{name} is {value!r}{OTHER}")
        for name, value in {
            "use_dora": True,
            "rank_pattern": {"q": 3},
            "alpha_pattern": {"q": 3},
            "layers_to_transform": [1],
            "exclude_modules": ["q"],
            "lora_bias": True,
            "fan_in_fan_out": True,
            "trainable_token_indices": [1],
        }.items()
    ),
    (
        SOFT | {"num_virtual_tokens": 4, "num_transformer_submodules": 2},
        f"num_transformer_submodules is 2{OTHER}",
    ),
    (LORA | {"modules_to_save": ["wte"]}, "modules_to_save is ['wte']; only a head is supported"),
    (
        LORA | {"init_lora_weights": "pissa"},
        "init_lora_weights is 'pissa'; expected an initialization that does not change the base's "
        "weights",
    ),
    (LORA | {"target_modules": 5}, "target_modules is 5; expected a list of names"),
    (LORA | {"r": 0}, f"r is 0; {COUNT}"),
    (LORA | {"lora_alpha": -1}, "lora_alpha is -1; expected a number above 0"),
    (LORA | {"lora_dropout": 1}, "lora_dropout is 1; expected a number of at least 0 and below 1"),
    (LORA | {"bias": "some"}, "bias is 'some'; expected one of none, all, lora_only"),
    (SOFT, f"num_virtual_tokens is None; {COUNT}"),
]


@cases(OPTIONS)
def test_an_unsupported_option_of_peft_is_refused(capfd, monkeypatch, case):
    forbid_loading(monkeypatch)
    options, message = case
    fill({"adapter_config.json": json.dumps(options)})
    for command in (
        "train --task ner --adapter d",
        "evaluate d --task ner",
        "export d out --task ner",
    ):
        refused(capfd, f"{command} --model neo-mini", f"d/adapter_config.json: {message}")
