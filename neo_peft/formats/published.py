"""The shapes of the published sizes of GPT-Neo, to count their tensors without their weights.

torch is imported at the first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neo_peft.gptneo import Config, GPTNeo

# hidden_size, num_layers, num_heads. The other fields of config.json are the same for all sizes.
PUBLISHED = {
    "EleutherAI/gpt-neo-125m": (768, 12, 12),
    "EleutherAI/gpt-neo-1.3B": (2048, 24, 16),
    "EleutherAI/gpt-neo-2.7B": (2560, 32, 20),
}


def published_config(name: str, layers: int | None = None) -> "Config":
    """Return the config of a published GPT-Neo, with `layers` layers in place of its own."""
    from neo_peft.gptneo import Config

    hidden_size, own, heads = PUBLISHED[name]
    return Config(
        vocab_size=50257,
        hidden_size=hidden_size,
        num_heads=heads,
        max_position_embeddings=2048,
        window_size=256,
        intermediate_size=4 * hidden_size,
        attention_layers=("global", "local") * ((layers or own) // 2),
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        eos_token_id=50256,
    )


def trunk_without_data(config: "Config") -> "GPTNeo":
    """Return a frozen GPT-Neo whose tensors have shapes and no data."""
    import torch

    from neo_peft.gptneo import GPTNeo

    with torch.device("meta"):
        trunk = GPTNeo(config).requires_grad_(False)
    # One number for all embeddings. A head computes means of them: on the meta device that imports
    # torch's compiler.
    embeddings = torch.zeros(()).expand(trunk.wte.weight.shape)
    trunk.wte.weight = torch.nn.Parameter(embeddings, requires_grad=False)
    return trunk
