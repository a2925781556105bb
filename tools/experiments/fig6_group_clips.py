"""Fig. 6: best clip value of a layer and of each group of its filters.

Usage: python tools/experiments/fig6_group_clips.py CHECKPOINT
           [--layer backbone.conv1] [--groups 8] [--bits 4]
       python tools/experiments/fig6_group_clips.py --draw

With a float ResNet-18 of the demo: CHECKPOINT is
work_dirs/demo/cls/seed0/start/train/epoch_6.pth
"""
import hashlib
import json
from pathlib import Path

import torch
from records import environment, new_axes, parse, write_json

from gdrq_mm.analysis.drawing import save_figure
from gdrq_mm.clip_search import search_clip
from gdrq_mm.functional import (
    expand_clip,
    linear_quantize,
    num_groups,
    quantized_loss,
)


def run(args):
    weight = torch.load(args.checkpoint, map_location='cpu',
                        weights_only=True)['state_dict'][
        f'{args.layer}.weight']
    size = -(-len(weight) // args.groups)
    rows = []
    for bits in args.bits:
        row = dict(bits=bits)
        for name, group_size in (('layer', -1), ('groups', size)):
            clip = search_clip(weight, bits, group_size)
            quantized = linear_quantize(
                weight, expand_clip(clip, weight, group_size), bits)
            row[name] = dict(
                group_size=group_size, clip=clip.tolist(),
                quantized_loss=float(quantized_loss(weight, quantized)))
        rows.append(row)
    assert num_groups(len(weight), size) == len(rows[0]['groups']['clip'])
    return dict(
        experiment='fig6_group_clips', environment=environment(),
        config=dict(layer=args.layer, shape=list(weight.shape),
                    checkpoint=Path(args.checkpoint).as_posix(),
                    sha256=hashlib.sha256(
                        Path(args.checkpoint).read_bytes()).hexdigest()),
        rows=rows)


def draw(result, path):
    rows = result['rows']
    figure, axes = new_axes(1, len(rows))
    for axis, row in zip(axes[0], rows):
        clips = row['groups']['clip']
        axis.bar(range(1, len(clips) + 1), clips, color='tab:orange',
                 label='groups')
        axis.bar([0], row['layer']['clip'], color='tab:blue', label='layer')
        axis.set_title(f'{row["bits"]} bits: QL '
                       f'{row["layer"]["quantized_loss"]:.3f} -> '
                       f'{row["groups"]["quantized_loss"]:.3f}',
                       fontsize='medium')
        axis.set_xlabel('group')
    axes[0, 0].set_ylabel('best clip value')
    axes[0, 0].legend(fontsize='small')
    figure.suptitle(f'{result["config"]["layer"]}: the layer, its groups of '
                    f'{rows[0]["groups"]["group_size"]} filters')
    save_figure(figure, path)


def main():
    parser = parse(__doc__, 'fig6_group_clips')
    parser.add_argument('checkpoint', nargs='?', help='of a float model')
    parser.add_argument('--layer', default='backbone.conv1')
    parser.add_argument('--groups', type=int, default=8)
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.draw:
        if args.checkpoint is None:
            parser.error('give a CHECKPOINT, or --draw')
        write_json(args.out, run(args))
    result = json.loads(args.out.read_text())
    draw(result, args.image)
    for row in result['rows']:
        clips = row['groups']['clip']
        print(f'{row["bits"]} bits: layer {row["layer"]["clip"][0]:.3f}, QL '
              f'{row["layer"]["quantized_loss"]:.4f}; {len(clips)} groups '
              f'{min(clips):.3f} to {max(clips):.3f}, QL '
              f'{row["groups"]["quantized_loss"]:.4f}')


if __name__ == '__main__':
    main()
