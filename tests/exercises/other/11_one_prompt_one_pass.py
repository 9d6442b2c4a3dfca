"""Another solution: the stem's part of the loss is an inner product with the collected gradients."""

import torch


def backward(model, stem, branches, loss, temperature=1.0, max_tokens=16384, calls=None):
    outputs = [x for pair in _run_stem(model, stem, branches, calls) for x in pair]
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in outputs]
    pairs = [leaves[i:i + 2] for i in range(0, len(leaves), 2)]
    for rows, logprobs, entropy in _run_branches(model, pairs, stem, branches, temperature, max_tokens, calls):
        (loss(rows, logprobs, entropy) if rows else 0 * logprobs.sum()).backward()
    total = 0
    for output, leaf in zip(outputs, leaves):
        if output.requires_grad:
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            total = total + (output * gradient).sum()
    if torch.is_tensor(total):
        total.backward()
