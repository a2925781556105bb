"""What was quantized and what was not: rows to read, totals to quote."""
from collections import Counter
from typing import Any, Dict, List, Optional

from torch import nn

from ..functional import num_groups
from ..layers import QuantLayer, QuantReLU, lost_layers
from .layer_plan import LayerPlan
from .sizes import has_codes, packed_bytes
from .trace import LayerTrace

# See QuantLayer.past_reads.
_READS = dict(
    operation='other code reads its weight, and its input there is quantized',
    value='other code computes with its weight, on a float operand')


def percent(share: float) -> str:
    """A share to one digit; '100.0%' is all of it, nothing less.

    Examples:
        >>> percent(.99999), percent(1.)
        ('99.9%', '100.0%')
    """
    text = f'{share:.1%}'
    return '99.9%' if text == '100.0%' and share < 1 else text


class QuantReport:
    """Every layer of a model: quantized or not, and why.

    Args:
        layers (list[LayerPlan]): One per layer.
        traces (dict[str, LayerTrace], optional): From :func:`trace_layers`;
            adds calls, shared inputs, and the sign of inputs before any
            training has shown it.
        mac_share (float, optional): Share of the multiply-accumulates with
            weights that were seen to have two low-bit operands, see
            :func:`gdrq_mm.analysis.measure_coverage`. Defaults to None: it
            was not measured, and is not printed.
        between_share (float, optional): The same of those of activations with
            activations; printed where the config says anything of
            ``products``.
    """

    def __init__(self, layers: List[LayerPlan],
                 traces: Optional[Dict[str, LayerTrace]] = None,
                 mac_share: Optional[float] = None,
                 between_share: Optional[float] = None) -> None:
        self.layers = layers
        self.traces = traces
        self.mac_share = mac_share
        self.between_share = between_share

    @staticmethod
    def bytes_of(plan: LayerPlan) -> tuple:
        """tuple[int, int]: bytes of the weight in float32 and packed."""
        before = 4 * _size(plan)
        return before, before if plan.weight is None else packed_bytes(
            plan.parameter.shape, plan.weight)

    def input_of(self, plan: LayerPlan) -> str:
        """'signed', 'zero point' or 'unsigned', if data has shown it; 'from a
        ReLU' that has quantized it."""
        if self.traces is not None:
            trace = self.traces[plan.name]
            return ('not called' if not trace.calls else
                    '' if plan.products else
                    'signed' if trace.signed else 'unsigned')
        layer = getattr(plan.module, plan.child, None) \
            if plan.child else plan.module
        quantizers = getattr(layer, 'activation_quantizers', tuple)()
        kinds = {'zero point' if each.has_zero_point else
                 'signed' if each.is_signed else 'unsigned'
                 for _, each in quantizers if each.initialized}
        if not kinds and plan.activation:
            return 'from a ReLU' if getattr(layer, 'reads_grid', False) else \
                'not seen yet'
        return next((kind for kind in ('zero point', 'signed', 'unsigned')
                     if kind in kinds), '')

    def same_input(self, plan: LayerPlan) -> List[str]:
        """Names of the layers that read the same tensor, if data has shown
        it."""
        if self.traces is not None:
            return self.traces[plan.name].same_input
        return [] if plan.child else getattr(plan.module, 'same_input', [])

    @staticmethod
    def reads_of(plan: LayerPlan) -> List[str]:
        """How code was seen to use the weight without calling its layer, in
        words."""
        reads = getattr(plan.module, 'past_reads', ())
        return [text for kind, text in _READS.items() if kind in reads]

    def lost(self) -> List[str]:
        """Names of quantized layers that other code has since taken out of
        the model."""
        state = next((plan.module.state for plan in self.layers if isinstance(
            plan.module, (QuantLayer, QuantReLU))), None)
        return [] if state is None else lost_layers(state)

    def learned_parameters(self) -> Dict[str, nn.Parameter]:
        """What an optimizer must hold besides the model's own parameters.

        ``model.parameters()`` has them once the model is converted; an
        optimizer that was built before takes them by
        :func:`gdrq_mm.training.add_learned_parameters`.

        Returns:
            dict[str, Parameter]: By name in the model; empty where no
            quantizer learns.
        """
        return {f'{plan.name}.{name}': parameter for plan in self.layers
                for name, parameter in plan.learned_parameters().items()}

    def totals(self) -> dict:
        """Share of the layers' weights that is quantized, that of MACs where
        it was measured, bytes in all. Tables and Parameters that are no
        layer's weight are left aside; the MACs tell of the latter."""
        weighted = [plan for plan in self.layers if plan.matrices]
        lost = self.lost()
        low_bit = [plan.name for plan in weighted
                   if plan.weight and plan.name not in lost]
        # A weight that layers share is there once.
        weights = [(plan, _size(plan)) for plan in {
            id(plan.parameter if plan.parameter is not None else plan): plan
            for plan in weighted}.values()]
        total = sum(number for _, number in weights)
        sizes = [self.bytes_of(plan) for plan, _ in weights]
        totals = dict(
            layers=len(weighted),
            quantized_layers=len(low_bit),
            weight_share=sum(number for plan, number in weights
                             if plan.name in low_bit) / max(total, 1),
            bytes_before=sum(before for before, _ in sizes),
            bytes_after=sum(after for _, after in sizes))
        if self.mac_share is not None:
            totals['mac_share'] = self.mac_share
        if self.between_share is not None and any(
                plan.products for plan in self.layers):
            totals['between_share'] = self.between_share
        return totals

    def rows(self) -> List[dict]:
        """One dict per layer, with the columns of the printed table."""
        rows = []
        for plan in self.layers:
            before, after = self.bytes_of(plan)
            row: Dict[str, Any] = dict(
                layer=plan.name, type=type(plan.module).__name__)
            row['w bits'] = '' if plan.child else \
                plan.weight.bits if plan.weight else 'float'
            row['w levels'] = plan.weight.num_levels() if plan.weight else ''
            row['a bits'] = plan.activation.bits if plan.activation else \
                'float'
            row['group size'] = plan.weight.group_size if plan.weight else ''
            row['groups'] = num_groups(
                plan.parameter.shape[0],
                plan.weight.group_size) if plan.weight else ''
            row['thresholds'] = plan.sites
            row['input'] = self.input_of(plan)
            if self.traces is not None:
                row['calls'] = self.traces[plan.name].calls
            row['reads the same as'] = ' '.join(self.same_input(plan))
            row['bytes'] = f'{before} -> {after}' if before else ''
            row['why'] = '; '.join(filter(None, (
                plan.reason, *self.reads_of(plan))))
            rows.append(row)
        return rows

    def summary(self) -> str:
        """One line."""
        totals = self.totals()
        line = (f'{totals["quantized_layers"]} of {totals["layers"]} layers '
                f'with {percent(totals["weight_share"])} of all layers\' '
                'weights')
        if 'mac_share' in totals:
            line += f' and {percent(totals["mac_share"])} of the MACs'
            uneven = {plan.weight.type for plan in self.layers
                      if plan.weight and not has_codes(plan.weight)}
            line += f' (levels of {", ".join(sorted(uneven))} are not ' \
                'evenly spaced, and count as float there)' if uneven else ''
        if 'between_share' in totals:
            line += (f' and {percent(totals["between_share"])} of those of '
                     'activations with activations')
        line += (f' are quantized: {totals["bytes_before"] / 1e6:.2f} '
                 f'-> {totals["bytes_after"] / 1e6:.2f} MB of weights')
        lost = self.lost()
        return f'{line}; no longer in the model: {", ".join(lost)}' \
            if lost else line

    def policy(self) -> str:
        """One line: which layers are at which bits, the names of the few.

        What is done to first and last layers stands in it; quote it beside
        every result.
        """
        groups: Dict[str, list] = {}
        for plan in self.layers:
            if not plan.matrices:
                continue
            bits = [scheme.bits if scheme else 'float'
                    for scheme in (plan.weight, plan.activation)]
            name = 'float' if bits == ['float'] * 2 else \
                '[{},{}]'.format(*bits)
            groups.setdefault(name, []).append(plan)

        def share(item):
            return -sum(map(_size, item[1]))

        parts = []
        for index, (name, plans) in enumerate(sorted(groups.items(),
                                                     key=share)):
            names = ', '.join(plan.name for plan in plans[:8])
            more = f' and {len(plans) - 8} more' if len(plans) > 8 else ''
            parts.append(f'{name}: {names}{more}' if index else
                         f'{name}: {len(plans)} layers')
        return '[weight,activation] bits: ' + '; '.join(
            parts + _products(self.layers))

    def __str__(self) -> str:
        rows = [{key: str(value) for key, value in row.items()}
                for row in self.rows()]
        if not rows:
            return 'no layers'
        return '\n'.join(line.rstrip() for line in [
            *_table(rows), self.summary(), self.policy(), *_learned(self)])


def _learned(report: QuantReport) -> List[str]:
    """What is to be known of parameters that quantizers learn."""
    number = len(report.learned_parameters())
    return [f'quantizers learn {number} parameters, which the optimizer must '
            'hold: GDRQHook sees to it; in plain PyTorch build it after '
            'quantize_'] if number else []


def _products(plans: List[LayerPlan]) -> List[str]:
    """Bits of the products of activations, where a plan has any."""
    counts = Counter(plan.activation.bits if plan.activation else 'float'
                     for plan in plans if plan.products)
    return [f'products of activations at {bits}: {number} modules'
            for bits, number in counts.most_common()]


def _table(rows: List[Dict[str, str]]) -> List[str]:
    """Lines of a table, whose columns are the keys."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows))
              for key in rows[0]}
    return ['  '.join(key.ljust(width) for key, width in widths.items()),
            '  '.join('-' * width for width in widths.values()),
            *('  '.join(row[key].ljust(width)
                        for key, width in widths.items()) for row in rows)]


def _size(plan: LayerPlan) -> int:
    return sum(matrix.numel() for matrix in plan.matrices)
