"""AdamW, compared with torch's."""

import torch

from neo_peft.kernels.adamw import AdamW


def test_adamw_gives_the_bits_of_torchs_adamw():
    """Parameters of several sizes, without a gradient at some steps, at a rate that changes."""
    shapes = ((7, 5), (3,), (6, 9), ())
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = AdamW([(ours[::2], 0.3), (ours[1::2], 0.0), ([], 0.1)], 0.02)
    groups = [
        {"params": theirs[::2], "weight_decay": 0.3},
        {"params": theirs[1::2], "weight_decay": 0.0},
    ]
    torchs = torch.optim.AdamW(groups, lr=0.02)
    for step in range(40):
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            our.grad = torch.randn(our.shape) * 10.0 ** (step % 7 - 4)
            if (step + index) % 3 == 0 and index:
                our.grad = None
            their.grad = None if our.grad is None else our.grad.clone()
        for adamw in (optimizer, torchs):
            for group in adamw.param_groups:
                group["lr"] = 0.02 * (40 - step) / 40
            adamw.step()
        for our, their in zip(ours, theirs, strict=True):
            assert torch.equal(our, their)
            expected = torchs.state[their]
            assert optimizer.state.get(our, {}).keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(optimizer.state[our][name], value), name
