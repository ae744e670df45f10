"""The drawing of the way of a gradient: what the backward pass of each method reaches and trains.

Nothing of it is assumed: hooks watch a real backward pass of each method on one row.
"""

from dataclasses import dataclass

from svg import LARGE, MODEL, SMALL, WIDTH, Drawing
from torch import Tensor, nn

from neo_peft.encoding import collate
from neo_peft.runs.loading import load_untuned
from neo_peft.settings import make_settings

TITLES = {"full": "Full tuning", "lora": "LoRA", "prompt": "Soft prompt", "head": "Head alone"}
ROW = {"tokens": ["IL-2", "binds", "."], "tags": ["B-protein", "O", "O"]}
LEGEND = {
    "trained": "gets a gradient: it is trained",
    "passed": "frozen, but the gradient goes through it",
    "frozen": "frozen, and the backward pass does not reach it",
}
PANEL, HIGH = 220, 28  # width of a model, height of one of its parts

Part = tuple[str, str, int, int]  # words, a module's name, offset and width in pixels


@dataclass(frozen=True)
class Way:
    """How far the backward pass of one method goes."""

    passed: set[str]  # modules whose output gets a gradient
    trained: set[str]  # modules whose own parameters get a gradient
    modules: set[str]  # all modules
    trained_count: int  # number of trained parameters
    blocks: int  # number of blocks

    def state(self, name: str) -> str:
        """Return a module's key in `LEGEND`, which is also its colour."""
        if name in self.trained:
            return "trained"
        return "passed" if name in self.passed else "frozen"


def way_of(method: str) -> Way:
    """Return which modules a backward pass of a method reaches."""
    settings = make_settings(task="ner", method=method, model=MODEL, threads=1)
    loaded = load_untuned(settings, with_method=True)
    model, passed = loaded.model, set()
    names = {module: name for name, module in model.named_modules()}

    def after_forward(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: passed.add(names[module]))

    for module in names:
        module.register_forward_hook(after_forward)
    model.loss(collate(loaded.encoder([ROW]), [0])).backward()
    with_gradient = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert with_gradient == model.trainable().keys()
    return Way(
        passed,
        {name.rpartition(".")[0] for name in with_gradient},
        set(names.values()),
        sum(parameter.numel() for parameter in model.trainable().values()),
        model.transformer.config.num_layers,
    )


def gradient() -> Drawing:
    """Return the drawing of the four methods."""
    drawing = Drawing(
        "gradient",
        WIDTH,
        880,
        "The way of the gradient in each method",
        "Four copies of a GPT-Neo with a linear head; the loss is at the top, the embeddings are "
        "at the bottom. Full tuning: the backward pass goes through all parts, and all of them are "
        "trained. LoRA: it goes down to q and v of the first block; only A, B and the head are "
        "trained. Soft prompt: it goes through all blocks down to the prompt's embeddings; only "
        "they and the head are trained. Head alone: it stops in the head, the only part that is "
        "trained.",
    )
    for index, (method, title) in enumerate(TITLES.items()):
        x, y = 20 + 272 * (index % 2), 34 + 386 * (index // 2)
        _draw_way(drawing, x, y, title, way_of(method))
    for index, (state, meaning) in enumerate(LEGEND.items()):
        y = 796 + 26 * index
        _draw_part(drawing, 20, y, 34, 20, "", state)
        drawing.words(64, y + 15, meaning, anchor="start")
    return drawing


def _draw_way(drawing: Drawing, x: float, y: float, title: str, way: Way) -> None:
    """Draw a model from its loss to its embeddings, and an arrow down to the lowest part that the
    backward pass reaches."""
    drawing.words(x, y, title, LARGE, bold=True, anchor="start")
    counted = f"{way.trained_count:,} parameters trained"
    drawing.words(x, y + 22, counted, SMALL, ink="pale", anchor="start")
    drawing.box(x, y + 32, PANEL, 26, "paper", "loss", size=SMALL, radius=13)
    for label, top in ((f"blocks 2 to {way.blocks}", 132), ("block 1", 225)):
        drawing.box(x, y + top, PANEL, 2 * HIGH + 32, "paper")
        drawing.words(x + 8, y + top + 17, label, SMALL, ink="pale", anchor="start")
    rows: dict[int, list[Part]] = {  # by their distance from y
        66: [("head", "classifier", 0, PANEL)],
        99: [("ln_f", "transformer.ln_f", 0, PANEL)],
        155: _mlp("transformer.h.1"),
        187: _attention("transformer.h.1", way),
        248: _mlp("transformer.h.0"),
        280: _attention("transformer.h.0", way),
        318: _embeddings(way),
    }
    reached = []
    for top, parts in rows.items():
        for words, name, offset, width in parts:
            _draw_part(drawing, x + offset, y + top, width, HIGH, words, way.state(name))
            reached += [top] if way.state(name) != "frozen" else []
    start, end, lane = y + 45, y + max(reached) + HIGH / 2, x + PANEL + 18
    way_down = ((x + PANEL, start), (lane, start), (lane, end), (x + PANEL + 1, end))
    drawing.line(*way_down, ink="gradient", thick=3, arrow=True)


def _mlp(block: str) -> list[Part]:
    return [
        ("ln_2", f"{block}.ln_2", 5, 40),
        ("c_fc", f"{block}.mlp.c_fc", 49, 82),
        ("c_proj", f"{block}.mlp.c_proj", 135, 80),
    ]


def _attention(block: str, way: Way) -> list[Part]:
    parts, offset = [("ln_1", f"{block}.ln_1", 5, 40)], 49
    for short in "qkv":
        name = f"{block}.attn.attention.{short}_proj"
        if f"{name}.lora_A" in way.modules:
            parts.append((short, f"{name}.base_layer", offset, 20))
            parts.append(("AB", f"{name}.lora_A", offset + 20, 26))
            offset += 50
        else:
            parts.append((short, name, offset, 30))
            offset += 34
    out = f"{block}.attn.attention.out_proj"
    return [*parts, ("out", out, offset, PANEL - 5 - offset)]


def _embeddings(way: Way) -> list[Part]:
    if "prompt" in way.modules:
        wide, prompt = 68, [("prompt", "prompt", 144, 76)]
    else:
        wide, prompt = 108, []
    words = [("wte", "transformer.wte", 0, wide), ("wpe", "transformer.wpe", wide + 4, wide)]
    return words + prompt


def _draw_part(
    drawing: Drawing, x: float, y: float, width: float, height: float, words: str, state: str
) -> None:
    reached = state != "frozen"
    edge, thick = ("gradient", 1.5) if reached else ("edge", 1)
    look = {"edge": edge, "thick": thick, "dashed": not reached, "bold": state == "trained"}
    drawing.box(x, y, width, height, state, words, size=SMALL, **look)
