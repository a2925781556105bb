"""Export a trained quantized model to ONNX, check and measure it.

The input is float32 of shape (1, 3, H, W), 0 to 255, channels as the dataset
gives them; normalization is in the file. (hls4ml: normalized, channels last.)

examples:
  gdrq export my_w4a4.py work_dirs/my_w4a4/epoch_2.pth --weights int4 --eval
  gdrq export my_w4a4.py work_dirs/my_w4a4/epoch_2.pth --check openvino
  gdrq export my_w4a4.py work_dirs/my_w4a4/epoch_2.pth --target tensorrt
  gdrq export my_w4a4.py work_dirs/my_w4a4/epoch_2.pth --target finn
  gdrq export my_w4a4.py published.pth --dynamic batch,size --calibration none
"""
import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
import torch
from exporting.arguments import parse_args
from mmengine.registry import DATASETS

import gdrq_mm
from gdrq_mm.cli import run_tool
from gdrq_mm.deploy import align_biases_, export_onnx, to_integer
from gdrq_mm.deployable import (
    evaluate,
    first_images,
    load_model,
    make_deployable,
)
from gdrq_mm.export import QONNX_FORMATS
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.deployable.evaluation import evaluators_of
from gdrq_mm.openmmlab.deployable.folder import images_in
from gdrq_mm.openmmlab.deployable.images import (
    as_input,
    default_size,
    pad_image,
    padding_pixel,
    sizing_transforms,
    with_pipelines,
)
from gdrq_mm.openmmlab.deployable.models import reverses_channels
from gdrq_mm.openmmlab.deployable.synthetic import synthetic_images
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.openmmlab.scopes import scope_of
from gdrq_mm.writing import write_whole


@torch.no_grad()
def export(args: argparse.Namespace) -> dict:
    """Export, print the report, return its figures."""
    out = Path(args.out or f'{args.checkpoint}.{args.format}.onnx')
    paths = [out, *(Path(path) for path in (args.align, args.json) if path)]
    for path in paths:
        if path.exists() or paths.count(path) > 1:
            raise FileExistsError(f'{path} exists or is to be written twice; '
                                  'remove it or give another name')
    cfg, model = load_model(args.config, args.checkpoint, args.cfg_options)
    images, size = _images(args, cfg)
    if args.eval:
        _need_test_set(cfg, size)
    images = [as_input(pad_image(cfg, image, size),
                       getattr(torch, args.input)) for image in images]
    if args.calibration == 'none':
        print('calibrated with synthetic images: compare the metric '
              '(--eval) where there is data')
    trained, model = model, make_deployable(model, raw=args.raw).eval()
    if args.format == 'hls4ml':  # which reverses no channels
        images = [model.prepare(image) for image in images]
        model.prepare.leave_out()
    if args.raw:
        model.output_names = model.names_for(images[0])
    print(f'images: {size[0]} x {size[1]}')
    reference = merged = merge(model, images[0])
    aligned = contextlib.nullcontext()
    if args.align:
        left = align_biases_(model, merged, to_integer(
            merged, images[0], images))
        print(f'biases left as they were: {", ".join(left) or "none"}')
        aligned = write_whole(args.align)
        reference = merged = merge(model, images[0])
    if args.format not in QONNX_FORMATS:
        reference = to_integer(
            merged, images[0], images,
            'int8' if args.format == 'tensorrt' else 'uint8', args.dynamic)
    with aligned as part:  # both files, or none
        if args.align:
            _save(trained, args.checkpoint, part)
        report = export_onnx(
            reference, images[0], out, args.format, weights=args.weights,
            input_names=model.input_names, output_names=model.output_names,
            metadata=_metadata(cfg, args, size, images),
            dynamic=args.dynamic, opset=args.opset)
    import onnxruntime  # not before what says how to install it
    print(report)
    figures = report.figures()
    if args.format == 'qdq':
        figures.update(_speed(args, merged, out, images[0], 'ONNX Runtime'))
        print(f'file: {figures["size"] / figures["float_size"]:.3f} of the '
              f'float export ({figures["float_size"] / 1e6:.3f} MB)')
    if args.check:
        from gdrq_mm.export.openvino_check import check_openvino, open_openvino
        figures[args.check] = check_openvino(out, images[:1])
        print('OpenVINO: {integer_layers} of {layers} layers on integers, '
              'greatest difference of an output from ONNX Runtime\'s '
              '{difference:.2e}'.format(**figures[args.check]))
        figures[args.check].update(_speed(
            args, merged, out, images[0], 'OpenVINO', open_openvino))
    if args.eval:
        figures['metrics'] = _evaluate(args, cfg, model, reference, out, size)
    figures.update(arguments=vars(args), versions=dict(
        gdrq_mm=gdrq_mm.__version__, torch=torch.__version__,
        onnxruntime=onnxruntime.__version__))
    if args.json:
        with write_whole(args.json) as part:
            part.write_text(json.dumps(figures, indent=1) + '\n')
    if args.check and args.eval:
        _compare_metrics(cfg, figures['metrics'])
    return figures


