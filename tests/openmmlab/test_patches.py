"""Checkpoints of mmengine load under torch's restricted unpickler."""
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

import gdrq_mm  # noqa: F401, allows what mmengine writes


def test_log_histories_load_with_weights_only(tmp_path):
    history = HistoryBuffer([1., 2., 3.], [1, 1, 1])
    torch.save(dict(loss=history, last=np.float64(3.), seed=np.int64(1)),
               tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['loss'].data[0].tolist() == [1., 2., 3.]
    assert loaded['loss'].mean(2) == 2.5
    assert loaded['last'] == 3. and loaded['seed'] == 1


@pytest.mark.parametrize('written_by', ['numpy.core', 'numpy._core'])
def test_arrays_that_numpy_1_or_2_wrote_load(written_by, tmp_path):
    torch.save(dict(a=np.arange(3.), b=np.float64(2.)), tmp_path / 'new.pth')
    with zipfile.ZipFile(tmp_path / 'new.pth') as new, \
            zipfile.ZipFile(tmp_path / 'old.pth', 'w') as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(
                b'numpy._core', written_by.encode()))
    loaded = torch.load(tmp_path / 'old.pth', weights_only=True)
    assert loaded['a'].tolist() == [0., 1., 2.] and loaded['b'] == 2.


def test_getattr_gives_nothing_but_statistics(tmp_path):

    class Attack:

        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(loss=Attack()), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='do not trust it'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
