"""The file of recipes: its lines by hand; a wrong line is refused with its number."""

from pathlib import Path

import pytest
from refusals import refused

from neo_peft.commands.recipes import read_recipes
from neo_peft.errors import InputError
from neo_peft.methods import METHODS
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings
from neo_peft.studies.plan import make_plan

TWELVE = Path(__file__).parents[2] / "benchmarks" / "recipes.txt"


def test_a_line_has_a_name_and_flags_and_comments_are_left_out():
    Path("recipes.txt").write_text(
        "# two recipes\n\n"
        "LoRA, r 8: --method lora --rank 8  # on q and v\n"
        "  two   words : --method prompt --prompt-text 'a # b: c' --keep last\n"
    )
    assert read_recipes(Path("recipes.txt")) == {
        "LoRA, r 8": {"method": "lora", "rank": "8"},
        "two words": {"method": "prompt", "prompt_text": "a # b: c", "keep": "last"},
    }


@pytest.mark.parametrize(
    "line, message",
    [
        ("b: --method lora --runk 8", "unrecognized arguments: --runk 8"),
        ("b: --method lora 8", "unrecognized arguments: 8"),
        ("b: --method", "argument --method: expected one argument"),
        ("a: --method lora", "the recipe a is also in line 2"),
        ("b --method lora", "is not NAME: train.py's flags, with a name that starts with a letter"),
        (": --method lora", "is not NAME: train.py's flags, with a name that starts with a letter"),
        ("b: --data x", "--data is not a recipe's; all recipes have the study's"),
        ("b: --seed 3", "--seed is not a recipe's; all recipes have the study's"),
        ("b: --prompt-text 'x", "No closing quotation"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(capfd, line, message):
    Path("recipes.txt").write_text(f"# comment\na: --method head\n{line}\n")
    refused(
        capfd, "study --task ner --recipes recipes.txt", f"--recipes recipes.txt, line 3: {message}"
    )


def test_a_file_without_recipes_and_a_missing_file_are_refused(capfd):
    Path("empty.txt").write_text("# nothing\n")
    for name, message in (
        ("empty.txt", "--recipes empty.txt has no recipe: a line is NAME: train.py's flags"),
        ("no.txt", "--recipes no.txt cannot be opened: No such file or directory"),
    ):
        refused(capfd, f"study --task ner --recipes {name}", message)


def test_a_value_that_a_recipe_cannot_have_names_the_recipe(capfd):
    Path("recipes.txt").write_text("a: --method head --rank 4\n")
    with pytest.raises(InputError, match="^recipe a: --rank belongs to the method lora; the meth"):
        make_plan({"task": "ner"}, recipes=read_recipes(Path("recipes.txt")))


@pytest.mark.parametrize("task", ["ner", "sentiment", "similarity"])
def test_the_twelve_recipes_make_a_plan_for_each_task(task):
    recipes = read_recipes(TWELVE)
    assert len(recipes) == 12
    sweep = ("learning_rate", ["0.3x", "1x", "3x"])
    plan = make_plan({"task": task, "threads": 1}, 3, [5], sweep, recipes=recipes)
    assert len(plan["runs"]) == 12 * 3 * 3 and len(plan["values"]) == 12
    assert {run["flags"]["method"] for run in plan["runs"]} >= METHODS.keys() - {"lora+prefix"}


def test_the_recipes_of_targets_train_equal_numbers():
    counts = {}
    for name, flags in read_recipes(TWELVE.with_name("targets.txt")).items():
        model = load_untuned(make_settings(task="ner", **flags), with_method=True).model
        trained = model.trainable().items()
        counts[name] = sum(part.numel() for key, part in trained if "lora" in key)
    config = model.transformer.config
    unit = config.num_layers * config.hidden_size
    assert counts == {
        "q,v r18": 72 * unit,
        "attention r9": 72 * unit,
        "MLP r7": 70 * unit,
        "all r4": 72 * unit,
    }
