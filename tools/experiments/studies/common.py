"""The list of cells and studies, and what their configs have in common."""
from ..cells import Cell, Family

FAMILIES = dict(
    resnet18=Family('ResNet-18, 100 signs', 'cls', 'demo/signs'),
    vgg16bn=Family('VGG-16-BN, 100 signs', 'cls', 'demo/signs'),
    resnet50=Family('ResNet-50, 100 signs', 'cls', 'demo/signs'),
    det=Family('Faster R-CNN, VOC format', 'det', 'demo/VOCdevkit'),
    seg=Family('PSPNet, Cityscapes format', 'seg', 'demo/cityscapes'),
    tiny=Family('ResNet-18, Tiny-ImageNet-100', 'cls', 'tiny-imagenet-100'),
    tiny50=Family('ResNet-50, Tiny-ImageNet-100', 'cls',
                  'tiny-imagenet-100'),
    tinyvgg=Family('VGG-16-BN, Tiny-ImageNet-100', 'cls',
                   'tiny-imagenet-100'),
    bccd=Family('Faster R-CNN, BCCD', 'det', 'bccd'),
    camvid=Family('PSPNet, CamVid', 'seg', 'camvid'),
    fcos=Family('FCOS', 'det', 'bccd'),
    atss=Family('ATSS', 'det', 'bccd'),
    rtmdet=Family('RTMDet', 'det', 'bccd'),
    cascade_rcnn=Family('Cascade R-CNN', 'det', 'bccd'),
    mask_rcnn=Family('Mask R-CNN', 'det', 'bccd'),
    dino=Family('DINO', 'det', 'bccd'))
CELLS, STUDIES = {}, {}
ITERS = 150  # of a fine-tuning on signs


def add(name, config, **fields) -> str:
    assert name not in CELLS, name
    CELLS[name] = Cell(name, config, **fields)
    return name


def finetune(iters=ITERS, lr=2e-3) -> dict:
    """The schedule that follows the training on signs from scratch."""
    return {
        'train_cfg.max_iters': iters,
        'optim_wrapper.optimizer.lr': lr,
        'optim_wrapper.optimizer.weight_decay': .01,
        'param_scheduler': [
            dict(type='LinearLR', start_factor=.05, by_epoch=False, begin=0,
                 end=15),
            dict(type='CosineAnnealingLR', eta_min=lr / 100, begin=15,
                 end=iters, by_epoch=False)]}


def hook(weight, activation=None, rules=(), **arguments) -> dict:
    """The option that quantizes; what is not said is as published."""
    quantization = dict(weight=published(weight, levels='odd'),
                        rules=list(rules))
    if activation:
        quantization['activation'] = published(activation, threshold='mean')
    return dict(custom_hooks=[dict(
        type='GDRQHook', quantization=quantization, **arguments)])


def published(fields, **defaults) -> dict:
    """Fields of a side, with what the package's own defaults have replaced."""
    return {**defaults, **fields} if fields.get(
        'type', 'ScaleClip') == 'ScaleClip' else fields


def at_8_bits(*names) -> list:
    """Rules for first and last layers."""
    # k by the bits of these layers, whatever that of the others is.
    return [dict(match=name, weight=dict(bits=8),
                 activation=dict(bits=8, k=None)) for name in names]


def columns(pairs) -> list:
    return ['[{},{}]'.format(*pair) for pair in pairs]
