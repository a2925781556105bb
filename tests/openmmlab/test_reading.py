"""Files that cannot be read: one error with name, reason and remedy."""
import copy
import errno
import functools
import http.server
import os
import pickle
import threading

import pytest
import torch
from mmdet import models as mmdet_models
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.optim import OneCycleLR
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmseg import models as mmseg_models
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import CheckpointError, float_weights, pack
from gdrq_mm.openmmlab.reading import read_checkpoint


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


class Hostile:

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


def write_truncated(path):
    torch.save(dict(state_dict=nn.Linear(1, 1).state_dict()), path)
    path.write_bytes(path.read_bytes()[:-10])


def write_code(path):
    torch.save(dict(state_dict=dict(a=Hostile(path.parent / 'ran'))), path)


CUT = 'may be cut off or damaged: remove it, and copy or download it again'
FILES = {
    'truncated': (write_truncated, f'PytorchStreamReader .*{CUT}'),
    'empty': (lambda path: path.write_bytes(b''),
              f'not an intact file of torch.save.*{CUT}'),
    'html': (lambda path: path.write_text('<html>404</html>'),
             f'not an intact file of torch.save.*{CUT}'),
    'code': (write_code, r'asks for \w+.mkdir, .*which was not run.*damaged'),
    'bare pickle with code': (
        lambda path: path.write_bytes(pickle.dumps(Hostile(
            path.parent / 'ran'))), 'not an intact file of torch.save'),
}


@pytest.mark.parametrize('kind', FILES)
def test_it_is_refused_with_name_reason_and_remedy(kind, tmp_path):
    write, message = FILES[kind]
    path = tmp_path / 'bad.pth'
    write(path)
    model = nn.Linear(1, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=message) as error:
        load_checkpoint(model, str(path), map_location='cpu')
    text = str(error.value)
    assert text.startswith(f'{path} cannot be read: ') and '\n' not in text
    assert text.endswith('Nothing was loaded.')
    assert 'weights_only' not in text  # torch's text says: set it to False
    assert error.value.__suppress_context__
    assert not (tmp_path / 'ran').exists()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_file_for_another_machine_is_not_called_damaged(
        zipped, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    path = tmp_path / 'good.pth'
    torch.save(dict(state_dict=nn.Linear(1, 1).state_dict()), path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError, match=(
            'good.pth cannot be read: .*cuda.is_available.. is False.*'
            "map_location=torch.device.'cpu'.*Nothing was loaded.$")) as error:
        load_checkpoint(nn.Linear(1, 1), str(path), map_location='cuda:0')
    assert 'remove' not in str(error.value)


@pytest.mark.parametrize('kind', [KeyError, RuntimeError])
def test_what_fails_with_an_intact_file_is_not_called_its_damage(kind,
                                                                 tmp_path):
    path = tmp_path / 'good.pth'
    torch.save(dict(state_dict=nn.Linear(1, 1).state_dict()), path)

    def fail(storage, location):
        raise kind('no place for it')

    with pytest.raises(RuntimeError, match='no place for it') as error:
        load_checkpoint(nn.Linear(1, 1), str(path), map_location=fail)
    assert 'remove' not in str(error.value)
    path.write_bytes(path.read_bytes().replace(b'PK\1\2', b'PK\1\3', 1))
    with pytest.raises(RuntimeError, match=CUT):
        load_checkpoint(nn.Linear(1, 1), str(path), map_location=fail)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_what_torchs_reader_does_not_know_is_said_without_its_advice(tmp_path):
    path = tmp_path / 'protocol.pth'
    torch.save(dict(state_dict={}), path, pickle_protocol=5)
    with pytest.raises(RuntimeError, match='protocol.pth cannot be read: '
                       r'Unsupported operand \d+. Nothing') as error:
        load_checkpoint(nn.Linear(1, 1), str(path))
    assert 'weights_only' not in str(error.value)


@pytest.mark.parametrize('failure', [
    MemoryError(), torch.cuda.OutOfMemoryError('2 GiB'),
    OSError(errno.EIO, 'Input/output error'), IsADirectoryError(21, 'it is')])
def test_failures_of_the_machine_stay_what_they_are(failure, tmp_path,
                                                    monkeypatch):
    def fail(*args, **kwargs):
        raise failure

    torch.save(dict(state_dict={}), tmp_path / 'good.pth')
    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(type(failure)) as error:
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / 'good.pth'))
    assert error.value is failure


