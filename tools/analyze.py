"""Look at what quantization does to a model, and what to do about it.

plan prints every layer: quantized or not and why, bits, groups, thresholds,
sign of its input, what it shares its input with, size before and after.

ends prints the rules that give first and last layers other bits, to paste
into the quantization. The config may be that of the float model.

residuals prints the outputs that integer kernels round to 8 bits (residual
sums and what goes into them), to train with that rounding in place; together
with those that the config names already.

diff prints where two checkpoints, or a checkpoint and the file that was
exported from it, part: the signal-to-quantization-noise ratio of every module.
"diff float CHECKPOINT CONFIG" compares it with its own float weights.

coverage counts the multiply-accumulates that really see low-bit operands in
a forward, those of functional calls and attention products among them.

sensitivity quantizes one layer (or stage) at a time, and all but one, and
prints the metric of the task and the noise of the outputs, the worst first.

policy proposes bits for each layer under a budget of size or bit operations
and prints the rules to paste, beside what the config does.

report writes one page that opens without a network: the plan, histograms of
weights and inputs, trouble and its remedy, training curves, sensitivities.

What takes long to measure is kept in a file (--json): the same command goes
on after an interruption.

examples:
  gdrq plan my_w4a4.py --shape 224 224
  gdrq ends my_float.py --bits 8
  gdrq analyze residuals my_w4a4.py
  gdrq analyze sensitivity my_float.py epoch_12.pth --bits 2 4
  gdrq analyze policy my_w2a4.py epoch_12.pth --budget size=0.08
"""
import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Optional, Sequence

from mmengine.config import Config

from gdrq_mm.analysis import (
    first_and_last,
    residual_outputs,
    shortest_patterns,
)
from gdrq_mm.analysis.coverage import Coverage, measure_coverage
from gdrq_mm.analysis.diff import PARTED
from gdrq_mm.analysis.drawing import check_image
from gdrq_mm.analysis.pictures import (
    plot_coverage,
    plot_diff,
    plot_policy,
    plot_sensitivity,
)
from gdrq_mm.analysis.sensitivity import PARTS, WAYS
from gdrq_mm.analysis.tables import (
    coverage_table,
    diff_table,
    policy_table,
    sensitivity_tables,
)
from gdrq_mm.cli import run_tool
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.diff import diff_checkpoints
from gdrq_mm.openmmlab.policy import WEIGHT_BITS, propose_policy
from gdrq_mm.openmmlab.publish import inference_config, quantization_of
from gdrq_mm.openmmlab.report_page import write_report
from gdrq_mm.openmmlab.scopes import (
    ConfigOptions,
    build_model,
    example_batch,
    image_channels,
    read_config,
    scope_of,
)
from gdrq_mm.openmmlab.sensitivity import measure_sensitivity
from gdrq_mm.plan import QuantReport, make_plan, trace_layers
from gdrq_mm.training import calibrate, get_state
from gdrq_mm.writing import check_new

EXAMPLES = dict(
    plan='plan my_w4a4.py --shape 224 224',
    ends='ends my_float.py --bits 8',
    residuals='residuals my_w4a4.py',
    coverage='coverage my_w4a4.py --shape 224 224',
    diff='diff float.pth w4a4.pth my_w4a4.py',
    policy='policy my_w2a4.py epoch_12.pth --budget size=0.08',
    report='report my_w4a4.py w4a4.pth report.html',
    sensitivity='sensitivity my_float.py epoch_12.pth --bits 2 4')


def plan(args) -> None:
    cfg, model, plans = open_config(args, quantization_of)
    traces = trace_layers(model, plans, prediction(model, cfg, args.shape))
    coverage = coverage_of(args)
    print(QuantReport(plans, traces, coverage.share, coverage.between_share))


def ends(args) -> None:
    # Every layer counts, whatever the config would do to it.
    cfg, model, plans = open_config(
        args, lambda cfg: dict(weight=dict(bits=8)))
    found = first_and_last(model, plans, prediction(model, cfg, args.shape))
    change = 'skip=True' if args.float else (
        f'weight=dict(bits={args.bits}), activation=dict(bits={args.bits})')
    print('rules=[')
    for title, names in (('first', found.first), ('last', found.last)):
        print(f'    # {title}')
        for name in names:
            if title == 'first' or name not in found.first:
                print(f'    dict(match={name!r}, {change}),')
    print(']')
    if found.uncalled:
        print('# not called in a prediction, decide yourself: '
              f'{", ".join(found.uncalled)}')


