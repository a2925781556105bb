"""What a config measures models by, and on which data."""
from typing import Any, Dict, Iterator, Optional

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

# Ends of the names of metrics; the first one that an evaluator gives counts,
# where the config does not say (``save_best``).
METRICS = ('bbox_mAP', 'mAP', 'mIoU', 'top1', 'PQ')


def metric_name(metrics: Dict[str, float], cfg: Config,
                asked: Optional[str] = None) -> str:
    """The metric that models are compared by.

    Args:
        metrics (dict[str, float]): What the evaluator gives, by name.
        cfg (Config): The config.
        asked (str, optional): Defaults to None: that of ``save_best``, else
            the usual one of the task.

    Raises:
        ValueError: There is no such metric, or none at all.
    """
    if not metrics:
        raise ValueError(
            f'the evaluator of {cfg.filename} gives no number to compare '
            'models by, as for a detector without detections: give a trained '
            'checkpoint')
    for name in (asked, _checkpoint_hook(cfg).get('save_best')):
        if isinstance(name, str) and name in metrics:
            return name
        if asked:
            raise ValueError(f'the evaluator has no metric {asked!r}; it has '
                             f'{", ".join(metrics)}')
    for wanted in METRICS:
        for name in metrics:
            if name.rpartition('/')[2] == wanted:
                return name
    return next(iter(metrics))


def rule_of(metric: str, cfg: Config) -> str:
    """Which of a metric is better, 'greater' or 'less'.

    Raises:
        ValueError: Neither the config nor mmengine says it.
    """
    hook = _checkpoint_hook(cfg)
    if hook.get('save_best') == metric and hook.get('rule'):
        return hook['rule']
    if metric.rpartition('/')[2] in METRICS:
        return 'greater'
    try:
        return CheckpointHook(save_best=metric).rules[0]
    except ValueError:
        raise ValueError(
            f'whether a greater {metric} is better is not known; say it in '
            f'{cfg.filename}: default_hooks=dict(checkpoint=dict('
            f'save_best={metric!r}, rule=...)), with \'greater\' or \'less\''
        ) from None


def _checkpoint_hook(cfg: Config) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def has_evaluator(cfg: Config, split: str) -> bool:
    """Whether a split, 'val' or 'test', has data and metrics. Of a test set
    without labels, evaluators only write what is to be sent in."""
    return bool(
        cfg.get(f'{split}_dataloader') and cfg.get(f'{split}_evaluator')
        and not any(each.get('format_only') for each in typed_parts(
            cfg[f'{split}_evaluator'])))


def with_test(cfg: Config) -> Config:
    """Test where the config says, else where it validates; in place.

    Raises:
        ValueError: It does neither.
    """
    if not has_evaluator(cfg, 'test'):
        if not has_evaluator(cfg, 'val'):
            raise ValueError(
                f'{cfg.filename} has no evaluator, so that models cannot be '
                'compared; give it test_dataloader, test_cfg and '
                'test_evaluator')
        cfg.test_dataloader = cfg.val_dataloader
        cfg.test_evaluator, cfg.test_cfg = cfg.val_evaluator, dict()
    cfg.test_cfg = cfg.get('test_cfg') or dict()
    return cfg


def typed_parts(config: Any) -> Iterator[dict]:
    """What has a type, in a list or in a dict of several."""
    if isinstance(config, dict) and 'type' in config:
        yield config
    elif isinstance(config, (dict, list, tuple)):
        for each in config.values() if isinstance(config, dict) else config:
            yield from typed_parts(each)
