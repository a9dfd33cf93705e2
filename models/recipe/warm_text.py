"""A head start for the text encoder: before the U-Net sees it, teach it to tell what a caption says.

From the state at the end of the caption a linear layer has to read off the background, the objects, their
colours, size and place.  This takes a minute and spares the U-Net the long wait for useful text states.
"""
import random

import torch
import torch.nn.functional as F

from world import BACKGROUNDS, COLOURS, OBJECTS

END = 49407
GROUPS = (("bg", [b.split()[-1] for b in BACKGROUNDS], 1), ("object", OBJECTS, 2), ("colour", tuple(COLOURS), 2),
          ("size", ("small", "big"), 1), ("place", ("left", "right"), 1))


def labels(tokenizer, ids):
    """For each group its first (and second) word's number, 0 for none: a list of [N] tensors."""
    out = []
    for _, words, slots in GROUPS:
        number = {tokenizer.convert_tokens_to_ids(w + "</w>"): i + 1 for i, w in enumerate(words)}
        found = [[number[t] for t in row if t in number] + [0, 0] for row in ids.tolist()]
        out += [torch.tensor([f[s] for f in found]) for s in range(slots)]
    return out


def warm_up(text, tokenizer, ids, steps=600, batch=64, lr=2e-3, seed=0):
    """Train `text` on the captions `ids`; returns the last share of fully right answers."""
    rng = random.Random(seed)
    answers = [len(words) + 1 for _, words, slots in GROUPS for _ in range(slots)]
    heads = torch.nn.ModuleList(torch.nn.Linear(text.config.hidden_size, n) for n in answers)
    optimizer = torch.optim.AdamW([*text.parameters(), *heads.parameters()], lr, weight_decay=0.0)
    wanted, right = labels(tokenizer, ids), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        pick = torch.tensor(rng.choices(range(len(ids)), k=batch))
        rows = ids[pick]
        end = (rows == END).int().argmax(1)
        at = end + torch.tensor([rng.randint(0, 76 - int(e)) for e in end])
        state = text(rows).last_hidden_state[torch.arange(batch), at]
        guesses = [head(state) for head in heads]
        loss = sum(F.cross_entropy(g, w[pick]) for g, w in zip(guesses, wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits = torch.stack([g.argmax(1) == w[pick] for g, w in zip(guesses, wanted)])
        right += .05 * (hits.all(0).float().mean().item() - right)
    return right
