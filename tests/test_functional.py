"""A module called with other tensors: everywhere it holds them, and afterwards with its own again."""

import pytest
import torch
from torch import nn

from ppl_vae.functional import called_with


class Shared(nn.Module):
    """One network under two names, and a weight of it in a third."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.b, self.again = nn.Sequential(self.a), self.norm
        self.c = nn.Linear(2, 2)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.again(self.norm(self.a(x)))))


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_module_with_those_tensors(training):
    torch.manual_seed(0)
    module, other = Shared().train(training), Shared().train(training)
    x, own = torch.randn(5, 2), {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: tensor.clone() for name, tensor in own.items()}
    given = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    given = {name: tensor.detach().clone() for name, tensor in given.items()}
    found = called_with(module, given, x)
    torch.testing.assert_close(found, other(x))
    assert all(torch.equal(tensor, given[name]) for name, tensor in other.named_buffers())
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(after[name] is own[name] for name in own)
    assert all(torch.equal(after[name], before[name]) for name in own)
    assert module.c.weight is module.a.weight
    assert module.b[0] is module.a


def test_some_tensors_are_replaced_and_the_gradient_is_theirs():
    module = Shared().eval()
    weight = torch.eye(2).requires_grad_()
    out = called_with(module, {"a.weight": weight}, torch.ones(3, 2))
    (gradient,) = torch.autograd.grad(out.sum(), [weight])
    assert bool(gradient.any())
