"""What the model would predict after each layer, for one text.

The hidden state before the first layer and after each layer gets the final norm and the head, as
if it were the last one (nostalgebraist 2020, the "logit lens"). The head is the run's own: a linear
head, or the rows of `wte` of the labels' first tokens.
"""

import torch
from torch import Tensor, nn

from neo_peft.encoding import Encoder, collate
from neo_peft.gptneo import Past
from neo_peft.model import TunedModel
from neo_peft.runs.texts import encode_texts


@torch.inference_mode()
def layer_probabilities(
    model: TunedModel, head: nn.Module | None, encoder: Encoder, row: dict, past: Past | None
) -> Tensor:
    """Return the probabilities (1 + layers, M, K) of the labels at the M target positions of a row:
    from the embeddings, then after each layer.

    head: the linear head; None for the language model head. There a label has the probability of
        its first token among the labels' first tokens; labels that share it have the same one.
    """
    examples, inputs = encode_texts(encoder, [row]), []
    batch = collate(examples, range(len(examples))).to(model.device)  # a long text: its windows

    def store(block: nn.Module, arguments: tuple) -> None:
        inputs.append(arguments[0][batch.target_indices])

    hooks = [block.register_forward_pre_hook(store) for block in model.transformer.h]
    try:
        last = model(batch, past)
    finally:
        for hook in hooks:
            hook.remove()
    states = torch.stack([*(model.transformer.ln_f(x.float()) for x in inputs), last.float()])
    if head is not None:
        return head(states).softmax(-1).cpu()
    first = [encoder.label_tokens[label][0] for label in encoder.task.labels]
    tokens = sorted({*first})
    weight = model.transformer.wte.weight[torch.tensor(tokens, device=model.device)].float()
    return (states @ weight.T).softmax(-1)[..., [tokens.index(token) for token in first]].cpu()
