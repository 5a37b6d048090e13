"""AdamW without torch's compiler."""

from __future__ import annotations

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """torch's own, its methods without the wrappers that exempt them from being compiled.

    The wrappers import torch's compiler, which takes as long as torch itself, even where nothing is
    compiled.
    """

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
