"""Open the models of one task and look: predictions, weights, shares.

A process of its own: the inferencers of the three packages stay apart.
"""
import io
from pathlib import Path

import torch

from gdrq_mm.analysis import ks_to_uniform, plot_weight_distributions
from gdrq_mm.analysis.coverage import measure_coverage
from gdrq_mm.plan import QuantReport, trace_layers
from gdrq_mm.training import get_state

from .pictures import NUM_IMAGES, draw

MIN_WEIGHTS = 1000  # of a layer whose distribution is drawn
NUM_LAYERS = 4


def look(spec):
    """Write the two images of a task.

    Args:
        spec (dict): Task, data folder, the models' files, paths of the
            images.

    Returns:
        dict: Device and figures of each run.
    """
    inferencers = {run: open_inferencer(spec['task'], files)
                   for run, files in spec['runs'].items()}
    images = validation_images(spec['task'], spec['data'])
    columns = {}
    for run, infer in inferencers.items():
        files = spec['runs'][run]
        title = f'{files["label"]}: {files["metric"]:.1f} {spec["metric"]}'
        columns[title] = [infer(image) for image in images]
        print(f'predicted with {files["label"]}', flush=True)
    meta = dict(inferencers['float'].model.dataset_meta)
    draw(spec['task'], images, columns, meta, spec['picture'],
         picture_title(spec))
    print(f'wrote {spec["picture"]}', flush=True)

    reports = {run: report_of(infer, images[0])
               for run, infer in inferencers.items() if run != 'float'}
    results = dict(device=device_name(), runs={})
    states = {run: load_state_dict(files['trained'])
              for run, files in spec['runs'].items()}
    layers = layers_to_draw(list(reports.values())[-1])
    for run, report in reports.items():
        results['runs'][run] = dict(report.totals(), **shares_by_bits(report))
    results['runs']['float'] = dict(bytes=file_size(states['float']))
    for run, state in states.items():
        results['runs'][run]['ks_to_uniform'] = {
            layer: round(ks_to_uniform(state[f'{layer}.weight'], size), 4)
            for layer, size in layers.items()}
    labels = {run: files['label'] for run, files in spec['runs'].items()}
    plot_weight_distributions(
        {f'{labels[run]}, stored weights': {
            layer: state[f'{layer}.weight'] for layer in layers}
         for run, state in states.items()},
        layers, spec['weights'], picture_title(spec))
    print(f'wrote {spec["weights"]}', flush=True)
    return results


def picture_title(spec):
    title = spec['title']
    return f'{title} (--quick: no results)' if spec['quick'] else title


class Inferencer:
    """One image in, one prediction out, by a package's own inferencer.

    Args:
        inferencer: Inferencer of mmdet, mmseg or mmpretrain.
        predict (callable): (inferencer, path) -> prediction.
    """

    def __init__(self, inferencer, predict):
        self.model = inferencer.model
        self._inferencer = inferencer
        self._predict = predict

    def __call__(self, image):
        return self._predict(self._inferencer, str(image))


def open_inferencer(task, files):
    """The package's inferencer on a config and a checkpoint."""
    config, weights = files['model'], files['weights']
    if task == 'det':
        from mmdet.apis import DetInferencer
        inferencer = DetInferencer(config, weights, show_progress=False)
        inferencer.model.dataset_meta.setdefault('palette', None)
        return Inferencer(inferencer, lambda infer, image: infer(
            image)['predictions'][0])
    if task == 'seg':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer(config, weights)
        inferencer.show_progress = False
        return Inferencer(inferencer, lambda infer, image: infer(
            image)['predictions'])
    from mmpretrain import ImageClassificationInferencer
    inferencer = ImageClassificationInferencer(config, pretrained=weights)
    inferencer.model.dataset_meta = dict(classes=inferencer.classes)
    return Inferencer(inferencer, lambda infer, image: infer(image)[0])


def validation_images(task, data):
    """A few images of the validation split, always the same."""
    data = Path(data)
    if task == 'det':
        names = (data / 'VOC2007/ImageSets/Main/test.txt').read_text().split()
        images = [data / f'VOC2007/JPEGImages/{name}.jpg' for name in names]
    elif task == 'seg':
        images = sorted((data / 'leftImg8bit/val').glob('*/*.png'))
    else:
        images = sorted((data / 'val').glob('*/*.png'))
    number = NUM_IMAGES[task]
    # Evenly over the list: classification sorts it by class.
    return [images[i * len(images) // number] for i in range(number)]


def report_of(inferencer, image):
    """What is quantized, with the MACs of one image."""
    plans = get_state(inferencer.model).plans
    traces = trace_layers(inferencer.model, plans, lambda: inferencer(image))
    measured = measure_coverage(inferencer.model, lambda: inferencer(image))
    return QuantReport(plans, traces, measured.share)


def shares_by_bits(report):
    """Shares of weights and MACs by the bits of the weights.

    Returns:
        dict: ``weight_share_by_bits`` and ``mac_share_by_bits``, both with
        keys such as '2', '8' and 'float'.
    """
    weights, macs = {}, {}
    for plan in report.layers:
        weight = plan.parameter
        if weight is None:
            continue
        bits = str(plan.weight.bits) if plan.weight else 'float'
        weights[bits] = weights.get(bits, 0) + weight.numel()
        macs[bits] = macs.get(bits, 0) + report.traces[plan.name].macs
    return {f'{name}_share_by_bits': {
        bits: number / max(sum(numbers.values()), 1)
        for bits, number in numbers.items()}
        for name, numbers in (('weight', weights), ('mac', macs))}


def layers_to_draw(report):
    """Some layers at the lowest bits, first to last -> their group size."""
    plans = [plan for plan in report.layers if plan.weight
             and plan.module.weight.numel() >= MIN_WEIGHTS]
    lowest = min(plan.weight.bits for plan in plans)
    plans = [plan for plan in plans if plan.weight.bits == lowest]
    last = len(plans) - 1
    chosen = sorted({i * last // (NUM_LAYERS - 1) for i in range(NUM_LAYERS)})
    return {plans[i].name: plans[i].weight.group_size for i in chosen}


def load_state_dict(path):
    return torch.load(path, map_location='cpu',
                      weights_only=True)['state_dict']


def file_size(state_dict):
    """Bytes of a published float model: weights without the training."""
    buffer = io.BytesIO()
    torch.save(dict(state_dict=state_dict), buffer)
    return buffer.tell()


def device_name():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
