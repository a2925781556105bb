"""Look at what a config quantizes, without training.

Usage:
    python tools/analyze.py plan CONFIG [--shape 224 224]

prints every layer: quantized or not and why, bits, groups, thresholds, sign
of its input, what it shares its input with, size before and after.
"""
import argparse

from mmengine.config import Config

from gdrq_mm.publish import quantization_of
from gdrq_mm.config import QuantConfig
from gdrq_mm.plan import make_plan
from gdrq_mm.report import QuantReport, trace_layers
from gdrq_mm.scopes import build_model, example_batch, scope_of
from gdrq_mm.state import get_state


def plan(args) -> None:
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    quantization = quantization_of(cfg)
    model = build_model(cfg)
    state = get_state(model)
    plans = state.plans if state else make_plan(
        model, QuantConfig.from_dict(quantization))
    batch = example_batch(scope_of(cfg), tuple(args.shape))
    traces = trace_layers(model, plans, lambda: model.test_step(batch))
    print(QuantReport(plans, traces))


def main() -> None:
    from mmengine.config import DictAction
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('plan', help='dry run of the conversion')
    command.add_argument('config')
    command.add_argument('--shape', type=int, nargs=2, default=(224, 224),
                         metavar=('HEIGHT', 'WIDTH'),
                         help='of the random image (default: 224 224)')
    command.add_argument('--cfg-options', nargs='+', action=DictAction)
    command.set_defaults(run=plan)
    args = parser.parse_args()
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f'analyze: {error}\n')


if __name__ == '__main__':
    main()
