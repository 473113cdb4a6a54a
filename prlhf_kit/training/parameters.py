"""Parameter groups: the users' own rows learn at a rate of their own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from prlhf_kit.conditioning import ATTRIBUTE


def set_users_apart(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, torch.nn.Parameter]],
    slow: Iterable[str],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """`optimizer` with the users' own rows in parameter groups of their own.

    What all users share (`slow`, e_0 for instance) stays with the adapter: it is in every batch, and where users
    disagree its gradient is mostly noise, which Adam would turn into steps of the full, large size.

    Args:
        named: the model's named parameters.
        slow: last parts of the names of the user model's parameters that stay at the adapter's rate.
    """
    table = {
        id(p)
        for name, p in named
        if f"{ATTRIBUTE}." in name and name.rsplit(".", 1)[-1] not in slow and p.requires_grad
    }
    for group in list(optimizer.param_groups):
        users = [p for p in group["params"] if id(p) in table]
        if users:
            group["params"] = [p for p in group["params"] if id(p) not in table]
            options = {k: v for k, v in group.items() if k != "params"}
            optimizer.add_param_group(options | {"params": users, "lr": learning_rate, "weight_decay": weight_decay})
    return optimizer
