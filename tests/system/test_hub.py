"""The hub's real path, through huggingface_hub, against a hub on the loopback: what is fetched,
kept and refused.

huggingface_hub reads its settings at its import, so each test asks in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_files import FILES, GLUE, HUB_JSON, PHRASEBANK, TNER, write_glue, write_zip
from hub_server import HubServer
from safetensors.torch import load, save

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import INDEX, TOKENIZER_FILES, WEIGHTS

ROOT = Path(__file__).parents[2]
TINY = "owner/tiny"
SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * 600
ADVICE = (
    "without network use --model neo-mini and --data sample, or name local folders with "
    "--model and --data"
)
ASK = """
import hashlib, json, sys, time
from neo_peft.system.hub import hub_file
for asked in json.load(sys.stdin):
    begin = time.monotonic()
    try:
        path = hub_file(**asked)
        print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    except Exception as error:
        print(type(error).__name__, *str(error).split())
    if sys.argv[1:] == ["time"]:
        print(int(time.monotonic() - begin))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def environment(endpoint: str, home: Path, **others: str) -> dict[str, str]:
    """This process's environment with another hub and cache, without what would keep it off the
    network."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    direct = {"NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(ROOT)}
    return ours | direct | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | others


def start(
    hub, home: Path, *files: str, repository=TINY, kind="model", revision=None, mode="", **env: str
):
    """Start a process that asks for files of a repository, one after another."""
    asked = [
        {"repository": repository, "filename": file, "kind": kind, "revision": revision}
        for file in files
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", ASK, mode],
        env=environment(hub.endpoint, home, **env),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    process.stdin = None
    return process


def ask(hub: HubServer, home: Path, *files: str, said: str = "", **options) -> list[str]:
    """Ask for files in a process of its own; return of each its name and sha256, or the error."""
    output, errors = start(hub, home, *files, **options).communicate(timeout=60)
    assert (said in errors) if said else (errors == "")
    return output.splitlines()


def got(**files: bytes) -> list[str]:
    return [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in files.items()]


def refused(reason: str, file: str = "config.json", repository: str = TINY) -> list[str]:
    return [f"InputError {repository}: {reason}, and {file} is not in the cache; {ADVICE}"]


ABSENT = "the hub has no such repository, or a private one that needs a token in HF_TOKEN"
CONFIG, BOTH = {"config.json": SMALL}, {"config.json": SMALL, WEIGHTS: LARGE}


# ---- What is fetched


def test_small_files_come_from_the_hub_and_large_ones_by_its_redirect(hub, tmp_path):
    hub.push(TINY, BOTH)
    hub.push("datasets/owner/rows", {"dataset/a.json": b"[1]", "b/c.zip": LARGE[::-1]})
    hub.renamed["old/tiny"] = TINY
    assert ask(hub, tmp_path, *BOTH) == got(**BOTH)
    assert hub.requested() == [f"{TINY}/config.json", WEIGHTS]  # the second one from the storage
    rows = ask(hub, tmp_path, "dataset/a.json", "b/c.zip", kind="dataset", repository="owner/rows")
    assert rows == got(**{"a.json": b"[1]", "c.zip": LARGE[::-1]})
    assert ask(hub, tmp_path, *BOTH, repository="old/tiny") == got(**BOTH)


def test_what_is_unchanged_is_not_fetched_again_and_what_was_pushed_is(hub, tmp_path):
    hub.push(TINY, BOTH)
    assert ask(hub, tmp_path, *BOTH, "vocab.json")[:2] == got(**BOTH)
    hub.requests.clear()
    assert ask(hub, tmp_path, *BOTH, "vocab.json")[:2] == got(**BOTH)
    assert hub.requested() == [] and set(hub.requested("HEAD")) == {f"{TINY}/config.json"}
    changed = {"config.json": b"{}", "vocab.json": b"[]"}
    hub.push(TINY, changed)
    hub.requests.clear()
    assert ask(hub, tmp_path, *BOTH, "vocab.json") == got(**(BOTH | changed))
    # the weights' etag is what it was
    assert hub.requested() == [f"{TINY}/config.json", f"{TINY}/vocab.json"]


def test_a_push_at_any_time_does_not_mix_two_commits(hub, tmp_path):
    first = {"config.json": b"first", WEIGHTS: LARGE, "vocab.json": b"first"}
    # of the same sizes, which give nothing away
    second = {name: content[::-1] for name, content in first.items()}
    # before the answers to: where is config.json? twice; config.json; where are ...
    for number in (1, 2, 3, 4, 6):
        hub.push(f"owner/{number}", first)
        hub.requests.clear()
        hub.after = lambda _, n=number: len(hub.requests) == n and hub.push(f"owner/{n}", second)
        lines = ask(hub, tmp_path, *first, repository=f"owner/{number}")
        assert lines == got(**(second if number == 1 else first))  # the first answer settles it
    assert ask(hub, tmp_path, *first, repository="owner/6") == got(**second)  # the push was there


def test_a_revision_is_a_branch_a_pull_request_or_a_commit(hub, tmp_path):
    old = hub.push(TINY, BOTH)
    hub.push(TINY, {"config.json": b"main", WEIGHTS: b"main"})
    for ref in ("v1", "refs/pr/3"):
        files = {"config.json": ref.encode(), WEIGHTS: LARGE + ref.encode()}
        hub.push(TINY, files, ref=ref)
        assert ask(hub, tmp_path, *files, revision=ref) == got(**files)
    assert ask(hub, tmp_path, *BOTH, revision=old) == got(**BOTH)
    hub.requests.clear()
    assert ask(hub, tmp_path, *BOTH, revision=old) == got(**BOTH)
    assert hub.requests == []  # a commit never changes


# ---- What is refused


def test_what_is_not_there_is_said_to_be_absent(hub, tmp_path):
    hub.push(TINY, BOTH)
    absent = ["FileNotFoundError owner/tiny has no file vocab.json"]
    assert ask(hub, tmp_path, "vocab.json", "config.json", "vocab.json") == [
        *absent,
        *got(**CONFIG),
        *absent,
    ]
    for repository in ("owner/absent", "no name/at all"):
        assert ask(hub, tmp_path, "config.json", repository=repository) == refused(
            ABSENT, repository=repository
        )
    lines = ask(hub, tmp_path / "new", "config.json", revision="v2")
    assert lines == refused("the hub has no revision v2 of it")


@pytest.mark.parametrize("gated", [False, True])
def test_a_private_repository_opens_to_its_token_which_the_storage_never_sees(hub, tmp_path, gated):
    hub.push(TINY, BOTH, token="hf_secret", gated=gated)
    for token in ("", "hf_wrong"):
        assert ask(hub, tmp_path, "config.json", HF_TOKEN=token) == refused(ABSENT)
    hub.status = 401  # what an invalid token is told, and no more
    assert ask(hub, tmp_path, "config.json", HF_TOKEN="no token") == refused(ABSENT)
    hub.status = 200
    assert hub.requested() == []
    assert ask(hub, tmp_path, *BOTH, HF_TOKEN="hf_secret") == got(**BOTH)
    fetched = [
        (request.path.split("/")[-1], request.token)
        for request in hub.requests
        if request.method == "GET"
    ]
    assert fetched == [("config.json", "hf_secret"), (WEIGHTS, "")]


def test_offline_nothing_is_asked(hub, tmp_path):
    hub.push(TINY, BOTH)
    assert ask(hub, tmp_path, "config.json", HF_HUB_OFFLINE="1") == refused("HF_HUB_OFFLINE is set")
    assert hub.requests == []
    ask(hub, tmp_path, *BOTH, "vocab.json")
    hub.requests.clear()
    lines = ask(hub, tmp_path, *BOTH, "vocab.json", "merges.txt", HF_HUB_OFFLINE="1")
    absent = "FileNotFoundError owner/tiny has no file vocab.json"
    assert lines == [*got(**BOTH), absent, *refused("HF_HUB_OFFLINE is set", "merges.txt")]
    assert hub.requests == []


def test_a_filled_cache_is_enough_when_the_hub_is_gone_or_out_of_order(tmp_path):
    with HubServer() as hub:
        hub.push(TINY, BOTH)
        ask(hub, tmp_path, *BOTH, "vocab.json")
        hub.status = 503
        filled, empty = (
            ask(hub, tmp_path, *BOTH, "vocab.json"),
            ask(hub, tmp_path / "empty", "config.json"),
        )
    absent = "FileNotFoundError owner/tiny has no file vocab.json"
    assert filled == [*got(**BOTH), absent]
    assert empty == refused(f"the hub at {hub.endpoint} cannot be reached (HTTP 503)")
    gone = f"the hub at {hub.endpoint} cannot be reached (ConnectError)"
    lines = ask(hub, tmp_path, *BOTH, "vocab.json", "merges.txt")
    assert lines == [*got(**BOTH), absent, *refused(gone, "merges.txt")]
    assert ask(hub, tmp_path / "empty", "config.json") == refused(gone)


@pytest.mark.slow
def test_a_slow_hub_is_waited_for_and_a_silent_one_given_up_within_ten_seconds(hub, tmp_path):
    both = CONFIG | {"vocab.json": b"[]"}
    for name in ("slow", "silent", "half"):
        hub.push(f"owner/{name}", both)
    hub.delay = 0.5
    hub.silent = lambda request: (
        "silent" in request.path or "half/resolve" in request.path and "vocab" in request.path
    )
    asked = {"slow": [*both], "silent": ["config.json"], "half": [*both]}
    processes = [
        start(hub, tmp_path, *asked[name], repository=f"owner/{name}", mode="time")
        for name in asked
    ]
    with HubServer() as dripping:
        dripping.silent, dripping.drips = lambda request: True, 1
        processes.append(start(dripping, tmp_path, "config.json", mode="time"))
        answers = [process.communicate(timeout=60) for process in processes]
    assert "".join(errors for _, errors in answers) == ""
    slow, silent, half, drops = (output.splitlines() for output, _ in answers)
    assert slow[::2] == got(**both)
    said = f"the hub at {hub.endpoint} cannot be reached (ReadTimeout)"
    assert silent[::2] == refused(said, repository="owner/silent")
    assert half[::2] == got(**CONFIG) + refused(said, "vocab.json", "owner/half")
    assert drops[::2] == refused(f"the hub at {dripping.endpoint} cannot be reached (TimeoutError)")
    assert max(map(int, silent[1::2] + half[1::2] + drops[1::2])) < 10


# ---- What breaks off


def cached(home: Path) -> list[bytes]:
    """Read what the cache holds whole."""
    return [
        path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.parent.name == "blobs"
    ]


def test_a_download_that_breaks_off_goes_on_from_where_it_was(hub, tmp_path):
    # 10 MiB is what huggingface_hub writes at once, and so the first place to go on from.
    content, piece = os.urandom(12 << 20), 10 << 20
    hub.push(TINY, {WEIGHTS: content})
    hub.cuts[WEIGHTS] = (piece + 1000, False)
    assert ask(hub, tmp_path, WEIGHTS, said="Trying to resume") == got(**{WEIGHTS: content})
    assert [request.start for request in hub.requests if request.method == "GET"] == [0, piece]
    assert cached(tmp_path) == [content]


def test_after_a_broken_connection_the_next_start_fetches_the_file_whole(hub, tmp_path):
    hub.push(TINY, BOTH)
    hub.cuts[WEIGHTS] = (len(LARGE) // 2, True)
    lines = ask(hub, tmp_path, *BOTH)
    assert lines == got(**CONFIG) + refused("the download was interrupted (ReadError)", WEIGHTS)
    assert cached(tmp_path) == [SMALL]
    assert ask(hub, tmp_path, *BOTH) == got(**BOTH)


# ---- The commands

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
NEVER = (
    "pytorch_model.bin",
    "flax_model.msgpack",
    "generation_config.json",
    "README.md",
    "model.onnx",
)
FLAGS = ["--data", "hub", "--epochs", "1", "--json"]
TRAIN = """
import functools, json, sys, train
from neo_peft.system.exit_status import exit_status
sys.exit(max([exit_status(functools.partial(train.main, argv)) for argv in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def tiny(tiny_folder) -> dict[str, bytes]:
    """The tiny model's files, weights in one file and in shards, and what nobody needs."""
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()} | {
        name: b"never" for name in NEVER
    }
    tensors = load(files[WEIGHTS])
    shard_of = {name: SHARDS[number % 2] for number, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        files[shard] = save(
            {name: tensor for name, tensor in tensors.items() if shard_of[name] == shard}
        )
    return files | {INDEX: json.dumps({"weight_map": shard_of}).encode()}


@pytest.fixture(scope="module")
def filled(tiny, tmp_path_factory):
    """A hub; the folder of three runs that one process made from it, and of the cache they filled;
    what they said."""
    folder = tmp_path_factory.mktemp("hub")
    write_glue(folder)
    write_zip(folder, FILES["sentiment"])
    with HubServer() as hub:
        hub.push(TINY, tiny)
        tensors = {name: tensor + 1 for name, tensor in load(tiny[WEIGHTS]).items()}
        hub.push(TINY, tiny | {WEIGHTS: save(tensors)}, ref="v1")
        hub.push("owner/sharded", tiny | {WEIGHTS: None})
        hub.push(f"datasets/{TNER}", HUB_JSON)
        for name in (PHRASEBANK, GLUE):
            paths = [path for path in (folder / name).rglob("*") if path.is_file()]
            hub.push(
                f"datasets/{name}",
                {str(path.relative_to(folder / name)): path.read_bytes() for path in paths},
            )
        runs = [
            ["--task", "ner", "--method", "lora", "--model", TINY],
            ["--task", "sentiment", "--method", "lora", "--model", f"{TINY}@v1"],
            ["--task", "similarity", "--method", "lora", "--model", "owner/sharded"],
        ]
        done = train(folder, hub, *(run + FLAGS for run in runs))
        assert done.returncode == 0, done.stderr
        yield hub, folder, done.stdout.splitlines()


def train(folder: Path, hub: HubServer, *runs: list[str]) -> subprocess.CompletedProcess:
    """Train one after another in one process, as train.py does, since torch takes seconds to
    import."""
    return subprocess.run(
        [sys.executable, "-c", TRAIN],
        input=json.dumps(runs),
        text=True,
        cwd=folder,
        capture_output=True,
        timeout=120,
        env=environment(hub.endpoint, folder / "home"),
    )


def command(folder: Path, endpoint: str, home: Path, *argv: str, **env: str) -> subprocess.Popen:
    """Start one of the two commands in a folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / argv[0]), *argv[1:]],
        cwd=folder,
        env=environment(endpoint, home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_each_task_trains_on_the_hubs_files_and_asks_for_no_other(filled, tiny):
    hub, folder, said = filled
    assert len(said) == 3
    present = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    expected = [
        *(f"{TINY}/{name}" for name in present),
        WEIGHTS,
        *(f"datasets/{TNER}/{name}" for name in HUB_JSON),
        WEIGHTS,
        "data/FinancialPhraseBank-v1.0.zip",  # the rest of v1 is main's, by its etags
        *(f"owner/sharded/{name}" for name in present),
        f"owner/sharded/{INDEX}",
        *SHARDS,
        *(f"mrpc/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
    ]
    assert sorted(hub.requested()) == sorted(expected)
    refs = hub.repositories[TINY].refs
    stored = [
        hashlib.sha256(hub.repositories[TINY].commits[refs[ref]][WEIGHTS]).hexdigest()
        for ref in ("main", "v1")
    ]
    paths = [request.path for request in hub.requests if request.method == "GET"]
    assert [path for path in paths if path.endswith("/" + WEIGHTS)] == [
        f"/{digest}/{WEIGHTS}" for digest in stored
    ]
    looked_for = {
        path.split("/", 2)[2] for path in hub.requested("HEAD") if path.startswith("owner/")
    }
    assert looked_for == {"config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDS}


@pytest.mark.slow
def test_each_run_has_the_hubs_rows_and_the_weights_of_its_revision(filled, tiny, tmp_path):
    _, folder, _ = filled
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        (tmp_path / name).write_bytes(tiny[name])
    main = load_base(str(tmp_path)).fingerprint
    (tmp_path / WEIGHTS).write_bytes(
        save({name: tensor + 1 for name, tensor in load(tiny[WEIGHTS]).items()})
    )
    of_v1 = load_base(str(tmp_path)).fingerprint
    for task, rows, fingerprint, base in (
        ("ner", (2, 1, 2), main, (TINY, None)),
        ("sentiment", (24, 3, 3), of_v1, (TINY, "v1")),  # 80/10/10 of ten of each label
        ("similarity", (2, 1, 1), main, ("owner/sharded", None)),
    ):
        record = json.loads((folder / f"runs/{task}-lora/run.json").read_text())
        assert tuple(record["rows"][split] for split in ("train", "validation", "test")) == rows
        assert record["base"]["fingerprint"] == fingerprint
        config = json.loads((folder / f"runs/{task}-lora/adapter_config.json").read_text())
        assert (
            config["base_model_name_or_path"],
            config["revision"],
        ) == base  # as peft looks for it


@pytest.mark.slow
def test_a_run_is_scored_again_offline(filled):
    hub, folder, _ = filled
    before = len(hub.requests)
    argv = ["evaluate.py", "runs/sentiment-lora", "--json"]
    process = command(folder, hub.endpoint, folder / "home", *argv, HF_HUB_OFFLINE="1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    record = json.loads((folder / "runs/sentiment-lora/run.json").read_text())
    assert json.loads(output)["scores"]["hits"] == record["scores"]["after"]["test"]["hits"]
    assert len(hub.requests) == before


@pytest.mark.slow
def test_what_the_hub_does_not_give_is_one_line_and_status_2(tiny, tmp_path):
    flags = ["--task", "ner", "--method", "lora", *FLAGS]
    with HubServer() as hub, HubServer() as silent:
        silent.silent = lambda request: True
        hub.push("owner/private", tiny, token="hf_secret")
        hub.push("owner/pickled", tiny | {WEIGHTS: None, INDEX: None})
        hub.push(f"datasets/{TNER}", HUB_JSON)
        pickled = (
            f"owner/pickled has neither {WEIGHTS} nor {INDEX}; pickled weights "
            "(pytorch_model.bin) are never "
        )
        cases = {
            "owner/private": ABSENT,
            "owner/absent": ABSENT,
            "owner/pickled@v1": "the hub has no revision v1 of it",
            "owner/pickled": pickled,
        }
        process = command(
            tmp_path, silent.endpoint, tmp_path / "home", "train.py", *flags, "--model", TINY
        )
        done = train(tmp_path, hub, *([*flags, "--model", model] for model in cases))
        output, error = process.communicate(timeout=120)
    assert (process.returncode, output, error.count("\n")) == (2, "", 1)
    assert error.startswith(
        f"error: {TINY}: the hub at {silent.endpoint} cannot be reached (ReadTimeout), "
    )
    assert (done.returncode, done.stdout) == (2, "")
    for error, (model, words) in zip(done.stderr.splitlines(), cases.items(), strict=True):
        assert error.startswith(
            f"error: {words}" if words == pickled else f"error: {model.split('@')[0]}: {words}, "
        )
        assert words == pickled or error.endswith(ADVICE)
    assert (
        f"{TINY}/pytorch_model.bin" not in hub.requested("HEAD")
        and "pytorch_model.bin" not in hub.requested()
    )
    assert not list(tmp_path.glob("runs/*"))
