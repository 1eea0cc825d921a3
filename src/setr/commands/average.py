"""`setr average MODEL MODEL… -o OUT`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from setr.commands.parsing import parse, require_unused
from setr.commands.shared import Models, Out
from setr.errors import OK
from setr.model_sources import sources_of


@dataclass(frozen=True)
class Arguments:
    """Average the weights of runs that started from the same pretrained weights (a model soup).

    The result costs what one of them costs and is often better than each, above all on data unlike
    the training set. Train the runs with the same --train.init-seed, so that their decoders started
    alike, too. Test it: runs that ended too far apart average to something worse.

    setr average 'runs/seed*' -o runs/mean
    """

    models: Models
    """Two or more model directories or Hub names, or a quoted pattern of folders; the first one's
    test protocol stays."""
    out: Out
    """Folder for the averaged model."""


def run(arguments: list[str]) -> int:
    """Write the averaged model and say how to test it."""
    given = parse(Arguments, arguments, "average")
    require_unused(given.out)
    from setr.hub import save_pretrained
    from setr.weight_files.averaging import average

    models = [one for source in given.models for one in sources_of(source)]
    model, info = average(models)
    command = shlex.join(["setr", "average", *models, "-o", str(given.out)])
    save_pretrained(given.out, model, replace(info, command=command))
    print(f"mean of {len(models)} models written to {given.out}; test it: "
          f"setr eval {shlex.quote(str(given.out))} DATA")  # fmt: skip
    return OK
