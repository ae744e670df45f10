"""Draw the four pictures of this folder: python docs/drawings/draw.py

Shapes, counts, masks, packings and gradients are not typed here: they come from the package, from
its bundled model and from a real backward pass. So run this again when one of them changes.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from gradient import gradient
from svg import LARGE, MODEL, SMALL, WIDTH, Drawing

from neo_peft.formats.base import load_base
from neo_peft.gptneo import causal_mask
from neo_peft.lora import add_lora, lora_layers
from neo_peft.packing import Grid, Packing

HERE = Path(__file__).parent


# ---- 1. The LoRA branch


def lora() -> Drawing:
    """Return the drawing of a linear layer with LoRA. W, A and B are drawn to scale."""
    trunk = load_base(MODEL).trunk
    names = add_lora(trunk)
    layers = lora_layers(trunk)
    layer = layers[names[0]]
    W, A, B = (part.weight for part in (layer.base_layer, layer.lora_A, layer.lora_B))
    (rank, inputs), outputs = A.shape, len(W)
    in_layer = A.numel() + B.numel()
    in_all = sum(x.numel() for name, x in trunk.named_parameters() if x.requires_grad)
    kinds = " and ".join(sorted({name.split(".")[-1] for name in names}))
    blocks = trunk.config.num_layers
    drawing = Drawing(
        "lora",
        WIDTH,
        492,
        "A linear layer with LoRA",
        f"The input x, of shape (N, {inputs}), goes two ways. Above, through the frozen weight W "
        f"({outputs} by {inputs}). Below, through dropout, A ({rank} by {inputs}), B ({outputs} by "
        f"{rank}) and a factor alpha / r. Both results are added to h. Only A and B are trained. A "
        "starts random, B starts at zero, so at the start h is W x.",
    )
    side = 128  # pixels of the hidden size
    wide, high, thin = side, side * outputs / inputs, side * rank / inputs
    top, below = 110, 290  # the height of the two ways
    # the wires
    drawing.line((64, top), (170, top), arrow=True)
    drawing.line((100, top), (100, below), (124, below), arrow=True)
    drawing.line((170 + wide, top), (462, top), arrow=True)
    drawing.line((124 + wide, below), (318 - thin / 2, below), arrow=True)
    drawing.line((318, below), (476, below), (476, top + 14), arrow=True)
    drawing.line((490, top), (512, top), arrow=True)
    # x, the two ways, h
    drawing.box(24, top - 20, 40, 40, "paper", "x", size=LARGE, bold=True)
    drawing.words(44, top - 30, f"(N, {inputs})")
    drawing.box(170, top - high / 2, wide, high, "frozen")
    drawing.words(170 + wide / 2, top - 22, "W", LARGE, bold=True)
    drawing.words(170 + wide / 2, top + 4, f"({outputs}, {inputs})")
    drawing.words(170 + wide / 2, top + 30, "frozen")
    drawing.box(60, 184, 80, 30, "paper", "dropout", radius=15)
    drawing.box(124, below - thin / 2, wide, thin, "trained", edge="gradient", radius=0)
    drawing.words(124 + wide / 2, below - 14, f"A  ({rank}, {inputs})", bold=True)
    drawing.words(124 + wide / 2, below + 26, "trained")
    drawing.words(124 + wide / 2, below + 47, "starts random")
    drawing.words((124 + wide + 312) / 2, below - 12, f"(N, {rank})", SMALL)
    drawing.box(318 - thin / 2, below - high / 2, thin, high, "trained", edge="gradient", radius=0)
    drawing.words(330, below - 46, f"B  ({outputs}, {rank})", bold=True, anchor="start")
    drawing.words(330, below + 26, "trained", anchor="start")
    drawing.words(330, below + 47, "starts at zero", anchor="start")
    drawing.words(400, below - 12, f"(N, {outputs})", SMALL)
    drawing.box(421, 184, 110, 30, "paper", "× alpha / r", radius=15)
    drawing.circle(476, top, 14, "+")
    drawing.box(512, top - 20, 36, 40, "paper", "h", size=LARGE, bold=True)
    drawing.words(514, top - 30, f"(N, {outputs})")
    drawing.paragraph(
        24,
        396,
        (
            f"W: {W.numel():,} numbers. A and B: {in_layer:,}. Drawn to scale.",
            "At the start B is zero: the layer is unchanged, h = W x.",
            f"In {MODEL}, {kinds} of all {blocks} blocks have LoRA:",
            f"{in_all:,} trained numbers.",
        ),
    )
    return drawing


# ---- 2. A padded batch and a packed batch


def packing() -> Drawing:
    """Return the drawing of one batch: padded, packed, and in the grids of attention."""
    lengths = torch.tensor([7, 4, 4, 2])
    cpu, gpu = (Packing.of_texts(lengths, together=together) for together in (False, True))
    tokens, (padded,) = int(lengths.sum()), gpu.grids
    places = padded.batch * padded.longest
    sizes = ", ".join(f"{grid.batch} × {grid.longest}" for grid in cpu.grids)
    drawing = Drawing(
        "packing",
        WIDTH,
        694,
        "A padded batch and a packed batch",
        f"Four texts of {', '.join(map(str, lengths.tolist()))} tokens. Padded, they fill a grid "
        f"of {padded.batch} by {padded.longest}: {places} places, {places - tokens} of them "
        f"padding. Packed, they are {tokens} tokens in a line, each with its position in its text. "
        "Only attention needs grids: on a CPU one for consecutive texts of the same length "
        f"({sizes}), on a GPU one padded grid.",
    )
    left, cell = 24, 30
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # the text of each token

    def draw_tokens(x: float, y: float, texts: list[int], positions: list[int]) -> None:
        for index, (text, position) in enumerate(zip(texts, positions, strict=True)):
            if text < 0:
                drawing.box(x + cell * index, y, cell, cell, "paper", dashed=True)
                ends = (x + cell * index + 6, y + cell / 2), (x + cell * index + 24, y + cell / 2)
                drawing.line(*ends, ink="pale")
            else:
                words, fill = str(position), f"text_{text + 1}"
                drawing.box(x + cell * index, y, cell, cell, fill, words)

    def draw_grid(x: float, y: float, grid: Grid, texts: torch.Tensor) -> None:
        filled = grid.scatter(texts[:, None] + 1)[:, :, 0] - 1  # padding is -1
        positions = grid.positions.expand(grid.batch, -1).tolist()
        for row, (line, numbers) in enumerate(zip(filled.tolist(), positions, strict=True)):
            draw_tokens(x, y + cell * row, line, numbers)

    def heading(y: float, words: str, more: str) -> None:
        drawing.words(left, y, words, LARGE, bold=True, anchor="start")
        drawing.words(left, y + 23, more, anchor="start")

    heading(36, "Padded", f"{padded.batch} texts, {padded.longest} places each")
    draw_grid(left, 74, padded, owner)
    drawing.paragraph(
        left + padded.longest * cell + 24,
        96,
        (
            f"{places} places, {places - tokens} of them padding.",
            "Every layer computes all of",
            "them. A number in a cell is",
            "the token's position.",
        ),
    )
    heading(236, "Packed", f"all layers except attention compute these {tokens} tokens")
    draw_tokens(left, 274, owner.tolist(), cpu.positions.tolist())
    starts = lengths.cumsum(0) - lengths
    for text, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        ends = left + cell * start + 3, left + cell * (start + length) - 3
        drawing.bracket(*ends, 310, f"text {text + 1}")
    heading(
        380, "Attention on a CPU", "a grid for consecutive texts of the same length: no padding"
    )
    x = left
    for grid, texts in zip(cpu.grids, owner.split(cpu.sizes), strict=True):
        draw_grid(x, 418, grid, texts)
        x += cell * grid.longest + 24
    heading(512, "Attention on a GPU", "one padded grid: each call has a fixed cost")
    draw_grid(left, 550, padded, owner)
    drawing.paragraph(
        left + padded.longest * cell + 24,
        572,
        ("The padding is on the right,", "where the causal mask hides it."),
    )
    return drawing


# ---- 3. A soft prompt in front of a text


def prompt() -> Drawing:
    """Return the drawing of a prompt and a text: positions, inputs, and who attends to whom."""
    length, text, window = 4, 8, 5
    both = Packing.of_texts(torch.tensor([text]), start=length, prompt=True)
    positions = both.positions
    masks = [causal_mask(positions[None], positions[None], size)[0, 0] for size in (None, window)]
    assert not masks[0][:length, length:].any()  # the prompt does not attend to the text
    sees_prompt = masks[1][:, :length].any(1).tolist()
    first_without = sees_prompt.index(False)
    config = load_base(MODEL).trunk.config
    drawing = Drawing(
        "prompt",
        WIDTH,
        578,
        "A soft prompt in front of a text",
        f"{length} trained prompt embeddings have the positions 0 to {length - 1}. The {text} "
        f"tokens of the text follow, from position {length} on; their embeddings are frozen. Two "
        "masks show which positions a query attends to. In a global layer: itself and all earlier "
        "ones, so each text token attends to the whole prompt. In a local layer with a window of "
        f"{window}: only the last {window}, so from position {first_without} on no token attends "
        "to the prompt. The prompt never attends to the text.",
    )
    left, cell = 92, 37
    drawing.words(left - 10, 42, "position", anchor="end")
    drawing.words(left - 10, 76, "input", anchor="end")
    for index, position in enumerate(positions.tolist()):
        x, is_prompt = left + cell * index, index < length
        drawing.words(x + cell / 2, 42, str(position))
        words = f"p{_subscript(index)}" if is_prompt else f"x{_subscript(index - length)}"
        fill, edge = ("trained", "gradient") if is_prompt else ("text_1", "edge")
        drawing.box(x, 54, cell, 34, fill, words, edge=edge, bold=is_prompt)
    end = left + cell * len(positions)
    split = left + cell * length
    drawing.bracket(left + 3, split - 3, 94, "prompt: trained", bold=True)
    drawing.bracket(split + 3, end - 3, 94, "text: embeddings wte[x], frozen")
    headings = (
        ("A global layer", "each query: all keys up to itself"),
        ("A local layer", f"each query: the last {window} keys"),
    )
    small, down = 18, 224
    for mask, (title, more), x0 in zip(masks, headings, (46, 312), strict=True):
        drawing.words(x0, down - 58, title, LARGE, bold=True, anchor="start")
        drawing.words(x0, down - 36, more, SMALL, anchor="start")
        for index in (0, length, len(positions) - 1):
            middle = small * index + small / 2
            drawing.words(x0 + middle, down - 9, str(index), SMALL, ink="pale")
            drawing.words(x0 - 8, down + middle + 5, str(index), SMALL, ink="pale", anchor="end")
        for attends in (False, True):  # the filled cells last, over the edges of the others
            for query, key in (mask == attends).nonzero().tolist():
                fill = ("trained" if key < length else "text_1") if attends else "unseen"
                at, edge = (x0 + small * key, down + small * query), "edge" if attends else "paper"
                drawing.box(*at, small, small, fill, edge=edge, radius=2)
        line, full = small * length, small * len(mask)
        drawing.line((x0, down + line), (x0 + full, down + line))
        drawing.line((x0 + line, down), (x0 + line, down + full))
    drawing.paragraph(
        24,
        down + full + 32,
        (
            "Rows are queries, columns are keys. Filled: it attends.",
            "The prompt never attends to the text. So its keys and",
            "values are the same for every text, and computed once.",
            f"In a local layer, from position {first_without} on, no token attends to",
            f"the prompt itself. ({MODEL}'s window is {config.window_size}, here it is {window}.)",
        ),
    )
    return drawing


def _subscript(number: int) -> str:
    return "".join(chr(0x2080 + int(digit)) for digit in str(number))


DRAWINGS = (lora, packing, prompt, gradient)


def main() -> None:
    """Write the drawings, and print their names."""
    for draw in DRAWINGS:
        drawing = draw()
        path = HERE / f"{drawing.name}.svg"
        path.write_text(str(drawing), "utf-8")
        print(path.relative_to(HERE.parents[1]))


if __name__ == "__main__":
    main()
