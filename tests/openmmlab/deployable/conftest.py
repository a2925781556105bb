"""Untrained detectors whose detections differ, and how they are compared."""
import pytest
import torch

from gdrq_mm.openmmlab.deployable.two_stage import paste


@pytest.fixture
def check_detections():
    """Boxes, scores and labels of one image against mmdet's; scores that are
    equal but for rounding may change places."""

    def check(ours, theirs, tolerance=.05):
        boxes, scores, labels = ours
        there = labels >= 0
        assert len(theirs) == there.sum() > 3
        assert len(set(theirs.labels.tolist())) > 1
        assert not boxes[~there].any() and not scores[~there].any()
        torch.testing.assert_close(scores[there], theirs.scores, rtol=1e-3,
                                   atol=1e-4)
        rows = torch.cat([boxes, 1e3 * scores[:, None], 1e3 * labels[
            :, None]], 1)[there]
        wanted = torch.cat([theirs.bboxes, 1e3 * theirs.scores[:, None],
                            1e3 * theirs.labels[:, None]], 1)
        apart = torch.cdist(wanted, rows, p=float('inf'))
        assert apart.amin(1).max() < tolerance
        assert apart.amin(0).max() < tolerance
        return apart.argmin(1)  # row of each of theirs

    return check


@pytest.fixture
def check_masks():
    """Masks of boxes, pasted into the image, against mmdet's."""

    def check(masks, boxes, theirs):
        ours = paste(masks, boxes, theirs.shape[1:]) >= .5
        assert 100 < theirs.sum() < theirs.numel() / 2
        assert (ours != theirs).sum() < 1e-2 * ours.sum()

    return check


@pytest.fixture
def spread():
    """Give the outputs of layers a spread, as training does: untrained heads
    score everything alike, wide ones everything 0 or 1."""

    def change(model, stds, run):
        """``stds``: part of the names of layers -> standard deviation."""
        handles = []

        def scale(layer, inputs, output, std):
            if getattr(layer, 'spread', False):
                return output
            layer.spread = True
            rows = output.movedim(1, -1) if output.dim() == 4 else output
            rows = rows.reshape(-1, rows.shape[-1])
            middle = rows.mean(0)
            factor = std / (rows - middle).std()
            layer.weight.data *= factor
            layer.bias.data = (layer.bias.data - middle) * factor
            return layer(*inputs)

        for name, layer in model.named_modules():
            for part, std in stds.items():
                if part in name and hasattr(layer, 'weight'):
                    handles.append(layer.register_forward_hook(
                        lambda *args, std=std: scale(*args, std)))
        with torch.no_grad():
            run()
        for handle in handles:
            handle.remove()
        return model

    return change
