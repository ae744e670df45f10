"""The tables of a comparison of recipes, as text: what each gives and costs, and the values of a
sweep that each recipe's first seed tried."""

from neo_peft.runs.bootstrap import MIN_DIFFERING
from neo_peft.runs.tables import number
from neo_peft.studies.pareto import Point
from neo_peft.studies.sweep import TIMES

INTERVAL = "95 % interval"  # the title of a column that belongs to the one before it
Table = tuple[list[str], list[list[str]]]  # the header and the rows


def recipe_table(results: dict, block: dict, metric: str) -> Table:
    """Return the table of all recipes. `metric` is the printed name of the task's metric."""
    split, lines = block["judged"], named_lines(results, block)
    compared = block["recipes"][0]["compared_with"] if block["recipes"] else ""
    header = ["recipe", *([results["chosen"].replace("_", " ")] if "chosen" in results else [])]
    header += [f"{metric} on {split}", INTERVAL]
    header += [f"minus {compared}", INTERVAL, "trained numbers", "stored, kB"]
    header += ["CPU seconds", "peak MB", "bits per byte, before → after", "forgotten"]
    header += ["time to predict", "added parameters", "added positions"]
    rows = []
    for recipe in block["recipes"]:
        score, forgetting = lines[recipe["name"]], recipe["forgetting"]
        forgotten = forgetting and forgetting["after"] - forgetting["before"]
        row = [recipe["name"] + " *" * (recipe["name"] == block["best"])]
        if "chosen" in results:
            row.append(shown(results["choices"][recipe["name"]]["chosen"]))
        row += [mean_and_deviation(score), interval(score), *difference_cells(recipe)]
        row += [count(recipe["trainable"]), scaled(recipe["stored_bytes"], 1e3, 0)]
        row += [scaled(recipe["cpu_seconds"], 1, 1), scaled(recipe["peak_bytes"], 1e6, 0)]
        row.append(f"{forgetting['before']:.3f} → {forgetting['after']:.3f}" if forgetting else "–")
        row.append("–" if forgotten is None else f"{forgotten:+.3f}")
        time = recipe["inference"] and recipe["inference"]["time"]
        row.append("–" if time is None else f"{time:.2f} ×")
        rows.append([*row, count(recipe["added_parameters"]), count(recipe["added_positions"])])
    return header, rows


def explanation(results: dict) -> str:
    """Return what the columns of the recipes' table mean."""
    chosen = (
        f"Each recipe's {results['chosen'].replace('_', ' ')} was chosen on validation with the "
        "first seed. "
        if "chosen" in results
        else ""
    )
    return (
        f"{chosen}The costs are means over the seeds. CPU seconds are those of training, with "
        "validation scored after each epoch, and the peak is the process's memory in the whole "
        "run. Bits per byte are those of a bundled page of free text, 50 KB, before and after "
        "tuning; a head alone cannot change them. Time to predict is compared with the untuned "
        f"base under the same head, on the same rows. In brackets: fewer than {MIN_DIFFERING} rows "
        "are predicted differently, too few to tell. * is the best recipe on validation."
    )


def choice_table(results: dict) -> Table:
    """Return the scores on validation of each value that the first seed tried. The chosen one has
    a *. A value that was given as a multiple, such as 3x, follows in brackets."""
    rows = []
    for recipe, found in results["choices"].items():
        cells = []
        for given, item in zip(results["tried"], found["tried"], strict=True):
            text = item["failed"] or number(item["score"])
            text += f" ({shown(item['value'])})" * str(given).endswith(TIMES)
            cells.append(text + " *" * (item["value"] == found["chosen"]))
        rows.append([recipe, *cells])
    return [results["chosen"].replace("_", " "), *results["tried"]], rows


def points(results: dict, block: dict, cost: str) -> list[Point]:
    """Return the points of a picture. `cost` is a field of a recipe's line; recipes without it are
    left out."""
    lines, found = named_lines(results, block), []
    for recipe in block["recipes"]:
        score = lines[recipe["name"]]
        if recipe[cost] is not None:
            low, high = (score.get(end, score["mean"]) for end in ("low", "high"))
            found.append(Point(recipe["name"], recipe[cost], score["mean"], low, high))
    return found


def named_lines(results: dict, block: dict) -> dict[str, dict]:
    """Return each recipe's score by the task's metric on the reported split."""
    return {
        line["value"]: line["scores"][results["metric"]]
        for line in block["lines"][block["judged"]]
        if line["kind"] == "after" and line["scores"]
    }


# ---- Cells


def mean_and_deviation(score: dict) -> str:
    """Return a mean as text, with its standard deviation if the seeds differ."""
    if not score:
        return "–"
    return number(score["mean"]) + (f" ± {score['sd']:.3f}" if score["sd"] else "")


def interval(score: dict) -> str:
    return f"{score['low']:.3f} to {score['high']:.3f}" if "low" in score else ""


def difference_cells(recipe: dict) -> list[str]:
    """Return a recipe's difference from the head alone, and its interval."""
    if not (found := recipe["difference"]):
        return ["–", ""]
    cells = [f"{found['difference']:+.3f}", f"{found['low']:+.3f} to {found['high']:+.3f}"]
    return [f"({cell})" for cell in cells] if found["differ"] < MIN_DIFFERING else cells


def scaled(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
