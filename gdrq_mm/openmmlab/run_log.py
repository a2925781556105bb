"""What GDRQHook writes into the log of a run, apart from figures."""
import logging

from mmengine.logging import print_log
from torch import nn

from .. import kernels
from ..errors import and_more
from ..layers import ProductQuantizers, check_layers_are_there
from ..plan import QuantReport
from ..training import QuantizationState, any_threshold
from ..training.state import uncalled_layers, uncalled_outputs
from .checks import frozen_norms
from .patches import active_patches


def log_patches() -> None:
    """What importing gdrq_mm changed in mmengine, in one entry."""
    changes = active_patches() or ['nothing']
    print_log('GDRQHook: changed in mmengine (GDRQ_MM_PATCHES=off takes it '
              'back): ' + '; '.join(changes), 'current')

ITERATIONS_TO_WAIT = 100  # for a first step: accumulation, AMP overflow


def log_plan(model: nn.Module, state: QuantizationState,
             bn_batches: int) -> None:
    """Before training: what is quantized, by which kernels, frozen norms that
    nothing recalibrates.

    Raises:
        ValueError: The model has lost quantized layers.
    """
    check_layers_are_there(state, model)
    print_log(f'GDRQHook:\n{QuantReport(state.plans)}', 'current')
    device = next(model.parameters()).device.type
    kind, why = kernels.status(device)
    print_log(f'GDRQHook: {kind} kernels on {device} ({why})', 'current')
    frozen = [] if bn_batches else frozen_norms(model)
    if frozen:
        print_log(
            f'GDRQHook: {len(frozen)} normalization layers ({frozen[0]}, '
            '...) keep the statistics of the float model (norm_eval or frozen '
            'stages): they are off for low-bit weights. Set '
            'norm_eval=False and frozen_stages=-1 where the batch allows '
            'it, else bn_batches of the hook.', 'current', logging.WARNING)


def log_first_iteration(state: QuantizationState) -> None:
    """What only data tell: signs, shared inputs, layers not called."""
    report = QuantReport(state.plans)
    signed, shifted = (
        ', '.join(plan.name for plan in report.layers if not plan.child
                  and report.input_of(plan) == kind) or 'none'
        for kind in ('signed', 'zero point'))
    shared = sorted({' = '.join(sorted({plan.name, *same}))
                     for plan in report.layers
                     for same in [report.same_input(plan)] if same})
    print_log(f'GDRQHook: signed inputs: {signed}; with a zero point: '
              f'{shifted}; layers that read the same tensor: '
              f'{"; ".join(shared) or "none"}', 'current')
    _warn_of_rules(state, report)
    reads = [f'{plan.name}: {"; ".join(found)}' for plan in report.layers
             for found in [report.reads_of(plan)] if found]
    if reads:
        print_log(f'GDRQHook: weights used past their layer: '
                  f'{", ".join(reads)}', 'current')
    repeated = [f'{name} ({layer.most_calls} calls)'
                for name, layer in state.layers.items()
                if getattr(layer, 'most_calls', 0) > len(
                    list(layer.quantizers()))]
    if repeated:
        print_log(
            'GDRQHook: ReLUs that a forward of their parent calls more often '
            f'than its source shows places: {", ".join(repeated)}; calls in '
            'a loop share a threshold',
            'current')
    uncalled = uncalled_layers(state)
    if uncalled:
        print_log(
            f'GDRQHook: {len(uncalled)} layers were not called in the first '
            f'iteration, and no forward read their weight: '
            f'{and_more(uncalled)}. Some models use layers in '
            'evaluation only. Code outside of any forward gets the float '
            'weight: if yours has such, add dict(match=..., skip=True) to '
            'the rules.', 'current', logging.WARNING)
    unseen = uncalled_outputs(state)
    if unseen:
        print_log(
            'GDRQHook: residual.outputs names modules that were not called '
            f'in the first iteration: {and_more(unseen)}. If other code '
            'calls their forward directly (mmseg does so with decode '
            'heads), their output is not quantized: name the module '
            'inside whose output it is.', 'current', logging.WARNING)
    _log_products(state)


def _log_products(state: QuantizationState) -> None:
    """Where the products of a forward are not those of the source."""
    layers = {name.rpartition('.')[0]: layer
              for name, layer in state.layers.items()
              if isinstance(layer, ProductQuantizers)}
    repeated = [f'{name} ({layer.most})' for name, layer in layers.items()
                if layer.most > layer.number]
    if repeated:
        print_log(
            'GDRQHook: modules that multiply activations more often than '
            f'their source shows: {", ".join(repeated)}; products in a loop '
            'share thresholds', 'current')
    unseen = [name for name, layer in layers.items() if not layer.called]
    if unseen:
        print_log(
            'GDRQHook: the source of these multiplies activations, and the '
            f'first iteration showed none of it: {and_more(unseen)}. '
            'What code outside of their forward multiplies stays float.',
            'current', logging.WARNING)


def _warn_of_rules(state: QuantizationState, report: QuantReport) -> None:
    """Rules about inputs that another quantizer has in its hands."""
    rules = {plan.name: state.config.rule_of(plan.name)
             for plan in report.layers
             if report.input_of(plan) == 'from a ReLU'}
    idle = [f'{rule.match!r} ({name})' for name, rule in rules.items()
            if rule and rule.activation]
    if idle:
        print_log(
            f'GDRQHook: the activation fields of rules {and_more(idle)} '
            'do nothing: these inputs come from ReLUs that quantize them '
            "(site='relu'). Give the rule of the ReLU these fields.",
            'current', logging.WARNING)


def log_missing_steps(state: QuantizationState, iterations: int,
                      optim_wrapper) -> None:
    """Warn once of an optimizer whose steps are not seen."""
    accumulated = getattr(optim_wrapper, '_accumulative_counts', 1)
    if iterations == max(ITERATIONS_TO_WAIT, 2 * accumulated) \
            and not state.has_stepped:
        print_log(
            f'GDRQHook: no step of a torch.optim optimizer was seen in '
            f'{iterations} iterations, so no weight was projected and no '
            'threshold set. An optimizer that is none of torch.optim must '
            'call gdrq_mm.training.step_(gdrq_mm.training.get_state(model)) '
            'after its own step.', 'current', logging.WARNING)


def log_evaluation(state: QuantizationState) -> None:
    """Before an evaluation: what it is of.

    Raises:
        ValueError: The model has lost quantized layers.
    """
    check_layers_are_there(state)
    if state.phase == 'reshape':
        print_log(
            'GDRQHook: this evaluates the reshaped float model of the first '
            "phase (phase 'reshape'), nothing is rounded: train on, or take "
            'a later checkpoint', 'current', logging.WARNING)
    elif not any_threshold(state):
        print_log(
            'GDRQHook: no activation threshold is set yet: activations stay '
            'float in this evaluation. Load a trained quantized checkpoint, '
            'train, or call gdrq_mm.calibrate.', 'current',
            logging.WARNING)
    else:
        print_log("GDRQHook: this evaluates the quantized model (phase "
                  "'quantize')", 'current')
