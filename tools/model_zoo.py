"""Write metafiles and READMEs of the configs and of the published models.

Usage:
    python tools/model_zoo.py [--check]

``configs/<family>/metafile.yml`` lists what was measured, from the results of
the demo (docs/results/demo.json) and of real data (docs/results/real_*.json);
``configs/<family>/README.md`` is a table of it and of the family's other
configs, which say "config only"; ``model_zoo/README.md`` is one of the models
that tools/publish_zoo.py has published (model_zoo/models.json). ``--check``
writes nothing and fails where a file is not up to date.
"""
import argparse
import json
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Dict

import modelindex
import yaml
from experiments.studies.common import FAMILIES as DATA_SETS
from experiments.studies.real import OTHERS, TASKS
from mmengine.config import Config
from zoo_page import DATA, markdown, zoo_readme

from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.publish import quantization_of

ROOT = Path(__file__).resolve().parents[1]
PAPER = 'Low-bit Quantization Needs Good Distribution'
GENERATED = 'Written by tools/model_zoo.py'


@dataclass(frozen=True)
class Family:
    """One folder of configs.

    Args:
        title (str): Title of the architecture.
        task (str): As OpenMMLab's metafiles name it.
        metric (str): The same.
        demo (str, optional): Its task in the results of the demo.
        data (str, optional): What the demo's dataset is.
        elsewhere (str, optional): Page that has figures of its configs.
    """
    title: str
    task: str
    metric: str
    demo: str = ''
    data: str = ''
    elsewhere: str = ''


FAMILIES = dict(
    faster_rcnn=Family('Faster R-CNN', 'Object Detection', 'mAP', 'det',
                       'drawn stand-in in VOC format'),
    pspnet=Family('PSPNet', 'Semantic Segmentation', 'mIoU', 'seg',
                  'drawn stand-in in Cityscapes format'),
    retinanet=Family('RetinaNet', 'Object Detection', 'mAP', elsewhere=(
        '[deployment](../../docs/deploy/onnxruntime.md#whole-test-sets)')),
    yolox=Family('YOLOX', 'Object Detection', 'mAP', elsewhere=(
        '[comparison](../../docs/comparison.md#behind-silu)')),
    resnet=Family('ResNet', 'Image Classification', 'Top 1 Accuracy', 'cls',
                  'drawn stand-in in ImageNet format'),
    vgg=Family('VGG', 'Image Classification', 'Top 1 Accuracy'))


def metafile(name: str, results: dict, published: list) -> dict:
    """The metafile of a family: a collection, and its measured models.

    Args:
        name (str): Folder of the family.
        results (dict): What the demo measured.
        published (list[dict]): Entries of model_zoo/models.json.
    """
    family = FAMILIES[name]
    collection, models = collection_of(name), []
    measured = results['tasks'].get(family.demo, dict(runs={}))
    for run, values in measured['runs'].items():
        config = measured['configs'][run]
        metadata = {'Training Data': family.data,
                    'Training Resources': measured['device'],
                    'Seeds': len(results['seeds'])}
        if 'bytes' in values:
            metadata['File Size (kB)'] = round(values['bytes'] / 1000)
        metrics = {family.metric: round(values['metric']['mean'], 1)}
        if 'drop' in values:
            metrics['drop'] = round(values['drop']['mean'], 1)
        models.append(dict(
            Name=Path(config).stem, Config=config, Metadata=metadata,
            Results=[dict(Task=family.task, Dataset=family.data,
                          Metrics=metrics)],
            **{'In Collection': collection['Name']}))
    for data_set, task in {**TASKS, **OTHERS}.items():
        if Path(task.config).parent.name == name:
            models += real_models(family, data_set, task, published)
    return dict(Collections=[collection], Models=models)


def real_models(family: Family, data_set: str, task, published: list) -> list:
    """What was measured on real data, in a metafile.

    Args:
        family (Family): That of the configs.
        data_set (str): Key of ``TASKS`` or ``OTHERS``.
        task (Task): Its configs.
        published (list[dict]): Entries of model_zoo/models.json.
    """
    cells = json.loads((ROOT / f'docs/results/real_{data_set}.json'
                        ).read_text())['cells']
    sizes = {each['training_config']: each['bytes'] for each in published}
    floats = cells[f'{data_set}/float']['seeds']
    data = DATA[DATA_SETS[data_set].data].title
    models, defaults = [], f'{data_set}/mse-'
    for kind, cell in (
            ('', f'{data_set}/start'), ('finetune_', f'{data_set}/float'),
            *((f'gdrq-{cell.removeprefix(defaults)}_', cell)
              for cell in cells if cell.startswith(defaults))):
        config, seeds = task.config.format(kind), cells[cell]['seeds']
        metadata = {'Training Data': data, 'Seeds': len(seeds)}
        if config in sizes:
            metadata['File Size (kB)'] = round(sizes[config] / 1000)
        metrics = {family.metric: round(mean(
            each['metric'] for each in seeds.values()), 1)}
        if kind.startswith('gdrq'):
            metrics['drop'] = round(mean(
                floats[seed]['metric'] - each['metric']
                for seed, each in seeds.items()), 1)
        models.append(dict(
            Name=Path(config).stem, Config=config, Metadata=metadata,
            Results=[dict(Task=family.task, Dataset=data, Metrics=metrics)],
            **{'In Collection': f'GDRQ {family.title}'}))
    return models


def collection_of(name: str) -> dict:
    """A family in a metafile."""
    title = FAMILIES[name].title
    return dict(
        Name=f'GDRQ {title}', Metadata=dict(
            Architecture=[title],
            **{'Training Techniques': ['GDRQ', 'Scale-Clip']}),
        Paper=dict(Title=PAPER), README=f'configs/{name}/README.md')