def test_an_absent_file_is_called_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / 'absent.pth'))


def test_whole_files_load_as_before(tmp_path):
    model = nn.Linear(2, 3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'good.pth')
    other = nn.Linear(2, 3)
    load_checkpoint(other, str(tmp_path / 'good.pth'), map_location='cpu')
    assert torch.equal(other.weight, model.weight)


def test_a_checkpoint_that_is_no_dict_is_named(tmp_path):
    torch.save(torch.ones(3), tmp_path / 'tensor.pth')
    with pytest.raises(ValueError, match='tensor.pth .*holds a Tensor'):
        read_checkpoint(str(tmp_path / 'tensor.pth'))


@pytest.fixture
def url(tmp_path, monkeypatch):
    """URL of a server of ``tmp_path``, and an empty cache of torch.hub."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler,
                                directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_code_behind_a_url_is_not_run(url, tmp_path):
    """mmengine's own loader of URLs runs it."""
    write_code(tmp_path / 'bad.pth')
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match='cache.*bad.pth .*asks for'):
        load_checkpoint(model, f'{url}/bad.pth', map_location='cpu')
    assert not (tmp_path / 'ran').exists()


def test_a_url_is_downloaded_once(url, tmp_path):
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'good.pth')
    for _ in range(2):
        load_checkpoint(other, f'{url}/good.pth', map_location='cpu')
        assert torch.equal(other.weight, model.weight)
        (tmp_path / 'good.pth').unlink(missing_ok=True)


def test_an_absent_url_is_an_error_of_the_connection(url):
    with pytest.raises(OSError, match='404'):
        load_checkpoint(nn.Linear(1, 1), f'{url}/absent.pth')


@pytest.mark.parametrize('name, models', [
    ('torchvision://some', 'get_torchvision_models'),
    ('open-mmlab://some', 'get_external_models'),
    ('mmcls://some', 'get_mmcls_models')])
def test_code_behind_a_name_of_a_url_is_not_run(name, models, url, tmp_path,
                                                monkeypatch):
    """mmengine's loaders of names call its own loader of URLs."""
    monkeypatch.setattr(mmengine_checkpoint, models,
                        lambda: dict(some=f'{url}/bad.pth'))
    write_code(tmp_path / 'bad.pth')
    with pytest.raises(RuntimeError, match='cache.*bad.pth .*asks for'):
        load_checkpoint(nn.Linear(1, 1), name, map_location='cpu')
    assert not (tmp_path / 'ran').exists()


def test_damaged_training_checkpoints_do_not_load(tmp_path):
    model = nn.Linear(64, 64)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    content = bytearray(path.read_bytes())
    content[content.index(model.weight.detach().numpy().tobytes()) + 99] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='epoch_1.pth cannot be read: '
                       'the checksum of its part .* is wrong.*damaged'):
        load_checkpoint(nn.Linear(64, 64), str(path))


def test_edited_metadata_of_a_published_file_does_not_load(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2)))
    meta = dict(classes=('a', 'b'), palette={0: [1, 2]}, cfg='x = 1')
    path = str(tmp_path / 'published.pth')
    torch.save(dict(meta=meta, state_dict=pack(model, meta)), path)
    assert read_checkpoint(path)['meta'] == meta
    for changed in (dict(meta, cfg='x = 2'), dict(meta, more=1), {}, None,
                    dict(meta, classes=['a', 'b'])):
        torch.save(dict(meta=changed, state_dict=pack(model, meta)), path)
        with pytest.raises(CheckpointError, match='fit its metadata'):
            read_checkpoint(path)