def _speed(args, merged, out: Path, image, runtime: str, open_file=None
           ) -> dict:
    """Time and size against the float export in the same runtime."""
    from gdrq_mm.export.speed import speed_against_float
    figures = speed_against_float(merged, out, image, args.speed_rounds,
                                  open_file=open_file)
    if args.speed_rounds:
        print('time in {}, one thread: {time_ratio:.2f} '
              '({time_ratio_least:.2f} to {time_ratio_greatest:.2f}) of the '
              'float export\'s {float_ms:.2f} ms'.format(runtime, **figures))
    return figures


def _compare_metrics(cfg, metrics: dict) -> None:
    """Raise where OpenVINO's metric is another than ONNX Runtime's, which
    computes the file on integers and in float."""
    from gdrq_mm.export.openvino_check import metrics_apart
    apart = metrics_apart(
        metrics['openvino'],
        [metrics['onnxruntime'], metrics['onnxruntime_unoptimised']],
        percent=scope_of(cfg) != 'mmdet')
    if apart:
        shown = ', '.join(f'{name} by {value:+.2f}'
                          for name, value in apart.items())
        raise RuntimeError(
            'OpenVINO differs from ONNX Runtime, with and without its '
            f'optimisations, by more than 0.2 points: {shown}; the file is '
            'written and holds for ONNX Runtime')


def _images(args, cfg) -> tuple:
    """Images to calibrate with, and the size of the file's."""
    number = args.calibration_images
    if args.calibration == 'none':
        size = tuple(args.shape or default_size(cfg, ()))
        return synthetic_images(cfg, number, size), size
    images = images_in(cfg, args.calibration, number) if args.calibration \
        else _training_images(cfg, number)
    return images, tuple(args.shape or default_size(cfg, images))


def _training_images(cfg, number: int) -> list:
    try:
        return first_images(cfg, number)
    except OSError as error:
        raise OSError(
            f'the training set, which calibrates, cannot be read ({error}): '
            'give a folder of images with --calibration DIR, or take '
            'synthetic ones with --calibration none') from error


def _need_test_set(cfg, size) -> None:
    """Raise where --eval could not begin, before anything is written."""
    try:
        evaluators_of(cfg, ('test', ))
        first_images(cfg, 1, 'test', size)
    except OSError as error:
        raise OSError(
            f'the test set of --eval cannot be read ({error}): say where it '
            'is with --cfg-options test_dataloader.dataset.data_root=DIR, or '
            'leave out --eval') from error


