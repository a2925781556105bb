"""The command ``gdrq``: every tool of this project, from anywhere.

A verb calls the ``main`` of a script in ``tools/``, of the checkout or of the
installed wheel.
"""
import importlib
import runpy
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

EPILOG = """\
examples:
  gdrq plan my_w4a4.py --shape 32 32
  gdrq train my_w4a4.py --work-dir work_dirs/my_w4a4
  gdrq test my_w4a4.py work_dirs/my_w4a4/epoch_2.pth
  gdrq publish my_w4a4.py work_dirs/my_w4a4/epoch_2.pth zoo

"gdrq VERB --help" tells more of a verb. Exit codes: 0 done, 1 an error (one
sentence on stderr), 2 wrong usage."""


class Verb(NamedTuple):
    """A script below ``tools/``, its first arguments, and what it does."""
    script: str
    arguments: tuple
    summary: str


VERBS: Dict[str, Verb] = {
    'plan': Verb('analyze.py', ('plan', ),
                 'what a config quantizes, layer by layer'),
    'ends': Verb('analyze.py', ('ends', ),
                 'rules that keep first and last layers at 8 bits'),
    'calibrate': Verb('calibrate.py', (),
                      'quantize a float checkpoint without training'),
    'train': Verb('train.py', (), "the package's own train tool"),
    'test': Verb('test.py', (), "the package's own test tool"),
    'publish': Verb('publish_model.py', (),
                    'a small checkpoint of true bit widths, and its config'),
    'export': Verb('export_onnx.py', (),
                   'a checked ONNX file, for ONNX Runtime or FPGA tools'),
    'compare-export': Verb(
        'compare_export.py', (),
        "an exported file beside the package's own test, image by image"),
    'analyze': Verb('analyze.py', (),
                    'what quantization does, and what to do about it'),
    'compare': Verb('compare.py', (),
                    'is it better than LSQ on your model? float, GDRQ and '
                    'others, trained alike'),
    'sweep': Verb('sweep.py', (),
                  'try every model family of the installed packages'),
    'upstream-tests': Verb('upstream_tests.py', (),
                           'model tests of a checkout of an mm package, '
                           'converted'),
    'dataset demo': Verb('dataset_converters/make_demo_data.py', (),
                         'write the small stand-in datasets of the demo'),
    'dataset bccd': Verb('dataset_converters/bccd.py', (),
                         'convert BCCD (blood cells) to the layout of VOC'),
    'dataset camvid': Verb('dataset_converters/camvid.py', (),
                           'convert CamVid to images and label maps'),
    'dataset tiny-imagenet': Verb(
        'dataset_converters/tiny_imagenet.py', (),
        'convert Tiny-ImageNet to one folder per class'),
}


