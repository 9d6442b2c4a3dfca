"""Log-probs and losses over long sequences. Torch only: nothing here knows the rest of the project.

    linear_logprob   log-prob and entropy of target tokens from hidden states, without a whole logits tensor
    grpo_loss        the clipped policy-gradient objective: the one place where the formula stands
"""

from .grpo_loss import grpo_loss
from .logprob import linear_logprob

__all__ = ["grpo_loss", "linear_logprob"]
