"""A look into tiny runs of each method: the JSON, the tables, the page, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from peft_folders import write_adapter
from refusals import refused
from transformers import GPTNeoForCausalLM

from neo_peft.commands import look as command
from neo_peft.look.look import look, notes
from neo_peft.look.subject import affordable_rows, load_subject
from neo_peft.progress import no_progress
from neo_peft.runs.folder import read_record
from neo_peft.runs.loading import settings_in
from neo_peft.runs.training import run
from neo_peft.settings import make_settings

SIZES = {"train_limit": 9, "eval_limit": 12, "epochs": 1, "threads": 1, "batch_size": 4}
RATES = {"learning_rate": 0.02}
RUNS = {
    "tagger": {"task": "ner", "method": "lora", "rank": 3, "head_baseline": True},
    "other seed": {"task": "ner", "method": "lora", "rank": 2, "seed": 1},
    "other targets": {"task": "ner", "method": "lora", "target_modules": ("c_fc",)},
    "prompt": {"task": "sentiment", "method": "prompt", "prompt_length": 3},
    "prefix": {"task": "similarity", "method": "prefix", "prompt_length": 2},
    "both": {"task": "ner", "method": "lora+prompt", "prompt_length": 2, "quantize": "nf4"},
    "half": {"task": "ner", "method": "lora+prefix", "prompt_length": 2, "precision": "bf16"},
    "full": {"task": "sentiment", "method": "full", "readout": "head"},
    "head": {"task": "sentiment", "method": "head"},
    "no before": {"task": "sentiment", "method": "lora", "no_before": True},
}


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """Return the folders of finished runs, trained at their first use."""
    folder = tmp_path_factory.mktemp("runs")

    class Runs(dict):
        def __missing__(self, name):
            out = folder / name.replace(" ", "-")
            given = SIZES | RATES | RUNS[name]
            run(make_settings(model=str(tiny_folder), out=str(out), **given), lambda line: None)
            self[name] = out
            return out

    return Runs()


def look_at(folder, *argv, capsys):
    """Run the command with --json; return the object and what is on standard error."""
    command.main([str(folder), "--json", *map(str, argv)])
    out, err = capsys.readouterr()
    return json.loads(out), err


# ---- The object


def test_the_look_at_a_tagger_has_the_runs_own_scores(runs, capsys):
    found, err = look_at(runs["tagger"], capsys=capsys)
    scores = read_record(runs["tagger"])["scores"]
    assert list(found) == [
        *("run", "task", "method", "model", "split", "rows", "rows_in_split", "metric", "score"),
        *("parts", "switched_off", "changed_weights", "agreement", "in_front", "text", "notes"),
    ]
    assert (found["task"], found["split"], found["rows"]) == ("ner", "test", 12)
    assert found["score"]["value"] == scores["after"]["test"]["f1"]
    assert [(part["name"], part["score"]) for part in found["parts"]] == [
        ("most frequent tags", scores["baseline"]["test"]["f1"]),
        ("a head on the frozen base", scores["head_alone"]["test"]["f1"]),
        ("with the adapter", scores["after"]["test"]["f1"]),
    ]
    assert found["parts"][0]["added"] is None
    steps = [part["score"] for part in found["parts"]]
    for before, after, part in zip(steps, steps[1:], found["parts"][1:]):
        assert part["added"]["difference"] == pytest.approx(after - before)
        assert part["added"]["low"] <= part["added"]["difference"] <= part["added"]["high"]
    assert f"{runs['tagger']}/look.html shows all of it; open it in a browser\n" in err


def test_the_last_step_has_the_interval_that_the_run_has_printed(runs, capsys):
    """Where the run was compared with the step before the last one."""
    names = {"head_alone": "a head on the frozen base", "before": "the untuned model"}
    names["baseline"] = "word counts"
    compared = 0
    for name in ("tagger", "no before", "prompt", "full"):
        found, _ = look_at(runs[name], capsys=capsys)
        verdict, added = read_record(runs[name])["verdict"], found["parts"][-1]["added"]
        if names.get(verdict["compared_with"]) == found["parts"][-2]["name"]:
            assert [added[key] for key in ("low", "high", "p")] == [
                verdict[key] for key in ("low", "high", "p")
            ]
            compared += verdict["low"] != verdict["high"]
    assert compared


def test_all_directions_give_the_runs_own_predictions(runs, capsys):
    found, _ = look_at(runs["tagger"], capsys=capsys)
    groups = [part["group"] for part in found["switched_off"]]
    assert groups == ["all", *["layer"] * 4, *["directions"] * 3]
    (whole,) = [part for part in found["switched_off"] if part["name"] == "k = 3"]
    assert whole["rows_that_differ"] == 0 and not whole["certain"]
    assert (whole["score"], whole["difference"]) == (found["score"]["value"], 0)
    assert len(found["changed_weights"]) == 8 and found["in_front"] is None
    assert all(len(one["singular_values"]) == 3 for one in found["changed_weights"])
    text = found["text"]
    assert len(text["text"]["tokens"]) == len(text["gold"]) == len(text["predicted"])
    for target in text["targets"]:
        assert len(target["before"]) == len(target["after"]) == 5
        # Without tuning the first value is the same: LoRA does not change the embeddings.
        assert target["before"][0] == pytest.approx(target["after"][0], abs=1e-5)


def test_two_runs_are_compared_whatever_their_ranks(runs, capsys):
    found, _ = look_at(runs["tagger"], "--against", runs["other seed"], capsys=capsys)
    (other,) = found["agreement"]
    assert other["run"] == str(runs["other seed"]) and len(other["layers"]) == 8
    for layer in other["layers"]:
        for side in ("inputs", "outputs"):
            assert [len(row) for row in layer[side]] == [2, 2, 2]
            assert all(0 <= value <= 1 + 1e-9 for row in layer[side] for value in row)
            assert layer[f"random_{side}"] == 3 / 24
    found, _ = look_at(runs["tagger"], "--against", runs["tagger"], capsys=capsys)
    for layer in found["agreement"][0]["layers"]:
        assert layer["inputs"][2][2] == pytest.approx(1)
        assert layer["outputs"][1][1] == pytest.approx(1)


@pytest.mark.parametrize("name, positions", [("prompt", 3), ("prefix", 2), ("both", 2)])
def test_what_stands_in_front_has_words_norms_and_attention(runs, capsys, name, positions):
    found, _ = look_at(runs[name], capsys=capsys)
    front, groups = found["in_front"], [part["group"] for part in found["switched_off"]]
    assert front["positions"] == positions == groups.count("position")
    assert groups.count("all") == (3 if name == "both" else 1)
    for when in ("before", "after"):
        assert [len(words) for words in front["words"][when]] == [3] * positions
        assert len(next(iter(front["norms"][when].values()))) == (positions, 4)[name == "prefix"]
    # It started from the words of the instruction.
    first = [words[0] for words in front["words"]["before"]]
    assert first[0][0] == "Cl" if name != "both" else "Label"[: len(first[0][0])]
    assert all(cosine == pytest.approx(1, abs=1e-5) for _, cosine in first)
    shares = front["attention"]
    assert len(shares) == 4 and [len(heads) for heads in shares] == [3] * 4
    assert all(0 <= sum(head) <= 1 for heads in shares for head in heads)


def test_a_run_in_half_precision_is_looked_into_in_that_precision(runs, capsys):
    found, _ = look_at(runs["half"], capsys=capsys)
    record = read_record(runs["half"])
    assert record["precision"] == "bf16"
    assert found["score"]["value"] == record["scores"]["after"]["test"]["f1"]
    for position in range(2):  # of a word's key, rounded to 8 bits
        (_, cosine), *_ = found["in_front"]["words"]["before"][position]
        assert cosine > 0.99
    assert len(found["changed_weights"]) == 8


def test_full_tuning_shows_each_linear_layer_and_the_embeddings(runs, capsys):
    found, _ = look_at(runs["full"], capsys=capsys)
    assert len(found["changed_weights"]) == 24
    names = [part["name"] for part in found["switched_off"] if part["group"] == "layer"]
    assert names == [
        f"{part}: weights of the base"
        for part in ("wte", "wpe", "layer 0", "layer 1", "layer 2", "layer 3", "ln_f")
    ]
    targets = found["text"]["targets"]
    assert [target["label"] for target in targets] == ["negative", "neutral", "positive"]
    for when in ("before", "after"):
        sums = [sum(values) for values in zip(*(target[when] for target in targets))]
        assert sums == pytest.approx([1] * 5)
    assert "a head on the frozen base was not scored; train with --head-baseline" in found["notes"]


def test_without_a_score_before_tuning_the_baseline_comes_first(runs, capsys):
    found, _ = look_at(runs["no before"], capsys=capsys)
    assert [part["name"] for part in found["parts"]] == ["word counts", "with the adapter"]


def test_labels_that_share_their_first_token_are_looked_at_too(tiny_folder, tmp_path, capsys):
    """Then keys and values of a text are stored, and the labels' tokens attend to them."""
    rows = [
        {"sentence": f"Item {i} {text} .", "label": label}
        for i in range(12)
        for text, label in (("fell apart", "not good"), ("works", "not bad"))
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"task": "classification", "method": "prompt", "prompt_length": 2, "data": str(data)}
    settings = make_settings(model=str(tiny_folder), out=str(tmp_path / "run"), **SIZES, **given)
    run(settings, lambda line: None)
    found, _ = look_at(tmp_path / "run", capsys=capsys)
    record = read_record(tmp_path / "run")
    assert found["score"]["value"] == record["scores"]["after"]["validation"]["accuracy"]
    assert len(found["switched_off"]) == 1 + 4 + 2


