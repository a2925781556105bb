"""Real data: detectors of other kinds on BCCD, by the defaults; one seed.

All begin with the backbone of the classifier but RTMDet, which has its own
and is trained from scratch.
"""
from ..cells import Row, Study
from .common import FAMILIES, STUDIES, add, columns
from .real import DEFAULTS, FIRST_SEED, Task, bits, options

CONFIG = 'tools/experiments/configs/{}_bccd.py'
PAIRS = ((4, 4), (2, 4))
# First and last layers, at 8 bits.
ENDS = dict(
    fcos=('backbone.conv1', 'bbox_head.conv_*'),
    atss=('backbone.conv1', 'bbox_head.atss_*'),
    rtmdet=('backbone.stem.0.conv', 'bbox_head.rtm_*'),
    cascade_rcnn=('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
                  'roi_head.bbox_head.*.fc_*'),
    mask_rcnn=('backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
               'roi_head.bbox_head.fc_*', 'roi_head.mask_head.conv_logits'),
    dino=('backbone.conv1', 'bbox_head.cls_branches.*',
          'bbox_head.reg_branches.*.4'))
EPOCHS = 4
FINETUNE = {
    'train_cfg.max_epochs': EPOCHS,
    'train_cfg.val_interval': EPOCHS,
    'optim_wrapper.optimizer.lr': 3e-4,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=.05, by_epoch=False, begin=0,
             end=50),
        dict(type='CosineAnnealingLR', eta_min=3e-6, begin=0, end=EPOCHS,
             T_max=EPOCHS, by_epoch=True, convert_to_iter_based=True)]}


def detectors_study() -> Study:
    """A row for each: float, and what the defaults lose."""
    rows = []
    for family, ends in ENDS.items():
        task = Task(CONFIG.format(family), 'mAP', ends)
        start = add(f'{family}/start', task.config, shared=True,
                    start=None if family == 'rtmdet' else 'tiny/start')
        floating = add(f'{family}/float', task.config, options=FINETUNE,
                       start=start)
        names = [add(f'{family}/{DEFAULTS.suffix}-{bits(pair)}', task.config,
                     options={**FINETUNE, **options(task, DEFAULTS, pair)},
                     start=start, reference=floating) for pair in PAIRS]
        title = FAMILIES[family].title
        rows += [Row(f'{title}: {task.metric}', [start, floating, *names],
                     'metric'), Row('drop', [None, None, *names])]
    return Study(
        'Detectors on BCCD: GDRQ by its defaults (levels: 15 and 4; first and '
        'last layers at 8 bits)', '',
        ['float start', 'float, fine-tuned alike', *columns(PAIRS)], rows,
        seeds=1, first_seed=FIRST_SEED)


STUDIES['real_detectors'] = detectors_study()
