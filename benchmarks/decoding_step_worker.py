"""One side of benchmarks.decoding_step: forced beam search by the nmt_ls of another tree, in a process of its own.

    python -m benchmarks.decoding_step_worker TREE JSON

Started from the root of this checkout, so `benchmarks` is today's; `nmt_ls` is that of TREE, so only what every
tree has had since its first beam search is called. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.profiles import take_apart


def measure(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each run after a first one, the ids of the best translations, and a step taken apart.

    asked: preset, vocabulary, arithmetic, beam, sentences, source_length, steps, runs and threads.
    AssertionError where nmt_ls came from elsewhere, or where a translation has another length than asked.
    """
    sys.path.insert(0, str(tree))
    import nmt_ls
    from nmt_ls.search import SearchConfig, beam_search
    from nmt_ls.transformer import Transformer, TransformerConfig
    from nmt_ls.vocabulary import EOS

    assert Path(str(nmt_ls.__file__)).is_relative_to(tree), f"nmt_ls came from {nmt_ls.__file__}, not from {tree}"
    torch.set_num_threads(asked["threads"])
    torch.set_float32_matmul_precision("medium" if asked["arithmetic"] == "medium" else "highest")
    torch.manual_seed(1)
    rows, steps = asked["vocabulary"], asked["steps"]
    config = TransformerConfig(preset=asked["preset"], source_vocabulary=rows, target_vocabulary=rows, norm="post")
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(2)
    # The same weights in every tree, however each draws its own: by the order of their names.
    for _, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
    source_BS = torch.randint(EOS + 2, rows, (asked["sentences"], asked["source_length"]), generator=generator)
    source_BS[:, -1] = EOS
    search = SearchConfig(beam=asked["beam"], min_length=steps, stop="early")
    bf16 = asked["arithmetic"] == "bf16"

    def run() -> list[list[int]]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            stepper = model.start(source_BS, asked["beam"], steps)
            found = beam_search(stepper, max_lengths_B=torch.full((len(source_BS),), steps), config=search)
        return [list(best[0].ids) for best in found]

    translations, seconds = run(), []
    assert {len(ids) for ids in translations} == {steps}, "a translation has another length than asked"
    for _ in range(asked["runs"]):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "translations": translations, "profile": take_apart(run, steps)}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]).resolve(), json.loads(sys.argv[2]))))
