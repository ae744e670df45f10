"""Downloads by huggingface_hub from a hub on the loopback address: requests, cache, error messages.

huggingface_hub reads its settings at import, so each test runs it in a separate process.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_files import FILES, GLUE, HUB_JSON, PHRASEBANK, TNER, write_glue, write_zip
from hub_server import HubServer
from safetensors.torch import load, save
from waiting import HANG

from neo_peft.formats.base import load_base
from neo_peft.formats.base_folder import INDEX, TOKENIZER_FILES, WEIGHTS

ROOT = Path(__file__).parents[2]
TINY = "owner/tiny"
SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * 600
ADVICE = (
    "without network use --model neo-mini and --data sample, or name local folders with "
    "--model and --data"
)
FETCH = """
import hashlib, json, sys, threading
from neo_peft.system import hub
waits, join = [], threading.Thread.join
threading.Thread.join = lambda thread, limit=None: (waits.append(limit), join(thread, limit))
for file in json.load(sys.stdin):
    try:
        path = hub.hub_file(**file)
        print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    except Exception as error:
        print(type(error).__name__, *str(error).split())
    if sys.argv[1:] == ["waits"]:
        print(*waits)
        waits.clear()
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def environment(endpoint: str, home: Path, **others: str) -> dict[str, str]:
    """Return this process's environment with another hub and cache, with network access, and
    without bars."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    direct = {"NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    return ours | direct | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | others


def start(
    hub, home: Path, *files: str, repository=TINY, kind="model", revision=None, mode="", **env: str
):
    """Start a process that fetches files of a repository, one after another."""
    arguments = [
        {"repository": repository, "filename": file, "kind": kind, "revision": revision}
        for file in files
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, mode],
        env=environment(hub.endpoint, home, **env),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(json.dumps(arguments))
    process.stdin.close()
    process.stdin = None
    return process


def fetch(hub: HubServer, home: Path, *files: str, warning: str = "", **options) -> list[str]:
    """Fetch files in a separate process; return a line for each: name and sha256, or the error."""
    output, errors = start(hub, home, *files, **options).communicate(timeout=HANG)
    assert (warning in errors) if warning else (errors == "")
    return output.splitlines()


def fetched(**files: bytes) -> list[str]:
    """Return the lines that `fetch` returns for these files."""
    return [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in files.items()]


def refused(reason: str, file: str = "config.json", repository: str = TINY) -> list[str]:
    """Return the line that `fetch` returns for a file that is refused."""
    return [f"InputError {repository}: {reason}, and {file} is not in the cache; {ADVICE}"]


ABSENT = "the hub has no such repository, or a private one that needs a token in HF_TOKEN"
CONFIG, BOTH = {"config.json": SMALL}, {"config.json": SMALL, WEIGHTS: LARGE}


# ---- Downloads


def test_small_files_are_fetched_from_the_hub_and_large_ones_by_its_redirect(hub, tmp_path):
    hub.push(TINY, BOTH)
    hub.push("datasets/owner/rows", {"dataset/a.json": b"[1]", "b/c.zip": LARGE[::-1]})
    hub.renamed["old/tiny"] = TINY
    assert fetch(hub, tmp_path, *BOTH) == fetched(**BOTH)
    assert hub.requested() == [f"{TINY}/config.json", WEIGHTS]  # the weights from the storage
    lines = fetch(
        hub, tmp_path, "dataset/a.json", "b/c.zip", kind="dataset", repository="owner/rows"
    )
    assert lines == fetched(**{"a.json": b"[1]", "c.zip": LARGE[::-1]})
    assert fetch(hub, tmp_path, *BOTH, repository="old/tiny") == fetched(**BOTH)


def test_unchanged_files_are_not_fetched_again_but_changed_ones_are(hub, tmp_path):
    hub.push(TINY, BOTH)
    assert fetch(hub, tmp_path, *BOTH, "vocab.json")[:2] == fetched(**BOTH)
    hub.requests.clear()
    assert fetch(hub, tmp_path, *BOTH, "vocab.json")[:2] == fetched(**BOTH)
    assert hub.requested() == [] and set(hub.requested("HEAD")) == {f"{TINY}/config.json"}
    changed = {"config.json": b"{}", "vocab.json": b"[]"}
    hub.push(TINY, changed)
    hub.requests.clear()
    assert fetch(hub, tmp_path, *BOTH, "vocab.json") == fetched(**(BOTH | changed))
    # the weights have the same etag as before
    assert hub.requested() == [f"{TINY}/config.json", f"{TINY}/vocab.json"]


def test_a_push_during_a_download_does_not_mix_two_commits(hub, tmp_path):
    first = {"config.json": b"first", WEIGHTS: LARGE, "vocab.json": b"first"}
    # with the same sizes
    second = {name: content[::-1] for name, content in first.items()}
    # The push comes before the answer to this request. The requests: two for the metadata of
    # config.json, config.json, then the metadata of the next file, and so on.
    for number in (1, 2, 3, 4, 6):
        hub.push(f"owner/{number}", first)
        hub.requests.clear()
        hub.after = lambda _, n=number: len(hub.requests) == n and hub.push(f"owner/{n}", second)
        lines = fetch(hub, tmp_path, *first, repository=f"owner/{number}")
        assert lines == fetched(**(second if number == 1 else first))  # by the first answer
    assert fetch(hub, tmp_path, *first, repository="owner/6") == fetched(**second)  # after the push


def test_a_revision_is_a_branch_a_pull_request_or_a_commit(hub, tmp_path):
    old = hub.push(TINY, BOTH)
    hub.push(TINY, {"config.json": b"main", WEIGHTS: b"main"})
    for ref in ("v1", "refs/pr/3"):
        files = {"config.json": ref.encode(), WEIGHTS: LARGE + ref.encode()}
        hub.push(TINY, files, ref=ref)
        assert fetch(hub, tmp_path, *files, revision=ref) == fetched(**files)
    assert fetch(hub, tmp_path, *BOTH, revision=old) == fetched(**BOTH)
    hub.requests.clear()
    assert fetch(hub, tmp_path, *BOTH, revision=old) == fetched(**BOTH)
    assert hub.requests == []  # a commit never changes


# ---- Refusals


def test_a_missing_file_repository_or_revision_is_refused(hub, tmp_path):
    hub.push(TINY, BOTH)
    absent = ["FileNotFoundError owner/tiny has no file vocab.json"]
    assert fetch(hub, tmp_path, "vocab.json", "config.json", "vocab.json") == [
        *absent,
        *fetched(**CONFIG),
        *absent,
    ]
    for repository in ("owner/absent", "no name/at all"):
        assert fetch(hub, tmp_path, "config.json", repository=repository) == refused(
            ABSENT, repository=repository
        )
    lines = fetch(hub, tmp_path / "new", "config.json", revision="v2")
    assert lines == refused("the hub has no revision v2 of it")


@pytest.mark.parametrize("gated", [False, True])
def test_a_private_repository_needs_its_token_which_is_never_sent_to_the_storage(
    hub, tmp_path, gated
):
    hub.push(TINY, BOTH, token="hf_secret", gated=gated)
    for token in ("", "hf_wrong"):
        assert fetch(hub, tmp_path, "config.json", HF_TOKEN=token) == refused(ABSENT)
    hub.status = 401  # the whole answer to an invalid token
    assert fetch(hub, tmp_path, "config.json", HF_TOKEN="no token") == refused(ABSENT)
    hub.status = 200
    assert hub.requested() == []
    assert fetch(hub, tmp_path, *BOTH, HF_TOKEN="hf_secret") == fetched(**BOTH)
    downloads = [
        (request.path.split("/")[-1], request.token)
        for request in hub.requests
        if request.method == "GET"
    ]
    assert downloads == [("config.json", "hf_secret"), (WEIGHTS, "")]


def test_offline_there_are_no_requests(hub, tmp_path):
    hub.push(TINY, BOTH)
    assert fetch(hub, tmp_path, "config.json", HF_HUB_OFFLINE="1") == refused(
        "HF_HUB_OFFLINE is set"
    )
    assert hub.requests == []
    fetch(hub, tmp_path, *BOTH, "vocab.json")
    hub.requests.clear()
    lines = fetch(hub, tmp_path, *BOTH, "vocab.json", "merges.txt", HF_HUB_OFFLINE="1")
    absent = "FileNotFoundError owner/tiny has no file vocab.json"
    assert lines == [*fetched(**BOTH), absent, *refused("HF_HUB_OFFLINE is set", "merges.txt")]
    assert hub.requests == []


def test_a_filled_cache_is_enough_if_the_hub_fails_or_cannot_be_reached(tmp_path):
    with HubServer() as hub:
        hub.push(TINY, BOTH)
        fetch(hub, tmp_path, *BOTH, "vocab.json")
        hub.status = 503
        filled, empty = (
            fetch(hub, tmp_path, *BOTH, "vocab.json"),
            fetch(hub, tmp_path / "empty", "config.json"),
        )
    absent = "FileNotFoundError owner/tiny has no file vocab.json"
    assert filled == [*fetched(**BOTH), absent]
    assert empty == refused(f"the hub at {hub.endpoint} cannot be reached (HTTP 503)")
    gone = f"the hub at {hub.endpoint} cannot be reached (ConnectError)"
    lines = fetch(hub, tmp_path, *BOTH, "vocab.json", "merges.txt")
    assert lines == [*fetched(**BOTH), absent, *refused(gone, "merges.txt")]
    assert fetch(hub, tmp_path / "empty", "config.json") == refused(gone)


def test_a_slow_hub_is_waited_for_and_a_silent_one_for_less_than_ten_seconds(hub, tmp_path):
    both = CONFIG | {"vocab.json": b"[]"}
    for name in ("slow", "silent", "half"):
        hub.push(f"owner/{name}", both)
    hub.delay = 0.5
    hub.silent = lambda request: (
        "silent" in request.path or "half/resolve" in request.path and "vocab" in request.path
    )
    files = {"slow": [*both], "silent": ["config.json"], "half": [*both]}
    processes = [
        start(hub, tmp_path, *files[name], repository=f"owner/{name}", mode="waits")
        for name in files
    ]
    with HubServer() as dripping:
        dripping.silent, dripping.drips = lambda request: True, 1
        processes.append(start(dripping, tmp_path, "config.json", mode="waits"))
        outputs = [process.communicate(timeout=HANG) for process in processes]
    assert "".join(errors for _, errors in outputs) == ""
    slow, silent, half, drops = (output.splitlines() for output, _ in outputs)
    assert slow[::2] == fetched(**both)
    # The HTTP library has a limit too. It ends first, except on a busy machine.
    unreachable = f"the hub at {hub.endpoint} cannot be reached"
    reasons = [f"{unreachable} ({error})" for error in ("ReadTimeout", "TimeoutError")]
    assert silent[:1] in [refused(reason, repository="owner/silent") for reason in reasons]
    assert half[:1] == fetched(**CONFIG)
    assert half[2:3] in [refused(reason, "vocab.json", "owner/half") for reason in reasons]
    assert drops[:1] == refused(f"the hub at {dripping.endpoint} cannot be reached (TimeoutError)")
    assert 0 < max(map(float, (silent[1], half[3], drops[1]))) < 10  # the limit of the only wait


# ---- Interrupted downloads


def cached(home: Path) -> list[bytes]:
    """Return the contents of the complete files in the cache."""
    return [
        path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.parent.name == "blobs"
    ]


def test_an_interrupted_download_is_resumed(hub, tmp_path):
    # huggingface_hub writes pieces of 10 MiB, so it resumes after a whole piece.
    content, piece = os.urandom(12 << 20), 10 << 20
    hub.push(TINY, {WEIGHTS: content})
    hub.cuts[WEIGHTS] = (piece + 1000, False)
    assert fetch(hub, tmp_path, WEIGHTS, warning="Trying to resume") == fetched(
        **{WEIGHTS: content}
    )
    assert [request.start for request in hub.requests if request.method == "GET"] == [0, piece]
    assert cached(tmp_path) == [content]


def test_after_a_connection_error_the_next_process_fetches_the_whole_file(hub, tmp_path):
    hub.push(TINY, BOTH)
    hub.cuts[WEIGHTS] = (len(LARGE) // 2, True)
    lines = fetch(hub, tmp_path, *BOTH)
    assert lines == fetched(**CONFIG) + refused("the download was interrupted (ReadError)", WEIGHTS)
    assert cached(tmp_path) == [SMALL]
    assert fetch(hub, tmp_path, *BOTH) == fetched(**BOTH)


# ---- Commands

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# Files that are never fetched.
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
    """Return the tiny model's files: weights in one file and in shards, and files of no use."""
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
    """Return a hub, a folder with three runs that used it and their cache, and the output lines."""
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
    """Train runs one after another with train.py, in one process: torch takes seconds to import."""
    return subprocess.run(
        [sys.executable, "-c", TRAIN],
        input=json.dumps(runs),
        text=True,
        cwd=folder,
        capture_output=True,
        timeout=HANG,
        env=environment(hub.endpoint, folder / "home"),
    )


