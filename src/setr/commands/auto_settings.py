"""The settings that `setr auto` chooses for a data set, a machine and a time, as typed words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from setr.commands.parsing import typed_options
from setr.commands.train import parsed
from setr.config import Config
from setr.processes.standard_streams import tell

_LENGTH = {"--train.steps", "--train.epochs"}


def has_length(settings: Sequence[str]) -> bool:
    """Whether the user gives the length of the training, in place of a time."""
    return bool(_LENGTH & typed_options(settings))


def chosen_settings(data: str, out: Path, settings: Sequence[str], *, minutes: float) -> list[str]:
    """The words after `setr train`: a recipe, the settings chosen here, and the user's.

    Args:
        data: the data set, as other commands take it.
        out: the run folder.
        settings: options of `setr train` with their values, which nothing here replaces.
        minutes: time for training and the tests during it.

    Raises:
        SetrError: settings that do not fit together, the data or the machine.
    """
    from setr.data.dataset import Dataset
    from setr.datasets import open_dataset
    from setr.distributed import device
    from setr.doctor import check
    from setr.estimate import with_chosen_batch
    from setr.training import plan
    from setr.training.build import build_empty, build_info, require_buildable
    from setr.training.normalisation import with_normalisation
    from setr.training.splits import trained_part
    from setr.training.timing import measure
    from setr.writing import require_writable

    typed = typed_options(settings)
    recipe = "finetune" if "--model.pretrained" in typed else "scratch"
    words = [recipe, "--data.root", data, "--out", str(out)]

    def choose(choices: plan.Choices) -> Config:
        for option, values in choices.items():
            positive = option.replace(".no-", ".")
            if not {f"--{option}", f"--{positive}"} & typed:
                words.extend([f"--{option}", *map(str, values)])
        return parsed([*words, *settings]).config

    def opened(split: str) -> Dataset:
        return open_dataset(data, split, config.data.labels)

    config = choose({})
    require_writable(out, "-o")
    require_buildable(config, weights=True)
    on = device(config.train.device)
    train = trained_part(opened(config.data.train_split), config.data.fraction)
    val = opened(config.data.val_split)
    sizes, tested = (plan.extent(check(split)) for split in (train, val))
    given_side = config.data.short_side if "--data.short-side" in typed else None
    patch = build_empty(config).encoder.patch_size
    config = choose(plan.scale_choices(recipe, sizes, on, patch=patch, short_side=given_side))
    if not given_side and (note := plan.shrinking(config, sizes, patch)):
        tell(f"\n{note}")
    if has_length(settings):
        return [*words, *settings]
    tell("\ntiming a few steps")
    config = with_normalisation(config, train)
    config = with_chosen_batch(config, len(train.labels.classes), len(train), on)
    timed = measure(config, train, on)
    before = plan.seconds_before(config, sizes, timed.image)
    protocol = build_info(config, train.labels, train.bands).protocol
    test = plan.seconds_per_test(protocol, config.data.crop_size, tested, timed.image)
    choices = plan.length_choices(
        config, sizes, minutes=minutes, step=timed.step, test=test, before=before
    )
    steps = choose(choices).train.steps
    first = f"the encoder's features take about {before:.2g} s, " if before else ""
    tell(
        f"{first}a step takes about {timed.step:.2g} s here and a test about {test:.2g} s: {steps} "
        f"steps, {(before + steps * timed.step) / 60:.1f} minutes"
    )
    return [*words, *settings]
