"""State dicts of quantized models: names, checks, packed codes."""
from .gate import add_load_gate, remove_load_gate
from .integrity import digest, open_seal, seal
from .keys import FORMAT, NAME, is_quantizer_entry
from .packing import pack, pack_bits, unpack_bits

__all__ = ['FORMAT', 'NAME', 'add_load_gate', 'digest', 'is_quantizer_entry',
           'open_seal', 'pack', 'pack_bits', 'remove_load_gate', 'seal',
           'unpack_bits']
