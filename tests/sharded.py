"""Run by `torch.distributed.run` on two CPU processes: a conditioned model sharded by FSDP2 gives the loss and the
gradients that it gives whole. Accelerate itself turns FSDP off on CPUs, so what its plugin does is done here by hand.
Then a reward model is trained by the recipe that is named, as `python -m prlhf_kit.training.reward_stages` does.
"""

import os
import runpy
import sys

import torch
import torch.distributed as dist
from conftest import build_tiny
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trl.trainer.utils import add_fused_lm_head

import prlhf_kit as kit
from prlhf_kit.training.prompt_once import DataCollatorForPersonalizedPreference, compute_prompts_once


def conditioned():
    model = build_tiny("llama", 600)
    kit.condition(model, kit.IndividualUserModel(3, model.get_input_embeddings(), 2))
    compute_prompts_once(model)
    add_fused_lm_head(model)
    return model


def loss_of(model, share):
    collate = DataCollatorForPersonalizedPreference(pad_token_id=2, longest=99 if share else 0)
    batch = collate(
        [
            {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10, 11, 12], "user_row": 1},
            {"prompt_ids": [5], "chosen_ids": [13], "rejected_ids": [14, 15], "user_row": 2},
        ]
    )
    mask = batch.pop("completion_mask")
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    chosen, rejected = model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole, sharded = conditioned(), conditioned()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for share in (True, False):
        losses = [loss_of(model, share) for model in (whole, sharded)]
        torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
        for loss in losses:
            loss.backward()
        for (name, p), (_, q) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
            assert type(q).__name__ == "DTensor", name
            if p.grad is not None:
                torch.testing.assert_close(q.grad.full_tensor(), p.grad, atol=1e-6, rtol=1e-5, msg=name)
        whole.zero_grad()
        sharded.zero_grad()
    if dist.get_rank() == 0:
        print("the same", file=sys.stderr)
    runpy.run_module("prlhf_kit.training.reward_stages", run_name="__main__")
    # With torch 2.13, gloo's threads abort about one process in ten that ends in the usual way ("terminate called
    # without an active exception"): all has been compared, so end without destructors.
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
