"""A training run that survives an interruption: started again, it ends with the bits that it would have ended with.

    python train_resume.py runs/vae      # press Ctrl-C, or kill it, and give the same command again

Without a folder the script does that to itself: it trains once through, once with a Ctrl-C on the way, and compares.
"""

import signal
import sys
import tempfile
from pathlib import Path

import torch

import ppl_vae as pv


def train(folder, epochs, callbacks=()):
    torch.manual_seed(0)  # the networks' start
    digits = pv.data.images("digits", binarize="dynamic")
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 128, 8), pv.nets.mlp_decoder(8, 128, 64), likelihood="bernoulli")
    engine = pv.SVI(
        epochs,
        batch_size=128,
        optimizer=pv.adam(2e-3),
        beta=pv.linear(0, 1, epochs=5),
        validation=digits.validation,
        checkpoint=folder,
        callbacks=callbacks,
    )
    return engine.fit(vae, digits.train)


class CtrlC(pv.Callback):
    """What a user's Ctrl-C does to the program, after a given step."""

    def __init__(self, step):
        self.step = step

    def end(self, run, step, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGINT)


def main(epochs=40):
    with tempfile.TemporaryDirectory() as scratch:
        whole = train(Path(scratch) / "whole", epochs)
        cut = train(Path(scratch) / "cut", epochs, [CtrlC(4 * epochs + 3)])
        print(cut.status)
        assert cut.status.code == "interrupted"
        assert cut.sample(2).shape == (2, 64), "an interrupted fit can be used"
        assert len(cut.trace["bound"]) < len(whole.trace["bound"]) == epochs
        resumed = train(Path(scratch) / "cut", epochs)
    print(resumed)
    assert resumed.status.ok
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "a parameter differs"
    for name in ("bound", "objective", "validation"):
        assert torch.equal(resumed.trace[name], whole.trace[name]), f"the record of {name} differs"
    print("the interrupted run ended with the same bits")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(train(sys.argv[1], epochs=200))
    else:
        main()
