"""Encoders and decoders: plain modules, tensors in, tensors or tuples of tensors out.

Every module has `input_size` and `output_size`: the width of what it takes and of what it gives. An encoder's
`output_size` and a decoder's `input_size` are the dimension of the latent space.
"""

from ppl_vae.nets.conv import ConvDecoder, ConvEncoder, conv_decoder, conv_encoder
from ppl_vae.nets.gated import Gated, GatedDecoder, GatedEncoder, gated_decoder, gated_encoder
from ppl_vae.nets.heads import loc_and_scale, loc_and_tril, raw_of_tril
from ppl_vae.nets.linear import LinearDecoder, LinearEncoder, linear_decoder, linear_encoder
from ppl_vae.nets.mlp import MLPDecoder, MLPEncoder, mlp_decoder, mlp_encoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Gated",
    "GatedDecoder",
    "GatedEncoder",
    "LinearDecoder",
    "LinearEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "conv_decoder",
    "conv_encoder",
    "gated_decoder",
    "gated_encoder",
    "linear_decoder",
    "linear_encoder",
    "loc_and_scale",
    "loc_and_tril",
    "mlp_decoder",
    "mlp_encoder",
    "raw_of_tril",
]
