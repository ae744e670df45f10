"""Files from other people cannot run code, name files outside their folder, or fill the memory.

See docs/trust.md.
"""

import ast
import json
import os
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from damage import bounded
from safetensors.torch import load_file, save_file

from neo_peft.corpora.lines import LARGEST_MEMBER
from neo_peft.corpora.sources import load_splits
from neo_peft.errors import InputError
from neo_peft.formats import adapter, base
from neo_peft.formats.peft_config import named_base, read_peft
from neo_peft.runs import checkpoints, loading
from neo_peft.runs.folder import RUN, SETTINGS, write_record
from neo_peft.runs.from_flags import settings_to_resume
from neo_peft.settings import make_settings
from neo_peft.system import hub
from neo_peft.system.files import LARGEST_JSON
from neo_peft.tasks import TASKS

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "train.py",
    ROOT / "evaluate.py",
    *(ROOT / "neo_peft").rglob("*.py"),
    *(ROOT / "scripts").glob("*.py"),
]

# ---- No code runs

PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# only as functions: a model's method eval() is allowed
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {
    "torch.load",
    "torch.save",
    "torch.hub",
    "torch.package",
    "np.load",
    "np.save",
    "numpy.load",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "extractall",
}
# Used only between the processes of one run, never for a file. See docs/trust.md.
ALLOWED = {("processes.py", "all_gather_object")}


def suspicious(path: Path) -> set[tuple[str, str]]:
    """Return names in a source file that could run code from a file: (file name, name)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {name for name in names if name.split(".")[0] in PICKLES or name in UNPICKLES}
        elif isinstance(node, ast.Attribute):
            found |= {node.attr, ast.unparse(node)} & UNPICKLES
        elif isinstance(node, ast.Call):
            found |= {node.func.id} & RUNS_CODE if isinstance(node.func, ast.Name) else set()
            for option in node.keywords:
                if (
                    option.arg in ("trust_remote_code", "allow_pickle", "shell")
                    and ast.unparse(option.value) != "False"
                ):
                    found.add(option.arg)
    return {(path.name, name) for name in found}


def test_no_source_reads_or_writes_a_pickle_or_runs_text_as_code():
    assert len(SOURCES) > 30
    assert set().union(*map(suspicious, SOURCES)) == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "from torch import load as l; import dill",
        "np.load(path)",
        "f(allow_pickle=True)",
        "f(trust_remote_code=trusted)",
        "eval(text)",
        "exec(text)",
        "run(line, shell=True)",
        "dist.broadcast_object_list(x)",
        "archive.extractall()",
    ],
)
def test_suspicious_code_is_found(tmp_path, line):
    (tmp_path / "source.py").write_text(line)
    assert suspicious(tmp_path / "source.py")


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


class Trap:
    """Unpickling this object makes the folder "sprung"."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_pickled_base_is_not_read_and_the_error_shows_how_to_convert_it(folder):
    (folder / base.WEIGHTS).unlink()
    torch.save(Trap(), folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r'pickled weights, which are never loaded; convert them once: python -c "'
    ):
        base.load_base(str(folder))
    # it is not read under the name of a safetensors file either
    shutil.copy(folder / "pytorch_model.bin", folder / base.WEIGHTS)
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        base.load_base(str(folder))
    assert not Path("sprung").exists()


@pytest.fixture
def lora(tiny_folder, tmp_path) -> Path:
    """Write an adapter without a run.json, as peft does. Return its folder."""
    settings = make_settings(task="sentiment", method="lora", rank=3, model=str(tiny_folder))
    adapter.save_adapter(
        tmp_path / "lora", loading.load_untuned(settings, with_method=True).model, settings
    )
    return tmp_path / "lora"


def load_lora(folder: Path, model: Path) -> loading.LoadedModel:
    return loading.load(folder, loading.settings_in(folder, str(model), "sentiment"))


def test_a_pickled_adapter_is_not_read_and_the_error_shows_how_to_convert_it(lora, tiny_folder):
    (lora / adapter.ADAPTER_FILE).unlink()
    torch.save(Trap(), lora / "adapter_model.bin")
    with pytest.raises(
        InputError, match=r'is a pickle file, which is never loaded; convert it once: python -c "'
    ):
        load_lora(lora, tiny_folder)
    assert not Path("sprung").exists()