def tools_folder() -> Path:
    """Where the scripts are: in the wheel, or in the checkout.

    Raises:
        FileNotFoundError: The package was copied without them.
    """
    package = Path(__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if (folder / 'analyze.py').exists():
            return folder
    raise FileNotFoundError('gdrq_mm is installed without its tools; '
                            'reinstall it with pip')


def main(argv: Optional[List[str]] = None) -> None:
    """Run one verb; ends the process with 1 or 2 where that fails.

    Args:
        argv (list[str], optional): Defaults to the arguments of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        print(help_text())
        sys.exit(0 if argv else 2)
    if argv[0] == 'dataset' and argv[1:] in (['-h'], ['--help']):
        print(help_text('dataset '))  # half a verb
        return
    if argv[0] == '--version':
        from .version import __version__
        print(f'gdrq_mm {__version__}')
        return
    name = find_verb(argv)
    if name is None:
        # "dataset" alone is half a verb; what follows others is no part of it.
        asked = argv[:2 if argv[0] == 'dataset' else 1]
        usage_error('gdrq', f'no verb {" ".join(asked)!r}; there are '
                    f'{", ".join(VERBS)}')
    verb = VERBS[name]
    rest = argv[len(name.split()):]
    # "plan" is a command of a tool that has several.
    sys.argv = ['gdrq' if verb.arguments else f'gdrq {name}',
                *verb.arguments, *rest]

    def run():
        script = tools_folder() / verb.script
        sys.path.insert(0, str(script.parent))  # as Python does for a script
        return importlib.import_module(script.stem).main()

    run_tool(run)


def find_verb(argv: List[str]) -> Optional[str]:
    """The verb that arguments begin with, of one word or of two."""
    return next((name for name in (' '.join(argv[:2]), argv[0])
                 if name in VERBS), None)


def help_text(begin: str = '') -> str:
    """What ``gdrq --help`` prints.

    Args:
        begin (str): What the verbs begin with that are printed. Defaults to
            '': all.
    """
    width = max(map(len, VERBS))
    lines = [f'  {name:{width}}  {verb.summary}'
             for name, verb in VERBS.items() if name.startswith(begin)]
    return '\n'.join([
        f'usage: gdrq {begin}VERB [arguments]', '',
        '2- to 8-bit quantization-aware training for OpenMMLab models.', '',
        'verbs:', *lines, '', EPILOG])


def usage_error(name: str, message: str) -> None:
    """Say what is wrong with the arguments, and exit with 2."""
    sys.stderr.write(f'{name}: {message}\n')
    sys.exit(2)


def run_tool(main: Callable):
    """Call a script's ``main``; what the user can mend is one sentence.

    Exits with 1 and the message on stderr where ``main`` raises an error of
    input, files or of what is installed, with 130 where it was interrupted.
    argparse exits with 2.
    """
    name = ' '.join(sys.argv[:2]) if sys.argv[0] == 'gdrq' else \
        Path(sys.argv[0]).stem
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(f'\n{name}: interrupted\n')
        sys.exit(130)
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        # mmengine 0.10 needs it for configs like "mmdet::...", and says no
        # more than that there is no such module.
        remedy = ('; mmengine needs it, and setuptools 82 no longer has it: '
                  'pip install "setuptools<82"'
                  if getattr(error, 'name', None) == 'pkg_resources' else '')
        sys.stderr.write(f'{name}: {error}{remedy}\n')
        sys.exit(1)


def run_package_tool(name: str, doc: str) -> None:
    """Run the tool of mmdet, mmseg or mmpretrain that a config belongs to.

    The first argument that ends in ``.py``, ``.json`` or ``.yaml`` is the
    config; its ``default_scope`` says which package's tool is meant. All
    arguments are handed on; to mmseg's ``--resume`` what it lacks is added.

    Args:
        name (str): ``train.py`` or ``test.py``.
        doc (str): The help where no config is named.
    """
    from .openmmlab.scopes import package_tool, read_config, scope_of
    usage = f'usage: {Path(sys.argv[0]).name} CONFIG [arguments]\n'
    configs = [argument for argument in sys.argv[1:]
               if argument.endswith(('.py', '.json', '.yaml', '.yml'))]
    if not configs:
        if {'-h', '--help'} & set(sys.argv):  # mim asks for it
            print(f'{usage}\n{doc}')
            return
        usage_error(Path(sys.argv[0]).stem, f'name a config\n{usage}')

    def find():
        scope = scope_of(read_config(configs[0]))
        return scope, package_tool(scope, name)

    scope, path = run_tool(find)
    sys.argv = [str(path), *_resuming_the_run(scope, sys.argv[1:])]
    runpy.run_path(sys.argv[0], run_name='__main__')


def _resuming_the_run(scope: str, arguments: List[str]) -> List[str]:
    """Let ``--resume`` mean the last checkpoint of the work dir in mmseg's
    train.py, as it does in the others', and not what ``load_from`` names."""
    if scope != 'mmseg' or '--resume' not in arguments or any(
            argument.startswith('load_from=') for argument in arguments):
        return arguments
    if '--cfg-options' not in arguments:
        return [*arguments, '--cfg-options', 'load_from=None']
    place = arguments.index('--cfg-options') + 1
    return [*arguments[:place], 'load_from=None', *arguments[place:]]
