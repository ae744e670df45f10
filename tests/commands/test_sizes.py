"""The command sizes: its counts are those of the studies and of formulas on the shapes."""

import json
from functools import cache

import pytest

from neo_peft.commands import sizes
from neo_peft.commands.sizes import BASE, PUBLISHED, RECIPES, WHOLE
from neo_peft.commands.train import parse_flags as parse_train_flags
from neo_peft.formats.adapter import ADAPTER_FILE, save_adapter
from neo_peft.formats.base import load_base, weight_bytes
from neo_peft.loop import make_optimizer
from neo_peft.methods import build_model
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import task_of
from neo_peft.system.exit_status import exit_status

SMALL, LARGE = "EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-1.3B"


@cache
def size_of(model, recipe):
    return sizes.sizes(model, recipe)


LORA = "--task sentiment --method lora --rank 8 --target-modules q_proj,v_proj"
LORA_LINEAR = LORA.replace("q_proj,v_proj", "all-linear")
PROMPT = "--task sentiment --method prompt --prompt-length "
PAPER = "--task ner --preset paper"


def test_the_counts_are_those_of_the_published_studies():
    prompt = size_of(LARGE, PROMPT + "8")
    assert (prompt["trainable"], prompt["total"]) == (16_384, 1_315_592_192)
    assert prompt["percent"] == 0.001245370723513689
    assert size_of(LARGE, PAPER)["trainable"] == 3_145_728 + 395_264 + 22_539
    expected = {LORA: 294_912, LORA_LINEAR: 1_327_104, PROMPT + "20": 15_360}
    assert {name: size_of(SMALL, name)["trainable"] for name in expected} == expected


@pytest.mark.parametrize(
    ("model", "trunk"),
    [(SMALL, 125_198_592), (LARGE, 1_315_575_808), ("EleutherAI/gpt-neo-2.7B", 2_651_307_520)],
)
def test_every_count_equals_a_formula_on_the_shapes(model, trunk):
    """A model has L layers. q, k, v and out are H × H; c_fc and c_proj are H × 4H. LoRA adds
    r (in + out) parameters to each of these that it adapts."""
    H, L, _ = PUBLISHED[model]
    lora, linear = L * 8 * 2 * (H + H), L * 8 * (4 * (H + H) + 2 * (H + 4 * H))
    biases = L * (H + 4 * H + H + 2 * H) + H  # of out_proj, c_fc, c_proj and the norms
    new = {  # the parameters that each recipe adds to the trunk
        LORA: lora,
        LORA_LINEAR: linear,
        PAPER: 2 * lora + 11 * H + 11,
        PROMPT + "8": 8 * H,
        "--task ner --preset best": 4 * linear + 11 * H + 11,
        "--task sentiment --preset best": 2 * linear + 3 * H,
        PROMPT + "20": 20 * H,
        PROMPT + "100": 100 * H,
        "--task sentiment --method prefix --prompt-length 8": 8 * 2 * L * H,
        "--task sentiment --method head": 3 * H,
        "--task ner --method head": 11 * H + 11,
        "--task sentiment --method lora+prompt --rank 8 --prompt-length 8": lora + 8 * H,
        WHOLE: 0,
    }
    assert tuple(new) == RECIPES
    for name, count in new.items():
        size = size_of(model, name)
        assert size["total"] == trunk + count
        assert size["trainable"] == count + {PAPER: biases, WHOLE: trunk}.get(name, 0)
        assert size["percent"] == 100 * size["trainable"] / size["total"]
        assert size["adapter_bytes"] == 4 * size["trainable"]  # fp32
        assert size["optimizer_bytes"] == 8 * size["trainable"]  # AdamW's two moments


def test_the_table_and_the_json_have_the_same_numbers(monkeypatch, capsys):
    monkeypatch.setattr(sizes, "PUBLISHED", {LARGE: PUBLISHED[LARGE]})
    recipes = (LORA, WHOLE)
    monkeypatch.setattr(sizes, "RECIPES", recipes)
    assert exit_status(lambda: sizes.main([])) == 0
    header, _, *lines, base, end = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == LARGE and end == ""
    assert base == "MB of the frozen base in memory: 5,262.3 fp32, 1,640.2 int8, 1,053.6 nf4"
    assert [line.split("  ")[0] for line in lines] == [*recipes]
    assert [line.split()[-5:] for line in lines] == [
        ["1,572,864", "0.1194", "6.291", "12.583", "1/836"],
        ["1,315,575,808", "100", "5,262.303", "10,524.606", "1/1"],
    ]
    assert exit_status(lambda: sizes.main(["--json"])) == 0
    found = json.loads(capsys.readouterr().out)[LARGE]
    assert found[BASE] == {"fp32": 5_262_303_232, "int8": 1_640_194_048, "nf4": 1_053_614_656}
    lora = found[LORA]
    assert lora == {
        "trainable": 1_572_864,
        "total": 1_315_575_808 + 1_572_864,
        "adapter_bytes": 6_291_456,
        "optimizer_bytes": 12_582_912,
        "percent": 100 * 1_572_864 / 1_317_148_672,
    }


def test_the_counts_are_those_of_a_model_with_all_its_layers_and_of_its_optimizer():
    """`sizes` makes models of two and of four layers."""
    recipe = "--task ner --method lora --rank 3 --bias all --target-modules out_proj"
    settings = parse_train_flags([*recipe.split(), "--model", SMALL])
    trunk = sizes.published_trunk(SMALL, layers=12)
    model = build_model(trunk, sizes.bundled_tokenizer(), task_of(settings), settings)
    optimizer, adapter = make_optimizer(model, settings), list(model.trainable().values())
    for parameter in adapter:
        parameter.grad = parameter.detach()
    optimizer.step()
    states = [optimizer.state[parameter] for parameter in adapter]
    size = sizes.sizes(SMALL, recipe)
    assert len(trunk.h) == 12 and size["trainable"] == sum(p.numel() for p in adapter)
    assert size["total"] == sum(p.numel() for p in model.parameters())
    assert size["adapter_bytes"] == sum(p.nbytes for p in adapter)
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    assert size["optimizer_bytes"] == sum(moment.nbytes for moment in moments)


def test_the_adapters_bytes_are_those_of_the_tensors_in_its_file(tiny_folder, tmp_path):
    """The model is not on the meta device here. The header of the file is not counted."""
    settings = parse_train_flags([*PAPER.split(), "--model", str(tiny_folder), "--data", "sample"])
    tuned = load_untuned(settings, with_method=True)
    save_adapter(tmp_path / "run", tuned.model, settings)
    content = (tmp_path / "run" / ADAPTER_FILE).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == 4 * sum(
        parameter.numel() for parameter in tuned.model.trainable().values()
    )


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_the_bytes_of_a_base_are_those_of_the_loaded_tensors(tiny_folder, kind):
    base, plain = load_base(str(tiny_folder), quantize=kind), load_base(str(tiny_folder))
    assert base.weight_bytes == sum(tensor.nbytes for tensor in base.trunk.parameters())
    assert base.weight_bytes == weight_bytes(plain.trunk, kind)


def test_a_bad_flag_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        sizes.main(["x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: x; see --help\n"