# ---- Rows and texts


def test_a_sample_of_the_rows_is_scored_and_named(runs, capsys):
    found, _ = look_at(runs["tagger"], "--rows", 5, capsys=capsys)
    assert (found["rows"], found["rows_in_split"]) == (5, 12)
    assert "5 of the 12 rows of test are scored; see --rows" in found["notes"]


def test_the_number_of_rows_limits_the_work(runs, monkeypatch):
    subject = load_subject(runs["tagger"], settings_in(runs["tagger"]), None)
    monkeypatch.setattr("neo_peft.look.subject.LEAST_ROWS", 1)
    tokens = len(subject.examples.ids) / 12
    monkeypatch.setattr("neo_peft.look.subject.WORK", 7.5 * 9 * tokens * subject.tuned.total)
    assert affordable_rows(subject.tuned, subject.rows, 9) == 7
    monkeypatch.setattr("neo_peft.look.subject.LEAST_ROWS", 10)
    assert affordable_rows(subject.tuned, subject.rows, 9) == 10


def test_a_text_of_ones_own_is_shown(runs, capsys):
    found, _ = look_at(runs["tagger"], "--text", "The IL-2 gene is active .", capsys=capsys)
    text = found["text"]
    assert text["text"] == {"tokens": ["The", "IL-2", "gene", "is", "active", "."]}
    assert text["gold"] is None and len(text["predicted"]) == 6
    found, _ = look_at(runs["prefix"], "--text", "It rose .\tIt fell .", capsys=capsys)
    assert found["text"]["text"] == {"sentence1": "It rose .", "sentence2": "It fell ."}
    assert found["text"]["instruction_before"].startswith("Classify if the two sentences")


