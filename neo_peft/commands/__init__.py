"""The commands, one file each: python -m neo_peft NAME. They parse flags and print results.

flags.py         the flags that several commands share
loading_line.py  the line that a command shows while it loads torch and a model
train.py         tune a GPT-Neo for a task
evaluate.py      score a finished run again, or an untuned base model
predict.py       predict the labels or tags of new text with a finished run
predictor.py     the predictions for lines, and which lines are wrong or cut
new_rows.py      a row of new text with its prediction, as predict prints it
file_bar.py      the bar of predict --file
export.py        write a finished run for peft, or for transformers without peft
study.py         run a task with several seeds, sweep flags, or compare recipes
recipes.py       read the recipes of a study from a file
report.py        show finished runs as an HTML page
compare.py       which of two runs is better, or whether chance alone could explain it
look.py          look inside a finished run: its score's parts, and its adapter
sizes.py         the number of parameters that each method trains, and the bytes that it stores
"""

# the commands, and their lines in the help
COMMANDS = {
    "train": "tune a GPT-Neo for a task, and score it before and after",
    "evaluate": "score a finished run again, or an untuned base model",
    "predict": "predict labels or tags of new text with a finished run",
    "export": "write a finished run as an adapter for peft, or as a model for transformers",
    "study": "train once for each seed and value of a flag, and write tables of the scores",
    "report": "write an HTML page about finished runs: scores, curves, wrong predictions",
    "compare": "compare two runs or studies: which is better, or can the difference be chance",
    "look": "look inside a run: what each part adds, and what its adapter has learned",
    "sizes": "count what each method trains and stores, for the published sizes of GPT-Neo",
}
