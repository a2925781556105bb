"""Which model families the installed packages have, and one config of each.

A family is a folder of configs, as the packages and their pages group them.
"""
import importlib.util
import re
from pathlib import Path
from typing import Dict, List

import yaml

PACKAGES = ('mmpretrain', 'mmdet', 'mmseg')
DISTRIBUTIONS = dict(mmpretrain='mmpretrain', mmdet='mmdet',
                     mmseg='mmsegmentation')
# Sizes as the packages write them into names; the smallest first.
SMALL = ('atto', 'femto', 'pico', 'nano', 'micro', 'xxs', 'mini', 'tiny',
         'b0', 's0', 'a0', 'r18', 'resnet18', 'r18-d8', 'small', 'mit-b0',
         'r34', 'resnet34', '50', 'r50', 'base')


def installed() -> List[str]:
    """Packages that are.

    Raises:
        FileNotFoundError: None is.
    """
    found = [package for package in PACKAGES
             if importlib.util.find_spec(package)]
    if not found:
        raise FileNotFoundError(
            f'none of {", ".join(PACKAGES)} is installed')
    return found


def mim_folder(package: str) -> Path:
    """Where an installed package keeps its configs and metafiles.

    Raises:
        FileNotFoundError: It is not installed, or without them.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise FileNotFoundError(f'{package} is not installed; allowed: '
                                f'{", ".join(PACKAGES)}')
    folder = Path(spec.origin).parent / '.mim'
    if not (folder / 'configs').is_dir():
        raise FileNotFoundError(f'{package} is installed without its configs '
                                f'({folder}); reinstall it with pip or mim')
    return folder


def families(package: str) -> List[str]:
    """All of a package, by name."""
    return sorted(path.name for path in
                  (mim_folder(package) / 'configs').iterdir()
                  if path.is_dir() and path.name != '_base_'
                  and not path.name.startswith('__'))


def candidates(package: str, family: str) -> List[Path]:
    """Configs of a family, the one to try first at the front.

    Those that a metafile lists come first, of them the one with the fewest
    parameters, or with a name that says it is small.

    Raises:
        ValueError: There is no such family.
    """
    folder = mim_folder(package) / 'configs' / family
    paths = sorted(path for path in folder.rglob('*.py')
                   if '_base_' not in path.parts)
    if not paths:
        near = [name for name in families(package) if family[:4] in name]
        raise ValueError(f'{package} has no family {family!r}'
                         + (f'; did you mean {", ".join(near)}?'
                            if near else ''))
    listed = _listed(folder, mim_folder(package))

    def key(path):
        words = re.split(r'[-_]', path.stem)
        size = next((index for index, word in enumerate(SMALL)
                     if word in words), len(SMALL))
        parameters = listed.get(path.resolve())
        return (parameters is None, parameters or 0, size, len(path.parts),
                len(path.stem), path.stem)

    return sorted(paths, key=key)


def _listed(folder: Path, root: Path) -> Dict[Path, float]:
    """Configs of the metafiles, and their millions of parameters."""
    found: Dict[Path, float] = {}
    for metafile in folder.glob('metafile.y*ml'):
        content = yaml.safe_load(metafile.read_text()) or {}
        models = content.get('Models', []) if isinstance(content, dict) \
            else content
        for model in models or []:
            config = root / str(model.get('Config'))
            if config.exists():
                parameters = (model.get('Metadata') or {}).get('Parameters')
                found[config.resolve()] = float(parameters or 0) / 1e6 \
                    if isinstance(parameters, (int, float)) else 0.
    return found
