"""What to do about a warning: rules as data, which see how the fit was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppl_vae.models import VQVAE, DeepLatentVariableModel
from ppl_vae.models.vae import takes_prior
from ppl_vae.posteriors import Diagonal

__all__ = ["RULES", "Mend", "Rule", "Training", "advise", "training_of"]

WEAK = 0.9
"""Weight of the KL term in the end below which it is told as a cause; a warm-up over all epochs ends just below 1."""
LONG = 0.75
"""Part of the epochs that a warm-up of the KL term takes where units are lost without one."""


@dataclass(frozen=True)
class Training:
    """What advice depends on beside the numbers: how the model was trained, and what it has already.

    Attributes
    ----------
    epochs : int
        As set for SVI; 0 where it is not known.
    warm_up : float
        Epochs until beta stood still.
    last_beta : float
        The weight of the KL term in the end.
    free_bits : bool
        Whether the objective had them.
    mixture : bool
        Whether the prior of a drawn latent depends on a finite one: free bits are then of the latent as a whole.
    own_prior : bool
        Whether the prior has parameters, learned or refitted.
    refits : bool
        Whether `refit_prior` takes it.
    codebook : bool
        Whether it is a VQ-VAE, whose KL is the same for every code.
    own_posterior : bool
        Whether a VAE's q is richer than the diagonal one.
    finite : bool
        Whether no latent is drawn.
    """

    epochs: int = 0
    warm_up: float = 0
    last_beta: float = 1.0
    free_bits: bool = False
    mixture: bool = False
    own_prior: bool = False
    refits: bool = False
    codebook: bool = False
    own_posterior: bool = False
    finite: bool = False

    @property
    def long(self) -> int:
        """Epochs of a warm-up that takes most of the training."""
        return max(1, round(LONG * self.epochs))


def training_of(fit: Any, obs: Any) -> Training:
    """What the fit's record and its model say, for data `obs` of the model."""
    model, settings = fit.model, fit.settings
    finite = set(model.finite_latents(obs))
    drawn = [node for node in model.local_nodes() if node.kind == "latent" and node.name not in finite]
    return Training(
        epochs=settings.get("epochs", 0),
        warm_up=settings.get("warm_up", 0),
        last_beta=settings.get("last_beta", 1.0),
        free_bits=bool(settings.get("free_bits", 0.0)),
        mixture=any(finite & {*node.parents} for node in drawn),
        own_prior=isinstance(model, DeepLatentVariableModel) and any(True for _ in model.prior.parameters()),
        refits=takes_prior(model),
        codebook=isinstance(model, VQVAE),
        own_posterior=not isinstance(getattr(model, "posterior_of", Diagonal()), Diagonal),
        finite=not drawn,
    )


@dataclass(frozen=True)
class Mend:
    """What helps a fit of which `when` holds.

    Attributes
    ----------
    said : str
        What to do; {t.long} and its like stand for what the Training has.
    when : callable
        From a Diagnosis, which has the Training as `training`.
    """

    said: str
    when: Callable[[Any], bool] = lambda d: True


@dataclass(frozen=True)
class Rule:
    """Said where the quantity of this name warns.

    Attributes
    ----------
    quantity : str
        The name of a quantity.
    evidence : callable
        From a Diagnosis to the first half of the sentence.
    page : str
        Of the documentation.
    mends : tuple of Mend
        The second half is the first of them that holds; the last one always does.
    """

    quantity: str
    evidence: Callable[[Any], str]
    page: str
    mends: tuple[Mend, ...]


def _inactive(d: Any) -> str:
    active = d.collapse.active
    return f"{int((~active).sum())} of {len(active)} units are inactive (variance of the posterior mean under 0.01)"


def _normal(d: Any) -> bool:
    return d["smallest decoder scale"].value is not None


def _learned_scale(d: Any) -> bool:
    return d["decoder scales at their floor"].value is not None


OPEN = (
    Mend(
        "the data share few codes; callbacks=[pv.CodebookUpdates()] gives codes that nothing uses other values",
        lambda d: d.training.codebook,
    ),
    Mend(
        "the KL term ended at {t.last_beta:g} times its weight in the bound, which turns units off; train with beta=1, "
        "after a warm-up: beta=pv.linear(0, 1, epochs={t.long})",
        lambda d: d.training.last_beta > 1,
    ),
    Mend(
        "let the KL term grow over most of the {t.epochs} epochs, beta=pv.linear(0, {t.last_beta:g}, "
        "epochs={t.long}), so that the decoder learns to read before the code costs; this fit had {t.warm_up:g} epochs "
        "of warm-up",
        lambda d: d.training.warm_up < d.training.long and d.training.epochs > 0 and not d.training.free_bits,
    ),
    Mend("a weaker decoder, or objective=pv.infovae(0.7, 5.0), leaves more to the code", lambda d: d.training.finite),
    Mend(
        "free bits keep units in use, objective=pv.elbo(free_bits=0.2); or take fewer units, if more of them do not "
        "raise the held-out log p(x)",
        lambda d: not (d.training.free_bits or d.training.mixture),
    ),
    Mend(
        "take fewer units, if more of them do not raise the held-out log p(x); else a weaker decoder, or "
        "objective=pv.infovae(0.7, 5.0)",
        lambda d: not d.training.mixture,
    ),
    Mend("take fewer units, if more of them do not raise the held-out log p(x), or a weaker decoder"),
)
"""What keeps the codes informative."""

