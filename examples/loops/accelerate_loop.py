"""SETR in a loop of your own on any hardware, with Accelerate.

pip install accelerate
accelerate launch examples/loops/accelerate_loop.py
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

import setr
from setr.inference import normalize
from setr.training.optim import build_optimizer
from setr.transforms import Augmentation

DATA = "scenes:64"  # a folder, a data.yaml, hf:OWNER/NAME
EPOCHS, BATCH, CROP = 2, 4, (64, 64)


class Crops(Dataset):
    """Augmented crops of a split: images uint8 (H, W, 3), masks uint8 (H, W)."""

    augment = Augmentation(crop_size=CROP)

    def __init__(self, split: str) -> None:
        self.data = setr.open_dataset(DATA, split)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.augment(*self.data.load(index), np.random.default_rng())


def main() -> None:
    """Train, test and save."""
    accelerator = Accelerator()
    crops = Crops("train")
    info = setr.ModelInfo(labels=crops.data.labels)
    model = setr.create_model("setr_pup_nano", num_classes=len(info.labels.classes), img_size=96)
    optimizer = build_optimizer(model, setr.recipe("scratch").optim)
    loader = DataLoader(crops, batch_size=BATCH, shuffle=True)
    total = EPOCHS * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, 1 - step / total))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    for epoch in range(EPOCHS):
        for images, masks in loader:
            with accelerator.autocast():
                output = model(normalize(images, info.mean, info.std), with_aux=True)
            losses = setr.segmentation_loss(output, masks)
            accelerator.backward(losses["loss"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        network = accelerator.unwrap_model(model)  # every process tests its share of the images
        figures = setr.evaluate(network, DATA, info=info, detailed=False)
        accelerator.print(f"epoch {epoch}: mIoU {figures['miou']:.3f}")
    if accelerator.is_main_process:
        setr.save_pretrained("runs/accelerate", accelerator.unwrap_model(model), info)


if __name__ == "__main__":
    main()