def test_log_histories_load_after_another_loader_took_them_back(tmp_path):
    """As the forks of mmengine do after each of their loads."""
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(loss=HistoryBuffer([1.], [1])), path)
    for _ in range(2):
        torch.serialization.clear_safe_globals()
        assert read_checkpoint(path)['loss'].mean() == 1


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_the_curve_of_a_one_cycle_schedule_is_no_code(strategy, tmp_path):
    """Its schedule saves the function that it follows."""
    path = str(tmp_path / 'epoch_1.pth')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=.1)
    schedule = OneCycleLR(optimizer, eta_max=1., total_steps=9,
                          anneal_strategy=strategy)
    torch.save(dict(param_schedulers=[schedule.state_dict()]), path)
    saved, = read_checkpoint(path)['param_schedulers']
    assert saved['anneal_func'](1., 3., .5) == pytest.approx(2.)
    schedule.load_state_dict(saved)


class _Other:  # pickled by its name, as what a one cycle schedule follows is

    def __reduce__(self):
        return getattr, (OneCycleLR, 'load_state_dict')


def test_no_other_method_of_a_schedule_may_be_named(tmp_path):
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(param_schedulers=[_Other()]), path)
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_checkpoint(path)


def test_no_fallback_of_mmengines_own_loader_runs_code(tmp_path, monkeypatch):
    """That of the forks is ``weights_only=False`` where True fails."""
    monkeypatch.setattr(
        mmengine_checkpoint, 'load_from_local', lambda filename, **options:
        torch.load(filename, weights_only=False))
    write_code(tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='asks for'):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'ran').exists()


def quantized(bits=2, seed=0):
    torch.manual_seed(seed)
    model = Parts(dict(backbone=nn.Sequential(nn.Linear(4, 4)),
                       head=nn.Linear(4, 2)))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=bits)))
    return model


@pytest.mark.parametrize('packed', [True, False])
def test_init_cfg_loads_a_part_of_the_same_scheme_only(packed, tmp_path):
    source, path = quantized(), str(tmp_path / 'file.pth')
    state_dict = pack(source) if packed else source.state_dict()
    torch.save(dict(state_dict=state_dict), path)
    load = PretrainedInit(path, prefix='backbone', map_location='cpu')
    model = quantized(seed=1)
    head = model['head'].weight.clone()
    load(model['backbone'])
    assert torch.equal(model['backbone'][0].quantized_weight(),
                       source['backbone'][0].quantized_weight())
    assert torch.equal(model['head'].weight, head)
    other = quantized(bits=4, seed=1)
    before = other['backbone'][0].weight.clone()
    with pytest.raises(CheckpointError, match='2 bits.*4 bits'):
        load(other['backbone'])
    assert torch.equal(other['backbone'][0].weight, before)
    with pytest.raises(CheckpointError, match='this model is float'):
        load(nn.Sequential(nn.Linear(4, 4)))
    if packed:
        state_dict['head.weight_quantizer.clip'] += 1  # not even of the part
        torch.save(dict(state_dict=state_dict), path)
        with pytest.raises(CheckpointError, match='hash inside'):
            load(quantized()['backbone'])


@pytest.mark.parametrize('packed', [True, False])
def test_a_float_model_of_mmengine_refuses_quantized_files(packed, tmp_path):
    """mmengine logs unexpected keys, and goes on with random weights."""
    source, path = quantized(), str(tmp_path / 'file.pth')
    torch.save(dict(state_dict=pack(source) if packed else
                    source.state_dict()), path)
    model = Parts(dict(backbone=nn.Sequential(nn.Linear(4, 4)),
                       head=nn.Linear(4, 2)))
    before = model['head'].weight.clone()
    with pytest.raises(CheckpointError, match="this model is float.*type='Q"):
        load_checkpoint(model, path)
    assert torch.equal(model['head'].weight, before)


