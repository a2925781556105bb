"""Which multiply-accumulates see low-bit operands, by module.

Counted in a real forward (:mod:`gdrq_mm.plan.macs`), functional calls,
attention products and code that reads ``layer.weight`` without calling the
layer included.
"""
from dataclasses import dataclass
from typing import Callable, Dict, List, Tuple

import torch
from torch import nn

from ..modes import eval_mode
from ..plan import MacCounter, percent
from .replay import patched_forwards

CONSTANT, ACTIVATIONS = 'a constant', 'activations'


@dataclass
class Row:
    """Products of one module with one operand.

    Args:
        module (str): The innermost module that ran; '' is the model itself.
        operand (str): The Parameter behind an operand, 'a constant', or
            'activations' where both come from the input.
        calls (int): How many products.
        macs (int): Their multiply-accumulates.
        low_bit (int): The part of these with both operands on a grid.
    """
    module: str
    operand: str
    calls: int = 0
    macs: int = 0
    low_bit: int = 0


@dataclass
class Coverage:
    """All products of a forward.

    Args:
        rows (list[Row]): In the order of their first calls.
    """
    rows: List[Row]

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def with_weights(self) -> int:
        """Multiply-accumulates in which one operand is a Parameter or
        comes from one."""
        return sum(row.macs for row in self._weight_rows())

    @property
    def share(self) -> float:
        """Share of those that have two low-bit operands. Products of
        activations with activations are told apart."""
        return sum(row.low_bit for row in self._weight_rows()) / max(
            self.with_weights, 1)

    @property
    def between(self) -> int:
        """Multiply-accumulates of activations with activations."""
        return sum(row.macs for row in self.rows
                   if row.operand == ACTIVATIONS)

    @property
    def low_bit_between(self) -> int:
        """Those of them with two low-bit operands (``products``)."""
        return sum(row.low_bit for row in self.rows
                   if row.operand == ACTIVATIONS)

    @property
    def between_share(self) -> float:
        """Share of those that have two low-bit operands."""
        return self.low_bit_between / max(self.between, 1)

    def _weight_rows(self) -> List[Row]:
        return [row for row in self.rows
                if row.operand not in (CONSTANT, ACTIVATIONS)]

    def summary(self) -> str:
        """One line, with the largest of what is left."""
        total = self.with_weights
        line = (f'{percent(self.share)} of {total / 1e6:.4g} million '
                'multiply-accumulates with weights have two low-bit operands')
        left = sorted((row for row in self._weight_rows()
                       if row.low_bit < row.macs),
                      key=lambda row: row.low_bit - row.macs)
        if left:
            line += '; most of the others: ' + ', '.join(
                f'{row.module or "the model itself"} with {row.operand} '
                f'({(row.macs - row.low_bit) / total:.1%})'
                for row in left[:3])
        if self.macs > total:
            line += (f'; {(self.macs - total) / 1e6:.4g} million more have no '
                     'weight (activations with activations, as in attention)')
        if self.low_bit_between:
            line += (f', {percent(self.between_share)} of '
                     'those of activations with two low-bit operands')
        return line


@torch.no_grad()
def measure_coverage(model: nn.Module, forward: Callable, bits: int = 8
                     ) -> Coverage:
    """Run ``forward`` once and look at the operands of every product.

    Sums of element-wise products are not seen: a correlation written as
    ``(a * b).sum()`` is no product here.

    Args:
        model (nn.Module): A quantized model whose thresholds are set; put in
            eval mode meanwhile. Autocast must be off: it rounds operands.
        forward (callable): Runs the model on a batch.
        bits (int): The most that a low-bit operand has. Defaults to 8.
    """
    counter = MacCounter(model, bits)

    def wrap(name, original):

        def running(*args, **kwargs):
            counter.owners.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                counter.owners.pop()

        return running

    inner = {name: module for name, module in model.named_modules() if name}
    with eval_mode(model), patched_forwards(inner, wrap), counter:
        forward()
    rows: Dict[Tuple[str, str], Row] = {}
    for product in counter.count.products:
        operand = ACTIVATIONS if product.parameter is None else \
            product.parameter or CONSTANT
        key = product.owner or '', operand
        row = rows.setdefault(key, Row(*key))
        row.calls += 1
        row.macs += product.macs
        row.low_bit += product.macs * product.low_bit
    return Coverage(list(rows.values()))
