# DyHead on BCCD: the small ATSS with two dynamic blocks behind its FPN, which
# have deformable convolutions, in place of its towers.
_base_ = './atss_bccd.py'

model = dict(
    neck=[
        dict(
            type='FPN',
            in_channels=[24, 48, 96, 192],
            out_channels=64,
            start_level=1,
            add_extra_convs='on_output',
            num_outs=4),
        dict(type='DyHead', in_channels=64, out_channels=64, num_blocks=2)
    ],
    bbox_head=dict(stacked_convs=0))
