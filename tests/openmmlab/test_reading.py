"""Files that cannot be read: one error with name, reason and remedy."""
import errno
import functools
import http.server
import os
import pickle
import threading

import pytest
import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner import load_checkpoint
from torch import nn

import gdrq_mm  # noqa: F401, replaces mmengine's loaders
from gdrq_mm.openmmlab.reading import read_checkpoint


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
              f'no intact file of torch.save.*{CUT}'),
    'html': (lambda path: path.write_text('<html>404</html>'),
             f'no intact file of torch.save.*{CUT}'),
    'code': (write_code, r'asks for \w+.mkdir, .*which was not run.*damaged'),
    'bare pickle with code': (
        lambda path: path.write_bytes(pickle.dumps(Hostile(
            path.parent / 'ran'))), 'no intact file of torch.save'),
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
