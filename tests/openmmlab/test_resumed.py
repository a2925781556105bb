"""A resumed run says what differs, and refuses what cannot go on."""
import pytest


def hook(quantization=None, **kwargs):
    activation = dict(bits=4)
    return dict(type='GDRQHook', quantization=quantization or dict(
        weight=dict(bits=4), activation=activation), **kwargs)


@pytest.fixture
def first(make_runner, tmp_path):
    """A run of one epoch, and the options to resume it with."""

    def run(*hooks):
        work_dir = tmp_path / 'run'
        make_runner('resnet', *hooks, work_dir=work_dir,
                    train_cfg=dict(max_epochs=1)).train()
        return dict(work_dir=work_dir, resume=True)

    return run


def test_other_settings_of_a_resumed_run_are_in_the_log(
        first, make_runner, run_log):
    options = first(hook())
    runner = make_runner('resnet', hook(dict(
        weight=dict(bits=4, k=2.5), activation=dict(bits=4, k=6., lr=.1)),
        bn_batches=1), **options)
    runner.train()
    line = next(line for line in run_log(runner).splitlines()
                if 'the resumed run has other settings' in line)
    for change in ('weight.k: None -> 2.5', 'activation.k: None -> 6.0',
                   'activation.lr: 0.01 -> 0.1', 'bn_batches: 0 -> 1'):
        assert change in line
    assert 'begin_iter' not in line


def test_equal_settings_are_not_mentioned(first, make_runner, run_log):
    runner = make_runner('resnet', hook(), **first(hook()))
    runner.train()
    log = run_log(runner)
    assert 'other settings' not in log
    assert "phase 'quantize' from iteration 2" in log


def test_run_of_the_hook_resumed_as_quantized_model_is_refused(
        first, make_runner, load_config):
    options = first(hook())
    cfg = load_config('resnet')
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture=cfg.model.type,
        quantization=hook()['quantization'])))
    runner = make_runner(cfg, dict(type='GDRQHook'), **options)
    with pytest.raises(ValueError, match=(
            'optimizer of the checkpoint holds .* this run .* as load_from')):
        runner.train()