def residuals(args) -> None:
    from gdrq_mm.deployable import make_deployable  # needs torchvision
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(inference_config(cfg))
    shape = tuple(args.shape)
    image = example_batch(scope_of(cfg), shape, image_channels(cfg))[
        'inputs'][0].view(1, -1, *shape).float()
    deployable = make_deployable(model, raw=args.raw)
    calibrate(model, [lambda: deployable(image)])
    found = residual_outputs(deployable.eval(), image)
    if found.outputs:
        # Beside those of the config, so that the line replaces its line.
        there = [plan.name.rpartition('.')[0]
                 for plan in get_state(model).plans if plan.output]
        print('residual=dict(outputs=[')
        for pattern in shortest_patterns([*there, *found.outputs], model):
            print(f'    {pattern!r},')
        print('])')
    else:
        print('# no output of a module is left to round')
    for name, times in Counter(found.others).items():
        print(f'# {name}: {times} more, which no module returns; these are '
              'rounded when the model is exported')


def coverage_of(args) -> Coverage:
    """What a prediction of a random image shows."""
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(inference_config(cfg))
    predict = prediction(model, cfg, args.shape)
    if get_state(model):
        calibrate(model, [predict])
    return measure_coverage(model, predict)


def coverage(args) -> None:
    found = coverage_of(args)
    print(coverage_table(found, args.all))
    if args.picture:
        plot_coverage(found, args.picture)


def sensitivity(args) -> None:
    measured, figures = measure_sensitivity(
        args.config, args.checkpoint, json_of(args), args.bits, args.by,
        args.batches, args.sides, args.ways, args.layers, args.cfg_options)
    metric = measured.metric
    print(sensitivity_tables(figures, metric, measured.baseline()[metric],
                             args.most))
    if args.picture:
        plot_sensitivity(figures, args.picture)


def policy(args) -> None:
    proposal = propose_policy(
        args.config, args.checkpoint, json_of(args), budgets_of(args.budget),
        args.bits, args.batches, args.measure, args.train, args.cfg_options)
    print(policy_table(proposal))
    if args.picture:
        plot_policy(proposal, args.picture)


def diff(args) -> None:
    found = diff_checkpoints(args.first, args.second, args.config,
                             args.batches, args.cfg_options)
    print(diff_table(found, args.below))
    if args.second.endswith('.onnx') and len(found) > 1 and all(
            each.own.decibels < args.below for each in found):
        print(f'every layer differs by itself: {args.second} may be of '
              f'another checkpoint than {args.first}')
    if args.picture:
        plot_diff(found, args.picture)


def report(args) -> None:
    page = write_report(args.config, args.checkpoint, args.out, args.batches,
                        args.json, args.cfg_options)
    print('\n'.join(page.trouble) or 'no trouble was found')
    print(f'wrote {args.out}')


