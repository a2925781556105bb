"""What distillation compares, and how, on small networks."""
import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from torch import nn

from gdrq_mm.training import (
    Branch,
    Distillation,
    DistillConfig,
    Output,
    divergence,
)


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 3 for shape in shapes]


# -- divergence ---------------------------------------------------------------


@pytest.mark.parametrize('shapes, dim', [
    ([(4, 5)], 1), ([(2, 5, 3, 4), (2, 5, 2, 2)], 1), ([(3, 7, 5)], -1)])
def test_softmax_is_the_mean_divergence_of_all_places(shapes, dim):
    student, teacher = tensors(*shapes), tensors(*shapes, seed=1)
    each = [rel_entr(softmax(t.double().numpy() / 3, dim),
                     softmax(s.double().numpy() / 3, dim)).sum(dim).ravel()
            for s, t in zip(student, teacher)]
    assert float(divergence('softmax', student, teacher, 3., dim)) == (
        pytest.approx(9 * np.concatenate(each).mean(), rel=1e-5))


def test_classes_of_anchors_that_share_channels_are_apart():
    """Channels are those of the first anchor, then those of the second."""
    student, teacher = (torch.randn(2, 3 * 4, 5, 5) for _ in range(2))
    apart = [[each for level in maps for each in level.split(4, dim=1)]
             for maps in ([student], [teacher])]
    found = divergence('softmax', [student], [teacher], 2., classes=4)
    assert float(found) == pytest.approx(float(divergence(
        'softmax', *apart, 2.)), rel=1e-5)


def test_sigmoid_is_the_divergence_over_what_the_teacher_sees():
    shapes = [(2, 6, 4, 4), (2, 6, 2, 2)]
    student, teacher = tensors(*shapes), tensors(*shapes, seed=1)
    s, t = (np.concatenate([each.double().numpy().ravel() for each in given])
            for given in (student, teacher))
    p, q = expit(t / 2), expit(s / 2)
    wanted = 4 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum() \
        / expit(t).sum()
    assert float(divergence('sigmoid', student, teacher, 2.)) == \
        pytest.approx(wanted, rel=1e-5)
    nothing = [torch.full((1, 100), -20.)]  # no class anywhere: over 1
    assert float(divergence('sigmoid', [nothing[0] + 10], nothing, 1.)) == \
        pytest.approx(100 * expit(-10), rel=1e-2)


def test_l2_is_the_mean_squared_error_of_all_elements():
    student, teacher = tensors((2, 3), (4, )), tensors((2, 3), (4, ), seed=1)
    found = divergence('l2', student, teacher, 5.)
    assert float(found) == pytest.approx(float(torch.cat([
        (s - t).square().flatten() for s, t in zip(student, teacher)]).mean()))


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid', 'l2'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(kind, dtype):
    student, teacher = ([each.to(dtype)] for each in tensors((8, 9), (8, 9)))
    found = divergence(kind, student, teacher, 2.)
    assert found.dtype == torch.float32
    assert torch.equal(found, divergence(
        kind, [student[0].float()], [teacher[0].float()], 2.))


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid', 'l2'])
def test_equal_outputs_and_none_give_zero(kind):
    same = tensors((3, 4))
    assert abs(float(divergence(kind, same, same, 2.))) < 1e-6
    empty = [torch.zeros(0, 4, requires_grad=True)]
    found = divergence(kind, empty, empty, 2.)
    found.backward()
    assert float(found.detach()) == 0


def test_gradient_of_softmax_is_that_of_the_paper():
    """T (q - p) a place: as large at every temperature, to first order."""
    (student, teacher) = tensors((6, 5), (6, 5))
    student.requires_grad_()
    divergence('softmax', [student], [teacher], 4.).backward()
    wanted = 4 * (torch.softmax(student / 4, 1)
                  - torch.softmax(teacher / 4, 1)) / 6
    assert torch.allclose(student.grad, wanted, atol=1e-6)


# -- fields -------------------------------------------------------------------


