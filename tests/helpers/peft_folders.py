"""Write adapters with peft, as its users do."""

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

QV = ["q_proj", "v_proj"]


def write_adapter(
    folder: Path, model: PreTrainedModel, config=None, name: str = "default", **lora
) -> PeftModel:
    """Add an adapter to a model, as if it were trained, save it, and return peft's model.

    config: that of peft; by default LoRA of rank 3 with the options `lora`.
    """
    config = config or LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": QV} | lora)
    model = get_peft_model(model, config, adapter_name=name).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    with warnings.catch_warnings():  # peft warns that it saves resized embeddings
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model


def change_config(folder: Path, **entries) -> None:
    """Change entries of an adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
