"""Which runs of a plan are done and compared, where recipes have a sweep. No torch here.

The first seed's runs have all values of the sweep. The value with the highest score on validation
is the recipe's, and the other seeds run this value only. The scores are those of finished runs, so
a resumed study chooses the same values.
"""

from typing import Any

Scores = dict[str, float]  # the score on validation by the name of the run


def is_done(plan: dict, run: dict[str, Any], scores: Scores) -> bool:
    """Return whether a run is done. `scores` has the first seed's runs that have a result."""
    return run["seed"] == 0 or is_compared(plan, run, scores)


def is_compared(plan: dict, run: dict[str, Any], scores: Scores) -> bool:
    """Return whether a run has its recipe's value, or there is no sweep of recipes."""
    return "choice" not in run or run["choice"] == choice_of(plan, run["value"], scores)


def choice_of(plan: dict, recipe: str, scores: Scores) -> object:
    """Return a recipe's value: the first of those with the highest score, or None without any."""
    tried = [run for run in first_runs(plan, recipe) if run["name"] in scores]
    return max(tried, key=lambda run: scores[run["name"]])["choice"] if tried else None


def first_runs(plan: dict, recipe: str) -> list[dict]:
    """Return the first seed's runs of a recipe: one for each value of the sweep."""
    return [run for run in plan["runs"] if run["value"] == recipe and run["seed"] == 0]


def number_of_runs(plan: dict) -> int:
    """Return how many runs of a plan are done, if none of them fails."""
    if not any("choice" in run for run in plan["runs"]):
        return len(plan["runs"])
    first = sum(run["seed"] == 0 for run in plan["runs"])
    return first + (plan["seeds"] - 1) * len(plan["values"])


def choices(plan: dict, scores: Scores, failed: dict[str, str]) -> dict[str, dict]:
    """Return what results.json has on each recipe's choice: the value "chosen", and all that were
    "tried", with the score or the reason of the failure."""
    found = {}
    for recipe in plan["values"] if "chosen" in plan else ():
        tried = [
            {
                "value": run["choice"],
                "score": scores.get(run["name"]),
                "failed": failed.get(run["name"]),
            }
            for run in first_runs(plan, recipe)
        ]
        found[recipe] = {"chosen": choice_of(plan, recipe, scores), "tried": tried}
    return found
