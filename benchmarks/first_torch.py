"""A fresh process with the published code: see `benchmarks.first_answer`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.stopwatch import Stopwatch
from tests import listings


def main(start: str, folder: str, model: str, job: str, steps: str, out: str) -> None:
    """Load the network, compute the answer, and report the seconds of each part."""
    watch = Stopwatch(float(start))
    watch.stop("import")
    net = listings.original(model)
    net.load_state_dict(torch.load(Path(folder, "weights.pth"), weights_only=True))
    with safe_open(Path(folder, "weights.safetensors"), "np") as converted:
        pixels = json.loads(converted.metadata()["preprocessing"])
    module = listings.Normalised(net, pixels["mean"], pixels["std"]).eval().float()
    module = listings.soften(module, skip_functional=False)
    images = np.load(Path(folder, "images.npy"))[:1]
    classes = np.load(Path(folder, "classes.npy"))
    x, c = listings.to_torch(images), int(classes[0])
    watch.stop("load")
    if job == "pullback":
        answer = listings.pullback(module, x, c)
    elif job == "ascent":
        answer = listings.pga(module, x, c, steps=int(steps))
    else:
        cells = x.repeat(len(classes), 1, 1, 1)
        answer = listings.pullback(module, cells, torch.as_tensor(classes))
    array = listings.to_numpy(answer)
    watch.stop("answer")
    np.save(out, array)
    watch.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
