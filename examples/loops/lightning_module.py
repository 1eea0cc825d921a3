"""SETR as a LightningModule.

pip install lightning
python examples/loops/lightning_module.py
"""

from __future__ import annotations

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import setr
from setr.inference import normalize
from setr.metrics import ConfusionMatrix
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


class Segmenter(lightning.LightningModule):
    """A model and its loss; `val_miou` is of whole images."""

    def __init__(self, info: setr.ModelInfo) -> None:
        super().__init__()
        self.info = info
        classes = len(info.labels.classes)
        self.model = setr.create_model("setr_pup_nano", num_classes=classes, img_size=96)
        self.confusion = ConfusionMatrix(classes)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch of crops."""
        images, masks = batch
        output = self.model(normalize(images, self.info.mean, self.info.std), with_aux=True)
        losses = setr.segmentation_loss(output, masks)
        self.log_dict(losses)
        return losses["loss"]

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Counts the pixels of whole images."""
        images, masks = batch
        logits = self.model(normalize(images, self.info.mean, self.info.std))
        self.confusion.update(logits.argmax(dim=1).cpu(), masks.cpu())

    def on_validation_epoch_end(self) -> None:
        """Logs their mIoU; in several processes the mean over these."""
        figures = self.confusion.summary(self.info.labels.classes)
        self.log("val_miou", figures["miou"], prog_bar=True, sync_dist=True)
        self.confusion = ConfusionMatrix(self.confusion.num_classes)

    def configure_optimizers(self) -> dict:
        """AdamW with the parameter groups of a recipe, and a linear decay to 0."""
        optimizer = build_optimizer(self.model, setr.recipe("scratch").optim)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    """Train, test by the model's protocol and save."""
    crops = Crops("train")
    segmenter = Segmenter(setr.ModelInfo(labels=crops.data.labels))
    trainer = lightning.Trainer(max_epochs=EPOCHS, log_every_n_steps=1, default_root_dir="runs")
    trainer.fit(
        segmenter,
        DataLoader(crops, batch_size=BATCH, shuffle=True),
        DataLoader(Crops("val").data, batch_size=1),
    )
    figures = setr.evaluate(segmenter.model, DATA, info=segmenter.info, detailed=False)
    print(f"mIoU {figures['miou']:.3f}")
    setr.save_pretrained("runs/lightning", segmenter.model, segmenter.info)


if __name__ == "__main__":
    main()
