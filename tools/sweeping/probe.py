"""All checks of one family; runs in a process of its own."""
import copy
import json
import os
import time
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional

from .families import candidates, mim_folder

CHECKS = ('float', 'convert', 'float mode', 'train', 'gradients',
          'predict twice', 'reload', 'packed')
TRIES = 3  # configs of a family, where the first ones do not run in float


def probe(package: str, family: str, target: str,
          check: Optional[Callable] = None) -> None:
    """Check a family and write what came out as JSON.

    Args:
        package (str): mmpretrain, mmdet or mmseg.
        family (str): Its folder of configs.
        target (str): Path of the JSON, there whole or not at all.
        check (callable, optional): Defaults to :func:`check_first`.
    """
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    warnings.simplefilter('ignore')
    begin = time.monotonic()
    record = dict(package=package, family=family, checks={})

    def note():
        part = Path(f'{target}.part')
        part.write_text(json.dumps(record, indent=1))
        os.replace(part, target)

    try:
        root = mim_folder(package)
        os.chdir(root)  # configs name others relative to it
        (check or check_first)(record, {
            os.fspath(path.relative_to(root)): partial(_read, path, package)
            for path in candidates(package, family)[:TRIES]}, note)
    except Exception as error:
        record['checks'].setdefault('float', f'{type(error).__name__}: '
                                    f'{error}'[:240])
        record['traceback'] = traceback.format_exc()[-4000:]
    record['seconds'] = round(time.monotonic() - begin, 1)
    record['done'] = True
    note()


def _read(path: Path, package: str):
    from .models import read_config
    return read_config(path, package)


def check_first(record: dict, configs: Dict[str, Callable],
                note: Callable = lambda: None) -> None:
    """Check the first config that runs in float.

    Args:
        record (dict): Has ``checks``, which maps each to 'ok' or to what went
            wrong; all else that was found is added.
        configs (dict[str, callable]): Functions that read one, by name.
        note (callable): Called before every check.
    """
    import torch
    from mmengine.logging import MMLogger

    from . import checks
    torch.set_num_threads(1)
    MMLogger.get_instance('mmengine', log_level='ERROR')

    def check(name, function):
        record['checking'] = name
        note()
        try:
            result = function()
            record['checks'].setdefault(name, 'ok')
            return result
        except checks.Failure as failure:
            record['checks'][name] = str(failure)
        except Exception as error:
            record['checks'][name] = checks.sentence(error)
            record['traceback'] = traceback.format_exc()[-4000:]
        return None

    found = check('float', lambda: _run_float(record, configs))
    if found is None:
        return
    build, batch, training, plain = found
    model = check('convert', lambda: _convert(
        record, plain, batch if training is None else None))
    if model is None:
        return
    check('float mode', lambda: checks.check_float_mode(
        plain, training, batch))
    if training is not None:
        quantized = check('train', lambda: checks.Training(model, batch))
        if quantized is None:
            return
        check('gradients', lambda: checks.check_gradients(
            quantized, training))
    gap = record['float_gap'] = checks.float_gap(build(), training)
    expected = check('predict twice', lambda: checks.check_twice(
        model, batch))
    if expected is None:
        return
    for name, packed in (('reload', False), ('packed', True)):
        check(name, lambda packed=packed: checks.check_reload(
            model, build, batch, expected, gap, packed))
    macs = check('macs', lambda: checks.measure(model, batch))
    if macs is not None:
        record['macs'] = macs


def _convert(record: dict, plain, batch: Optional[Callable]):
    """A quantized copy; what was decided for its layers is recorded. With a
    ``batch`` it is calibrated: that of a model that cannot train."""
    from gdrq_mm import calibrate

    from . import checks
    model = copy.deepcopy(plain)
    report = checks.quantize_(model, checks.QUANTIZATION)
    if checks.get_state(model) is None:
        raise checks.Failure('no layer can be quantized')
    lost = set(plain.state_dict()) - set(model.state_dict())
    if lost:
        raise checks.Failure(f'it lost {len(lost)} entries, '
                             f'{sorted(lost)[0]} for one')
    record['layers'] = [sum(each.quantized for each in report.layers),
                        len(report.layers)]
    record['float_layers'] = dict(Counter(
        each.reason for each in report.layers if not each.quantized))
    if batch is not None:
        calibrate(model, [lambda: checks.predict(model, batch)])
    return model


def _run_float(record: dict, configs: Dict[str, Callable]):
    """The first config and batch that the float model predicts and trains
    with. Where it trains with none, the first that it predicts with, and None
    for its training. Else, what was wrong with the first config at the
    greatest size."""
    from . import checks, models
    failures: Dict[str, Exception] = {}
    predicts: Optional[tuple] = None
    for tried, cfg, plain, batch in _tries(configs, failures):
        record.update(tried)
        model = copy.deepcopy(plain)
        build = partial(models.build, cfg, init=False)
        try:
            checks.predict(model, batch)
        except Exception as error:  # what cannot need not train
            failures[tried['config']] = error
            continue
        try:
            return build, batch, checks.Training(model, batch), plain
        except Exception as error:
            failures[tried['config']] = error
            untrained = dict(tried, untrained=checks.sentence(error))
            predicts = predicts or (untrained, build, batch, plain)
            # What two configs say is of the family, not of a size.
            if untrained['untrained'] == predicts[0]['untrained'] and \
                    tried['config'] != predicts[0]['config']:
                break
    if predicts:
        untrained, build, batch, plain = predicts
        record.update(untrained)
        return build, batch, None, plain
    record['config'], error = next(iter(failures.items()))
    raise error


def _tries(configs: Dict[str, Callable], failures: Dict[str, Exception]
           ) -> Iterator[tuple]:
    """Configs, made for smaller images first where they can be, and batches.

    Args:
        configs (dict[str, callable]): Functions that read one, by name.
        failures (dict[str, Exception]): Why one could not be built is added.

    Yields:
        tuple[dict, Config, nn.Module, callable]: What is tried, for the
        record; config, float model, and a function that makes a batch.
    """
    from . import batches, models
    for name, read in configs.items():
        for small in (True, False):
            try:
                cfg = read()
                shrunk = models.shrink(cfg) if small else ''
                if small and not shrunk:
                    continue
                plain = models.build(cfg)
                found = list(batches.batches(cfg))[:1 if small else None]
            except Exception as error:
                failures[name] = error
                continue
            for reduced, batch in found:
                yield dict(config=name, reduced=reduced, shrunk=shrunk), \
                    cfg, plain, batch
