"""EM by scikit-learn's rules: reg_covar is added, no component is restarted, and runs end where scikit-learn's do."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae import families, models
from ppl_vae.declare import LatentVariableModel
from ppl_vae.families.family import NOTHING
from ppl_vae.infer.climb import Climb, Run
from ppl_vae.infer.em import EM
from ppl_vae.infer.mstep import Values
from ppl_vae.sklearn.covariance import COVARIANCES

__all__ = ["Chronicle", "Lloyd", "MeanChangeEM", "RegularisedMixture"]


class Regularised(families.Normal):
    """Normal whose covariances are the maximum of the likelihood plus `reg_covar` on the diagonal.

    Variances that float64 cannot tell from zero next to the data's are held at that floor, so that a component on a
    single datum is seen and named, not lost in NaN.
    """

    def __init__(self, n_features: int, batch: int, covariance: str, reg_covar: float) -> None:
        super().__init__(n_features, batch=batch, covariance=covariance, floor=torch.finfo(torch.float64).eps)
        self.reg_covar = reg_covar

    @property
    def collapsed(self) -> bool:
        """Whether a variance is on the floor."""
        smallest = self.form.smallest(self.covariance, self.reference, self.batch)
        return bool((smallest <= 2 * self.floor).any())

    def maximize(self, sums: Any, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Sigma_k + reg_covar I."""
        values = super().maximize(sums, estimate, fixed)
        if "covariance" not in fixed:
            unit = self.form.identity(self.batch, self.n_features, values["covariance"])
            values["covariance"] = values["covariance"] + self.reg_covar * unit
        return values


class RegularisedMixture(models.GaussianMixture):
    """A Gaussian mixture with one of scikit-learn's covariance types and its regularisation."""

    def __init__(self, kind: str, K: int, d: int, reg_covar: float) -> None:
        LatentVariableModel.__init__(self)
        self.mixing = families.Categorical(K)
        self.components = Regularised(d, K, COVARIANCES[kind].form, reg_covar)


class Chronicle:
    """What `verbose` prints, in scikit-learn's words."""

    def __init__(self, verbose: int, interval: int) -> None:
        self.verbose, self.interval = int(verbose), interval
        self.begun = self.last = time.perf_counter()

    def begin(self, number: int) -> None:
        """A new start."""
        self.begun = self.last = time.perf_counter()
        self._say(f"Initialization {number}")

    def step(self, iteration: int, change: float) -> None:
        """An iteration is over."""
        if self.verbose and iteration % self.interval == 0:
            now = time.perf_counter()
            more = f"\t time lapse {now - self.last:.5f}s\t ll change {change:.5f}" if self.verbose > 1 else ""
            self._say(f"  Iteration {iteration}{more}")
            self.last = now

    def end(self, bound: float, converged: bool) -> None:
        """A start has come to its end."""
        lapse = time.perf_counter() - self.begun
        more = f" time lapse {lapse:.5f}s\t lower bound {bound:.5f}." if self.verbose > 1 else ""
        self._say(f"Initialization {'converged' if converged else 'did not converge'}.{more}")

    def _say(self, line: str) -> None:
        if self.verbose:
            sys.stdout.write(line + "\n")


@dataclass(frozen=True)
class MeanChangeEM(EM):
    """EM that ends one M-step after the mean bound of an E-step has changed by less than `tol`.

    Parameters
    ----------
    before : float
        The mean bound before the first E-step, of a warm start.
    chronicle : Chronicle, optional
        Told of every iteration.
    """

    before: float = -math.inf
    chronicle: Chronicle | None = None

    def _climb(self, owner: Any, values: Values, few: Any) -> Climb:
        steps = _Steps(owner, values, few)
        steps.rule = self
        return steps


class _Steps(Climb):
    """One run with scikit-learn's rule to stop."""

    rule: MeanChangeEM

    def _converged(self, run: Run, iteration: int) -> bool:
        # scikit-learn makes an M-step between an E-step and the decision, so the last E-step does not count yet.
        means = [self.rule.before, *(objective / self.total for objective in run.objective[-3:-1])][-2:]
        if iteration == 0:
            return False
        change = means[1] - means[0]
        if self.rule.chronicle is not None:
            self.rule.chronicle.step(iteration, change)
        return abs(change) < self.rule.tol

    def _repaired(self, sums: Any, values: Values, iteration: int) -> tuple[Values, bool]:
        return values, False

    def _judged(self, run: Run) -> Run:
        return run


@dataclass(frozen=True)
class Lloyd(EM):
    """EM that ends when its means move by no more than `shift`, the sum of squares over all of them."""

    shift: float = 0.0

    def _climb(self, owner: Any, values: Values, few: Any) -> Climb:
        moves = _Moves(owner, values, few)
        moves.shift = self.shift
        return moves


class _Moves(Climb):
    """One run that watches its means."""

    shift: float
    before: Tensor | None = None

    def _converged(self, run: Run, iteration: int) -> bool:
        before, self.before = self.before, run.values["components.loc"]
        return before is not None and float((self.before - before).square().sum()) <= self.shift

    def _judged(self, run: Run) -> Run:
        return run