def _metadata(cfg, args, size, images: list) -> dict:
    """What a user of the file must know, and what it was calibrated with."""
    preprocessor = dict(cfg.model.get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {})
    prepared = args.format == 'hls4ml'
    return dict(
        input='float32, as the data preprocessor gives it, channels last'
        if prepared else
        f'{args.input}, 0 to 255, channels as the pipeline of the '
        'dataset gives them; normalization and padding are in the file',
        channel_order=channel_order(preprocessor, prepared),
        data_preprocessor=json.dumps(preprocessor, default=str),
        calibration={None: 'training set', 'none': 'synthetic images'}.get(
            args.calibration, 'folder of images'),
        calibration_images=str(len(images)),
        image_size=f'{size[0]} {size[1]}', raw=str(args.raw),
        pipeline=json.dumps(sizing_transforms(cfg), default=str),
        padding=json.dumps([round(each, 4) for each in padding_pixel(
            cfg, images[0].shape[1]).tolist()]),
        classes=json.dumps(_classes(cfg, args.checkpoint), default=list))


def _classes(cfg, checkpoint: str):
    """Names of the classes: those of the training, else of the test set; None
    where nothing says them."""
    trained = read_checkpoint(checkpoint).get('meta', {}).get(
        'dataset_meta') or {}
    if trained.get('classes') is not None:
        return trained['classes']
    if not cfg.get('test_dataloader'):
        return None
    dataset = with_pipelines(cfg.test_dataloader.dataset)[0]
    kind = dataset.type
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope_of(cfg)) as registry:
            kind = registry.get(kind)
    for names in ((dataset.get('metainfo') or {}).get('classes'),
                  dataset.get('classes'),
                  (getattr(kind, 'METAINFO', None) or {}).get('classes')):
        if names is not None:
            return names
    return None


def channel_order(preprocessor: dict, prepared: bool) -> str:
    """Order of channels of a file's input, 'bgr' or 'rgb'.

    Args:
        preprocessor (dict): Config of the data preprocessor, which reads
            'bgr', as mmcv loads images, unless it turns 'rgb' into that.
        prepared (bool): Whether the file's input is what it gives.
    """
    orders = ['bgr', 'rgb']
    if preprocessor.get('rgb_to_bgr'):
        orders.reverse()
    return orders[prepared and reverses_channels(preprocessor)]


def _save(model: torch.nn.Module, source: str, path: Path) -> None:
    """Write a checkpoint with the meta of another."""
    meta = {key: value for key, value in
            read_checkpoint(source).get('meta', {}).items()
            if not key.startswith('gdrq_format')}  # not packed any more
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)


def _evaluate(args, cfg, model, reference, out: Path, size) -> dict:
    from gdrq_mm.export.onnx_check import run, session
    from gdrq_mm.export.qonnx_check import run_qonnx
    if args.format not in QONNX_FORMATS:
        runner = session(out, optimise=args.format == 'qdq')
        functions = dict(quantized=model, integer=reference,
                         onnxruntime=lambda image: run(runner, [image]))
        if args.check:
            from gdrq_mm.export.openvino_check import open_openvino
            other, plain = open_openvino(out), session(out, optimise=False)
            functions.update(
                openvino=lambda image: other([image]),
                # Its layers compute in float, as some of OpenVINO's do.
                onnxruntime_unoptimised=lambda image: run(plain, [image]))
    else:
        functions = dict(
            quantized=model, merged=reference,
            qonnx=lambda image: [run_qonnx(out, [image])[name]
                                 for name in model.output_names])
    dtype = getattr(torch, args.input)
    metrics = {
        # Of several numbers, such as one a class, there is no difference.
        name: {key: float(value) for key, value in values.items()
               if np.ndim(value) == 0}
        for name, values in evaluate(cfg, {
            name: lambda image, function=function: function(
                as_input(image, dtype))
            for name, function in functions.items()}, size).items()}
    for name, values in metrics.items():
        shown = ', '.join(f'{key} {value:.3f}'
                          for key, value in values.items())
        print(f'{name}: {shown}')
    return metrics


def main() -> None:
    export(parse_args(__doc__))


if __name__ == '__main__':
    run_tool(main)
