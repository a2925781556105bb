"""Checkpoint files that cannot be read: one error that says what is wrong.

torch names neither the file nor a remedy, and for a file with code in it
suggests ``weights_only=False``, which would run it.
"""
import pickle
import re

from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner import CheckpointLoader


def explain_unreadable_files() -> None:
    """Let all that loads local files by mmengine's loader say what is wrong:
    ``load_from``, ``--resume``, the test tools, the inferencers."""
    CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True)


def load_from_local(filename: str, map_location=None):
    """mmengine's loader of local files, with one kind of error.

    Args:
        filename (str): Path of the checkpoint.
        map_location: As ``torch.load`` takes it.

    Raises:
        FileNotFoundError, PermissionError: It cannot be opened.
        RuntimeError: It is damaged, or names what is no plain data.
    """
    try:
        return mmengine_checkpoint.load_from_local(filename, map_location)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch has many, OSError is one of them
        raise RuntimeError(f'{filename} cannot be read: {_reason(error)} '
                           'Nothing was loaded.') from None


def _reason(error: Exception) -> str:
    named = re.search(r'GLOBAL (\S+)', str(error))
    if named:
        return (f'it asks for {named[1]}, which is no plain data. It holds '
                'code, which was not run, or objects of a training, or it is '
                'damaged. Get it as plain tensors from a source that you '
                'trust.')
    said = re.split(r'\n|\. ', str(error).strip())[0].rstrip('.')
    if isinstance(error, pickle.UnpicklingError) or not said:
        said = 'it is no file of torch.save'
    return (f'{said}. It may be cut off or damaged: copy or download it '
            'again.')


def read_checkpoint(path: str) -> dict:
    """The content of a checkpoint, on the CPU.

    Args:
        path (str): A file, or a URL as mmengine takes it.

    Raises:
        ValueError: It holds no dict.
        OSError, RuntimeError: It cannot be read.
    """
    content = mmengine_checkpoint._load_checkpoint(path, map_location='cpu')
    if not isinstance(content, dict):
        raise ValueError(f'{path} is no checkpoint: it holds a '
                         f'{type(content).__name__}, expected a dict with a '
                         "'state_dict'")
    return content