def family_of(published: dict) -> str:
    return Path(published['training_config']).parent.name


def published_model(published: dict) -> dict:
    """A published model in a metafile, but for its files."""
    family = FAMILIES[family_of(published)]
    data = DATA[published['data']].title
    return dict(
        Name=published['name'],
        Metadata={'Training Data': data, 'Seeds': 1,
                  'File Size (kB)': round(published['bytes'] / 1000)},
        Results=[dict(Task=family.task, Dataset=data, Metrics={
            family.metric: round(published['metric'], 1), 'drop': round(
                published['float_metric'] - published['metric'], 1)})],
        **{'In Collection': f'GDRQ {family.title}'})


def zoo_metafile(published: list) -> dict:
    """The metafile of the published files. It stands beside them and in no
    index, since they are not part of an installed package."""
    return dict(
        Collections=[collection_of(name) for name in dict.fromkeys(
            map(family_of, published))],
        Models=[dict(published_model(each),
                     Config=f'model_zoo/{each["config"]}',
                     Weights=f'model_zoo/{each["file"]}')
                for each in published])


def described(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    comment = re.match(r'(?:#.*\n)+', path.read_text())[0]
    text = ' '.join(line.lstrip('# ') for line in comment.splitlines())
    return re.split(r'(?<=[a-z0-9)])[.;] ', text + ' ')[0]


def rows(name: str, models: Dict[str, dict]) -> list:
    """One row a config of a family; what only others inherit has none."""
    table = []
    for path in sorted((ROOT / 'configs' / name).glob('*.py')):
        cfg = Config.fromfile(path)
        scheme = scheme_of(cfg)
        if scheme:
            table.append([f'[{path.stem}](./{path.name})', described(path),
                          scheme, *measured_cells(models.get(path.stem))])
    return table


def scheme_of(cfg: Config) -> str:
    """Bits, group size and levels in words; '' for a base that names no
    bits."""
    try:
        quantization = QuantConfig.from_dict(quantization_of(cfg))
    except ValueError as error:
        if 'quantizes nothing' not in str(error):
            raise
        return 'float'
    weight, activation = quantization.weight, quantization.activation
    if weight.bits is None:
        return ''
    size = 'layer' if weight.group_size == -1 else weight.group_size
    begin = max(hook.get('begin_epoch', 0) for hook in cfg.custom_hooks)
    if begin and begin == cfg.train_cfg.get('max_epochs'):
        return f'float, reshaped, {size}'
    return (f'[{weight.bits},{activation.bits or "float"}], {size}, '
            f'{weight.num_levels()}')


def measured_cells(model) -> list:
    if model is None:
        return ['config only', '']
    result, = model.results
    metrics = ', '.join(f'{key} {value}' for key, value
                        in result.metrics.items())
    size = model.metadata.data.get('File Size (kB)')
    return [f'{metrics} ({result.dataset})', f'{size} kB' if size else '']


def readme(name: str, index: modelindex) -> str:
    """The README of a family, from its metafile and its configs."""
    family = FAMILIES[name]
    models = {model.name: model for model in index.models
              if model.in_collection == f'GDRQ {family.title}'}
    head = ['config', 'what', '[weight, activation] bits, group size, levels '
            'of weights', 'measured', 'file']
    lines = [head, ['---'] * len(head), *rows(name, models)]
    table = markdown(lines)
    return (f'# {family.title}\n\n<!-- {GENERATED}. -->\n\n{table}\n\n'
            'Models on drawn stand-ins are trained by `make demo`, those on '
            'real data by\n`tools/run_experiments.py` '
            '([results](../../docs/results.md); [files](../../model_zoo/'
            'README.md) of one of\nthe seeds); figures are means of the '
            'seeds. Drop: points below the float model that\nwas fine-tuned '
            'alike. "Config only": no figures here' + (
                f', but in {family.elsewhere}.\n' if family.elsewhere
                else '.\n'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--check', action='store_true',
                        help='write nothing, fail where a file is outdated')
    check = parser.parse_args().check
    # Of mmengine, once for every inherited package.
    warnings.filterwarnings('ignore', '.*pkg_resources')
    results = json.loads((ROOT / 'docs/results/demo.json').read_text())
    published = json.loads((ROOT / 'model_zoo/models.json').read_text())
    starts = json.loads((ROOT / 'model_zoo/starts.json').read_text())
    outdated = []

    def write(path, text):
        if path.exists() and path.read_text() == text:
            return
        outdated.append(str(path.relative_to(ROOT)))
        if not check:
            partial = path.with_name(f'{path.name}.part')
            partial.write_text(text)
            os.replace(partial, path)

    for name in FAMILIES:
        write(ROOT / 'configs' / name / 'metafile.yml',
              f'# {GENERATED}.\n' + yaml.safe_dump(
                  metafile(name, results, published), sort_keys=False))
    # Read back, so that the tables show what the metafiles say.
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    for name in FAMILIES:
        write(ROOT / 'configs' / name / 'README.md', readme(name, index))
    write(ROOT / 'model_zoo/README.md', zoo_readme(
        published, list(starts.values()), GENERATED))
    write(ROOT / 'model_zoo/metafile.yml', f'# {GENERATED}.\n' +
          yaml.safe_dump(zoo_metafile(published), sort_keys=False))
    if check and outdated:
        sys.exit(f'model_zoo: outdated: {", ".join(outdated)}; run '
                 'python tools/model_zoo.py')
    print(*outdated or ['nothing to do'], sep='\n')


if __name__ == '__main__':
    main()
