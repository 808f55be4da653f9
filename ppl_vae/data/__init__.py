"""Data: tables, image sets, streams of blocks, and mixtures with a known truth.

The rest of the library takes plain tensors; this room turns files, data frames and image sets into them,
and refuses what is not data with a message that says where the fault is.
"""

from ppl_vae.data.images import DynamicBinary, ImageSet, images
from ppl_vae.data.shipped import faithful, galaxies
from ppl_vae.data.sources import Block, Stream, stream
from ppl_vae.data.synthetic import gaussian_mixture
from ppl_vae.data.tables import Table, from_frame, read_table

__all__ = [
    "Block",
    "DynamicBinary",
    "ImageSet",
    "Stream",
    "Table",
    "faithful",
    "from_frame",
    "galaxies",
    "gaussian_mixture",
    "images",
    "read_table",
    "stream",
]
