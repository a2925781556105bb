"""All checks of one family; runs in a process of its own."""
import copy
import json
import os
import time
import traceback
import warnings
from pathlib import Path

from .families import candidates, mim_folder

CHECKS = ('float', 'convert', 'float mode', 'train', 'gradients',
          'predict twice', 'reload', 'packed')
TRIES = 3  # configs of a family, where the first ones do not run in float


def probe(package: str, family: str, target: str) -> None:
    """Check a family and write what came out as JSON.

    Args:
        package (str): mmpretrain, mmdet or mmseg.
        family (str): Its folder of configs.
        target (str): Path of the JSON, there whole or not at all.
    """
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    warnings.simplefilter('ignore')
    begin = time.monotonic()
    record = dict(package=package, family=family, checks={})
    _write(record, target)
    try:
        os.chdir(mim_folder(package))  # configs name others relative to it
        _probe(record, target)
    except Exception as error:
        record['checks'].setdefault('float', f'{type(error).__name__}: '
                                    f'{error}'[:240])
        record['traceback'] = traceback.format_exc()[-4000:]
    record['seconds'] = round(time.monotonic() - begin, 1)
    record['done'] = True
    _write(record, target)


def _write(record: dict, target: str) -> None:
    part = Path(f'{target}.part')
    part.write_text(json.dumps(record, indent=1))
    os.replace(part, target)


def _probe(record: dict, target: str) -> None:
    import torch
    from mmengine.logging import MMLogger

    from . import checks
    torch.set_num_threads(1)
    MMLogger.get_instance('mmengine', log_level='ERROR')

    def check(name, function):
        record['checking'] = name
        _write(record, target)
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

    found = check('float', lambda: _run_float(record))
    if found is None:
        return
    build, batch, training, plain = found

    def convert():
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
        reasons = {}
        for each in report.layers:
            if not each.quantized:
                reasons[each.reason] = reasons.get(each.reason, 0) + 1
        record['float_layers'] = reasons
        return model

    model = check('convert', convert)
    if model is None:
        return
    check('float mode', lambda: checks.check_float_mode(plain, batch))
    quantized = check('train', lambda: checks.Training(model, batch))
    if quantized is None:
        return
    check('gradients', lambda: checks.check_gradients(quantized, training))
    strict = checks.loads_strictly(plain)
    expected = check('predict twice', lambda: checks.check_twice(
        model, batch))
    if expected is None:
        return
    record['float_loads_strictly'] = strict
    for name, packed in (('reload', False), ('packed', True)):
        check(name, lambda packed=packed: checks.check_reload(
            model, build, batch, expected, strict, packed))
    macs = check('macs', lambda: checks.measure(model, batch))
    if macs is not None:
        record['macs'] = macs


def _run_float(record: dict):
    """The first config and batch that the float model trains with and
    predicts."""
    from . import checks, models
    failures = []
    for path in candidates(record['package'], record['family'])[:TRIES]:
        try:
            cfg = models.read_config(path)
            plain = models.build(cfg)
        except Exception as error:
            failures.append(error)
            continue
        for reduced, batch in models.batches(cfg):
            try:
                batch()
            except NotImplementedError:
                continue
            except Exception as error:
                failures.append(error)
                continue
            record.update(config=str(path.relative_to(mim_folder(
                record['package']))), reduced=reduced)
            model = copy.deepcopy(plain)
            try:
                training = checks.Training(model, batch)
                checks.predict(model, batch)
            except Exception as error:
                failures.append(error)
                continue
            finally:
                del model
            return lambda: models.build(cfg), batch, training, plain
    raise failures[0]
