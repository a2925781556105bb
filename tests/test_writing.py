"""Files are whole or absent: crashes, full disks, two writers."""
import errno
import os
import signal
import threading

import pytest
import torch

from gdrq_mm.writing import save_whole, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_when_all_of_it_is_written(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    with write_whole(path) as part:
        part.write_text('all')
        assert not path.exists() and part.parent == path.parent
    assert path.read_text() == 'all' and names(path.parent) == ['a.txt']


@pytest.mark.parametrize('overwrite', [True, False])
@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('disk')])
def test_what_was_interrupted_changes_nothing(error, overwrite, tmp_path):
    path = tmp_path / 'a.txt'
    if overwrite:
        path.write_text('old')
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        with write_whole(path, overwrite) as part:
            part.write_text('half')
            raise error
    assert names(tmp_path) == (['a.txt'] if overwrite else [])
    assert not overwrite or path.read_text() == 'old'


@pytest.mark.parametrize('overwrite', [True, False])
def test_a_file_is_on_the_disk_before_its_name_and_then_the_name(
        overwrite, tmp_path, monkeypatch):
    on_disk, fsync = [], os.fsync

    def note(descriptor):
        on_disk.append((os.readlink(f'/proc/self/fd/{descriptor}'),
                        names(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', note)
    with write_whole(tmp_path / 'a.txt', overwrite) as part:
        part.write_text('all')
    (file, before), (folder, after) = on_disk
    assert file == str(part) and before == [part.name]
    assert folder == str(tmp_path) and 'a.txt' in after


def write_half(path, overwrite):
    with write_whole(path, overwrite) as part:
        part.write_text('half')
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('overwrite', [True, False])
def test_a_killed_writer_leaves_the_old_file_or_none(overwrite, tmp_path,
                                                     exit_code):
    path = tmp_path / 'a.txt'
    if overwrite:
        path.write_text('old')
    assert exit_code(write_half, path, overwrite) == -signal.SIGKILL
    assert path.exists() == overwrite
    assert not overwrite or path.read_text() == 'old'
    assert all(name.startswith('.a.txt.') for name in names(tmp_path)
               if name != 'a.txt')


@pytest.mark.parametrize('links', [True, False])
def test_of_two_writers_one_wins_and_the_other_says_so(links, tmp_path,
                                                       monkeypatch):
    """Both began when there was no file of that name."""
    if not links:
        def link(*args):
            raise PermissionError(errno.EPERM, 'no links here')
        monkeypatch.setattr(os, 'link', link)
    path, both, won, refused = tmp_path / 'a', threading.Barrier(8), [], []

    def write(number):
        try:
            with write_whole(path) as part:
                part.write_text(str(number))
                both.wait()
            won.append(number)
        except FileExistsError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(number, ))
               for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and path.read_text() == str(won[0])
    assert refused == 7 * [f'{path} exists; remove it or choose another name']
    assert names(tmp_path) == ['a']


def test_an_existing_name_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(FileExistsError, match='dangling exists'):
        with write_whole(tmp_path / 'dangling'):
            pytest.fail('it went on')
    assert names(tmp_path) == ['dangling']


def test_files_beside_it_are_not_touched(tmp_path):
    for name in ('a.pth.part', '.a.pth.part', 'a.pth.tmp'):
        (tmp_path / name).write_text('mine')
    save_whole(dict(a=1), tmp_path / 'a.pth')
    assert all((tmp_path / name).read_text() == 'mine' for name in (
        'a.pth.part', '.a.pth.part', 'a.pth.tmp'))
    assert torch.load(tmp_path / 'a.pth') == dict(a=1)


def test_overwriting_goes_through_a_link(tmp_path):
    (tmp_path / 'store').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'store' / 'file')
    with write_whole(tmp_path / 'link', overwrite=True) as part:
        part.write_text('new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'store' / 'file').read_text() == 'new'


def test_permissions_are_those_of_other_new_files(tmp_path):
    (tmp_path / 'plain').write_text('')
    save_whole(1, tmp_path / 'whole')
    assert (tmp_path / 'whole').stat().st_mode == (
        tmp_path / 'plain').stat().st_mode


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    real = open

    def full(path, mode='r', *args, **kwargs):
        return real('/dev/full', mode, *args, **kwargs)

    monkeypatch.setattr('builtins.open', full)
    with pytest.raises(OSError, match='a.pth was not written: No space left '
                       'on device. Make room') as error:
        save_whole(torch.zeros(100000), tmp_path / 'a.pth')
    assert error.value.errno == errno.ENOSPC
    assert '\n' not in str(error.value) and names(tmp_path) == []


def test_a_folder_that_may_not_be_written_to_is_one_sentence(tmp_path,
                                                             monkeypatch):
    def closed(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr('builtins.open', closed)
    with pytest.raises(PermissionError, match=(
            'a.pth was not written: Permission denied. Choose a folder')
            ) as error:
        save_whole(torch.zeros(1), tmp_path / 'a.pth')
    assert '.part' not in str(error.value) and names(tmp_path) == []


def test_an_error_of_another_file_is_not_said_to_be_of_this_one(tmp_path):
    other = PermissionError(errno.EACCES, os.strerror(errno.EACCES),
                            str(tmp_path / 'input.pth'))
    with pytest.raises(PermissionError) as error:
        with write_whole(tmp_path / 'out'):
            raise other
    assert error.value is other and names(tmp_path) == []


def test_a_file_inside_of_another_one_is_named(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match='inner was not written') as error:
        with write_whole(tmp_path / 'outer'), write_whole(tmp_path / 'inner'):
            raise full
    assert 'outer' not in str(error.value) and names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    def closed(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES),
                              str(path))

    monkeypatch.setattr(os, 'mkdir', closed)
    with pytest.raises(PermissionError, match=(
            'a.pth was not written: Permission denied. Choose a folder')):
        save_whole(1, tmp_path / 'new' / 'a.pth')


def test_without_links_a_name_that_cannot_be_given_is_free_again(
        tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'link', refuse)
    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(OSError, match='a.pth was not written'):
        save_whole(1, tmp_path / 'a.pth')
    assert names(tmp_path) == []
