"""Beginning a training again where memory ran out (`training.auto_find_batch_size`).

The Trainer then calls its loop once more with a smaller batch, on the model and the optimizer as the attempt before
left them. With both put back, the attempt that goes through is the training that the smaller batch alone would have been.
"""

from __future__ import annotations

import torch

from iclm.model.modeling_iclm import ICLMForCausalLM


class Beginning:
    """What a training begins with: its own weights (kept in main memory) and the random number generators' states.

    Args:
        model: whose own state is kept.
        optimizer: the one that was there; None means that the Trainer makes one.
        step: the step that the training begins after.
    """

    def __init__(self, model: ICLMForCausalLM, optimizer: torch.optim.Optimizer | None, step: int) -> None:
        self.optimizer, self.step = optimizer, step
        self._state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.own_state_dict().items()}
        self._random = torch.get_rng_state()
        self._random_on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self, model: ICLMForCausalLM) -> None:
        """Put the model and the generators back."""
        model.load_state_dict(self._state, strict=False)
        torch.set_rng_state(self._random)
        if self._random_on_gpus:
            torch.cuda.set_rng_state_all(self._random_on_gpus)
