#!/usr/bin/env python3
"""Draw docs/images/architecture.svg: the rooms that one model passes.

Usage: python docs/draw_architecture.py
"""
import importlib
from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).parent / 'images' / 'architecture.svg'
# Room, what it does, the function or class to start reading at, and what it
# hands on.
WALK = (
    ('config', 'checks what is asked for', 'config.QuantConfig',
     'QuantConfig: schemes and rules'),
    ('plan', 'decides for every layer, changes none', 'plan.make_plan',
     'a LayerPlan for every layer'),
    ('convert.py', 'turns layers into quantized ones, in place',
     'convert.quantize_', 'the same model, quantized layers in it'),
    ('training', 'thresholds, projection and phases, step by step',
     'training.QuantizationState', 'a trained state dict'),
    ('checkpoint', 'checks, seals and packs state dicts', 'checkpoint.pack',
     'codes of true bit width'),
    ('merge', 'folds group scales and BN into one scale per channel',
     'merge.merge', 'integer codes, float scales'),
    ('integer', 'computes what integer kernels compute',
     'integer.to_integer', 'an integer model'),
    ('export', 'writes a file, and checks it before it gets its name',
     'export.export_onnx', 'model.onnx'),
)
# What the rooms on the walk use, beside them.
SIDE = (
    ('functional.py', 'the maths, no state', 'functional'),
    ('quantizers', 'how a tensor is quantized, one file per method',
     'quantizers'),
    ('layers', 'Conv2d, Linear, ReLU, quantized', 'layers'),
    ('kernels', 'the same in one pass: C, Triton, plain', 'kernels'),
    ('analysis', 'looks at models, changes none', 'analysis'),
)
WIDTH, BOX, HEIGHT, GAP, TOP = 900, 430, 52, 34, 56
STYLE = """
text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1f2933; }
.name { font-weight: 600; font-size: 14px; }
.small { font-size: 12px; fill: #52606d; }
rect { fill: #f5f7fa; stroke: #9aa5b1; rx: 6; }
.mm { fill: #e6f0fb; stroke: #3b7dc4; }
.side { fill: #ffffff; stroke-dasharray: 4 3; }
line { stroke: #52606d; stroke-width: 1.5; marker-end: url(#tip); }
"""


def check_names() -> None:
    """Every name in the drawing is there.

    Raises:
        AttributeError: One is not.
    """
    for name in [row[2] for row in (*WALK, *SIDE)]:
        room, _, thing = name.partition('.')
        module = importlib.import_module(f'gdrq_mm.{room}')
        if thing:
            getattr(module, thing)


def box(x, y, width, name, text, kind=''):
    return [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" '
            f'height="{HEIGHT}"/>',
            f'<text class="name" x="{x + 14}" y="{y + 21}">'
            f'{escape(name)}</text>',
            f'<text class="small" x="{x + 14}" y="{y + 40}">'
            f'{escape(text)}</text>']


def draw() -> str:
    """The drawing as SVG."""
    step = HEIGHT + GAP
    height = TOP + len(WALK) * step + 20
    mm = [f'<rect class="mm" x="10" y="10" width="{BOX + 40}" '
          f'height="{height - 20}"/>',
          '<text class="name" x="30" y="36">openmmlab: hook, '
          'model type, publish, deployable</text>',
          f'<text class="small" x="{BOX + 80}" y="36">used all along the '
          'way:</text>']
    lines = []
    for index, (name, text, _, gives) in enumerate(WALK):
        y = TOP + index * step
        lines += box(30, y, BOX, name, text)
        lines += [f'<line x1="60" y1="{y + HEIGHT}" x2="60" '
                  f'y2="{y + HEIGHT + GAP - 4}"/>',
                  f'<text class="small" x="76" y="{y + HEIGHT + 21}">'
                  f'{escape(gives)}</text>']
    for index, (name, text, _) in enumerate(SIDE):
        lines += box(BOX + 80, TOP + index * step, WIDTH - BOX - 100, name,
                     text, 'side')
    return '\n'.join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
        f'{height}" role="img" aria-label="The rooms of gdrq_mm, from '
        'config to export">',
        f'<style>{STYLE}</style>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#52606d"/></marker></defs>',
        f'<rect x="0" y="0" width="{WIDTH}" height="{height}" '
        'style="fill:#ffffff;stroke:none"/>',
        *mm, *lines, '</svg>', ''])


if __name__ == '__main__':
    check_names()
    OUT.write_text(draw())