@pytest.mark.parametrize('values, message', [
    (dict(weight=-1), 'distill.weight is -1, allowed: a number > 0'),
    (dict(weight=0.), 'distill.weight is 0.0'),
    (dict(weight=float('inf')), 'distill.weight is inf'),
    (dict(temperature=0), 'distill.temperature is 0'),
    (dict(temperature=True), 'distill.temperature is True'),
    (dict(temprature=2), "no field 'temprature'; did you mean 'temperature'"),
    (dict(teacher=3), 'distill.teacher is 3'),
    (dict(outputs={}), r'distill.outputs is \{\}'),
    (dict(outputs=['head']), 'distill.outputs is'),
    (dict(outputs={'head': 'kl'}), r"outputs\['head'\] is 'kl', allowed: "
                                   "'softmax', 'sigmoid', 'l2'"),
    (3, 'distill is 3'),
])
def test_values_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig.from_dict(values)


# -- capture ------------------------------------------------------------------


class Pool(nn.Module):
    num_inputs = 1  # of the features

    def forward(self, features, places):
        assert len(features) == 1
        return features[0][places]


class Pair(nn.Module):
    """As a neck does, it gives a tuple."""

    def forward(self, x):
        return x, x + 1


class Net(nn.Module):
    """Proposes places, at random, and looks at them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.features = Pair()
        self.classes = nn.Linear(6, 7)
        self.pool = Pool()
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(6, 5)
        self.act = nn.ReLU(inplace=True)
        self.places, self.proposed = 3, []

    def forward(self, x, mode):
        x = self.features(self.body(x))
        y = self.classes(x[0])
        places = torch.randint(0, len(x[0]), (self.places, ))
        self.proposed.append(places)
        z = self.head(self.pool(x[:1], places))
        if mode == 'tensor':
            return y, z
        return dict(loss=y.sum() + self.act(z).sum())


BRANCH = Branch('features', ('pool', 'head'))
CLASSES = Output('cls', ('classes', ), 'softmax')
BOXES = Output('box', ('head', ), 'l2', 3.)


def make(outputs, branches=(), **config):
    torch.manual_seed(0)
    student, teacher = Net(), Net()
    student.act.inplace = False
    return Distillation(student, teacher, outputs, DistillConfig(**config),
                        branches)


def test_a_teacher_whose_eval_returns_nothing_is_still_the_teacher():
    class Silent(Net):

        def train(self, mode=True):
            super().train(mode)

    teacher = Silent()
    found = Distillation(Net(), teacher, [], DistillConfig()).teacher
    assert found is teacher and not teacher.training
    assert not any(each.requires_grad for each in teacher.parameters())


def run(distillation, x=None, mode='loss'):
    distillation.start()
    try:
        return distillation.student(
            tensors((5, 4))[0] if x is None else x, mode=mode)
    finally:
        distillation.stop()


def test_outputs_are_compared_on_the_same_input_and_proposals():
    distillation = make([CLASSES, BOXES], [BRANCH], weight=.5, temperature=2.)
    student, teacher = distillation.student, distillation.teacher
    x, = tensors((5, 4))
    losses = run(distillation, x)
    assert list(losses) == ['loss', 'loss_distill_cls', 'loss_distill_box']
    with torch.no_grad():
        ours, theirs = student.body(x), teacher.body(x)
        places = student.proposed[-1]
        assert losses['loss_distill_cls'].item() == pytest.approx(
            .5 * divergence('softmax', [student.classes(ours)],
                            [teacher.classes(theirs)], 2.).item())
        assert losses['loss_distill_box'].item() == pytest.approx(
            .5 * 3 * (student.head(ours[places]) - teacher.head(
                theirs[places])).square().mean().item())
    sum(losses.values()).backward()
    for layer in (student.body, student.classes, student.head):
        assert layer.weight.grad.abs().sum() > 0
    assert all(each.grad is None for each in teacher.parameters())


def test_equal_models_have_nothing_to_learn():
    distillation = make([CLASSES, BOXES], [BRANCH])
    distillation.student.load_state_dict(distillation.teacher.state_dict())
    losses = run(distillation)
    assert losses['loss_distill_cls'].item() == pytest.approx(0, abs=1e-6)
    assert losses['loss_distill_box'].item() == 0


def test_the_teacher_draws_no_random_numbers_of_the_student():
    x, = tensors((5, 4))
    plain = make([CLASSES]).student
    torch.manual_seed(1)
    plain(x, mode='loss')
    wanted = torch.rand(3)
    distillation = make([CLASSES, BOXES])  # no branch: it must draw places
    torch.manual_seed(1)
    run(distillation, x)
    assert len(distillation.teacher.proposed) == 1
    assert torch.equal(torch.rand(3), wanted)


def test_the_teacher_stops_where_all_is_known():
    distillation = make([CLASSES])
    run(distillation)
    assert distillation.teacher.proposed == []
    assert not distillation.teacher.training


def test_outputs_that_are_no_losses_stay_as_they_are():
    distillation = make([CLASSES])
    y, z = run(distillation, mode='tensor')
    assert y.shape == (5, 7) and z.shape == (3, 5)


def test_between_the_steps_the_model_carries_nothing():
    distillation = make([CLASSES, BOXES], [BRANCH])
    student = distillation.student
    keys, parameters = list(student.state_dict()), len(list(
        student.parameters()))
    run(distillation)
    assert list(student.state_dict()) == keys
    assert len(list(student.parameters())) == parameters
    for module in student.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    for module in distillation.teacher.modules():
        assert not module._forward_hooks
    copy.deepcopy(student)
    pickle.dumps(student.state_dict())
    distillation.start()
    distillation.start()  # an iteration that failed was never stopped
    assert len(student._forward_hooks) == 1


# -- what cannot be compared --------------------------------------------------


@pytest.mark.parametrize('name, message', [
    ('features', 'features returns a tuple, only tensors are compared'),
    ('unused', 'unused was not called while the model computed its losses'),
    ('head', 'the output of head is changed in place after it'),
])
def test_outputs_that_cannot_be_compared(name, message):
    distillation = make([Output('x', (name, ), 'l2')])
    distillation.student.act.inplace = True
    with pytest.raises(RuntimeError, match=f'distill: {message}'):
        run(distillation)


def test_an_output_that_is_not_there_leaves_the_student_alone():
    distillation = make([CLASSES, Output('x', ('absent', ), 'l2')])
    with pytest.raises(AttributeError, match='absent'):
        distillation.start()
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for module in distillation.student.modules())


def test_classes_of_three_dimensions_are_those_of_a_linear_layer():
    """(N, L, C) of another module might be (N, C, L)."""
    kind = dict(mode='loss')

    class Rows(nn.Module):

        def __init__(self):
            super().__init__()
            self.wrapped = nn.Sequential(nn.Linear(4, 7))

        def forward(self, x, mode):
            return dict(loss=self.wrapped(x).sum())

    def losses(name):
        distillation = Distillation(
            Rows(), Rows(), [Output('cls', (name, ), 'softmax')],
            DistillConfig())
        distillation.start()
        return distillation.student(torch.ones(2, 3, 4), **kind)

    assert 'loss_distill_cls' in losses('wrapped.0')
    with pytest.raises(RuntimeError, match=(
            r'wrapped returns the shape \(2, 3, 7\), .* name the linear '
            'layer')):
        losses('wrapped')


def test_an_output_without_gradient_teaches_nothing():
    distillation = make([CLASSES])
    distillation.student.requires_grad_(False)
    with pytest.raises(RuntimeError, match='classes has no gradient'):
        run(distillation)


def test_other_shapes_than_the_teacher():
    distillation = make([BOXES])
    distillation.teacher.places = 4
    with pytest.raises(RuntimeError, match=(
            r'output of head has the shape \(3, 5\), that of the teacher '
            r'\(4, 5\)')):
        run(distillation)


def test_other_calls_than_the_teacher():
    distillation = make([CLASSES, BOXES])
    teacher = distillation.teacher
    teacher.forward = lambda x, mode: teacher.classes(teacher.body(x))
    with pytest.raises(RuntimeError, match=(
            'the teacher has called head 0 times, the model 1 times')):
        run(distillation)
