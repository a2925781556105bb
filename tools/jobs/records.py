"""What is done already: one small JSON file per job, one run per folder."""
import fcntl
import hashlib
import json
import os
from pathlib import Path


class JobError(RuntimeError):
    """Ends a run with a message instead of a traceback."""


class Lock:
    """One run at a time in a work dir, as long as this object lives.

    Args:
        work_dir (Path): Made if need be.

    Raises:
        JobError: Another one works there.
    """

    def __init__(self, work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
        self.file = open(work_dir / '.lock', 'a+')
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            pid = self.file.read().strip()
            self.file.close()
            raise JobError(
                f'another run works in {work_dir} (process {pid}). Wait for '
                'it, end it, or give another --work-dir.') from None
        self.file.truncate(0)
        self.file.write(f'{os.getpid()}\n')
        self.file.flush()


def write_text(path, text):
    """Write a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path, data):
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + '\n')


def markdown(rows):
    """A table, its columns in line; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ['-' * width for width in widths], *rows[1:]]
    return '\n'.join('| ' + ' | '.join(map(str.ljust, row, widths)) + ' |'
                     for row in rows)


def read_json(path):
    """dict or None: None where there is no readable JSON object."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def config_hash(config):
    """Hash of the whole text of a config (dict)."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def decide(record, inputs, root):
    """What to do with a job.

    Args:
        record (dict, optional): What :func:`read_json` found of it.
        inputs (dict): What its results depend on, now.
        root (Path): The paths in ``record['outputs']`` are relative to it.

    Returns:
        tuple[str, str]: 'done', 'continue' (was interrupted) or 'start', and
        the reason in words.
    """
    if record is None:
        return 'start', 'not run yet'
    before = record.get('inputs', {})
    changed = sorted(name for name in {*inputs, *before}
                     if inputs.get(name) != before.get(name))
    if changed:
        return 'start', f'changed since it ran: {", ".join(changed)}'
    if record.get('status') != 'done':
        return 'continue', 'was interrupted'
    missing = [path for path in record['outputs']
               if not (Path(root) / path).exists()]
    if missing:
        return 'start', f'its result {missing[0]} is missing'
    return 'done', 'done already'


def read_done(path, inputs, root):
    """dict or None: The record of a job, where it is done with these inputs;
    see :func:`decide`."""
    record = read_json(path)
    return record if decide(record, inputs, root)[0] == 'done' else None