FILL = (
    Mend("a law of the codes fitted by pv.refit_codes mends it", lambda d: d.training.codebook),
    Mend("the prior is a mixture already; give it more components, or train longer", lambda d: d.training.mixture),
    Mend(
        "the prior learns already and has not reached the codes; pv.refit_prior fits one to them, with more components "
        "if it is refitted already",
        lambda d: d.training.own_prior,
    ),
    Mend(
        "pv.refit_prior moves the prior to the codes; the KL term ended at {t.last_beta:g} times its weight in the "
        "bound, and training with beta=1 keeps codes nearer to the prior",
        lambda d: d.training.last_beta < WEAK and d.training.refits,
    ),
    Mend(
        "a prior refitted with pv.refit_prior, or one that learns (pv.priors.Vamp, pv.priors.Mixture), mends it",
        lambda d: d.training.refits,
    ),
    Mend("a prior that learns, such as pv.families.Categorical, or fewer values mend it", lambda d: d.training.finite),
    Mend("a prior that learns, such as one of pv.priors in the place of a fixed one, mends it"),
)
"""What brings the prior to the codes."""

HOLD = (
    Mend(
        "the KL term ended at {t.last_beta:g} times its weight in the bound; train with beta=1",
        lambda d: d.training.last_beta < WEAK,
    ),
    Mend(
        "the decoder's fixed scale is too small beside its errors, so that the KL term hardly counts; "
        'likelihood="gaussian-optimal" sets it to them',
        lambda d: _normal(d) and not _learned_scale(d),
    ),
    Mend(
        "the decoder's scale is small beside what the codes cost; raise its floor=, or share one scale",
        _learned_scale,
    ),
    Mend("the decoder counts far more than the KL term; more data, a smaller decoder or a prior that learns hold them"),
)
"""What holds the codes to the prior."""


RULES = (
    Rule("active units", _inactive, "collapse", OPEN),
    Rule(
        "mutual information",
        lambda d: f"a code carries at most {d['mutual information, at most'].text} about its datum",
        "collapse",
        OPEN,
    ),
    Rule(
        "KL(q(z) || p), at least",
        lambda d: f"the aggregate posterior is {d['KL(q(z) || p), at least'].text} or more from the prior",
        "prior-hole",
        FILL,
    ),
    Rule(
        "prior in holes",
        lambda d: (
            f"{d['prior in holes'].value:.0%} of the prior's draws land where no datum is encoded, and decode to what "
            "the model never saw"
        ),
        "prior-hole",
        FILL,
    ),
    Rule(
        "variance over the prior's",
        lambda d: f"the codes spread to {d[SPREAD].value:.3g} times the variance of the prior",
        "variance-explosion",
        HOLD,
    ),
    Rule(
        "decoder scales at their floor",
        lambda d: f"{d['decoder scales at their floor'].value:.0%} of the learned decoder scales are at their floor",
        "variance-explosion",
        (Mend("the likelihood would grow without bound; raise floor= or share one scale"),),
    ),
    Rule(
        "smallest decoder scale",
        lambda d: f"the decoder's smallest scale is {d['smallest decoder scale'].value:.2g} of the data's spread",
        "variance-explosion",
        (
            Mend(
                "the likelihood grows without bound where the decoder is exact; raise floor= or share one scale",
                _learned_scale,
            ),
            Mend(
                'the likelihood is that of an all but exact decoder; likelihood="gaussian-optimal" sets the scale to '
                "the decoder's errors"
            ),
        ),
    ),
    Rule(
        "amortisation gap",
        lambda d: f"a q of its own for each datum gains {d['amortisation gap'].text} over the encoder's",
        "diagnose",
        (Mend("a wider encoder, or training it longer than the decoder, mends it"),),
    ),
    Rule(
        "bad Pareto k",
        lambda d: f"for {d['bad Pareto k'].value:.0%} of the data q misses part of the posterior (Pareto k)",
        "diagnose",
        (
            Mend(
                "log p(x) is then too low and its error understated; more draws, or more layers in q, mend it",
                lambda d: d.training.own_posterior,
            ),
            Mend(
                "log p(x) is then too low and its error understated; a richer posterior, such as "
                "pv.posteriors.inverse_autoregressive, or more draws mend it"
            ),
        ),
    ),
    Rule(
        "effective sample size",
        lambda d: f"the importance weights are worth {d['effective sample size'].text}",
        "diagnose",
        (Mend("raise num_particles, and do not rank models by this log p(x)"),),
    ),
    Rule(
        "annealed log p(x)",
        lambda d: f"annealed importance sampling finds log p(x) higher by {d['annealed log p(x)'].text}",
        "diagnose",
        (Mend("draws of q miss part of the posterior; trust the annealed value"),),
    ),
)
"""One for each quantity that can warn, the gravest first."""
SPREAD = "variance over the prior's"


def advise(diagnosis: Any) -> list[str]:
    """The sentences of all rules whose quantity warns."""
    named = diagnosis.quantities
    return [_sentence(rule, diagnosis) for rule in RULES if rule.quantity in named and named[rule.quantity].ok is False]


def _sentence(rule: Rule, diagnosis: Any) -> str:
    mend = next(mend for mend in rule.mends if mend.when(diagnosis))
    return f"{rule.evidence(diagnosis)}: {mend.said.format(t=diagnosis.training)}: see docs/{rule.page}"