def command(folder: Path, endpoint: str, home: Path, *argv: str, **env: str) -> subprocess.Popen:
    """Start train.py or evaluate.py in a folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / argv[0]), *argv[1:]],
        cwd=folder,
        env=environment(endpoint, home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_training_fetches_the_needed_files_of_the_hub_and_no_others(filled, tiny):
    hub, folder, lines = filled
    assert len(lines) == 3
    present = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    expected = [
        *(f"{TINY}/{name}" for name in present),
        WEIGHTS,
        *(f"datasets/{TNER}/{name}" for name in HUB_JSON),
        WEIGHTS,
        "data/FinancialPhraseBank-v1.0.zip",  # other files of v1 have the etags of main
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
    looked_up = {
        path.split("/", 2)[2] for path in hub.requested("HEAD") if path.startswith("owner/")
    }
    assert looked_up == {"config.json", *TOKENIZER_FILES, WEIGHTS, INDEX, *SHARDS}


LOAD = """
import sys
from neo_peft.formats.base import load_base
for model in sys.argv[1:]:
    base = load_base(model)
    ids = base.tokenizer.backend_tokenizer.encode(" <GENE> binds", add_special_tokens=False).ids
    print(base.splitting, *ids)
"""


@pytest.mark.parametrize("versioned", [False, True])
def test_the_tokenizer_from_the_hub_is_that_of_a_folder_with_the_same_files(
    hub, tiny_folder, tmp_path, versioned
):
    folder = tmp_path / "model"
    folder.mkdir()
    content = json.loads((tiny_folder / "tokenizer.json").read_text())
    for name in ("config.json", WEIGHTS):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    if versioned:
        token = {**content["added_tokens"][0], "id": 8192, "content": "<GENE>"}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        content["added_tokens"].append(token)
        (folder / "tokenizer.4.0.0.json").write_text(json.dumps(content))
        config = {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}
    else:
        (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
        merges = "".join(" ".join(pair) + "\n" for pair in content["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
        (folder / "added_tokens.json").write_text('{"<GENE>": 8192}')
        config = {"tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    hub.push(TINY, {path.name: path.read_bytes() for path in folder.iterdir()})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), TINY],
        text=True,
        capture_output=True,
        timeout=HANG,
        env=environment(hub.endpoint, tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    from_folder, from_hub = done.stdout.splitlines()
    assert from_hub == from_folder and "8192" in from_hub.split()


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
        ("sentiment", (24, 3, 3), of_v1, (TINY, "v1")),  # 80/10/10 % of 30 rows
        ("similarity", (2, 1, 1), main, ("owner/sharded", None)),
    ):
        record = json.loads((folder / f"runs/{task}-lora/run.json").read_text())
        assert tuple(record["rows"][split] for split in ("train", "validation", "test")) == rows
        assert record["base"]["fingerprint"] == fingerprint
        config = json.loads((folder / f"runs/{task}-lora/adapter_config.json").read_text())
        assert (
            config["base_model_name_or_path"],
            config["revision"],
        ) == base  # the entries that peft reads


@pytest.mark.slow
def test_a_run_is_evaluated_again_offline(filled):
    hub, folder, _ = filled
    before = len(hub.requests)
    argv = ["evaluate.py", "runs/sentiment-lora", "--json"]
    process = command(folder, hub.endpoint, folder / "home", *argv, HF_HUB_OFFLINE="1")
    output, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors
    record = json.loads((folder / "runs/sentiment-lora/run.json").read_text())
    assert json.loads(output)["scores"]["hits"] == record["scores"]["after"]["test"]["hits"]
    assert len(hub.requests) == before


@pytest.mark.slow
def test_a_failed_download_is_one_error_line_and_status_2(tiny, tmp_path):
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
        output, error = process.communicate(timeout=HANG)
    assert (process.returncode, output, error.count("\n")) == (2, "", 1)
    assert re.match(  # by the limit of the HTTP library, or on a busy machine by our own
        f"error: {TINY}: the hub at {silent.endpoint} cannot be reached "
        r"\((ReadTimeout|TimeoutError)\), ",
        error,
    )
    assert (done.returncode, done.stdout) == (2, "")
    for error, (model, message) in zip(done.stderr.splitlines(), cases.items(), strict=True):
        assert error.startswith(
            f"error: {message}"
            if message == pickled
            else f"error: {model.split('@')[0]}: {message}, "
        )
        assert message == pickled or error.endswith(ADVICE)
    assert (
        f"{TINY}/pytorch_model.bin" not in hub.requested("HEAD")
        and "pytorch_model.bin" not in hub.requested()
    )
    assert not list(tmp_path.glob("runs/*"))
