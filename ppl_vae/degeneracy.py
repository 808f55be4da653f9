"""Likelihoods without a bound: components that have shrunk onto a point, a line or a plane of the data."""

from ppl_vae import families
from ppl_vae.fit import Fit

__all__ = ["on_floor"]


def on_floor(fit: Fit) -> list[str]:
    """Members of Normal families whose smallest variance is the floor, while other members' is not.

    Without the floor their likelihood would grow forever: repeated values of one feature are enough, however many data
    they have. Where all members are on the floor it is the data that do not vary, in a constant feature.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = torch.cat([torch.zeros(30), torch.linspace(5, 9, 50)]).double()
    >>> r = torch.nn.functional.one_hot((x > 1).long())
    >>> on_floor(pv.EM(start=r, progress=False).fit(pv.models.GaussianMixture(2, 1), x))
    ['components[0]']
    """
    found = []
    for path, family in fit.model.families().items():
        if isinstance(family, families.Normal):
            covariance = fit.parameters[f"{path}.covariance"]
            smallest = family.form.smallest(covariance, family.reference, family.batch)
            low = smallest <= family.floor * (1 + 1e-6)
            if not bool(low.all()):
                found += [f"{path}[{k}]" for k in low.nonzero().flatten().tolist()]
    return found
