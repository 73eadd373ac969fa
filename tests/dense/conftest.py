"""Scenes whose pixels say what is in them."""

import pytest
import torch


@pytest.fixture(scope="session")
def make_scene():
    """Make an image (3, H, W), uint8, of red (0) and blue (1) rectangles on grey, one at most in each quarter.

    ``make_scene(seed, size=(H, W))`` also returns its boxes, labels and masks, as `Detector` takes them.
    """

    def make(seed, size=(96, 128)):
        height, width = size
        draw = torch.Generator().manual_seed(seed)

        def number(low, high):
            return int(torch.randint(low, high, (1,), generator=draw))

        image = torch.randint(90, 110, (3, height, width), generator=draw, dtype=torch.uint8)
        boxes, labels, masks = [], [], []
        for quarter in range(4):
            if (quarter + seed) % 4 == 3:
                continue
            h, w = number(height // 5, height // 2 - 8), number(width // 5, width // 2 - 8)
            top = quarter // 2 * height // 2 + number(0, height // 2 - h)
            left = quarter % 2 * width // 2 + number(0, width // 2 - w)
            label = (quarter + seed) % 2
            place = (slice(top, top + h), slice(left, left + w))
            colour = torch.tensor([[230, 20, 20], [20, 20, 230]][label], dtype=torch.uint8)
            image[(slice(None), *place)] = colour[:, None, None]
            mask = torch.zeros(size, dtype=torch.uint8)
            mask[place] = 1
            boxes.append([left, top, left + w, top + h])
            labels.append(label)
            masks.append(mask)
        target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "masks": torch.stack(masks)}
        return image, target

    return make
