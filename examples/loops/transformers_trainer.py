"""SETR in the Trainer of transformers.

pip install transformers accelerate
python examples/loops/transformers_trainer.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import setr
from setr.inference import normalize
from setr.training.optim import build_optimizer
from setr.transforms import Augmentation

DATA = "scenes:64"  # a folder, a data.yaml, hf:OWNER/NAME
EPOCHS, BATCH, CROP = 2, 4, (64, 64)


class Crops(Dataset):
    """Augmented crops of a split, under the names that the Trainer uses."""

    augment = Augmentation(crop_size=CROP)

    def __init__(self, split: str) -> None:
        self.data = setr.open_dataset(DATA, split)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, mask = self.augment(*self.data.load(index), np.random.default_rng())
        return {"pixel_values": image, "labels": mask}


class WithLoss(torch.nn.Module):
    """A model that returns its loss, as the Trainer expects."""

    def __init__(self, model: setr.SETR, info: setr.ModelInfo) -> None:
        super().__init__()
        self.model, self.info = model, info

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of images uint8 (B, H, W, 3) and masks uint8 (B, H, W)."""
        images = normalize(pixel_values, self.info.mean, self.info.std)
        return {"loss": setr.segmentation_loss(self.model(images, with_aux=True), labels)["loss"]}


class Test(TrainerCallback):
    """The mIoU of whole images after every epoch, by the model's protocol."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Prints it; the Trainer's own evaluation would keep the logits of all images."""
        figures = setr.evaluate(model.model, DATA, info=model.info, detailed=False)
        print(f"epoch {state.epoch:.0f}: mIoU {figures['miou']:.3f}")


def main() -> None:
    """Train, test and save."""
    crops = Crops("train")
    info = setr.ModelInfo(labels=crops.data.labels)
    model = setr.create_model("setr_pup_nano", num_classes=len(info.labels.classes), img_size=96)
    arguments = TrainingArguments(
        output_dir="runs/transformers",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        lr_scheduler_type="linear",
    )
    optimizer = build_optimizer(model, setr.recipe("scratch").optim)
    Trainer(
        WithLoss(model, info),
        arguments,
        train_dataset=crops,
        optimizers=(optimizer, None),
        callbacks=[Test()],
    ).train()
    setr.save_pretrained("runs/transformers", model, info)


if __name__ == "__main__":
    main()
