"""Codebooks after each step of SVI: online k-means, and other places for codes that nothing is near to."""

import torch

from ppl_vae.codebooks import Averaged, Codebook, perplexity
from ppl_vae.errors import EngineError
from ppl_vae.infer.callbacks import Callback, Metrics, Run
from ppl_vae.infer.online import mixed

__all__ = ["CodebookUpdates"]


class CodebookUpdates(Callback):
    """Moves the codes of a model's codebooks beside the gradient.

    After the first step every code starts at an encoding of that batch. After each other step the codes of a
    `codebooks.Averaged` follow their encodings, by online EM's mixture of statistics and the M-step of k-means. At the
    end of every epoch but the last, codes that were hardly used start anew at encodings of the last batch.

    Parameters
    ----------
    revive : float
        Codes chosen less often in an epoch than this part of the mean over all codes are dead; 0 revives none.

    Attributes
    ----------
    perplexity : list of float
        Of the codes used in each epoch of the last fit, for each codebook in turn; of a resumed fit from there on.

    Raises
    ------
    EngineError
        When the fit begins, if the model has no codebook, or the data do not say how many steps an epoch has.

    References
    ----------
    van den Oord, Vinyals and Kavukcuoglu (2017). Neural discrete representation learning. NeurIPS, appendix A.1.
    Dhariwal et al. (2020). Jukebox: a generative model for music. arXiv:2005.00341, section 3.1, for the revival.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> encoder, decoder = pv.nets.mlp_decoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4)
    >>> vq = pv.models.VQVAE(encoder, decoder, pv.codebooks.Averaged(4, 2), positions=1)
    >>> updates = pv.CodebookUpdates()
    >>> fit = pv.SVI(3, callbacks=[updates], progress=False).fit(vq, torch.randn(64, 4))
    >>> len(updates.perplexity)
    3
    """

    def __init__(self, revive: float = 0.1) -> None:
        if not 0 <= revive < 1:
            raise EngineError(f"CodebookUpdates: revive is a part of the mean use, in [0, 1); got {revive}")
        self.revive = revive
        self.books: list[Codebook] = []
        self.perplexity: list[float] = []

    def set_up(self, run: Run) -> None:
        """Find the codebooks."""
        self.books = [module for module in run.model.modules() if isinstance(module, Codebook)]
        if not self.books:
            raise EngineError(f"{type(run.model).__name__} has no codebook (ppl_vae.codebooks)")
        self.steps, self.perplexity = run.epoch_length("CodebookUpdates"), []

    def end(self, run: Run, step: int, metrics: Metrics) -> None:
        """After a step."""
        for book in self.books:
            batch = run.share.sum(book.take())
            book.used += batch["count"]
            if step == 0:
                self._restart(run, book, torch.ones_like(book.used, dtype=torch.bool))
            elif isinstance(book, Averaged):
                sums = mixed({"codes": book.running}, {"codes": batch}, book.decay, 1 - book.decay)
                book.follow(sums["codes"])
            if (step + 1) % self.steps == 0:
                self._close(run, book, last=step + 1 == run.total)

    def _close(self, run: Run, book: Codebook, last: bool) -> None:
        """The end of an epoch."""
        self.perplexity.append(perplexity(book.used).item())
        dead = book.used < self.revive * book.used.mean()
        if not last:  # the decoder has not seen what a new code stands for
            self._restart(run, book, dead)
        book.used.zero_()

    def _restart(self, run: Run, book: Codebook, dead: torch.Tensor) -> None:
        mine = book.seen[torch.randperm(book.n_codes, device=book.seen.device)]
        book.restart(dead, run.share.same({"codes": mine})["codes"])
