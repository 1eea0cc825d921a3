"""Training: the only loop.

`train` walks the way of every run: check the data, build, then per step load, forward, backward,
update; periodically evaluate, save, log.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr import __version__
from setr.checkpoint import load_state, save_state
from setr.complexity import parameter_counts
from setr.config import Config
from setr.datasets import open_dataset
from setr.doctor import check, class_weights, describe_map
from setr.errors import INTERRUPTED, USAGE, SetrError
from setr.evaluation import autocast_dtype, evaluate_split, write_json
from setr.hub import ModelInfo, from_pretrained, save_pretrained
from setr.images import write_bytes
from setr.inference import MULTI_SCALES, Protocol, normalize
from setr.labels import Labels
from setr.loader import training_batches
from setr.lora import add_lora
from setr.losses import count_weight, segmentation_loss
from setr.model import SETR, create_model
from setr.optim import MovingAverage, build_optimizer, learning_rate, set_lr, trainable
from setr.pretrained import load_encoder
from setr.progress import Progress, counting
from setr.protocols import preset
from setr.provenance import provenance
from setr.transforms import Augmentation, rare_class_odds

STATE = Path("last") / "state.pt"


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train a model and write it to `config.out`.

    The folder is a model directory in Hub layout (the weights that scored best on the validation
    split) with `config.yaml`, `log.jsonl`, `metrics.json` and `last/`, the state to resume from.

    Args:
        config: all settings.
        resume: continue from `last/`; the result equals an uninterrupted run bit for bit.
        overwrite: replace an existing run.

    Returns:
        What `metrics.json` holds.

    Raises:
        SetrError: bad data (exit code 3), an existing run, a non-finite loss, an interruption.
    """
    out = Path(config.out)
    if out.exists() and not (resume or overwrite):
        raise SetrError(
            f"{out}: this run exists; add --resume to continue it, --overwrite to replace it, "
            "or choose another --out",
            code=USAGE,
        )
    if overwrite and not resume:
        (out / STATE).unlink(missing_ok=True)
        (out / "log.jsonl").unlink(missing_ok=True)
    run = _Run(config, out, resume)
    run.loop()
    return run.finish()


