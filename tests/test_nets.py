import pytest
import torch
from torch import nn

from ppl_vae import nets
from ppl_vae.errors import DataError

ENCODERS = {
    "mlp": lambda: nets.mlp_encoder(64, 32, 16, 5),
    "mlp, tanh": lambda: nets.mlp_encoder(64, 32, 5, activation=nn.Tanh),
    "no hidden layer": lambda: nets.mlp_encoder(64, 5),
    "conv": lambda: nets.conv_encoder((1, 8, 8), (4, 8), 5),
    "conv, colours": lambda: nets.conv_encoder((4, 4, 4), (6,), 5),
    "linear": lambda: nets.linear_encoder(64, 5),
    "gated": lambda: nets.gated_encoder(64, 16, 8, 5),
    "gated, no hidden layer": lambda: nets.gated_encoder(64, 5),
}
DECODERS = {
    "mlp": lambda: nets.mlp_decoder(5, 16, 32, 64),
    "mlp, tanh": lambda: nets.mlp_decoder(5, 32, 64, activation=nn.Tanh),
    "no hidden layer": lambda: nets.mlp_decoder(5, 64),
    "conv": lambda: nets.conv_decoder(5, (1, 8, 8), (8, 4)),
    "conv, colours": lambda: nets.conv_decoder(5, (4, 4, 4), (6,)),
    "conv, two numbers a pixel": lambda: nets.conv_decoder(5, (1, 8, 4), (8, 4), width=2),
    "linear": lambda: nets.linear_decoder(5, 64),
    "gated": lambda: nets.gated_decoder(5, 8, 16, 64),
    "gated, no hidden layer": lambda: nets.gated_decoder(5, 64),
}


@pytest.mark.parametrize("batch", [(), (7,), (0,), (3, 2, 7)])
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_keep_batch_dimensions(kind, batch):
    encoder = ENCODERS[kind]()
    loc, scale = encoder(torch.rand(*batch, 64))
    assert loc.shape == scale.shape == (*batch, 5)
    assert (encoder.input_size, encoder.output_size) == (64, 5)
    assert bool((scale > 0).all())


@pytest.mark.parametrize("batch", [(), (7,), (0,), (3, 2, 7)])
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_keep_batch_dimensions(kind, batch):
    decoder = DECODERS[kind]()
    assert decoder(torch.randn(*batch, 5)).shape == (*batch, 64)
    assert (decoder.input_size, decoder.output_size) == (5, 64)


@pytest.mark.parametrize("make", [*ENCODERS.values(), *DECODERS.values()])
def test_gradients_reach_every_parameter_and_rows_do_not_mix(make):
    torch.manual_seed(0)
    net = make()
    x = torch.randn(4, 6, net.input_size)
    out = net(x)
    tensors = out if isinstance(out, tuple) else (out,)
    sum((tensor**2).sum() for tensor in tensors).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name
    alone = net(x[1, 2])
    for whole, part in zip(tensors, alone if isinstance(alone, tuple) else (alone,), strict=True):
        torch.testing.assert_close(whole[1, 2], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [*ENCODERS.values(), *DECODERS.values()])
def test_the_seed_at_construction_decides(make):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(make().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("size", [1e-30, 1e6, 1e30])
def test_extreme_inputs_give_a_finite_positive_scale(kind, size):
    torch.manual_seed(0)
    encoder = ENCODERS[kind]()
    _, scale = encoder(size * torch.randn(20, 64))
    assert bool(scale.isfinite().all())
    assert bool((scale >= 9e-4).all())
    assert bool((scale <= 1.1e3).all())
    scale.log().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


def test_the_scale_is_exp_in_the_middle_and_never_flat():
    u = torch.tensor([-50.0, -0.1, 0.0, 0.1, 50.0], dtype=torch.float64, requires_grad=True)
    log_scale = nets.loc_and_scale(torch.cat([torch.zeros_like(u), u]))[1].log()
    torch.testing.assert_close(log_scale[1:4], u[1:4], atol=1e-4, rtol=0)
    log_scale.sum().backward()
    assert bool((u.grad > 5e-3).all())


def test_default_image_sizes():
    loc, scale = nets.conv_encoder()(torch.rand(2, 784))
    assert loc.shape == scale.shape == (2, 20)
    assert nets.conv_decoder(20)(loc).shape == (2, 784)


def test_the_linear_pair_is_linear():
    decoder, encoder = nets.linear_decoder(2, 5), nets.linear_encoder(5, 2)
    z = torch.randn(3, 2)
    torch.testing.assert_close(decoder(z), z @ decoder.weight.T + decoder.bias)
    loc, scale = encoder(decoder(z))
    torch.testing.assert_close(loc, decoder(z) @ encoder.loc.weight.T + encoder.loc.bias)
    assert torch.equal(scale, torch.ones(3, 2))


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"\(784,\) were given"):
        nets.mlp_encoder(784)
    with pytest.raises(ValueError, match="whole numbers"):
        nets.mlp_decoder(20, 0, 784)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\) and 3 layers .*divisible by 8"):
        nets.conv_encoder((1, 28, 28), (8, 16, 32))
    with pytest.raises(ValueError, match="divisible by 2"):
        nets.conv_decoder(2, (1, 7, 8), (8,))
    with pytest.raises(ValueError, match="whole numbers"):
        nets.conv_encoder((1, 8, 8), (8,), 0)
    with pytest.raises(DataError, match=r"MLPEncoder takes \[\.\.\., 784\]; \[5, 28, 28\] was given. Flatten"):
        nets.mlp_encoder(784, 20)(torch.rand(5, 28, 28))


def test_a_gated_layer_is_its_formula():
    torch.manual_seed(1)
    layer, x = nets.Gated(4, 3), torch.randn(5, 4)
    W, b, V, c = layer.value.weight, layer.value.bias, layer.gate.weight, layer.gate.bias
    expected = (x @ W.T + b) / (1 + torch.exp(-(x @ V.T + c)))
    torch.testing.assert_close(layer(x), expected)


def test_gated_weights_start_with_variance_two_over_their_inputs():
    torch.manual_seed(0)
    net = nets.gated_decoder(40, 300, 300, 784)
    matrices = [p for p in net.parameters() if p.dim() == 2]
    assert [tuple(m.shape) for m in matrices] == [(300, 40)] * 2 + [(300, 300)] * 2 + [(784, 300)]
    for m in matrices:
        z = m.detach() * (m.shape[1] / 2) ** 0.5
        assert abs(z.mean().item()) < 4 / m.numel() ** 0.5
        assert z.var().item() == pytest.approx(1.0, abs=4 * (2 / m.numel()) ** 0.5)


def test_a_gated_encoder_cuts_its_log_variance_off():
    torch.manual_seed(0)
    encoder = nets.gated_encoder(3, 4, 2, log_variance=(-1, 0.5))
    scale = encoder(1e3 * torch.randn(200, 3))[1]
    assert scale.log().min().item() == pytest.approx(-0.5)
    assert scale.log().max().item() == pytest.approx(0.25)
    raw = encoder.raw(encoder.hidden(torch.zeros(3)))
    loc, inside = encoder(torch.zeros(3))
    torch.testing.assert_close(inside, torch.exp(raw.clamp(-1, 0.5) / 2))
    torch.testing.assert_close(loc, encoder.loc(encoder.hidden(torch.zeros(3))))


@pytest.mark.parametrize("wrong", [(2, -6), (0, 0), (float("-inf"), 2.0)])
def test_an_interval_of_log_variances_must_be_one(wrong):
    with pytest.raises(ValueError, match="log_variance"):
        nets.gated_encoder(3, 2, log_variance=wrong)
