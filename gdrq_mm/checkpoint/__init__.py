"""State dicts of quantized models: names, checks, packed codes."""
from .container import check_container, open_verified
from .errors import CheckpointError
from .gate import (
    add_load_gate,
    check_whole,
    has_load_gate,
    remove_load_gate,
)
from .integrity import bytes_of, check_meta, digest, open_seal, seal
from .keys import FORMAT, NAME, added_later, read_phase, read_schemes
from .packing import pack, pack_bits, unpack_bits
from .parts import float_weights, part_of

__all__ = ['FORMAT', 'NAME', 'CheckpointError', 'add_load_gate',
           'added_later', 'bytes_of', 'check_container', 'check_meta',
           'check_whole', 'digest', 'float_weights', 'has_load_gate',
           'open_seal', 'open_verified', 'pack', 'pack_bits', 'part_of',
           'read_phase', 'read_schemes', 'remove_load_gate', 'seal',
           'unpack_bits']
