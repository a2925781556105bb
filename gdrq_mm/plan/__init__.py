"""config -> plan: what becomes of every layer, before any change."""
from .outputs import find_outputs
from .plan import LayerPlan, make_plan
from .report import QuantReport
from .trace import LayerTrace, trace_layers

__all__ = ['LayerPlan', 'LayerTrace', 'QuantReport', 'find_outputs',
           'make_plan', 'trace_layers']
