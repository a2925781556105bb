"""config -> plan: what becomes of every layer, before any change."""
from .layer_plan import LayerPlan
from .macs import MacCount, MacCounter, count_macs
from .outputs import find_outputs
from .plan import make_plan
from .report import QuantReport, percent
from .trace import LayerTrace, trace_layers

__all__ = ['LayerPlan', 'LayerTrace', 'MacCount', 'MacCounter', 'QuantReport',
           'count_macs', 'find_outputs', 'make_plan', 'percent',
           'trace_layers']
