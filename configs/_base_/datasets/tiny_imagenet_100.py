# The first 100 classes of Tiny-ImageNet, 64x64 images, converted by
# tools/dataset_converters/tiny_imagenet.py. The test set is its validation
# set: labels of its own are not public.
data_root = 'data/tiny-imagenet-100'
# First names, in the order of the WordNet ids.
classes = [
    'goldfish', 'European fire salamander', 'bullfrog', 'tailed frog',
    'American alligator', 'boa constrictor', 'trilobite', 'scorpion',
    'black widow', 'tarantula', 'centipede', 'goose', 'koala', 'jellyfish',
    'brain coral', 'snail', 'slug', 'sea slug', 'American lobster',
    'spiny lobster', 'black stork', 'king penguin', 'albatross', 'dugong',
    'Chihuahua', 'Yorkshire terrier', 'golden retriever',
    'Labrador retriever', 'German shepherd', 'standard poodle', 'tabby',
    'Persian cat', 'Egyptian cat', 'cougar', 'lion', 'brown bear', 'ladybug',
    'fly', 'bee', 'grasshopper', 'walking stick', 'cockroach', 'mantis',
    'dragonfly', 'monarch', 'sulphur butterfly', 'sea cucumber',
    'guinea pig', 'hog', 'ox', 'bison', 'bighorn', 'gazelle',
    'Arabian camel', 'orangutan', 'chimpanzee', 'baboon', 'African elephant',
    'lesser panda', 'abacus', 'academic gown', 'altar', 'apron', 'backpack',
    'bannister', 'barbershop', 'barn', 'barrel', 'basketball', 'bathtub',
    'beach wagon', 'beacon', 'beaker', 'beer bottle', 'bikini', 'binoculars',
    'birdhouse', 'bow tie', 'brass', 'broom', 'bucket', 'bullet train',
    'butcher shop', 'candle', 'cannon', 'cardigan', 'cash machine',
    'CD player', 'chain', 'chest', 'Christmas stocking', 'cliff dwelling',
    'computer keyboard', 'confectionery', 'convertible', 'crane', 'dam',
    'desk', 'dining table', 'drumstick',
]
data_preprocessor = dict(
    num_classes=100,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=64, padding=8, padding_mode='reflect'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        type='ImageNet',
        data_root=data_root,
        split='train',
        metainfo=dict(classes=classes),
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        type='ImageNet',
        data_root=data_root,
        split='val',
        metainfo=dict(classes=classes),
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