def swin(package, **kwargs):
    return package.SwinTransformer(
        embed_dims=8, depths=(1, 1), num_heads=(1, 2), strides=(4, 2),
        window_size=4, out_indices=(0, 1), pretrain_img_size=32, **kwargs)


def write_quantized(backbone, path, packed):
    model = Parts(dict(backbone=backbone))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2)))
    torch.save(dict(state_dict=pack(model) if packed else
                    model.state_dict()), path)
    return model


@pytest.mark.parametrize('packed', [False, True], ids=['latent', 'packed'])
@pytest.mark.parametrize('package', [mmdet_models, mmseg_models],
                         ids=['mmdet', 'mmseg'])
def test_float_backbones_that_load_by_themselves_refuse(package, packed,
                                                        tmp_path):
    """They call torch's load_state_dict(strict=False)."""
    path = str(tmp_path / 'a.pth')
    write_quantized(swin(package), path, packed)
    model = swin(package, init_cfg=ConfigDict(
        type='Pretrained', checkpoint=path))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=(
            rf'a.pth is of a quantized model, and {package.__name__}.*swin '
            'loads it into a SwinTransformer that is float.*float_weights')):
        model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_quantized_module_that_loads_by_itself_may(tmp_path, recwarn):

    class LoadsItself(nn.Sequential):

        def load(self, path):
            self.load_state_dict(CheckpointLoader.load_checkpoint(path))

    written, model = (LoadsItself(nn.Linear(4, 4)) for _ in range(2))
    for each in (written, model):
        gdrq_mm.quantize_(each, dict(weight=dict(bits=2)))
    path = str(tmp_path / 'a.pth')
    torch.save(written.state_dict(), path)
    model.load(path)
    assert torch.equal(model[0].weight, written[0].weight)
    assert not [each for each in recwarn if 'by itself' in str(each.message)]


class Distiller(nn.Module):
    """Float but for its student; reads before it is a module, too."""

    def __init__(self, path, quantize):
        first = CheckpointLoader.load_checkpoint(path)
        super().__init__()
        self.student = Parts(dict(backbone=nn.Linear(4, 4)))
        if quantize:
            gdrq_mm.quantize_(self.student, dict(weight=dict(bits=2)))
            self.student.load_state_dict(first['state_dict'])
            self.student.load_state_dict(
                CheckpointLoader.load_checkpoint(path)['state_dict'])
        else:
            self.student.load_state_dict(float_weights(
                CheckpointLoader.load_checkpoint(path)['state_dict']))


@pytest.mark.parametrize('quantize', [True, False])
def test_modules_of_the_users_own_may_read_what_they_know(quantize, tmp_path):
    path = str(tmp_path / 'a.pth')
    written = write_quantized(nn.Linear(4, 4), path, packed=False)
    with pytest.warns(UserWarning, match='by itself') as caught:
        model = Distiller(path, quantize)
    assert len(caught) == (1 if quantize else 2)
    assert torch.equal(model.student['backbone'].weight,
                       written['backbone'].weight)


def test_the_short_form_of_the_loader_warns_as_well(tmp_path):
    path = str(tmp_path / 'a.pth')
    write_quantized(nn.Linear(4, 4), path, packed=False)
    for read in (mmengine_checkpoint._load_checkpoint,
                 CheckpointLoader.load_checkpoint):
        with pytest.warns(UserWarning, match=f'{__name__} loads it by itself'):
            read(path)


def test_what_mmengine_loads_and_float_files_need_no_warning(tmp_path,
                                                             recwarn):
    path = str(tmp_path / 'a.pth')
    model = write_quantized(nn.Linear(4, 4), path, packed=False)
    load_checkpoint(model, path, map_location='cpu')
    read_checkpoint(path)
    for content in (nn.Linear(4, 4).state_dict(), dict(state_dict=None), []):
        torch.save(content, path)
        CheckpointLoader.load_checkpoint(path)
    assert not [each for each in recwarn if 'by itself' in str(each.message)]