class _Run:
    """The parts of one training run and the steps over them."""

    def __init__(self, config: Config, out: Path, resume: bool) -> None:
        self.config, self.out = config, out
        self.began = time.monotonic()
        self.dataset = open_dataset(config.data.root, config.data.train_split, config.data.labels)
        self.val = open_dataset(config.data.root, config.data.val_split, config.data.labels)
        self.labels: Labels = self.dataset.labels
        pixels = self._check_data()
        self.augment = _augmentation(config, pixels)
        torch.manual_seed(config.train.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = autocast_dtype(config.train.precision, self.device)
        self.model = _build_model(config, len(self.labels.classes)).to(self.device)
        if config.train.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.ema = MovingAverage(self.model, config.train.ema) if config.train.ema else None
        self.weight: Tensor | None = None
        if config.train.class_weights != "none":
            weights = class_weights(pixels, config.train.class_weights)
            self.weight = torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.info = ModelInfo(
            labels=self.labels,
            mean=config.model.mean,
            std=config.model.std,
            protocol=_protocol(config, self.labels),
            recipe=config.recipe,
            crop_size=config.data.crop_size,
            pretrained=config.model.pretrained and Path(config.model.pretrained).name,
            command=f"setr train config.yaml --out runs/{config.recipe}",
        )
        self.step, self.seconds = 0, 0.0
        self.figures: dict[str, Any] = {}  # of the best weights so far, which are saved in `out`
        self.stop = False
        out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore()
        write_bytes(out / "config.yaml", config.to_yaml().encode())

    def _check_data(self) -> np.ndarray:
        print(f"{self.dataset.name}: {describe_map(self.labels)}", file=sys.stderr)
        for dataset in (self.val, self.dataset):
            checkup = check(dataset, progress=counting(f"check {dataset.split}"))
            checkup.raise_problems()
            for finding in checkup.findings:
                print(f"{finding.level}: {finding.split}: {finding.text}", file=sys.stderr)
        return checkup.pixels

    def loop(self) -> None:
        """Run the remaining steps."""
        config = self.config.train
        batches = training_batches(
            self.dataset,
            self.augment,
            batch_size=config.batch_size,
            seed=config.seed,
            start=self.step,
            stop=config.steps,
            workers=self.config.data.workers,
        )
        progress = Progress("train", config.steps, start=self.step)
        with _catch_signals(self._request_stop):
            while self.step < config.steps:
                waiting = time.monotonic()
                images, masks = next(batches)
                waited = time.monotonic() - waiting
                parts = self.train_step(images, masks)
                self.step += 1
                progress.update(self.step, wait=waited, images=len(images), **parts)
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self._log({"step": self.step, **parts, **progress.rates()})
                if last or (config.eval_every and self.step % config.eval_every == 0):
                    self._validate()
                if last or self.stop or self.step % config.save_every == 0:
                    self._save()
                if self.stop and not last:
                    raise SetrError(
                        f"stopped after step {self.step}; continue with "
                        f"`setr train {self.out} --resume`",
                        code=INTERRUPTED,
                    )
        progress.close()

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        """One optimiser step: forward, loss, backward, update."""
        config = self.config
        rate = learning_rate(config.optim, self.step, config.train.steps)
        set_lr(self.optimizer, rate)
        self.model.train()
        images, masks = images.to(self.device), masks.to(self.device)
        if config.train.loss_norm == "valid":
            normalizer = count_weight(masks, self.weight)
        else:
            normalizer = torch.tensor(float(masks.numel()), device=self.device)
        totals: dict[str, float] = {}
        for part, target in zip(
            images.chunk(config.train.accumulate), masks.chunk(config.train.accumulate), strict=True
        ):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model(normalize(part, self.info.mean, self.info.std), with_aux=True)
            losses = segmentation_loss(
                output,
                target,
                normalizer=normalizer,
                aux_weight=config.train.aux_weight,
                weight=self.weight,
                kind=config.train.loss,
            )
            losses["loss"].backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item()
        if not np.isfinite(totals["loss"]):
            raise SetrError(
                f"loss is {totals['loss']} at step {self.step + 1} with lr {rate:.3g}; lower "
                "--optim.lr, or set --train.precision fp32"
            )
        if config.optim.clip_grad:
            torch.nn.utils.clip_grad_norm_(trainable(self.model), config.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, self.step)
        return {**totals, "lr": rate}

    def finish(self) -> dict[str, Any]:
        """Write the best weights' figures; if asked, test them multi-scale first."""
        results = {"single_scale": self.figures}
        if self.config.eval.multi_scale:
            model, info = from_pretrained(self.out)
            model.to(self.device)
            protocol = dataclasses.replace(info.protocol, scales=MULTI_SCALES, flip=True)
            info = dataclasses.replace(info, protocol=protocol)
            results["multi_scale"] = evaluate_split(
                model, info, self.val, precision=self.config.train.precision, detailed=False
            )
        metrics = {
            **results,
            "recipe": self.config.recipe,
            "split": self.val.split,
            "seconds": self.seconds + time.monotonic() - self.began,
            "provenance": provenance(self.config.train.seed),
        }
        write_json(self.out / "metrics.json", metrics)
        return metrics

    def _validate(self) -> None:
        state = self.model.state_dict()
        if self.ema:
            kept = {k: v.clone() for k, v in state.items()}
            self.model.load_state_dict(self.ema.state)
        figures = evaluate_split(
            self.model,
            self.info,
            self.val,
            precision=self.config.train.precision,
            detailed=False,
        )
        score = figures["miou"] or 0.0
        self._log({"step": self.step, "val": figures})
        if not self.figures or score > (self.figures["miou"] or 0.0):
            self.figures = figures
            info = dataclasses.replace(
                self.info, metrics={"val mIoU": round(score, 4), "step": self.step}
            )
            save_pretrained(self.out, self.model, info)
        if self.ema:
            self.model.load_state_dict(kept)

    def _save(self) -> None:
        save_state(
            self.out / STATE,
            {
                "version": __version__,
                "step": self.step,
                "figures": self.figures,
                "seconds": self.seconds + time.monotonic() - self.began,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state if self.ema else None,
                "rng": torch.get_rng_state(),
                "classes": list(self.labels.classes),
            },
        )

    def _restore(self) -> None:
        state = load_state(self.out / STATE)
        if state["classes"] != list(self.labels.classes):
            raise SetrError(f"{self.out}: was trained on other classes than this data has")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SetrError(f"{self.out}: is a run of another model ({reason:.100})") from None
        if self.ema:
            self.ema.state = state["ema"]
        torch.set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.figures = state["figures"]

    def _log(self, line: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _request_stop(self) -> None:
        self.stop = True


def _build_model(config: Config, num_classes: int) -> SETR:
    settings = config.model
    model = create_model(
        settings.name,
        num_classes=num_classes,
        img_size=settings.img_size,
        encoder=settings.encoder,
        aux=settings.aux,
        channels=settings.channels,
        pos_interp=settings.pos_interp,
        prefix_tokens=settings.prefix_tokens,
        encoder_args={"drop_path_rate": settings.drop_path} if settings.drop_path else {},
    )
    if settings.pretrained:
        report = load_encoder(model, settings.pretrained)
        print(f"{settings.pretrained}: {report}", file=sys.stderr)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    model.encoder.freeze(settings.freeze)
    trained, total = parameter_counts(model)
    if trained < total:
        print(
            f"training {trained:,} of {total:,} parameters ({trained / total:.1%})", file=sys.stderr
        )
    return model


def _protocol(config: Config, labels: Labels) -> Protocol:
    own = Protocol(
        window=config.eval.window,
        stride=config.eval.stride,
        short_side=config.data.short_side,
        long_side=config.data.long_side,
    )
    if config.eval.protocol is None:
        return own
    return preset(config.eval.protocol, own=own, labels=labels, grid=config.data.crop_size)


def _augmentation(config: Config, pixels: np.ndarray) -> Augmentation:
    data = config.data
    return Augmentation(
        crop_size=data.crop_size,
        short_side=data.short_side,
        long_side=data.long_side,
        rare_crops=data.rare_class_crops,
        class_odds=rare_class_odds(pixels),
        scale_range=data.scale_range,
        flip=data.flip,
        photometric=data.photometric,
        max_class_share=data.max_class_share,
    )


class _catch_signals:  # noqa: N801  used as a function in `with`
    """Turn the first SIGINT or SIGTERM into a request; the next one acts as usual."""

    def __init__(self, request: Callable[[], None]) -> None:
        self.request = request
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: nobody sends signals there
                return

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
        self.__exit__(None, None, None)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
