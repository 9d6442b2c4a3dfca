"""Another solution: row by row, with numbers of Python."""

import torch


def draw(logits, u, temperature, top_p):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logprobs = torch.log_softmax(logits.to(dtype) / (temperature if temperature else 1.0), dim=-1)
    ids = []
    for row, point in zip(logprobs, u.tolist()):
        mass = row.double().exp().tolist()
        order = sorted(range(len(mass)), key=lambda token: -mass[token])
        if temperature == 0 or row.isnan().any():
            ids.append(int(row.argmax()))
            continue
        kept, before = [], 0.0
        for token in order:
            if top_p >= 1 or before < top_p:
                kept.append(token)
            before += mass[token]
        if top_p >= 1:
            kept.sort()
        total, chosen = sum(mass[token] for token in kept), None
        reached = 0.0
        for token in kept:
            reached += mass[token]
            if reached > point * total and mass[token] > 0:
                chosen = token
                break
        ids.append(chosen if chosen is not None else [token for token in kept if mass[token] > 0][-1])
    ids = torch.tensor(ids, device=logits.device)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]