def test_code_next_to_a_config_or_a_tokenizer_is_not_run(folder):
    code = "import os; os.mkdir({!r})\nclass Its:\n    pass\n".format(str(folder / "sprung"))
    (folder / "its.py").write_text(code)
    outcomes = set()
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        for file, value in (
            ("config.json", "its.Its"),
            ("tokenizer_config.json", ["its.Its", "its.Its"]),
        ):
            original = (folder / file).read_text()
            for extra in ({}, {"tokenizer_class": "Its"}):
                (folder / file).write_text(
                    json.dumps(json.loads(original) | {"auto_map": {name: value}} | extra)
                )
                try:
                    outcomes.add(base.load_base(str(folder)).fingerprint)
                except InputError as error:
                    assert str(folder) in str(error)
                assert not (folder / "sprung").exists()
            (folder / file).write_text(original)
    assert outcomes == {base.load_base(str(folder)).fingerprint}


# ---- No file outside the folder


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "deeper/x", "..", "..\\x", "C:x", "\\\\host\\x", "a\0/../x"]
)
def test_an_index_cannot_name_a_file_of_another_folder(folder, name):
    (folder / base.WEIGHTS).rename(folder.parent / "x")
    (folder / base.INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(InputError, match="which is not a file of its own folder"):
        base.load_base(str(folder))


@pytest.mark.parametrize("name", [".", "", "x" * 5000, "\ud800", "a\0b", "config.json", "deeper"])
def test_an_index_that_names_no_weights_is_refused(folder, name):
    (folder / "deeper").mkdir()
    (folder / base.WEIGHTS).unlink()
    (folder / base.INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(
        InputError, match="not a file of its own folder|is missing|not a readable safetensors file"
    ):
        base.load_base(str(folder))


def test_links_are_followed_since_the_hubs_cache_has_only_links(tiny_folder, tmp_path):
    """The cache has snapshots/COMMIT/config.json -> ../../blobs/HASH. A link gives no access to
    files that the user cannot read."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(file, tmp_path / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert base.load_base(str(snapshot)).fingerprint == base.load_base(str(tiny_folder)).fingerprint


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", base.WEIGHTS, base.INDEX]
)
@pytest.mark.parametrize("kind", ["device", "pipe", "loop", "nowhere"])
def test_a_link_that_leads_to_no_plain_file_is_refused(folder, name, kind):
    if name == base.INDEX:
        (folder / base.WEIGHTS).unlink()
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(
            {"device": "/dev/zero", "loop": name, "nowhere": "not-there"}[kind]
        )
    message = (
        "is no plain file|does not exist|no tokenizer|no weights|not a readable|cannot be "
        "loaded|levels of symbolic"
    )
    if name == "tokenizer_config.json" and kind in ("loop", "nowhere"):  # an optional file
        base.load_base(str(folder))
        return
    # a command prints each of these errors as one line
    with pytest.raises((InputError, OSError), match=message):
        base.load_base(str(folder))


def test_endless_data_is_refused_and_an_endless_adapter_config_is_ignored(tmp_path):
    (tmp_path / "train.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="train.jsonl is not a regular file"):
        load_splits(TASKS["classification"], str(tmp_path))
    (tmp_path / "Sentences_50Agree.txt").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="Sentences_50Agree.txt is not a regular file"):
        load_splits(TASKS["sentiment"], str(tmp_path))
    (tmp_path / "adapter_config.json").symlink_to("/dev/zero")
    assert read_peft(tmp_path) is None and named_base(tmp_path) is None


@pytest.mark.parametrize("kind", ["device", "pipe"])
@pytest.mark.parametrize(
    "name", [RUN, SETTINGS, f"checkpoints/step-1/{checkpoints.STATE}", adapter.ADAPTER_FILE]
)
def test_a_run_with_endless_files_is_refused(lora, tiny_folder, name, kind):
    path = lora / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    read = {
        RUN: lambda: loading.settings_in(lora),
        SETTINGS: lambda: settings_to_resume(lora, json=False),
        checkpoints.STATE: lambda: checkpoints.newest_checkpoint(lora),
        adapter.ADAPTER_FILE: lambda: load_lora(lora, tiny_folder),
    }[path.name]
    with bounded(), pytest.raises(InputError, match=f"{path} is no plain file"):
        read()


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/other.safetensors", "..\\other.safetensors"]
)
def test_a_record_cannot_name_a_file_of_another_folder(lora, tiny_folder, name):
    settings = make_settings(task="sentiment", method="lora", rank=3, model=str(tiny_folder))
    shutil.copy(lora / adapter.ADAPTER_FILE, lora.parent / "other.safetensors")
    from neo_peft.system.files import sha256

    record = {
        "labels": list(TASKS["sentiment"].labels),
        "flags": {
            key: value
            for key, value in vars(settings).items()
            if key not in ("out", "json", "resume")
        },
        "base": {"fingerprint": base.load_base(str(tiny_folder)).fingerprint},
        "files": {name: sha256(lora / adapter.ADAPTER_FILE)},
    }
    write_record(lora, record)
    with pytest.raises(InputError, match=f"{RUN}.* lists .*not a file in its folder"):
        loading.load(lora)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "\ud800", "../x", "~/x", "/not/there", "a/b/c", "a b", "", 7, []]
)
def test_a_base_name_that_is_neither_a_folder_nor_a_hub_id_is_ignored(tmp_path, name):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    assert named_base(tmp_path) is None


# ---- Limits of size


@pytest.mark.parametrize("name", ["config.json", base.INDEX, *base.TOKENIZER_FILES])
def test_a_json_file_that_is_too_large_is_refused_without_reading_it(folder, name):
    if name == base.INDEX:
        (folder / base.WEIGHTS).unlink()
    with open(folder / name, "a") as file:
        file.truncate(LARGEST_JSON + 1)  # a sparse file: it takes no space on the disk
    tracemalloc.start()
    with pytest.raises(
        InputError, match=f"{folder / name} has 67,108,865 bytes; the maximum is 67,108,864"
    ):
        base.load_base(str(folder))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def write_false_header(path: Path, stated: int | None = None, **entries) -> None:
    """Write a safetensors file with a false header: its stated length, or entries of its tensor."""
    header = json.dumps(
        {"transformer.wte.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entries}
    )
    path.write_bytes(struct.pack("<Q", stated or len(header)) + header.encode() + bytes(8))


FALSE_HEADERS = [
    {"stated": 2**63},
    {"stated": 2**40},
    {"stated": 3},
    {"shape": [2**40]},
    {"shape": [2**62, 2**62]},
    {"shape": [-2]},
    {"data_offsets": [0, 2**40]},
    {"data_offsets": [8, 0]},
    {"data_offsets": [4, 12]},
    {"data_offsets": [0, 8], "dtype": "F64", "shape": [2]},
    {"dtype": "F4096"},
    {"shape": [2**33, 0, 2**33]},
]


@pytest.mark.parametrize("false_entries", FALSE_HEADERS)
def test_a_false_header_is_refused(folder, lora, tiny_folder, false_entries):
    write_false_header(folder / base.WEIGHTS, **false_entries)
    write_false_header(lora / adapter.ADAPTER_FILE, **false_entries)
    tracemalloc.start()
    with pytest.raises(InputError, match="not a readable safetensors file|missing tensors"):
        base.load_base(str(folder))
    with pytest.raises(InputError, match="not a readable safetensors file|missing tensors"):
        load_lora(lora, tiny_folder)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_weights_of_whole_numbers_and_of_eight_bits_are_refused(folder):
    tensors = load_file(folder / base.WEIGHTS)
    for dtype in (torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        name = "transformer.h.0.mlp.c_fc.weight"
        save_file(
            tensors | {name: torch.zeros(tensors[name].shape).to(dtype)}, folder / base.WEIGHTS
        )
        with pytest.raises(
            InputError,
            match=f"{name} is stored as {str(dtype)[6:]}; only floats of 16 to 64 bits are",
        ):
            base.load_base(str(folder))


def test_copied_tensors_are_checked_for_values_that_are_not_finite(folder):
    """Norms and biases are always copied. Matrices are copied only if they are loaded in another
    precision than that of the file."""
    original = load_file(folder / base.WEIGHTS)
    for name, value, dtype, message in (
        (
            "transformer.ln_f.weight",
            float("nan"),
            torch.float32,
            "stored as float32, has values that are not finite in float32",
        ),
        (
            "transformer.h.1.mlp.c_fc.bias",
            float("inf"),
            torch.float16,
            "has values that are not finite in float32",
        ),
        (
            "transformer.wte.weight",
            float("nan"),
            torch.bfloat16,
            "stored as float32, has values that are not finite in bfloat16",
        ),
        (
            "transformer.wte.weight",
            70_000.0,
            torch.float16,
            "stored as float32, has values that are not finite in float16",
        ),
    ):
        changed = original[name].clone()
        changed.view(-1)[5] = value
        save_file(original | {name: changed}, folder / base.WEIGHTS)
        with pytest.raises(InputError, match=f"{name}, .*{message}"):
            base.load_base(str(folder), dtype)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vocab_size": float("inf")}, "vocab_size is inf; expected a whole number"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]; expected a token id below"),
        (
            {"eos_token_id": 8192},
            "eos_token_id is 8192; expected a token id below vocab_size, 8192",
        ),
        ({"eos_token_id": -1}, "eos_token_id is -1; expected a token"),
        ({"intermediate_size": -7}, "wrong sizes: .*, intermediate_size -7"),
        ({"window_size": 2**70}, "wrong sizes"),
        (
            {"layer_norm_epsilon": float("nan")},
            "layer_norm_epsilon is nan; expected a small number above 0",
        ),
        (
            {"initializer_range": float("inf")},
            "initializer_range is inf; expected a small number above 0",
        ),
        (
            {"attention_layers": ["global"] * 2000, "num_layers": 2000},
            "2,000 attention layers are listed; at most 1024 are",
        ),
        (
            {"attention_layers": None, "attention_types": [[["global"], 10**12]]},
            "more than 1024 attention layers",
        ),
        (
            {"attention_layers": None, "attention_types": [[[], 10**12]]},
            "more than 1024 attention layers",
        ),
    ],
)
def test_a_config_with_impossible_values_is_refused(folder, entries, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(InputError, match=message):
        base.load_base(str(folder))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"r": 0}, "r is 0; expected a whole number from 1 to 16384"),
        ({"r": 10**9}, "r is 1000000000; expected a whole"),
        ({"r": True}, "r is True; expected"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a number above 0"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e\\+300; expected"),
        ({"lora_dropout": 1}, "lora_dropout is 1; expected a number of at least 0 and below 1"),
        ({"bias": "some"}, "bias is 'some'; expected one of none, all, lora_only"),
        (
            {"target_modules": ["("]},
            "target_modules has '\\(', which is not a name or a regular expression",
        ),
        (
            {"target_modules": "a{99999999999}"},
            "target_modules has .* a regular expression: the repetition number",
        ),
    ],
)
def test_an_adapter_with_impossible_values_is_refused_with_its_file(lora, entries, message):
    path = lora / adapter.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(InputError, match=f"{path}: {message}"):
        read_peft(lora)


@pytest.mark.parametrize("length", [None, 0, 10**9])
def test_a_prompt_of_impossible_length_is_refused_with_its_file(tmp_path, length):
    path = tmp_path / adapter.CONFIG
    path.write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "task_type": None, "num_virtual_tokens": length})
    )
    with pytest.raises(
        InputError, match=f"{path}: num_virtual_tokens is {length}; expected a whole number from 1"
    ):
        read_peft(tmp_path)


# ---- The hub's zip

ROWS = "".join(
    f"Profit rose {n} % .@{('positive', 'neutral')[n % 2]}\r\n" for n in range(40)
).encode()
INSIDE = "FinancialPhraseBank-v1.0/"


@pytest.fixture
def write_zip(tmp_path, monkeypatch):
    """Return a function that writes a zip file, which replaces the hub's."""
    file = tmp_path / "hub" / "bank.zip"
    monkeypatch.setattr(hub, "hub_file", lambda *_, **__: file)

    def write(members: dict[str, bytes]) -> Path:
        file.parent.mkdir()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return file

    return write


def test_members_of_a_zip_with_dangerous_names_are_not_written(write_zip, tmp_path):
    odd = (
        "../evil",
        "/evil",
        INSIDE + "../../evil",
        "C:\\evil",
        INSIDE + "\ud7ff",
        INSIDE + "x" * 300,
    )
    write_zip({INSIDE + "Sentences_50Agree.txt": ROWS} | dict.fromkeys(odd, b"evil"))
    assert len(load_splits(TASKS["sentiment"], "hub").train) == 32
    assert [path.name for path in tmp_path.rglob("*")] == ["hub", "bank.zip"] and not Path(
        "/evil"
    ).exists()


def test_a_member_that_unpacks_to_too_many_bytes_is_refused(write_zip):
    file = write_zip({INSIDE + "Sentences_50Agree.txt": bytes(8 * LARGEST_MEMBER)})
    assert file.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(
        InputError, match="bank.zip/.*50Agree.txt unpacks to more than 16,777,216 bytes"
    ):
        load_splits(TASKS["sentiment"], "hub")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_member_with_a_false_size_is_not_unpacked_further(write_zip):
    file = write_zip({INSIDE + "Sentences_50Agree.txt": bytes(8 * LARGEST_MEMBER)})
    size = struct.pack("<I", 8 * LARGEST_MEMBER)
    file.write_bytes(file.read_bytes().replace(size, struct.pack("<I", 1000)))
    tracemalloc.start()
    with pytest.raises(InputError, match="bank.zip: a broken zip"):
        load_splits(TASKS["sentiment"], "hub")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