def at_least(least: int) -> Callable:
    """Reads an integer argument that is not smaller."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f'{text}; give {least} or more')
        return int(text)

    read.__name__ = 'int'  # as argparse calls what is no number
    return read


def budgets_of(texts) -> Optional[dict]:
    """['size=0.1'] -> {'size': 0.1}."""
    budgets = {}
    for text in texts:
        kind, _, ratio = text.partition('=')
        try:
            budgets[kind] = float(ratio)
        except ValueError:
            budgets[kind] = 0.
        if kind not in ('size', 'bops') or not 0 < budgets[kind] <= 1:
            raise ValueError(f'--budget {text!r} is none: give size=RATIO or '
                             'bops=RATIO, above 0 and up to 1, as in '
                             'size=0.08')
    return budgets or None


def json_of(args) -> Path:
    """Where measured figures are kept."""
    path = Path(args.json or Path('work_dirs', 'analysis',
                                  f'{Path(args.checkpoint).stem}_'
                                  f'{Path(args.config).stem}.json'))
    print(f'measured figures are kept in {path}', file=sys.stderr)
    return path


def prediction(model, cfg: Config, shape: Sequence[int]) -> Callable:
    """Calls the model on a random image."""
    channels = image_channels(cfg)
    batch = example_batch(scope_of(cfg), tuple(shape), channels)

    def predict():
        try:
            return model.test_step(batch)
        except Exception as error:  # whatever a model comes up with
            raise RuntimeError(
                f'the model of {cfg.filename} cannot predict a random image '
                f'of {channels} x {shape[0]} x {shape[1]}, try another '
                f'--shape: {type(error).__name__}: {error}') from error

    return predict


def open_config(args, quantization):
    """The config, its model, and what becomes of the layers."""
    cfg = read_config(args.config, args.cfg_options)
    quantization = quantization(cfg)
    model = build_model(cfg)
    state = get_state(model)
    plans = state.plans if state else make_plan(
        model, QuantConfig.from_dict(quantization))
    return cfg, model, plans


def add_command(commands, run, text: str, *before: str
                ) -> argparse.ArgumentParser:
    """A command on a config, which comes after the arguments ``before``."""
    command = commands.add_parser(
        run.__name__, help=text, description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    short = command.prog == f'gdrq {run.__name__}'
    command.epilog = (f'example:\n  gdrq {"" if short else "analyze "}'
                      f'{EXAMPLES[run.__name__]}')
    for name in (*before, 'config'):
        command.add_argument(name)
    command.add_argument('--cfg-options', nargs='+', action=ConfigOptions,
                         help='changes of the config')
    command.set_defaults(run=run)
    return command


def add_shape(command: argparse.ArgumentParser) -> None:
    command.add_argument('--shape', type=at_least(1), nargs=2,
                         default=(224, 224),
                         metavar=('HEIGHT', 'WIDTH'),
                         help='of the random image (default: 224 224)')


def add_measuring(command: argparse.ArgumentParser) -> None:
    """What commands have in common that run a checkpoint on data."""
    command.add_argument('checkpoint', help='of the float model, or trained '
                         'with this config')
    command.add_argument('--batches', type=int, default=8,
                         help='of the validation data (default: 8)')
    command.add_argument('--json', help='where measured figures are kept '
                         '(default: below work_dirs/analysis)')
    command.add_argument('--picture', help='draw them into this file')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for run, text in ((plan, 'dry run of the conversion'),
                      (residuals, 'outputs that are rounded to 8 bits'),
                      (ends, 'rules for first and last layers')):
        command = add_command(commands, run, text)
        add_shape(command)
        if run is residuals:
            command.add_argument(
                '--raw', action='store_true',
                help='of what gdrq export --raw exports')
    change = command.add_mutually_exclusive_group()
    change.add_argument('--bits', type=int, default=8, choices=range(2, 9),
                        help='of these layers, 2 to 8 (default: 8)',
                        metavar='BITS')
    change.add_argument('--float', action='store_true',
                        help='leave these layers float')
    command = add_command(commands, report, 'one page to look at')
    command.add_argument('checkpoint', help='trained with this config')
    command.add_argument('out', metavar='OUT.html')
    command.add_argument('--batches', type=int, default=2,
                         help='of the validation data (default: 2)')
    command.add_argument('--json', help='measured sensitivities to show')
    command = add_command(commands, diff, 'where two models part',
                          'first', 'second')
    command.add_argument('--batches', type=int, default=2,
                         help='of the validation data (default: 2)')
    command.add_argument('--below', type=float, default=PARTED,
                         help='decibels below which layers part (default: '
                         f'{PARTED:.0f})')
    command.add_argument('--picture', help='draw them into this file')
    command = add_command(commands, coverage,
                          'which products see low-bit operands')
    add_shape(command)
    command.add_argument('--all', action='store_true',
                         help='list what is low-bit as well')
    command.add_argument('--picture', help='draw it into this file')
    command = add_command(commands, sensitivity, 'which layers hurt')
    add_measuring(command)
    command.add_argument('--bits', type=int, nargs='+',
                         help='default: 2 4; of a quantized checkpoint, those '
                         'that it was trained with')
    command.add_argument('--by', default='layer', choices=('layer', 'stage'),
                         help='stage: layers that agree in the first two '
                         'parts of their names')
    command.add_argument('--sides', nargs='+', default=['both'],
                         choices=tuple(PARTS), help='what is quantized')
    command.add_argument('--ways', nargs='+', default=list(WAYS),
                         choices=WAYS, help='alone: one at a time; rest: all '
                         'but one (default: both)')
    command.add_argument('--layers', nargs='+', default=(), metavar='NAME',
                         help='measure these layers or stages only')
    command.add_argument('--most', type=at_least(1),
                         help='rows of a table (default: all)')
    command = add_command(commands, policy, 'better bits for each layer')
    add_measuring(command)
    command.add_argument('--budget', nargs='+', default=(),
                         metavar='KIND=RATIO', help='size=RATIO, bops=RATIO '
                         'or both, relative to the float model (default: the '
                         "size of the config's own policy)")
    command.add_argument('--bits', type=int, nargs='+', default=WEIGHT_BITS,
                         help='what layers may have (default: 2 3 4 8)')
    command.add_argument('--measure', action='store_true',
                         help='measure both policies after calibration')
    command.add_argument('--train', metavar='FOLDER', help='train both there '
                         "with the config's schedule, and test them")
    args = parser.parse_args()
    if getattr(args, 'json', None) and Path(args.json).is_dir():
        parser.error(f'--json is {args.json}, a folder; give the name of a '
                     'file')
    if getattr(args, 'picture', None):
        check_image(args.picture)
        check_new(args.picture)
    args.run(args)


if __name__ == '__main__':
    run_tool(main)
