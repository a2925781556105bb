"""Start mmdet's, mmseg's or mmpretrain's own tool for a config."""
import runpy
import sys

from mmengine.config import Config

from gdrq_mm.openmmlab.scopes import package_tool, scope_of


def run_package_tool(name: str) -> None:
    """Run tool ``name`` with this process' arguments.

    The first argument that ends in ``.py``, ``.json`` or ``.yaml`` is the
    config; its ``default_scope`` says which package's tool is meant.
    """
    usage = (f'usage: python tools/{name} CONFIG [arguments of the {name} of '
             'mmdet, mmseg or mmpretrain]')
    configs = [argument for argument in sys.argv[1:]
               if argument.endswith(('.py', '.json', '.yaml', '.yml'))]
    if not configs and {'-h', '--help'} & set(sys.argv):  # mim asks for it
        print(usage)
        sys.exit()
    if not configs:
        sys.exit(usage)
    try:
        tool = package_tool(scope_of(Config.fromfile(configs[0])), name)
    except (OSError, ValueError) as error:
        sys.exit(f'{name}: {error}')
    sys.argv[0] = str(tool)
    runpy.run_path(str(tool), run_name='__main__')