def test_predictions_that_are_not_those_of_the_run_are_noted(runs):
    subject = load_subject(runs["tagger"], settings_in(runs["tagger"]), None)
    own = [row["predicted"] for row in subject.rows]
    assert not notes(subject, own)
    assert notes(subject, [["B-DNA"], *own[1:]]) == [
        "1 of the 12 rows are predicted differently than in the run, which was scored on other "
        "hardware or in another precision"
    ]


# ---- The tables and the page


def page_of(folder: Path) -> str:
    return (folder / "look.html").read_text("utf-8")


def test_the_tables_are_printed_and_the_page_has_all_of_them(runs, capsys):
    command.main([str(runs["both"])])
    out, page = capsys.readouterr().out, page_of(runs["both"])
    for title in (
        "what each part adds",
        "one layer switched off",
        "each ΔW cut to its first k singular directions",
        "one position left out",
        "changed weights",
        "position (nearest words of wte)",
        "probability after each layer",
    ):
        assert title in out, title
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == [
        "What each part adds",
        "One part switched off",
        "Changed weights: the singular values of ΔW",
        "What stands in front",
        "Attention to what stands in front",
        "One text, layer by layer",
    ]
    assert page.count("<figure>") == 2  # q_proj and v_proj
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<table") == page.count("</table>") and "${" not in page


def test_the_numbers_of_the_page_are_those_of_the_object(runs, capsys):
    found, _ = look_at(runs["tagger"], "--against", runs["other seed"], capsys=capsys)
    page = page_of(runs["tagger"])
    for part in found["switched_off"]:
        cells = re.search(rf">{part['name']}</th><td>([\d.]+)</td>", page)
        assert cells and cells[1] == f"{part['score']:.3f}", part["name"]
    for one in found["changed_weights"]:
        assert f"<td>{one['base_norm']:.2f}</td><td>{one['norm']:.3f}</td>" in page
    assert f"<h3>Directions shared with {runs['other seed']}</h3>" in page
    assert page.count("<summary>") == 8


def test_a_text_is_never_markup(runs, capsys):
    look_at(runs["prompt"], "--text", "<b>up</b> & <script>down</script>", capsys=capsys)
    page = page_of(runs["prompt"])
    assert "&lt;b&gt;up&lt;/b&gt; &amp; &lt;script&gt;" in page and "<script" not in page


def test_a_run_without_tagged_words_has_no_empty_table(runs, capsys):
    settings = settings_in(runs["tagger"])
    found = look(runs["tagger"], settings, 3, {"tokens": ["and"]}, progress=no_progress)
    if found["text"]["targets"]:
        pytest.skip("the tiny model tags it")
    command.main([str(runs["tagger"]), "--rows", "3", "--text", "and"])
    assert "no word of it is tagged" in capsys.readouterr().out
    assert "No word of it is tagged." in page_of(runs["tagger"])


# ---- Refused


def test_what_cannot_be_looked_into_is_refused_in_one_line(runs, tiny_folder, tmp_path, capfd):
    refused(
        capfd,
        f"look {runs['head']}",
        f"{runs['head']} has no adapter to look into: it trained a head alone; name a run of "
        "another method",
    )
    refused(
        capfd,
        f"look {runs['tagger']} --against {runs['other targets']}",
        f"{runs['tagger']} and {runs['other targets']} changed different layers (8 only by "
        f"{runs['tagger']}, 4 only by {runs['other targets']}): compare runs with the same "
        "--target-modules on one base",
    )
    refused(
        capfd,
        f"look {runs['prompt']} --against {runs['tagger']}",
        f"{runs['prompt']} changed no linear layer, so it has no directions to compare: leave out "
        "--against",
    )
    write_adapter(tmp_path / "peft", GPTNeoForCausalLM.from_pretrained(tiny_folder))
    refused(
        capfd,
        "look peft",
        "peft has no run.json: only a finished run of train.py can be looked into",
    )
    refused(
        capfd,
        f"look {runs['tagger'].parent}",
        f"{runs['tagger'].parent} has no run.json: only a finished run of train.py can be looked "
        "into; name a run inside it, such as …",
    )
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "settings.json").write_text("{}")
    refused(
        capfd,
        "look unfinished",
        "unfinished is a run that is not finished; resume it: python -m neo_peft train --resume "
        "unfinished",
    )
    refused(capfd, "look nowhere", "there is no run folder nowhere")


def test_a_wrong_text_and_another_page_are_refused(runs, tmp_path, capfd):
    refused(
        capfd,
        f"look {runs['prefix']} --text 'only one'",
        "--text: 1 parts in 'only one'; expected 2 sentences separated by tabs",
    )
    (tmp_path / "page.html").write_text("my own page")
    refused(
        capfd,
        f"look {runs['prompt']} --out page.html",
        "page.html exists and is not a report, so it is not replaced; name another --out",
    )


def test_runs_on_other_bases_are_not_compared(runs, tmp_path, capfd):
    given = SIZES | RATES | RUNS["other seed"]
    run(make_settings(model="neo-mini", out="mini", **given), lambda line: None)
    refused(
        capfd,
        f"look {runs['tagger']} --against mini",
        f"{runs['tagger']} and mini have different bases: compare runs on one base",
    )
