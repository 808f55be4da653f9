"""Numbers of a model that are not trained but change with the epoch, such as a temperature."""

from ppl_vae.errors import EngineError
from ppl_vae.infer.callbacks import Callback, Run
from ppl_vae.infer.schedules import Schedule, schedule

__all__ = ["BufferSchedules"]


class BufferSchedules(Callback):
    """Before each step of SVI, buffers of the model take the values of their schedules.

    Parameters
    ----------
    **schedules : callable or float
        From the epoch, fractions allowed, to the value of the buffer of that name, such as
        `temperature=linear(1.0, 0.5, epochs=20)`; a number stays as it is.

    Raises
    ------
    EngineError
        For what is neither a function nor a number of at least 0; when the fit begins, if the model has no such
        floating buffer, or the steps of an epoch are not known.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> vae = pv.models.GumbelVAE(pv.nets.mlp_decoder(4, 8, 6), pv.nets.mlp_decoder(6, 8, 4), 2, 3)
    >>> cooling = pv.BufferSchedules(temperature=pv.linear(1.0, 0.5, epochs=2))
    >>> fit = pv.SVI(3, callbacks=[cooling], progress=False).fit(vae, torch.zeros(5, 4))
    >>> fit.model.temperature
    tensor(0.5000)
    """

    def __init__(self, **schedules: float | Schedule) -> None:
        self.schedules = {name: schedule(value, name) for name, value in schedules.items()}

    def set_up(self, run: Run) -> None:
        """Find the buffers."""
        known = {name for name, b in run.model.named_buffers() if b.is_floating_point() and b.dim() == 0}
        unknown = [name for name in self.schedules if name not in known]
        if unknown:
            raise EngineError(
                f"{type(run.model).__name__} has no buffer {unknown[0]!r} of one number: {', '.join(sorted(known))}"
            )
        self.steps = run.epoch_length("BufferSchedules")

    def begin(self, run: Run, step: int) -> None:
        """Before a step."""
        for name, value in self.schedules.items():
            run.model.get_buffer(name).fill_(value(step / self.steps))
